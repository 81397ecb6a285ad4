#include "network.h"

#include <pthread.h>

#include <algorithm>
#include <set>
#include <thread>

#include "failure.h"

namespace emq {
namespace {

constexpr float largest_scale = 1e30f;  // also of one grid in steps of another: its products are numbers

size_t at(int index) { return static_cast<size_t>(index); }

class Shapes : public LayerShapes {
  public:
    explicit Shapes(const emq_source &source) : source_(source) {}
    int outputs(const std::string &layer) const override {
        for (int i = 0; i < source_.layer_count; i++) {
            if (layer == source_.layers[i].name) return static_cast<int>(source_.layers[i].outputs);
        }
        throw Failure("the graph has a layer " + layer + ", the numbers have none");
    }

  private:
    const emq_source &source_;
};

int threads_of(int wanted) {
    const int there = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
    return wanted > 0 ? std::min(wanted, 64) : there;
}

std::atomic<int> forked{0};

// How often this process was forked from one that had loaded the library.
int forks() {
    static const int registered = pthread_atfork(nullptr, nullptr, [] { forked++; });
    (void)registered;
    return forked;
}

// A graph of a whole network takes the image that it was made for, and answers one thing.
void check_image(const Graph &graph, const emq_source &source) {
    if (graph.inputs.size() != 1 || graph.outputs.size() != 1) {
        throw Failure("the graph has other than one input and one output");
    }
    const std::vector<int64_t> &shape = graph.inputs[0].shape;
    const bool fits = shape.size() == 4 && shape[1] == source.channels && shape[2] == source.height &&
                      shape[3] == source.width && !graph.inputs[0].codes;
    if (graph.inputs[0].name != "images" || graph.outputs[0].name != "logits" || !fits) {
        throw Failure("the graph takes or gives something else than the network");
    }
}

// What the graph leaves open is what the source has.
void check_open(const Graph &graph, const emq_source &source) {
    std::set<std::string> given;
    for (int i = 0; i < source.layer_count; i++) {
        const std::string layer = source.layers[i].name;
        for (const char *of : {".weight", ".weight_scale", ".bias", ".bias_scale"}) given.insert(layer + of);
    }
    for (int i = 0; i < source.site_count; i++) {
        const std::string site = source.sites[i].name;
        for (const char *of : {".scale", ".low", ".high"}) given.insert(site + of);
    }
    for (const auto &constant : graph.constants) {
        if (constant.second.open && given.count(constant.first) == 0) {
            throw Failure("the graph would read " + constant.first + " from another file");
        }
    }
}

}  // namespace

Network::Network(const emq_source &source, const Kernels &kernels)
    : kernels_(kernels),
      threads_(threads_of(source.threads)),
      crew_(nullptr) {
    for (int child = 0; child < source.child_count; child++) children_.emplace_back(source.child_names[child]);
    const Shapes shapes(source);
    const Graph graph = read_graph({source.graph, source.graph_size});
    const bool whole = source.classes > 0;
    if (whole) check_image(graph, source);
    program_ = lower(graph, shapes);
    if (whole) check_open(graph, source);
    if (whole && (program_.outputs[0].codes || program_.outputs[0].shape.values() != at(source.classes))) {
        throw Failure("the graph answers with another shape than its classes");
    }
    for (int i = 0; i < source.site_count; i++) {
        const emq_site &given = source.sites[i];
        Site one{given.name, program_.zero_point(given.name), {}};
        for (size_t child = 0; child < children_.size(); child++) {
            const Grid grid{given.scales[child], given.lows[child], given.highs[child]};
            const bool good = grid.scale > 0 && grid.scale <= largest_scale && one.zero_point >= 0 &&
                              one.zero_point <= 255 && grid.low >= 0 && grid.low <= grid.high && grid.high <= 255;
            if (!good) throw Failure("tensor " + one.name + " has a scale or codes that no kernel computes with");
            one.children.push_back(grid);
        }
        sites_.push_back(std::move(one));
    }
    Tuning tuning(kernels_);
    bind(source, tuning);
    tuning.save();
    crew_ = new Crew(threads_);
}

Network::~Network() {
    // In a forked child the threads of its parent are not there: to wait for them would be to wait for ever.
    Crew *crew = crew_;
    if (crew->forks == forks()) delete crew;
}

Network::Crew::Crew(int threads) : pool(threads), forks(emq::forks()) {}

// A forked child gets a crew of its own; that of its parent, whose locks may be closed, is left behind.
Network::Crew &Network::crew() {
    Crew *crew = crew_;
    if (crew->forks == forks()) return *crew;
    auto fresh = std::make_unique<Crew>(threads_);
    return crew_.compare_exchange_strong(crew, fresh.get()) ? *fresh.release() : *crew;
}

const Network::Site &Network::site(const std::string &name) const {
    for (const Site &one : sites_) {
        if (one.name == name) return one;
    }
    throw Failure("the graph has a tensor " + name + ", the numbers have none");
}

// Centred bounds of a step's output at a child.
Network::Grid Network::bounds(const Bound &bound, int child) const {
    const int zero = bound.output->zero_point;
    const Grid &grid = bound.output->children[at(child)];
    if (bound.clamp == nullptr) return {grid.scale, -zero, 255 - zero};
    const Grid &clamp = bound.clamp->children[at(child)];
    return {grid.scale, clamp.low - zero, clamp.high - zero};
}

// Throws for codes that leave a byte, or what a kernel was promised of them, and for grids too far apart.
void Network::check(const Bound &bound, int child) const {
    const std::string name = "tensor " + bound.output->name + " at child " + children_[at(child)];
    const Grid grid = bounds(bound, child), own = bound.output->children[at(child)];
    const int zero = bound.output->zero_point;
    if (grid.low < -128 || grid.high > 127) {
        throw Failure(name + " has all levels of a byte (--levels full), for which there are no kernels here; run this"
                             " network in onnxruntime");
    }
    if (grid.low > grid.high || grid.low + zero < own.low || grid.high + zero > own.high) {
        throw Failure("the graph does not keep " + name + " to its codes");
    }
    for (const Site *input : bound.inputs) {
        if (!(input->children[at(child)].scale / grid.scale <= largest_scale)) {
            throw Failure(name + " has a step too small for what it is made of");
        }
    }
}

void Network::bind(const emq_source &source, Tuning &tuning) {
    const int children = static_cast<int>(children_.size());
    for (const Step &step : program_.steps) {
        Bound bound;
        bound.step = step;
        for (const std::string &name : step.input_sites) bound.inputs.push_back(&site(name));
        if (!step.site.empty()) bound.output = &site(step.site);
        if (!step.clamp.empty()) bound.clamp = &site(step.clamp);
        if (step.kind == Kind::take) bound.clamp = bound.output;
        // A maximum keeps the bounds that its input has.
        const bool checked = bound.output != nullptr && step.kind != Kind::maximum;
        for (int child = 0; checked && child < children; child++) check(bound, child);
        steps_.push_back(std::move(bound));
    }
    for (Bound &bound : steps_) {
        if (bound.step.kind != Kind::layer) continue;
        const emq_layer *given = nullptr;
        for (int i = 0; i < source.layer_count; i++) {
            if (bound.step.name == source.layers[i].name) given = &source.layers[i];
        }
        if (given == nullptr) throw Failure("the graph has a layer " + bound.step.name + ", the numbers have none");
        const Tensor &input = program_.tensors[at(bound.step.inputs[0])];
        const Tensor *output = bound.step.output < 0 ? nullptr : &program_.tensors[at(bound.step.output)];
        layers_.push_back(std::make_unique<Layer>(*given, children, bound.step, input, output, kernels_));
        bound.layer = layers_.back().get();
        if (output == nullptr && program_.outputs[at(bound.step.port)].planes && bound.layer->positions() > 1) {
            throw Failure("layer " + bound.step.name + " answers planes in float; its kernels answer rows");
        }
        for (int child = 0; child < children; child++) {
            const Site &from = *bound.inputs[0];
            const Grid in = from.children[at(child)];
            const Grid out = bound.output == nullptr ? Grid{1, 0, 0} : bounds(bound, child);
            bound.layer->set_grids(child, in.scale, out.scale, std::min(0, in.low - from.zero_point),
                                   in.high - from.zero_point, static_cast<float>(out.low),
                                   static_cast<float>(out.high));
        }
        bound.layer->tune(tuning);
    }
}

int Network::child(const std::string &name) const {
    std::string names;
    for (const std::string &one : children_) {
        if (one == name) return static_cast<int>(&one - children_.data());
        names += (names.empty() ? "" : ", ") + one;
    }
    throw Failure("there is no child '" + name + "'; name one of: " + names);
}

size_t Network::bytes() const {
    size_t total = 0;
    for (const auto &layer : layers_) total += layer->bytes();
    return total;
}

const Layer *Network::find(const std::string &layer) const {
    for (const auto &one : layers_) {
        if (one->name() == layer) return one.get();
    }
    return nullptr;
}

std::unique_ptr<Network::Workspace> Network::borrow(Crew &crew) {
    {
        const std::lock_guard<std::mutex> lock(crew.mutex);
        if (!crew.idle.empty()) {
            std::unique_ptr<Workspace> work = std::move(crew.idle.back());
            crew.idle.pop_back();
            return work;
        }
    }
    auto work = std::make_unique<Workspace>();
    for (const Tensor &tensor : program_.tensors) {
        work->tensors.emplace_back(at(tensor.pixels()) * at(tensor.stride()));
    }
    return work;
}

void Network::run(int child, const float *images, int64_t count, float *logits, emq_watch watch, void *context) {
    Crew &mine = crew();
    Ends ends{{images}, {logits}};
    std::unique_ptr<Workspace> work = borrow(mine);
    run_images(child, ends, count, *work, mine.pool, watch, context);
    give_back(mine, std::move(work));
}

void Network::run(int child, Ends ends, int64_t count, Workers &workers) {
    Crew &mine = crew();
    std::unique_ptr<Workspace> work = borrow(mine);
    run_images(child, ends, count, *work, workers, nullptr, nullptr);
    give_back(mine, std::move(work));
}

void Network::give_back(Crew &crew, std::unique_ptr<Workspace> work) {
    const std::lock_guard<std::mutex> lock(crew.mutex);
    crew.idle.push_back(std::move(work));
}

void Network::run_images(int child, Ends &ends, int64_t count, Workspace &work, Workers &workers, emq_watch watch,
                         void *context) {
    for (int64_t i = 0; i < count; i++) {
        run_image(child, ends, work, workers, watch, context);
        for (size_t p = 0; p < ends.inputs.size(); p++) {
            ends.inputs[p] = static_cast<const uint8_t *>(ends.inputs[p]) + program_.inputs[p].bytes();
        }
        for (size_t p = 0; p < ends.outputs.size(); p++) {
            ends.outputs[p] = static_cast<uint8_t *>(ends.outputs[p]) + program_.outputs[p].bytes();
        }
    }
}

void Network::run_image(int child, const Ends &ends, Workspace &work, Workers &workers, emq_watch watch,
                        void *context) {
    for (const Bound &bound : steps_) {
        const size_t port = at(bound.step.port);  // beyond all where the step has none
        const void *in = port < ends.inputs.size() ? ends.inputs[port] : nullptr;
        void *out = port < ends.outputs.size() ? ends.outputs[port] : nullptr;
        switch (bound.step.kind) {
            case Kind::quantize: quantize(bound, child, static_cast<const float *>(in), work, workers); break;
            case Kind::take: take(bound, child, static_cast<const uint8_t *>(in), work); break;
            case Kind::layer: run_layer(bound, child, static_cast<float *>(out), work, workers); break;
            case Kind::add: add(bound, child, work, workers); break;
            case Kind::maximum: maximum(bound, work, workers); break;
            case Kind::average: average(bound, child, work, workers); break;
            case Kind::mean: mean(bound, child, work); break;
            case Kind::join: join(bound, child, work); break;
            case Kind::answer: answer(bound, child, work, static_cast<float *>(out)); break;
            case Kind::give: give(bound, work, static_cast<uint8_t *>(out)); break;
        }
        if (watch != nullptr && bound.step.shown) show(bound, work, watch, context);
    }
}

}  // namespace emq
