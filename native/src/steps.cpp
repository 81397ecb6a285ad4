// What the steps of a program compute.
#include <algorithm>
#include <array>
#include <cmath>

#include "network.h"

namespace emq {
namespace {

// Multiplications below which a step is not worth sharing among threads.
constexpr int64_t shared_work = 60000;
constexpr int parts_per_thread = 3;
constexpr int few_positions = 200;

size_t at(int index) { return static_cast<size_t>(index); }

// Visits the values of a tensor in the order in which a port has them, in runs: their place in the port, where one lies
// behind the other, and in the tensor, the bytes from one to the next, and how many they are.
template <typename Visit>
void in_order(const Port &port, const Tensor &tensor, const Visit &visit) {
    const Shape &shape = port.shape;
    const auto pixel = [&](int y, int x) { return at((tensor.first() + y * tensor.row() + x) * tensor.stride()); };
    size_t next = 0;
    for (int c = 0; port.planes && c < shape.channels; c++) {
        for (int y = 0; y < shape.height; y++, next += at(shape.width)) {
            visit(next, pixel(y, 0) + at(c), tensor.stride(), shape.width);
        }
    }
    for (int x = 0; !port.planes && x < shape.width; x++, next += at(shape.channels)) {
        visit(next, pixel(0, x), 1, shape.channels);
    }
}

// Calls work(i, byte) for a run; steps of one by themselves, since those are what a compiler makes vectors of.
template <typename Work>
void each_of(int step, int count, const Work &work) {
    if (step == 1) {
        for (int i = 0; i < count; i++) work(i, i);
    } else {
        for (int i = 0; i < count; i++) work(i, i * step);
    }
}

// Runs work(y) for every row, by several threads where there are enough values in all rows together.
template <typename Work>
void every_row(Workers &workers, int rows, int64_t values, const Work &work) {
    const int parts = values < shared_work ? 1 : std::min(rows, workers.threads());
    workers.run(parts, [&](int part) {
        for (int y = rows * part / parts; y < rows * (part + 1) / parts; y++) work(y);
    });
}

int8_t rounded(float value, float low, float high) {
    return static_cast<int8_t>(std::nearbyint(std::min(std::max(value, low), high)));
}

}  // namespace

void Network::run_layer(const Bound &bound, int child, float *values, Workspace &work, Workers &workers) {
    const Layer &layer = *bound.layer;
    LayerData data{};
    data.input = work.tensors[at(bound.step.inputs[0])].data();
    data.output = bound.step.output < 0 ? nullptr : work.tensors[at(bound.step.output)].data();
    data.answer = data.output == nullptr ? values : nullptr;
    const int positions = layer.positions(), blocks = layer.blocks(), pixels = layer.pixels();
    const int64_t products = static_cast<int64_t>(positions) * layer.fan_in() * layer.outputs();
    // Parts with few positions would each read all weights for little work: there they share the channels, but for
    // groups, each of which is prepared where the one before was.
    const bool by_channels = positions < few_positions && blocks >= workers.threads() && !layer.grouped();
    // Where several threads can share a step, each takes several parts, so that one that is late holds up less.
    const int most = workers.threads() == 1 || products < shared_work ? 1 : workers.threads() * parts_per_thread;
    const int parts = std::min(by_channels ? blocks : positions, most);
    const auto share = [&](int items, int part) {
        const auto edge = [&](int of) { return static_cast<int>(static_cast<int64_t>(items) * of / parts); };
        return Range{edge(part), edge(part + 1)};
    };
    int most_pixels = by_channels ? pixels : 0;
    for (int part = 0; part < parts && !by_channels; part++) {
        const Range some = layer.pixels_of(share(positions, part));
        most_pixels = std::max(most_pixels, some.to - some.from);
    }
    const size_t prepared = layer.prepared_bytes(child, most_pixels), panel = layer.panel_bytes(child);
    const size_t wanted = (by_channels ? prepared : at(parts) * prepared) + at(parts) * panel;
    if (work.scratch.size() < wanted) work.scratch = Array<uint8_t>(wanted);
    if (work.totals.size() < at(positions)) work.totals = Array<int32_t>(at(positions));
    uint8_t *const panels = work.scratch.data() + wanted - at(parts) * panel;
    data.totals = work.totals.data();
    data.prepared = work.scratch.data();
    data.pixels = {0, pixels};
    if (by_channels) {
        layer.prepare(child, data, data.pixels);
        layer.sum(child, data, {0, positions});
    }
    workers.run(parts, [&](int part) {
        LayerData own = data;
        own.panel = panels + at(part) * panel;
        if (by_channels) {
            layer.run(child, own, {0, positions}, share(blocks, part));
            return;
        }
        // Each part prepares what it needs in memory of its own: what another thread wrote would have to travel.
        const Range some = share(positions, part);
        own.prepared = data.prepared + at(part) * prepared;
        own.pixels = layer.pixels_of(some);
        layer.prepare(child, own, own.pixels);
        layer.sum(child, own, some);
        layer.run(child, own, some, {0, blocks});
    });
}

void Network::quantize(const Bound &bound, int child, const float *image, Workspace &work, Workers &workers) {
    const Tensor &tensor = program_.tensors[at(bound.step.output)];
    const Port &port = program_.inputs[at(bound.step.port)];
    int8_t *output = work.tensors[at(bound.step.output)].data();
    const Grid grid = bounds(bound, child);
    const Shape &shape = tensor.shape;
    QuantizeCall all{};
    all.scale = grid.scale;
    // Bounds of the values in front become the same bounds of the codes: division and rounding keep the order.
    all.low = static_cast<float>(grid.low);
    all.high = static_cast<float>(grid.high);
    // Along what lies together in the port: rows of planes, or the channels of one pixel after the other.
    all.channels = port.planes ? shape.channels : 1;
    all.width = port.planes ? shape.width : shape.channels;
    all.stride = port.planes ? tensor.stride() : 1;
    all.apart = static_cast<ptrdiff_t>(shape.height) * shape.width;
    every_row(workers, shape.height, static_cast<int64_t>(shape.values()), [&](int y) {
        QuantizeCall call = all;
        int8_t *row = output + (tensor.first() + y * tensor.row()) * tensor.stride();
        for (int x = 0; x < (port.planes ? 1 : shape.width); x++) {
            call.input = image + (port.planes ? int64_t{y} * shape.width : int64_t{x} * shape.channels);
            call.output = row + x * tensor.stride();
            kernels_.quantize(call);
        }
    });
}

void Network::take(const Bound &bound, int child, const uint8_t *codes, Workspace &work) {
    const Tensor &tensor = program_.tensors[at(bound.step.output)];
    int8_t *output = work.tensors[at(bound.step.output)].data();
    const Grid grid = bounds(bound, child);
    const int zero = bound.output->zero_point;
    in_order(program_.inputs[at(bound.step.port)], tensor, [&](size_t place, size_t byte, int step, int count) {
        const uint8_t *from = codes + place;
        int8_t *to = output + byte;
        each_of(step, count, [=](int i, int b) {
            to[b] = static_cast<int8_t>(std::min(std::max(from[i] - zero, grid.low), grid.high));
        });
    });
}

void Network::add(const Bound &bound, int child, Workspace &work, Workers &workers) {
    const Tensor &out = program_.tensors[at(bound.step.output)], &a = program_.tensors[at(bound.step.inputs[0])],
                 &b = program_.tensors[at(bound.step.inputs[1])];
    const Site &site_a = *bound.inputs[0], &site_b = *bound.inputs[1];
    const float scale = bound.output->children[at(child)].scale;
    AddCall all{};
    all.ratio_a = site_a.children[at(child)].scale / scale;
    all.ratio_b = site_b.children[at(child)].scale / scale;
    all.zero_a = site_a.zero_point;
    all.zero_b = site_b.zero_point;
    all.zero = bound.output->zero_point;
    // One product fused and the rest rounded one by one, as the reference does it.
    const float zeros = std::fma(all.ratio_a, static_cast<float>(all.zero_a), all.ratio_b * static_cast<float>(all.zero_b));
    all.fixed = static_cast<float>(all.zero) - zeros;
    const Grid grid = bounds(bound, child);
    all.low = static_cast<float>(grid.low + all.zero);
    all.high = static_cast<float>(grid.high + all.zero);
    all.count = at(out.shape.width) * at(out.stride());
    every_row(workers, out.shape.height, static_cast<int64_t>(out.shape.values()), [&](int y) {
        AddCall call = all;
        call.a = work.tensors[at(bound.step.inputs[0])].data() + (a.first() + y * a.row()) * a.stride();
        call.b = work.tensors[at(bound.step.inputs[1])].data() + (b.first() + y * b.row()) * b.stride();
        call.output = work.tensors[at(bound.step.output)].data() + (out.first() + y * out.row()) * out.stride();
        kernels_.add(call);
    });
}

void Network::maximum(const Bound &bound, Workspace &work, Workers &workers) {
    const Tensor &in = program_.tensors[at(bound.step.inputs[0])], &out = program_.tensors[at(bound.step.output)];
    const int8_t *input = work.tensors[at(bound.step.inputs[0])].data();
    int8_t *output = work.tensors[at(bound.step.output)].data();
    const Geometry &g = bound.step.geometry;
    MaximumCall all{};
    all.channels = in.shape.channels;
    all.output_step = out.stride();
    all.input_step = in.stride() * g.stride_width;
    const int last_x = (out.shape.width - 1) * g.stride_width - g.left;
    every_row(workers, out.shape.height, static_cast<int64_t>(in.shape.values()), [&](int y) {
        MaximumCall call = all;
        int8_t *row = output + (out.first() + y * out.row()) * out.stride();
        for (int x = 0; x < out.shape.width; x++) std::fill_n(row + x * out.stride(), call.channels, int8_t{-128});
        // Only what of the windows lies in the input, however large they are.
        const int first_y = y * g.stride_height - g.top, end_y = std::min(first_y + g.kernel_height, in.shape.height);
        for (int from_y = std::max(0, first_y); from_y < end_y; from_y++) {
            const int8_t *line = input + (in.first() + from_y * in.row()) * in.stride();
            const int end_tap = std::min(g.kernel_width, in.shape.width + g.left);
            for (int tap = std::max(0, -last_x); tap < end_tap; tap++) {
                // Windows whose pixel of this tap lies in the line.
                const int offset = tap - g.left;
                const int first = offset >= 0 ? 0 : (-offset + g.stride_width - 1) / g.stride_width;
                const int end = std::min(out.shape.width, (in.shape.width - 1 - offset) / g.stride_width + 1);
                call.pixels = end - first;
                call.input = line + (first * g.stride_width + offset) * in.stride();
                call.output = row + first * out.stride();
                kernels_.maximum(call);
            }
        }
    });
}

// As the reference and onnxruntime do it: sums of float32 in the order of the window, divided by how many count.
void Network::average(const Bound &bound, int child, Workspace &work, Workers &workers) {
    const Tensor &in = program_.tensors[at(bound.step.inputs[0])], &out = program_.tensors[at(bound.step.output)];
    const int8_t *input = work.tensors[at(bound.step.inputs[0])].data();
    int8_t *output = work.tensors[at(bound.step.output)].data();
    const Step &step = bound.step;
    const Geometry &g = step.geometry;
    const Grid grid = bounds(bound, child);
    const float scale = bound.inputs[0]->children[at(child)].scale;
    const float low = static_cast<float>(grid.low), high = static_cast<float>(grid.high);
    const size_t channels = at(in.shape.channels);
    const int64_t values = static_cast<int64_t>(out.shape.values()) * g.kernel_height * g.kernel_width;
    // Where of a window both the places `from` to `to` of an axis and its own lie.
    const auto inside = [](int start, int kernel, int from, int to) {
        return Range{std::max(start, from), std::min(start + kernel, to)};
    };
    every_row(workers, out.shape.height, values, [&](int y) {
        std::vector<float> sums(channels);
        const int first_y = y * g.stride_height - g.top;
        const Range rows = inside(first_y, g.kernel_height, 0, in.shape.height),
                    counted_rows = inside(first_y, g.kernel_height, -step.counted_top,
                                          in.shape.height + step.counted_bottom);
        for (int x = 0; x < out.shape.width; x++) {
            const int first_x = x * g.stride_width - g.left;
            const Range columns = inside(first_x, g.kernel_width, 0, in.shape.width),
                        counted_columns = inside(first_x, g.kernel_width, -step.counted_left,
                                                 in.shape.width + step.counted_right);
            std::fill(sums.begin(), sums.end(), 0.0f);
            for (int from_y = rows.from; from_y < rows.to; from_y++) {
                const int8_t *pixel = input + (in.first() + from_y * in.row() + columns.from) * in.stride();
                for (int from_x = columns.from; from_x < columns.to; from_x++, pixel += in.stride()) {
                    for (size_t c = 0; c < channels; c++) sums[c] += static_cast<float>(pixel[c]) * scale;
                }
            }
            const int many = (counted_rows.to - counted_rows.from) * (counted_columns.to - counted_columns.from);
            const float count = static_cast<float>(many);
            int8_t *to = output + (out.first() + y * out.row() + x) * out.stride();
            for (size_t c = 0; c < channels; c++) to[c] = rounded(sums[c] / count / grid.scale, low, high);
        }
    });
}

void Network::mean(const Bound &bound, int child, Workspace &work) {
    const Tensor &out = program_.tensors[at(bound.step.output)];
    int8_t *output = work.tensors[at(bound.step.output)].data() + out.first() * out.stride();
    const Grid grid = bounds(bound, child);
    const std::vector<Run> whole = {{0, 0, out.shape.channels}};
    for (const Run &run : bound.step.runs.empty() ? whole : bound.step.runs) {
        const int index = bound.step.inputs[at(run.input)];
        const Tensor &in = program_.tensors[at(index)];
        const int8_t *input = work.tensors[at(index)].data() + run.from;
        std::vector<int32_t> sums(at(run.count));
        for (int y = 0; y < in.shape.height; y++) {
            for (int x = 0; x < in.shape.width; x++) {
                kernels_.accumulate(sums.data(), input + (in.first() + y * in.row() + x) * in.stride(), sums.size());
            }
        }
        const float area = static_cast<float>(in.shape.height * in.shape.width);
        const float step = grid.scale * area;
        const float scale = bound.inputs[at(run.input)]->children[at(child)].scale / step;
        for (int c = 0; c < run.count; c++, output++) {
            *output = rounded(static_cast<float>(sums[at(c)]) * scale, static_cast<float>(grid.low),
                              static_cast<float>(grid.high));
        }
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
        first += run.count;
        if (run.input < 0) continue;  // zeros, which every tensor begins with
        const int index = bound.step.inputs[at(run.input)];
        const Tensor &in = program_.tensors[at(index)];
        const int8_t *table = tables[at(run.input)].data() + 128;
        for (int y = 0; y < in.shape.height; y++) {
            const int8_t *from = work.tensors[at(index)].data() + (in.first() + y * in.row()) * in.stride() + run.from;
            int8_t *to = work.tensors[at(bound.step.output)].data() + first - run.count;
            to += (out.first() + (y + bound.step.geometry.top) * out.row() + bound.step.geometry.left) * out.stride();
            for (int x = 0; x < in.shape.width; x++, from += in.stride(), to += out.stride()) {
                for (int c = 0; c < run.count; c++) to[c] = table[from[c]];
            }
        }
    }
}

void Network::answer(const Bound &bound, int child, const Workspace &work, float *values) const {
    const int8_t *codes = work.tensors[at(bound.step.inputs[0])].data();
    const float scale = bound.inputs[0]->children[at(child)].scale;
    in_order(program_.outputs[at(bound.step.port)], program_.tensors[at(bound.step.inputs[0])],
             [&](size_t place, size_t byte, int step, int count) {
                 float *to = values + place;
                 const int8_t *from = codes + byte;
                 each_of(step, count, [=](int i, int b) { to[i] = static_cast<float>(from[b]) * scale; });
             });
}

void Network::give(const Bound &bound, const Workspace &work, uint8_t *codes) const {
    const int8_t *centred = work.tensors[at(bound.step.inputs[0])].data();
    const int zero = bound.inputs[0]->zero_point;
    in_order(program_.outputs[at(bound.step.port)], program_.tensors[at(bound.step.inputs[0])],
             [&](size_t place, size_t byte, int step, int count) {
                 uint8_t *to = codes + place;
                 const int8_t *from = centred + byte;
                 each_of(step, count, [=](int i, int b) { to[i] = static_cast<uint8_t>(from[b] + zero); });
             });
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
