// A network at all its children: the program, the layers, and working memory for each request.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "emq.h"
#include "layer.h"
#include "memory.h"
#include "pool.h"
#include "program.h"

namespace emq {

// What a request hands in and where its answers go, per port of the program.
struct Ends {
    std::vector<const void *> inputs;
    std::vector<void *> outputs;
};

class Network {
  public:
    // Of a source without classes, a part of a network, the graph says what goes in and out.
    Network(const emq_source &source, const Kernels &kernels);
    ~Network();
    Network(const Network &) = delete;
    Network &operator=(const Network &) = delete;

    const std::vector<std::string> &children() const { return children_; }
    // The index of a child; throws `Failure` with those that there are.
    int child(const std::string &name) const;
    size_t bytes() const;
    const Layer *find(const std::string &layer) const;
    const std::vector<Port> &inputs() const { return program_.inputs; }
    const std::vector<Port> &outputs() const { return program_.outputs; }
    void run(int child, const float *images, int64_t count, float *logits, emq_watch watch, void *context);
    // With the threads of somebody else.
    void run(int child, Ends ends, int64_t count, Workers &workers);

  private:
    // A site at a child: the value of one step and the bounds of its codes.
    struct Grid {
        float scale;
        int low, high;
    };
    struct Site {
        std::string name;
        int zero_point;
        std::vector<Grid> children;
    };
    // A step with everything found that it names.
    struct Bound {
        Step step;
        std::vector<const Site *> inputs;
        const Site *output = nullptr, *clamp = nullptr;
        Layer *layer = nullptr;
    };
    // What one request computes in: every tensor with its border of zeros, which nothing ever overwrites.
    struct Workspace {
        std::vector<Array<int8_t>> tensors;
        Array<uint8_t> scratch;
        Array<int32_t> totals;
    };

    // What requests share: threads, and workspaces that none of them uses.
    struct Crew {
        explicit Crew(int threads);
        Pool pool;
        std::mutex mutex;
        std::vector<std::unique_ptr<Workspace>> idle;
        const int forks;  // of this process when it was made
    };

    Crew &crew();
    void bind(const emq_source &source, Tuning &tuning);
    const Site &site(const std::string &name) const;
    Grid bounds(const Bound &bound, int child) const;
    void check(const Bound &bound, int child) const;
    std::unique_ptr<Workspace> borrow(Crew &crew);
    static void give_back(Crew &crew, std::unique_ptr<Workspace> work);
    void run_images(int child, Ends &ends, int64_t count, Workspace &work, Workers &workers, emq_watch watch,
                    void *context);
    void run_image(int child, const Ends &ends, Workspace &work, Workers &workers, emq_watch watch, void *context);
    void run_layer(const Bound &bound, int child, float *values, Workspace &work, Workers &workers);
    void quantize(const Bound &bound, int child, const float *image, Workspace &work, Workers &workers);
    void take(const Bound &bound, int child, const uint8_t *codes, Workspace &work);
    void add(const Bound &bound, int child, Workspace &work, Workers &workers);
    void maximum(const Bound &bound, Workspace &work, Workers &workers);
    void average(const Bound &bound, int child, Workspace &work, Workers &workers);
    void mean(const Bound &bound, int child, Workspace &work);
    void join(const Bound &bound, int child, Workspace &work);
    void answer(const Bound &bound, int child, const Workspace &work, float *values) const;
    void give(const Bound &bound, const Workspace &work, uint8_t *codes) const;
    void show(const Bound &bound, const Workspace &work, emq_watch watch, void *context) const;

    const Kernels &kernels_;
    std::vector<std::string> children_;
    std::vector<Site> sites_;
    Program program_;
    std::vector<Bound> steps_;
    std::vector<std::unique_ptr<Layer>> layers_;
    const int threads_;
    std::atomic<Crew *> crew_;
};

}  // namespace emq
