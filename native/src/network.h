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

class Network {
  public:
    Network(const emq_source &source, const Kernels &kernels);
    ~Network();
    Network(const Network &) = delete;
    Network &operator=(const Network &) = delete;

    const std::vector<std::string> &children() const { return children_; }
    // The index of a child; throws `Failure` with those that there are.
    int child(const std::string &name) const;
    size_t bytes() const;
    const Layer *find(const std::string &layer) const;
    void run(int child, const float *images, int64_t count, float *logits, emq_watch watch, void *context);

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
        Array<int32_t> sums;
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
    void bind(const emq_source &source);
    const Site &site(const std::string &name) const;
    Grid bounds(const Bound &bound, int child) const;
    void check(const Bound &bound, int child) const;
    std::unique_ptr<Workspace> borrow(Crew &crew);
    void run_image(int child, const float *image, float *logits, Workspace &work, Pool &pool, emq_watch watch,
                   void *context);
    void run_layer(const Bound &bound, int child, Workspace &work, Pool &pool, float *logits);
    void quantize(const Bound &bound, int child, const float *image, Workspace &work);
    void add(const Bound &bound, int child, Workspace &work);
    void maximum(const Bound &bound, Workspace &work);
    void mean(const Bound &bound, int child, Workspace &work);
    void join(const Bound &bound, int child, Workspace &work);
    void answer(const Bound &bound, int child, const Workspace &work, float *logits) const;
    void show(const Bound &bound, const Workspace &work, emq_watch watch, void *context) const;

    const Kernels &kernels_;
    Shape image_;
    int classes_;
    std::vector<std::string> children_;
    std::vector<Site> sites_;
    Program program_;
    std::vector<Bound> steps_;
    std::vector<std::unique_ptr<Layer>> layers_;
    size_t scratch_bytes_ = 0, sums_count_ = 0;
    const int threads_;
    std::atomic<Crew *> crew_;
};

}  // namespace emq
