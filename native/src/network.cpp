#include "network.h"

#include <pthread.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <thread>

#include "failure.h"

namespace emq {
namespace {

// Multiplications below which a step is not worth sharing among threads.
constexpr int64_t shared_work = 60000;
constexpr int chunks_per_thread = 3;
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

// Visits the values of a tensor in the order in which a port has them: place in the port, byte of the tensor.
template <typename Visit>
void in_order(const Port &port, const Tensor &tensor, Visit &&visit) {
    const Shape &shape = port.shape;
    size_t next = 0;
    const auto pixel = [&](int y, int x) { return at((tensor.first() + y * tensor.row() + x) * tensor.stride()); };
    for (int c = 0; port.planes && c < shape.channels; c++) {
        for (int y = 0; y < shape.height; y++) {
            for (int x = 0; x < shape.width; x++) visit(next++, pixel(y, x) + at(c));
        }
    }
    for (int x = 0; !port.planes && x < shape.width; x++) {
        for (int c = 0; c < shape.channels; c++) visit(next++, pixel(0, x) + at(c));
    }
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

int8_t rounded(float value, float low, float high) {
    return static_cast<int8_t>(std::nearbyint(std::min(std::max(value, low), high)));
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
    bind(source);
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

void Network::bind(const emq_source &source) {
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
        if (output == nullptr) {
            const size_t values = at(bound.layer->positions()) * at(bound.layer->outputs());
            answer_count_ = std::max(answer_count_, values);
        }
        for (int child = 0; child < children; child++) {
            const Site &from = *bound.inputs[0];
            const Grid in = from.children[at(child)];
            const Grid out = bound.output == nullptr ? Grid{1, 0, 0} : bounds(bound, child);
            bound.layer->set_grids(child, in.scale, out.scale, std::min(0, in.low - from.zero_point),
                                   in.high - from.zero_point, static_cast<float>(out.low),
                                   static_cast<float>(out.high));
        }
        bound.layer->tune();
        scratch_bytes_ = std::max(scratch_bytes_, bound.layer->scratch_bytes());
        sums_count_ = std::max(sums_count_, bound.layer->sums_count());
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
    work->scratch = Array<uint8_t>(scratch_bytes_);
    work->sums = Array<int32_t>(sums_count_);
    work->answer = Array<float>(answer_count_);
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
            case Kind::quantize: quantize(bound, child, static_cast<const float *>(in), work); break;
            case Kind::take: take(bound, child, static_cast<const uint8_t *>(in), work); break;
            case Kind::layer: run_layer(bound, child, static_cast<float *>(out), work, workers); break;
            case Kind::add: add(bound, child, work); break;
            case Kind::maximum: maximum(bound, work); break;
            case Kind::mean: mean(bound, child, work); break;
            case Kind::join: join(bound, child, work); break;
            case Kind::answer: answer(bound, child, work, static_cast<float *>(out)); break;
            case Kind::give: give(bound, work, static_cast<uint8_t *>(out)); break;
        }
        if (watch != nullptr && bound.step.shown) show(bound, work, watch, context);
    }
}

void Network::run_layer(const Bound &bound, int child, float *values, Workspace &work, Workers &workers) {
    const Layer &layer = *bound.layer;
    const int8_t *input = work.tensors[at(bound.step.inputs[0])].data();
    int8_t *output = bound.step.output < 0 ? nullptr : work.tensors[at(bound.step.output)].data();
    const bool planes = output == nullptr && program_.outputs[at(bound.step.port)].planes;
    const int channels = layer.outputs() / layer.groups(), positions = layer.positions();
    // One channel a group or one position are in the order of planes as they come.
    const bool in_place = planes ? channels == 1 || positions == 1 : layer.groups() == 1 || positions == 1;
    float *answer = output != nullptr ? nullptr : in_place ? values : work.answer.data();
    const auto shared = [&](int items, int64_t work_items, const auto &part) {
        const int chunks = work_items < shared_work ? 1 : std::min(items, workers.threads() * chunks_per_thread);
        workers.run(chunks, [&](int chunk) {
            const auto edge = [&](int index) { return static_cast<int>(static_cast<int64_t>(items) * index / chunks); };
            part(edge(chunk), edge(chunk + 1));
        });
    };
    shared(layer.pixels(), layer.pixels() * int64_t{16},
           [&](int from, int to) { layer.prepare(child, input, work.scratch.data(), work.sums.data(), from, to); });
    const int64_t products = static_cast<int64_t>(layer.positions()) * layer.fan_in() * layer.outputs();
    // Groups prepare and compute in turns with one scratch, so one thread does them.
    shared(layer.grouped() ? 1 : layer.positions(), products, [&](int from, int to) {
        const int end = layer.grouped() ? layer.positions() : to;
        layer.run(child, input, output, answer, work.scratch.data(), work.sums.data(), from, end);
    });
    if (output != nullptr || in_place) return;
    // Group behind group, position by position, to planes; or, of several groups, to rows.
    for (int n = 0; n < layer.outputs(); n++) {
        const float *from = answer + at(n / channels * channels) * at(positions) + n % channels;
        float *to = values + (planes ? at(n) * at(positions) : at(n));
        const size_t step = planes ? 1 : at(layer.outputs());
        for (int p = 0; p < positions; p++) to[at(p) * step] = from[at(p) * at(channels)];
    }
}

void Network::quantize(const Bound &bound, int child, const float *image, Workspace &work) {
    const Tensor &tensor = program_.tensors[at(bound.step.output)];
    const Port &port = program_.inputs[at(bound.step.port)];
    int8_t *output = work.tensors[at(bound.step.output)].data();
    const Grid grid = bounds(bound, child);
    // Along what lies together in the port: a line of a plane, or a row of channels.
    const int length = port.planes ? tensor.shape.width : tensor.shape.channels;
    const int stride = port.planes ? tensor.stride() : 1;
    std::vector<float> kept(bound.clamp == nullptr ? 0 : at(length));
    const float low = static_cast<float>(grid.low) * grid.scale, high = static_cast<float>(grid.high) * grid.scale;
    const auto line = [&](int8_t *to, const float *from) {
        if (bound.clamp != nullptr) {
            for (int x = 0; x < length; x++) kept[at(x)] = from[x] > low ? std::min(from[x], high) : low;
            from = kept.data();
        }
        kernels_.quantize(to, stride, from, length, grid.scale, bound.output->zero_point);
    };
    const Shape &shape = tensor.shape;
    for (int y = 0; y < shape.height; y++) {
        int8_t *row = output + (tensor.first() + y * tensor.row()) * tensor.stride();
        for (int c = 0; port.planes && c < shape.channels; c++) {
            line(row + c, image + (static_cast<int64_t>(c) * shape.height + y) * shape.width);
        }
        for (int x = 0; !port.planes && x < shape.width; x++) {
            line(row + x * tensor.stride(), image + static_cast<int64_t>(x) * shape.channels);
        }
    }
}

void Network::take(const Bound &bound, int child, const uint8_t *codes, Workspace &work) {
    const Tensor &tensor = program_.tensors[at(bound.step.output)];
    int8_t *output = work.tensors[at(bound.step.output)].data();
    const Grid grid = bounds(bound, child);
    in_order(program_.inputs[at(bound.step.port)], tensor, [&](size_t place, size_t byte) {
        const int code = codes[place] - bound.output->zero_point;
        output[byte] = static_cast<int8_t>(std::min(std::max(code, grid.low), grid.high));
    });
}

void Network::add(const Bound &bound, int child, Workspace &work) {
    const Tensor &out = program_.tensors[at(bound.step.output)], &a = program_.tensors[at(bound.step.inputs[0])],
                 &b = program_.tensors[at(bound.step.inputs[1])];
    const Site &site_a = *bound.inputs[0], &site_b = *bound.inputs[1];
    const float scale = bound.output->children[at(child)].scale;
    AddCall call{};
    call.ratio_a = site_a.children[at(child)].scale / scale;
    call.ratio_b = site_b.children[at(child)].scale / scale;
    call.zero_a = site_a.zero_point;
    call.zero_b = site_b.zero_point;
    call.zero = bound.output->zero_point;
    // Each product and sum rounded by itself, as the reference does it.
    const float zeros_a = call.ratio_a * static_cast<float>(call.zero_a);
    const float zeros_b = call.ratio_b * static_cast<float>(call.zero_b);
    const float zeros = zeros_a + zeros_b;
    call.fixed = static_cast<float>(call.zero) - zeros;
    const Grid grid = bounds(bound, child);
    call.low = static_cast<float>(grid.low + call.zero);
    call.high = static_cast<float>(grid.high + call.zero);
    call.count = at(out.shape.width) * at(out.stride());
    for (int y = 0; y < out.shape.height; y++) {
        call.a = work.tensors[at(bound.step.inputs[0])].data() + (a.first() + y * a.row()) * a.stride();
        call.b = work.tensors[at(bound.step.inputs[1])].data() + (b.first() + y * b.row()) * b.stride();
        call.output = work.tensors[at(bound.step.output)].data() + (out.first() + y * out.row()) * out.stride();
        kernels_.add(call);
    }
}

void Network::maximum(const Bound &bound, Workspace &work) {
    const Tensor &in = program_.tensors[at(bound.step.inputs[0])], &out = program_.tensors[at(bound.step.output)];
    const int8_t *input = work.tensors[at(bound.step.inputs[0])].data();
    int8_t *output = work.tensors[at(bound.step.output)].data();
    const Geometry &g = bound.step.geometry;
    const size_t channels = at(in.shape.channels);
    for (int y = 0; y < out.shape.height; y++) {
        for (int x = 0; x < out.shape.width; x++) {
            int8_t *pixel = output + (out.first() + y * out.row() + x) * out.stride();
            std::fill_n(pixel, channels, int8_t{-128});
            // Only what of the window lies in the input, however large the window is.
            const int first_y = y * g.stride_height - g.top, first_x = x * g.stride_width - g.left;
            const int end_y = std::min(first_y + g.kernel_height, in.shape.height);
            const int end_x = std::min(first_x + g.kernel_width, in.shape.width);
            for (int from_y = std::max(0, first_y); from_y < end_y; from_y++) {
                for (int from_x = std::max(0, first_x); from_x < end_x; from_x++) {
                    kernels_.maximum(pixel, input + (in.first() + from_y * in.row() + from_x) * in.stride(), channels);
                }
            }
        }
    }
}

void Network::mean(const Bound &bound, int child, Workspace &work) {
    const Tensor &in = program_.tensors[at(bound.step.inputs[0])], &out = program_.tensors[at(bound.step.output)];
    const int8_t *input = work.tensors[at(bound.step.inputs[0])].data();
    int8_t *output = work.tensors[at(bound.step.output)].data() + out.first() * out.stride();
    std::vector<int32_t> sums(at(in.stride()));
    for (int y = 0; y < in.shape.height; y++) {
        for (int x = 0; x < in.shape.width; x++) {
            kernels_.accumulate(sums.data(), input + (in.first() + y * in.row() + x) * in.stride(), sums.size());
        }
    }
    const Grid grid = bounds(bound, child);
    const float area = static_cast<float>(in.shape.height * in.shape.width);
    const float step = grid.scale * area;
    const float scale = bound.inputs[0]->children[at(child)].scale / step;
    for (int c = 0; c < in.shape.channels; c++) {
        output[c] = rounded(static_cast<float>(sums[at(c)]) * scale, static_cast<float>(grid.low),
                            static_cast<float>(grid.high));
    }
}

void Network::join(const Bound &bound, int child, Workspace &work) {
    const Tensor &out = program_.tensors[at(bound.step.output)];
    const Grid grid = bounds(bound, child);
    std::vector<std::array<int8_t, 256>> tables(bound.inputs.size());
    for (size_t i = 0; i < tables.size(); i++) {
        const float step = bound.inputs[i]->children[at(child)].scale;
        for (int code = -128; code < 128; code++) {
            const float value = static_cast<float>(code) * step;
            tables[i][at(code + 128)] = rounded(std::nearbyint(value / grid.scale), static_cast<float>(grid.low),
                                                static_cast<float>(grid.high));
        }
    }
    int first = 0;
    for (const Run &run : bound.step.runs) {
        const int index = bound.step.inputs[at(run.input)];
        const Tensor &in = program_.tensors[at(index)];
        const int8_t *table = tables[at(run.input)].data() + 128;
        for (int y = 0; y < out.shape.height; y++) {
            const int8_t *from = work.tensors[at(index)].data() + (in.first() + y * in.row()) * in.stride() + run.from;
            int8_t *to = work.tensors[at(bound.step.output)].data() + first;
            to += (out.first() + y * out.row()) * out.stride();
            for (int x = 0; x < out.shape.width; x++, from += in.stride(), to += out.stride()) {
                for (int c = 0; c < run.count; c++) to[c] = table[from[c]];
            }
        }
        first += run.count;
    }
}

void Network::answer(const Bound &bound, int child, const Workspace &work, float *values) const {
    const int8_t *codes = work.tensors[at(bound.step.inputs[0])].data();
    const float scale = bound.inputs[0]->children[at(child)].scale;
    in_order(program_.outputs[at(bound.step.port)], program_.tensors[at(bound.step.inputs[0])],
             [&](size_t place, size_t byte) { values[place] = static_cast<float>(codes[byte]) * scale; });
}

void Network::give(const Bound &bound, const Workspace &work, uint8_t *codes) const {
    const int8_t *centred = work.tensors[at(bound.step.inputs[0])].data();
    const int zero = bound.inputs[0]->zero_point;
    in_order(program_.outputs[at(bound.step.port)], program_.tensors[at(bound.step.inputs[0])],
             [&](size_t place, size_t byte) { codes[place] = static_cast<uint8_t>(centred[byte] + zero); });
}

void Network::show(const Bound &bound, const Workspace &work, emq_watch watch, void *context) const {
    const Tensor &tensor = program_.tensors[at(bound.step.output)];
    const int8_t *codes = work.tensors[at(bound.step.output)].data();
    std::vector<uint8_t> shown(tensor.shape.values());
    size_t next = 0;
    for (int c = 0; c < tensor.shape.channels; c++) {
        for (int y = 0; y < tensor.shape.height; y++) {
            for (int x = 0; x < tensor.shape.width; x++) {
                const int code = codes[(tensor.first() + y * tensor.row() + x) * tensor.stride() + c];
                shown[next++] = static_cast<uint8_t>(code + bound.output->zero_point);
            }
        }
    }
    watch(context, bound.step.site.c_str(), shown.data(), tensor.shape.channels, tensor.shape.height,
          tensor.shape.width);
}

}  // namespace emq
