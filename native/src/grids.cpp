// Quantizers: they give the steps before them their grids.
#include <utility>

#include "admitted.h"
#include "failure.h"
#include "lowering.h"

namespace emq {

Lowered Lowering::quantize(const Node &node, const Lowered &input) {
    const std::string site = without(node.input(1), ".scale");
    note_zero_point(site, node.input(2));
    int index = input.step;
    switch (input.form) {
        case Lowered::port:
            index = add_reader(node, Kind::quantize, input.tensor, false);
            break;
        case Lowered::quantized:
            if (on_one_grid(input) && input.site == site) {
                Lowered same = solid(node, input);
                same.form = Lowered::codes;
                return same;
            }
            if (input.flat) refuse(node);
            add_join(node, gridded(channels_of(input), site));
            index = last_step();
            break;
        case Lowered::average: index = add_average(input.tensor); break;
        case Lowered::accumulated:
        case Lowered::sum:
        case Lowered::mean: break;
        default: refuse(node);
    }
    Step &step = program_.steps.at(static_cast<size_t>(index));
    if (step.output >= 0) throw Failure("the graph quantizes " + step.name + " twice");
    const Shape shape = output_shape(step, step.kind == Kind::layer ? layers_.outputs(step.name) : 0);
    if (step.kind == Kind::add || step.kind == Kind::join) check_alike(step);
    const int made = add_tensor(shape);
    step.output = made;
    step.site = site;
    return {Lowered::codes, made, site, -1, input.form == Lowered::accumulated && step.flat, input.tokens};
}

int Lowering::add_reader(const Node &node, Kind kind, int port, bool codes) {
    if (program_.inputs[static_cast<size_t>(port)].codes != codes) refuse(node);
    add_step(node, kind, {}).port = port;
    return last_step();
}

// Codes that were made outside of the graph.
Lowered Lowering::take(const Node &node, const Lowered &input) {
    const std::string site = without(node.input(1), ".scale");
    note_zero_point(site, node.input(2));
    const int index = add_reader(node, Kind::take, input.tensor, true);
    const int made = add_tensor(program_.inputs[static_cast<size_t>(input.tensor)].shape);
    program_.steps[static_cast<size_t>(index)].output = made;
    program_.steps[static_cast<size_t>(index)].site = site;
    return {Lowered::quantized, made, site, -1, false, input.tokens};
}

void Lowering::check_alike(const Step &step) const {
    const Shape first = tensor(step.inputs[0]).shape;
    for (const int input : step.inputs) {
        const Shape other = tensor(input).shape;
        const bool channels = step.kind == Kind::join || other.channels == first.channels;
        if (channels && other.height == first.height && other.width == first.width) continue;
        throw Failure("the graph puts tensors of different shapes together (" + step.name +
                      "); run this network in onnxruntime");
    }
}

void Lowering::note_zero_point(const std::string &site, const std::string &constant) {
    const auto found = graph_.constants.find(constant);
    if (found == graph_.constants.end() || found->second.integers.size() != 1) {
        throw Failure("the graph has no zero point for " + site);
    }
    for (const auto &known : program_.zero_points) {
        if (known.first == site) return;
    }
    program_.zero_points.emplace_back(site, static_cast<int>(found->second.integers[0]));
}

// The bounds of a site hold already where its codes are made: a maximum of bounded codes is bounded.
Lowered Lowering::clip(const Node &node, const Lowered &input) {
    const std::string site = without(node.input(1), ".low");
    int at = input.tensor;
    while (true) {
        Step &made = maker(at);
        made.clamp = site;
        if (made.kind != Kind::maximum) return input;
        at = made.inputs[0];
        if (tensor(at).readers != 1) refuse(node);
    }
}

}  // namespace emq
