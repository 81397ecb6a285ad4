#include "program.h"

#include <algorithm>
#include <map>
#include <utility>

#include "admitted.h"
#include "failure.h"
#include "lowering.h"

namespace emq {
namespace {

// Of a kernel, stride, padding or dilation: small enough for products of two to fit an int.
constexpr int largest_side = 4096;
constexpr int64_t largest_request = int64_t{1} << 31;  // bytes of all tensors together

bool starts_open(const std::map<std::string, Constant> &constants, const std::string &name) {
    const auto found = constants.find(name);
    return found != constants.end() && found->second.open;
}

int side(int64_t number, int least) {
    if (number < least || number > largest_side) {
        throw Failure("the graph has a window of " + std::to_string(number) + ", allowed are " +
                      std::to_string(least) + ".." + std::to_string(largest_side));
    }
    return static_cast<int>(number);
}

}  // namespace

std::string without(const std::string &name, const std::string &ending) {
    if (name.size() <= ending.size() || name.compare(name.size() - ending.size(), ending.size(), ending) != 0) {
        throw Failure("the graph calls " + name + " what should end in " + ending);
    }
    return name.substr(0, name.size() - ending.size());
}

Program Lowering::run() {
    for (const Value &end : graph_.inputs) {
        const Port port = port_of(end);
        values_[end.name] = {Lowered::port, static_cast<int>(program_.inputs.size()), "", -1, false, !port.planes};
        program_.inputs.push_back(port);
    }
    for (const Node &node : graph_.nodes) visit(node);
    finish();
    return std::move(program_);
}

Port Lowering::port_of(const Value &end) {
    const auto side = [&](size_t index) {
        return static_cast<int>(std::min(std::max(end.shape[index], int64_t{0}), largest_tensor));
    };
    if (end.shape.size() == 4) return {{side(1), side(2), side(3)}, true, end.codes};
    if (end.shape.size() == 2) return {{side(1), 1, side(0)}, false, end.codes};
    throw Failure("the graph takes " + end.name + " in a shape that is neither planes nor rows");
}

void Lowering::visit(const Node &node) {
    const std::string &operation = node.operation;
    for (const std::string &name : node.inputs) check_known(node, name);
    if (operation == "Shape") return note_sizes(node);
    if (operation == "DequantizeLinear" && starts_open(graph_.constants, node.input(0))) {
        const std::string &name = node.inputs[0];
        const bool weight = name.size() > 7 && name.compare(name.size() - 7, 7, ".weight") == 0;
        const std::string layer = without(name, weight ? ".weight" : ".bias");
        values_[node.outputs[0]] = {Lowered::parameter, -1, layer, -1, false, false};
        return;
    }
    std::vector<Lowered> inputs;
    for (const std::string &name : node.inputs) {
        const auto found = values_.find(name);
        if (found != values_.end()) inputs.push_back(found->second);
        unread_.erase(name);
    }
    // Arithmetic on sizes is not followed.
    if (inputs.empty()) return note_sizes(node);
    check_admitted(node);
    if (operation == "Split") return split(node, inputs[0]);
    Lowered value = lowered(node, std::move(inputs));
    if (value.form == Lowered::codes && node.outputs[0] == value.site + "/codes") value = shown(node, value);
    values_[node.outputs[0]] = value;
    // What has a step of its own is found by that.
    if (operation == "Concat" || operation == "AveragePool") unread_[node.outputs[0]] = node.name;
}

void Lowering::note_sizes(const Node &node) { sizes_.insert(node.outputs.begin(), node.outputs.end()); }

void Lowering::check_known(const Node &node, const std::string &name) const {
    if (name.empty() || values_.count(name) + graph_.constants.count(name) + sizes_.count(name) > 0) return;
    throw Failure("operator " + node.operation + " (" + node.name + ") reads " + name + ", which nothing makes");
}

Step &Lowering::maker(int tensor) {
    for (Step &step : program_.steps) {
        if (step.output == tensor) return step;
    }
    throw Failure("the graph reads a tensor that nothing makes");
}

Lowered Lowering::lowered(const Node &node, std::vector<Lowered> inputs) {
    const std::string &operation = node.operation;
    const Lowered &first = inputs[0];
    const bool all_quantized = std::all_of(inputs.begin(), inputs.end(), [](const Lowered &value) {
        return value.form == Lowered::quantized || value.form == Lowered::parameter;
    });
    if (operation == "QuantizeLinear") return quantize(node, first);
    if (operation == "DequantizeLinear" && first.form == Lowered::port) return take(node, first);
    if (operation == "DequantizeLinear" && first.form == Lowered::codes) {
        if (node.input(1) != first.site + ".scale") refuse(node);
        Lowered value = first;
        value.form = Lowered::quantized;
        return value;
    }
    if (operation == "Identity") return first;
    if (operation == "Reshape" && first.rows != 0) return unfolded(node, first);
    if (operation == "Transpose" && first.rows != 0) return shuffled(node, first);
    for (Lowered &value : inputs) {
        if (value.rows != 0) refuse(node);
    }
    if (operation == "Concat") return joined(node, inputs);
    if (operation == "Slice") return sliced(node, first);
    if (operation == "Pad") return padded(node, first);
    if (operation == "Reshape" && constant(node, 1).size() == 5) return folded(node, first);
    const bool parts = inputs.size() == 1 && first.form == Lowered::quantized && !first.channels.empty();
    if (operation == "GlobalAveragePool" && parts && !on_one_grid(first)) return mean_of_parts(node, first);
    for (Lowered &value : inputs) value = solid(node, value);
    if (operation == "Clip" && first.form == Lowered::codes) return clip(node, first);
    // Moves of values take codes as well as codes with their grid.
    if (first.form == Lowered::codes || first.form == Lowered::quantized) {
        if (operation == "MaxPool") return maximum(node, first);
        if (flattens(node, first)) return {first.form, first.tensor, first.site, -1, !first.tokens, first.tokens};
        if (operation == "Reshape") return unfolded(node, first);
    }
    // An input that is not followed here is a number of the graph's own.
    const bool followed = inputs.size() == node.inputs.size();
    if (!all_quantized || !followed || first.form != Lowered::quantized) refuse(node);
    if (operation == "Conv") return convolution(node, inputs);
    if (operation == "Gemm") return linear(node, inputs);
    if (operation == "Add" && inputs.size() == 2) return pending(node, Kind::add, Lowered::sum, inputs);
    if (operation == "GlobalAveragePool") return pending(node, Kind::mean, Lowered::mean, inputs);
    if (operation == "AveragePool") return average(node, first);
    refuse(node);
}

void Lowering::refuse_size() {
    throw Failure("the graph has a tensor of more than " + std::to_string(largest_tensor >> 20) +
                  " MB; run this network in onnxruntime");
}

bool Lowering::flattens(const Node &node, const Lowered &value) const {
    if (node.operation == "Flatten") return node.number("axis", 1) == 1;
    if (node.operation != "Reshape" && node.operation != "Squeeze") return false;
    if (node.operation == "Squeeze") return true;
    const std::vector<int64_t> &shape = constant(node, 1);
    if (shape.size() != 2 || value.tokens) return shape.size() == 2;
    const int64_t rows = shape[0], all = static_cast<int64_t>(tensor(value.tensor).shape.values());
    const bool one_row = rows == 1 || rows == -1 || (rows == 0 && node.number("allowzero", 0) == 0);
    return one_row && (shape[1] == all || (shape[1] == -1 && rows != -1));
}

const std::vector<int64_t> &Lowering::constant(const Node &node, size_t input) const {
    static const std::vector<int64_t> none;
    const auto found = graph_.constants.find(node.input(input));
    return found == graph_.constants.end() ? none : found->second.integers;
}

int Lowering::add_tensor(Shape shape) {
    int64_t values = 1;
    for (const int number : {shape.channels, shape.height, shape.width}) {
        if (number < 1) throw Failure("the graph has a tensor without values");
        if (number > largest_tensor / values) refuse_size();
        values *= number;
    }
    program_.tensors.push_back({shape, 0, 0});
    return static_cast<int>(program_.tensors.size()) - 1;
}

void Lowering::read(int tensor, int border) {
    Tensor &one = program_.tensors.at(static_cast<size_t>(tensor));
    one.border = std::max(one.border, border);
    one.readers++;
}

Step &Lowering::add_step(const Node &node, Kind kind, const std::vector<Lowered> &inputs) {
    Step step;
    step.kind = kind;
    step.name = node.name;
    for (const Lowered &value : inputs) {
        if (value.form == Lowered::parameter) continue;
        step.inputs.push_back(value.tensor);
        step.input_sites.push_back(value.site);
    }
    program_.steps.push_back(std::move(step));
    return program_.steps.back();
}

Lowered Lowering::pending(const Node &node, Kind kind, Lowered::Form form, const std::vector<Lowered> &inputs) {
    for (const Lowered &value : inputs) {
        if ((value.flat || value.tokens) && form != Lowered::sum) refuse(node);
        if (value.tokens != inputs[0].tokens) refuse(node);
        read(value.tensor, 0);
    }
    add_step(node, kind, inputs);
    return {form, -1, "", last_step(), false, inputs[0].tokens};
}

Lowered Lowering::convolution(const Node &node, const std::vector<Lowered> &inputs) {
    if (inputs.size() != 3 || inputs[0].tokens) refuse(node);
    const std::vector<int64_t> &kernel = node.numbers("kernel_shape"), &pads = node.numbers("pads"),
                               &strides = node.numbers("strides"), &dilations = node.numbers("dilations");
    if (kernel.size() != 2 || pads.size() != 4 || strides.size() != 2 || dilations.size() != 2) refuse(node);
    Step &step = add_step(node, Kind::layer, inputs);
    step.name = inputs[1].site;
    step.geometry = {side(kernel[0], 1),    side(kernel[1], 1),    side(strides[0], 1), side(strides[1], 1),
                     side(pads[0], 0),      side(pads[1], 0),      side(pads[2], 0),    side(pads[3], 0),
                     side(dilations[0], 1), side(dilations[1], 1), side(node.number("group", 1), 1)};
    read(inputs[0].tensor, static_cast<int>(*std::max_element(pads.begin(), pads.end())));
    return {Lowered::accumulated, -1, "", last_step(), false, false};
}

Lowered Lowering::linear(const Node &node, const std::vector<Lowered> &inputs) {
    if (inputs.size() != 3 || node.number("transB", 0) != 1) refuse(node);
    Step &step = add_step(node, Kind::layer, inputs);
    step.name = inputs[1].site;
    step.flat = !inputs[0].tokens;
    read(inputs[0].tensor, 0);
    return {Lowered::accumulated, -1, "", last_step(), false, inputs[0].tokens};
}

// How far a last window that is not whole reaches beyond the padding: such a window counts if it starts before that.
static int until_last_window(int size, int before, int behind, int kernel, int stride) {
    const int room = size + before + behind - kernel, beyond = room < 0 ? 0 : (stride - room % stride) % stride;
    return room + beyond < size + before ? beyond : 0;
}

void Lowering::set_windows(const Node &node, const Lowered &input, Step &step) const {
    const std::vector<int64_t> &kernel = node.numbers("kernel_shape"), &pads = node.numbers("pads"),
                               &strides = node.numbers("strides");
    if (kernel.size() != 2 || input.flat || input.tokens) refuse(node);
    for (const int64_t dilation : node.numbers("dilations")) {
        if (dilation != 1) refuse(node);
    }
    // What is not there is its least value: strides of 1, no padding.
    const auto at = [](const std::vector<int64_t> &numbers, size_t index, int least) {
        return index < numbers.size() ? side(numbers[index], least) : least;
    };
    Geometry g = {side(kernel[0], 1), side(kernel[1], 1), at(strides, 0, 1), at(strides, 1, 1),
                  at(pads, 0, 0),     at(pads, 1, 0),     at(pads, 2, 0),    at(pads, 3, 0),
                  1,                  1,                  1};
    if (node.number("count_include_pad", 0) != 0) {
        step.counted_top = g.top;
        step.counted_left = g.left;
        step.counted_bottom = g.bottom;
        step.counted_right = g.right;
    }
    if (node.number("ceil_mode", 0) != 0) {
        const Shape in = tensor(input.tensor).shape;
        g.bottom += until_last_window(in.height, g.top, g.bottom, g.kernel_height, g.stride_height);
        g.right += until_last_window(in.width, g.left, g.right, g.kernel_width, g.stride_width);
    }
    step.geometry = g;
}

Lowered Lowering::maximum(const Node &node, const Lowered &input) {
    Step windows;
    set_windows(node, input, windows);
    return spread(node, input, windows.geometry);
}

// The maximum of each of some windows; of one value each, a choice of them.
Lowered Lowering::spread(const Node &node, const Lowered &input, Geometry windows) {
    Step &step = add_step(node, Kind::maximum, {input});
    step.geometry = windows;
    step.site = input.site;
    const int index = last_step();
    read(input.tensor, 0);
    const Shape shape = output_shape(program_.steps.back(), tensor(input.tensor).shape.channels);
    program_.steps[static_cast<size_t>(index)].output = add_tensor(shape);
    return {input.form, program_.steps[static_cast<size_t>(index)].output, input.site, -1, false, false};
}

Lowered Lowering::average(const Node &node, const Lowered &input) {
    Step step;
    step.kind = Kind::average;
    step.name = node.name;
    step.inputs = {input.tensor};
    step.input_sites = {input.site};
    set_windows(node, input, step);
    const std::vector<int64_t> &kernel = node.numbers("kernel_shape"), &pads = node.numbers("pads");
    // A window that lies in the padding has nothing to average.
    for (size_t i = 0; i < pads.size(); i++) {
        if (pads[i] >= kernel[i % 2]) refuse(node);
    }
    averages_.push_back(std::move(step));
    return {Lowered::average, static_cast<int>(averages_.size()) - 1, "", -1, false, false};
}

int Lowering::add_average(int index) {
    program_.steps.push_back(averages_.at(static_cast<size_t>(index)));
    read(program_.steps.back().inputs[0], 0);
    return last_step();
}

Shape Lowering::output_shape(const Step &step, int channels) const {
    if (step.kind == Kind::quantize) return program_.inputs[static_cast<size_t>(step.port)].shape;
    const Shape in = tensor(step.inputs[0]).shape;
    switch (step.kind) {
        case Kind::add: return in;
        case Kind::mean:
        case Kind::join: {
            int total = 0;
            for (const Run &run : step.runs) total += run.count;
            if (step.kind == Kind::mean) return {step.runs.empty() ? in.channels : total, 1, 1};
            return {total, in.height + step.geometry.top + step.geometry.bottom,
                    in.width + step.geometry.left + step.geometry.right};
        }
        case Kind::average: channels = in.channels; break;
        default: break;
    }
    if (step.flat) return {channels, 1, 1};
    const Geometry &g = step.geometry;
    const auto sides = [](int size, int before, int after, int kernel, int dilation, int stride) {
        const int room = size + before + after - ((kernel - 1) * dilation + 1);
        return room < 0 ? 0 : room / stride + 1;
    };
    return {channels, sides(in.height, g.top, g.bottom, g.kernel_height, g.dilation_height, g.stride_height),
            sides(in.width, g.left, g.right, g.kernel_width, g.dilation_width, g.stride_width)};
}

void Lowering::finish() {
    int64_t total = 0;
    for (const Tensor &one : program_.tensors) {
        const int64_t rows = int64_t{one.shape.height} + 2 * int64_t{one.border};
        const int64_t columns = int64_t{one.shape.width} + 2 * int64_t{one.border};
        if (rows * columns > largest_tensor / one.stride()) refuse_size();
        total += rows * columns * one.stride();
    }
    if (total > largest_request) {
        throw Failure("the graph's tensors take more than " + std::to_string(largest_request >> 20) +
                      " MB; run this network in onnxruntime");
    }
    for (const Value &end : graph_.outputs) finish_output(end);
    for (const Value &end : graph_.outputs) unread_.erase(end.name);
    for (const auto &unread : unread_) refuse_unread(unread.second);
    for (const Step &step : program_.steps) {
        if (step.output < 0 && step.port < 0) refuse_unread(step.name);
    }
}

void Lowering::refuse_unread(const std::string &name) {
    throw Failure("the graph computes " + name + " for nothing; run this network in onnxruntime");
}

void Lowering::finish_output(const Value &end) {
    const auto found = values_.find(end.name);
    if (found == values_.end()) throw Failure("the graph has no output");
    const Lowered &value = found->second;
    const int port = static_cast<int>(program_.outputs.size());
    const bool planes = end.shape.size() == 4 || value.flat;
    if (value.form == Lowered::accumulated) {
        Step &layer = program_.steps.at(static_cast<size_t>(value.step));
        if (layer.output >= 0 || layer.port >= 0) throw Failure("the graph answers " + layer.name + " twice");
        layer.port = port;
        program_.outputs.push_back({output_shape(layer, layers_.outputs(layer.name)), planes, false});
        return;
    }
    if ((value.form != Lowered::quantized && value.form != Lowered::codes) || !value.channels.empty()) {
        throw Failure("the graph ends in an operator without an integer kernel; run this network in onnxruntime");
    }
    Step step;
    step.kind = value.form == Lowered::codes ? Kind::give : Kind::answer;
    step.inputs = {value.tensor};
    step.input_sites = {value.site};
    step.port = port;
    program_.steps.push_back(step);
    program_.outputs.push_back({tensor(value.tensor).shape, planes, value.form == Lowered::codes});
    read(value.tensor, 0);
}

int Program::zero_point(const std::string &site) const {
    for (const auto &known : zero_points) {
        if (known.first == site) return known.second;
    }
    throw Failure("the graph has no zero point for " + site);
}

Program lower(const Graph &graph, const LayerShapes &layers) {
    return Lowering(graph, layers).run();
}

}  // namespace emq
