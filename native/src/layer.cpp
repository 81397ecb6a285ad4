#include "layer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <tuple>

#include "failure.h"

namespace emq {
namespace {

constexpr int master_bits = 8;
constexpr int tuning_rounds = 3;
constexpr int64_t most_weights = 1 << 16;  // of an output: sums of codes times activations stay in 32 bits

size_t count(int number) { return static_cast<size_t>(number); }
size_t aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

// Whether the environment variable EMQ_KERNEL, for tests and measurements, asks for a method by how its name begins.
bool is_asked_for(const LayerMethod &method) {
    const char *wanted = std::getenv("EMQ_KERNEL");
    return wanted != nullptr && *wanted != '\0' && std::strncmp(method.name, wanted, std::strlen(wanted)) == 0;
}

}  // namespace

Layer::Layer(const emq_layer &source, int children, const Step &step, const Tensor &input, const Tensor *output,
             const Kernels &kernels)
    : name_(source.name), kernels_(kernels) {
    place(source, step, input, output);
    depthwise_ = windows_.groups > 1 && windows_.group_inputs == 1 && windows_.group_outputs == 1;
    const size_t padded = padded_outputs() * count(windows_.groups);
    std::vector<Extremes> extremes;
    for (int64_t n = 0; n < source.outputs; n++) {
        const auto found = std::minmax_element(source.codes + n * fan_in(), source.codes + (n + 1) * fan_in());
        extremes.push_back({*found.first, *found.second});
    }
    for (int child = 0; child < children; child++) {
        const emq_layer_numbers &given = source.children[child];
        Numbers numbers;
        numbers.gain = Array<int32_t>(padded);
        numbers.shift = Array<int32_t>(padded);
        numbers.drop = Array<int32_t>(padded);
        numbers.bias = Array<int32_t>(padded);
        numbers.weight_scale = Array<float>(padded);
        numbers.scale = Array<float>(padded);
        numbers.mask = Array<uint8_t>(4 * padded);
        for (int n = 0; n < outputs(); n++) {
            const int group = n / windows_.group_outputs, inside = n % windows_.group_outputs;
            const size_t at = count(group) * padded_outputs() + count(inside);
            const int bits = given.bits[n];
            check_channel(extremes[count(n)], given, n);
            numbers.gain[at] = given.gain[n];
            numbers.shift[at] = given.shift[n];
            numbers.drop[at] = master_bits - bits;
            numbers.bias[at] = given.bias[n];
            numbers.weight_scale[at] = given.scale[n];
            std::fill_n(&numbers.mask[4 * at], 4, static_cast<uint8_t>(0xff << (master_bits - bits)));
            numbers.bits = std::max(numbers.bits, bits);
        }
        if (depthwise_) pack_depthwise(source, numbers);
        children_.push_back(std::move(numbers));
    }
    if (!depthwise_) pack(source);
}

// Throws for integer weights that leave int8, and for sums that may leave int32.
void Layer::check_channel(Extremes codes, const emq_layer_numbers &given, int n) const {
    const int bits = given.bits[n];
    if (bits < 1 || bits > master_bits) throw Failure("layer " + name_ + " has a channel of 0 bits");
    for (const int code : {codes.least, codes.most}) {
        const int64_t weight = int64_t{given.gain[n]} * (code >> (master_bits - bits)) + given.shift[n];
        if (weight < -128 || weight > 127) throw Failure("layer " + name_ + " has weights beyond int8");
    }
    constexpr int64_t product = 128 * 128;
    if (fan_in() > most_weights || fan_in() * product + std::abs(int64_t{given.bias[n]}) > INT32_MAX) {
        throw Failure("layer " + name_ + " has sums beyond int32; run this network in onnxruntime");
    }
}

size_t Layer::padded_outputs() const {
    return count((windows_.group_outputs + block_channels - 1) / block_channels * block_channels);
}

void Layer::place(const emq_layer &source, const Step &step, const Tensor &input, const Tensor *output) {
    Geometry g = step.geometry;
    const Shape in = input.shape;
    if (step.flat) {
        g.kernel_height = in.height;
        g.kernel_width = in.width;
    }
    if (in.channels % g.groups != 0) throw Failure("layer " + name_ + " has groups that do not divide");
    const int channels = in.channels / g.groups;
    const int64_t fan_in = int64_t{g.kernel_height} * g.kernel_width * channels;
    if (source.fan_in != fan_in || source.outputs % g.groups != 0) {
        throw Failure("layer " + name_ + " has other weights than its graph");
    }
    if (output == nullptr && g.groups > 1) {
        throw Failure("layer " + name_ + " answers in float and has groups; its kernels answer codes");
    }
    const int room_below = in.height + g.top + g.bottom - (g.kernel_height - 1) * g.dilation_height - 1;
    const int room_beside = in.width + g.left + g.right - (g.kernel_width - 1) * g.dilation_width - 1;
    if (room_below < 0 || room_beside < 0) throw Failure("layer " + name_ + " has windows larger than its input");
    const int rows = room_below / g.stride_height + 1, columns = room_beside / g.stride_width + 1;
    for (int y = 0; y < g.kernel_height; y++) {
        for (int x = 0; x < g.kernel_width; x++) {
            windows_.tap.push_back(y * g.dilation_height * input.row() + x * g.dilation_width);
        }
    }
    for (int y = 0; y < rows; y++) {
        for (int x = 0; x < columns; x++) {
            windows_.position.push_back((y * g.stride_height - g.top) * input.row() + x * g.stride_width - g.left +
                                        input.first());
            windows_.target.push_back(
                output == nullptr ? 0 : (y * output->row() + x + output->first()) * output->stride());
        }
    }
    const int depth = (channels + 3) / 4 * 4;
    const int run = depth == input.stride() && g.dilation_width == 1 ? g.kernel_width : 1;
    for (size_t t = 0; t < windows_.tap.size(); t += count(run)) windows_.run_tap.push_back(windows_.tap[t]);
    const int outputs = static_cast<int>(source.outputs) / g.groups;
    if (outputs < 1) throw Failure("layer " + name_ + " has no outputs");
    windows_.groups = g.groups;
    windows_.group_inputs = channels;
    windows_.group_outputs = outputs;
    windows_.window = {static_cast<int>(windows_.tap.size()),
                       channels,
                       depth,
                       outputs,
                       rows * columns,
                       windows_.tap.data(),
                       windows_.position.data(),
                       windows_.target.data(),
                       input.pixels(),
                       input.stride(),
                       g.groups == 1,
                       columns,
                       g.stride_width,
                       static_cast<int>(windows_.run_tap.size()),
                       run,
                       windows_.run_tap.data()};
}

void Layer::pack(const emq_layer &source) {
    const Window &w = windows_.window;
    const size_t bytes = master_bytes(w), taps = count(w.taps), steps = count(w.depth) / 4;
    codes_ = Array<uint8_t>(bytes * count(windows_.groups));
    for (int n = 0; n < outputs(); n++) {
        const int inside = n % windows_.group_outputs;
        const uint8_t *from = source.codes + n * fan_in();
        uint8_t *to = codes_.data() + bytes * count(n / windows_.group_outputs) + master_place(w, inside, 0, 0);
        const size_t apart = master_place(w, inside, 0, 4) - master_place(w, inside, 0, 0);
        for (size_t c = 0; c < count(w.channels); c++) {
            uint8_t *place = to + c / 4 * apart + c % 4;
            for (size_t t = 0; t < taps; t++, place += steps * apart) *place = *from++;
        }
    }
    for (const LayerMethod *const *method = kernels_.methods; *method != nullptr; method++) tables_.emplace_back(0);
}

void Layer::pack_tables(size_t index) {
    const LayerMethod &method = *kernels_.methods[index];
    const Window &w = windows_.window;
    const size_t size = method.table_bytes(w);
    if (size == 0 || tables_[index].size() > 0) return;
    tables_[index] = Array<uint8_t>(size * count(windows_.groups));
    for (int group = 0; group < windows_.groups; group++) {
        method.pack(w, codes_.data() + master_bytes(w) * count(group), tables_[index].data() + size * count(group));
    }
}

void Layer::pack_depthwise(const emq_layer &source, Numbers &numbers) const {
    const Window &w = windows_.window;
    const size_t channels = count(outputs());
    numbers.depthwise = Array<int8_t>(count(w.taps) * channels);
    Array<int32_t> bias(channels);
    Array<float> scale(channels);
    for (size_t n = 0; n < channels; n++) {
        const size_t at = n * padded_outputs();
        for (int t = 0; t < w.taps; t++) {
            const int code = source.codes[n * count(w.taps) + count(t)] >> numbers.drop[at];
            numbers.depthwise[count(t) * channels + n] =
                static_cast<int8_t>(numbers.gain[at] * code + numbers.shift[at]);
        }
        bias[n] = numbers.bias[at];
        scale[n] = numbers.weight_scale[at];
    }
    // One number per channel, without the gaps between groups.
    numbers.bias = std::move(bias);
    numbers.weight_scale = std::move(scale);
    numbers.scale = Array<float>(channels);
    for (Array<int32_t> *unused : {&numbers.gain, &numbers.shift, &numbers.drop}) *unused = Array<int32_t>();
    numbers.mask = Array<uint8_t>();
}

void Layer::set_grids(int child, float input_scale, float output_scale, int smallest, int largest, float low,
                      float high) {
    Numbers &numbers = children_[count(child)];
    for (size_t n = 0; n < numbers.scale.size(); n++) {
        // In this order, each product rounded: as the reference computes it.
        const float scale = input_scale * numbers.weight_scale[n];
        numbers.scale[n] = scale / output_scale;
        if (!std::isfinite(numbers.scale[n])) throw Failure("layer " + name_ + " has a scale that is no number");
    }
    numbers.smallest = smallest;
    numbers.largest = largest;
    numbers.low = low;
    numbers.high = high;
}

size_t Layer::bytes() const {
    size_t total = codes_.bytes();
    for (const Array<uint8_t> &table : tables_) total += table.bytes();
    for (const Numbers &numbers : children_) {
        total += 4 * numbers.gain.bytes() + numbers.weight_scale.bytes() + numbers.scale.bytes() +
                 numbers.mask.bytes() + numbers.depthwise.bytes();
    }
    return total;
}

size_t Layer::scratch_bytes(int child, int pixels) const {
    Window some = windows_.window;
    some.pixels = pixels;
    return aligned(depthwise_ ? 0 : method_of(child).scratch_bytes(some) + slack);
}

size_t Layer::prepared_bytes(int child, int pixels) const {
    return scratch_bytes(child, pixels) + aligned(count(pixels) * sizeof(int32_t));
}

size_t Layer::panel_bytes(int child) const {
    return aligned(depthwise_ ? depthwise_panel_bytes(windows_.window.taps) : method_of(child).panel_bytes(windows_.window));
}

Range Layer::pixels_of(Range positions) const {
    const Window &w = windows_.window;
    return {w.position[positions.from] + w.tap[0], w.position[positions.to - 1] + w.tap[w.taps - 1] + 1};
}

const LayerMethod &Layer::method_of(int child) const { return *kernels_.methods[children_[count(child)].method]; }

LayerCall Layer::call(int child, int group, const LayerData &data, Range blocks) const {
    const Numbers &numbers = children_[count(child)];
    const Window &w = windows_.window;
    const int skipped = blocks.from * block_channels;
    const size_t first = count(group) * padded_outputs() + count(skipped);
    const Array<uint8_t> &tables = tables_[numbers.method];
    Window before = w;  // the channels that are left out
    before.outputs = skipped;
    const size_t tables_before = tables.size() == 0 ? 0 : method_of(child).table_bytes(before);
    LayerCall call{};
    call.window = w;
    call.window.outputs = std::min(w.outputs, blocks.to * block_channels) - skipped;
    call.scaling = {numbers.gain.data() + first, numbers.shift.data() + first, numbers.drop.data() + first,
                    numbers.bias.data() + first, numbers.scale.data() + first, numbers.low,
                    numbers.high};
    call.codes = codes_.data() + master_bytes(w) * count(group) + master_bytes(before);
    call.mask = numbers.mask.data() + 4 * first;
    call.tables = tables.data() + tables.size() / count(windows_.groups) * count(group) + tables_before;
    call.bits = numbers.bits;
    call.smallest = numbers.smallest;
    call.largest = numbers.largest;
    call.input = data.input + group * windows_.group_inputs;
    call.output = data.output + group * windows_.group_outputs + skipped;
    call.answer = data.answer == nullptr ? nullptr : data.answer + group * windows_.group_outputs + skipped;
    call.answer_row = outputs();
    call.scratch = data.prepared;
    const size_t scratch = scratch_bytes(child, data.pixels.to - data.pixels.from);
    call.sums = reinterpret_cast<int32_t *>(data.prepared + scratch);
    call.panel = data.panel;
    call.totals = data.totals;
    call.origin = data.pixels.from;
    return call;
}

void Layer::prepare(int child, const LayerData &data, Range pixels) const {
    // What is prepared for one group would overwrite that of the one before: `run` does it where there are several.
    if (depthwise_ || windows_.groups > 1) return;
    method_of(child).prepare(call(child, 0, data, {0, blocks()}), pixels.from, pixels.to);
}

void Layer::sum(int child, const LayerData &data, Range positions) const {
    if (depthwise_ || windows_.groups > 1) return;
    kernels_.sum_positions(call(child, 0, data, {0, blocks()}), positions.from, positions.to);
}

void Layer::run(int child, const LayerData &data, Range positions, Range blocks) const {
    const Numbers &numbers = children_[count(child)];
    const Window &w = windows_.window;
    if (depthwise_) {
        const DepthwiseCall depthwise = {w.taps,           outputs(),
                                         w.stride,         w.tap,
                                         w.position,       w.target,
                                         numbers.depthwise.data(), numbers.bias.data(),
                                         numbers.scale.data(),     numbers.low,
                                         numbers.high,     data.input,
                                         data.output,
                                         data.panel};
        kernels_.depthwise(depthwise, positions.from, positions.to);
        return;
    }
    for (int group = 0; group < windows_.groups; group++) {
        const LayerCall one = call(child, group, data, blocks);
        if (windows_.groups > 1) {
            method_of(child).prepare(one, data.pixels.from, data.pixels.to);
            kernels_.sum_positions(one, positions.from, positions.to);
        }
        method_of(child).run(one, positions.from, positions.to);
    }
}

// What methods are timed with: made-up codes, and an answer in float, so that no tensor of the network is written.
struct Layer::Trial {
    Array<int8_t> input;
    Array<int32_t> totals;
    Array<float> answer;
};

void Layer::tune(Tuning &tuning) {
    if (depthwise_) return;
    Trial trial;
    std::map<std::tuple<int, int, int>, size_t> known;
    for (size_t child = 0; child < children_.size(); child++) {
        Numbers &numbers = children_[child];
        const auto key = std::make_tuple(numbers.bits, numbers.smallest, numbers.largest);
        const auto found = known.find(key);
        if (found != known.end()) {
            numbers.method = found->second;
            continue;
        }
        numbers.method = chosen(static_cast<int>(child), tuning, trial);
        pack_tables(numbers.method);
        known[key] = numbers.method;
    }
    // What only slower methods would read goes.
    for (size_t index = 0; index < tables_.size(); index++) {
        const auto uses = [&](const Numbers &numbers) { return numbers.method == index; };
        if (std::none_of(children_.begin(), children_.end(), uses)) tables_[index] = Array<uint8_t>(0);
    }
}

size_t Layer::chosen(int child, Tuning &tuning, Trial &trial) {
    const std::vector<size_t> able = able_methods(child);
    if (able.size() == 1) return able.front();
    const auto named = [&](const std::string &name) {
        return std::find_if(able.begin(), able.end(), [&](size_t index) { return name == kernels_.methods[index]->name; });
    };
    const auto asked = std::find_if(able.begin(), able.end(),
                                    [&](size_t index) { return is_asked_for(*kernels_.methods[index]); });
    if (asked != able.end()) return *asked;
    const std::string numbers = numbers_of(child, able);
    const auto known = named(tuning.find(numbers));
    if (known != able.end()) return *known;
    const size_t best = fastest(child, able, trial);
    tuning.note(numbers, kernels_.methods[best]->name);
    return best;
}

// Everything that decides how long a layer takes in each way.
std::string Layer::numbers_of(int child, const std::vector<size_t> &able) const {
    const Numbers &numbers = children_[count(child)];
    const Window &w = windows_.window;
    std::string text;
    for (const int one : {w.taps, w.channels, w.depth, w.outputs, w.positions, w.pixels, w.stride, w.columns, w.step,
                          w.runs, w.run, windows_.groups, numbers.bits, numbers.smallest, numbers.largest}) {
        text += std::to_string(one) + " ";
    }
    text += "of";
    for (const size_t index : able) text += " " + std::to_string(index);
    return text;
}

std::vector<size_t> Layer::able_methods(int child) {
    std::vector<size_t> able;
    for (size_t index = 0; kernels_.methods[index] != nullptr; index++) {
        children_[count(child)].method = index;
        if (kernels_.methods[index]->able(call(child, 0, LayerData{}, {0, blocks()}))) able.push_back(index);
    }
    return able;
}

size_t Layer::fastest(int child, const std::vector<size_t> &able, Trial &trial) {
    Numbers &numbers = children_[count(child)];
    const Window &w = windows_.window;
    if (trial.input.size() == 0) {
        trial.input = Array<int8_t>(count(w.pixels) * count(w.stride));
        trial.totals = Array<int32_t>(count(w.positions));
        trial.answer = Array<float>(count(w.positions) * count(outputs()));
    }
    const int codes = numbers.largest - numbers.smallest + 1;
    for (size_t i = 0; i < trial.input.size(); i++) {
        trial.input[i] = static_cast<int8_t>(numbers.smallest + static_cast<int>(i * 37 % 251) % codes);
    }
    double least = std::numeric_limits<double>::infinity();
    size_t best = able.front();
    for (const size_t index : able) {
        numbers.method = index;
        pack_tables(index);
        Array<uint8_t> prepared(prepared_bytes(child, w.pixels)), panel(panel_bytes(child));
        const LayerData data = {trial.input.data(), nullptr,        trial.answer.data(), trial.totals.data(),
                                prepared.data(),    {0, w.pixels}, panel.data()};
        for (int round = 0; round < tuning_rounds; round++) {
            const auto start = std::chrono::steady_clock::now();
            prepare(child, data, {0, w.pixels});
            sum(child, data, {0, w.positions});
            run(child, data, {0, w.positions}, {0, blocks()});
            const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
            if (taken.count() >= least) continue;
            least = taken.count();
            best = index;
        }
    }
    return best;
}

const char *Layer::method(int child) const {
    return depthwise_ ? "int8, depthwise" : kernels_.methods[children_[count(child)].method]->name;
}

}  // namespace emq
