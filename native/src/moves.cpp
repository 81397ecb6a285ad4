// Channels that a graph splits, joins and shuffles.
#include <algorithm>
#include <utility>

#include "admitted.h"
#include "failure.h"
#include "lowering.h"

namespace emq {

Channels Lowering::channels_of(const Lowered &value) const {
    if (!value.channels.empty()) return value.channels;
    return Channels({value.tensor, value.site, 0, tensor(value.tensor).shape.channels});
}

bool Lowering::on_one_grid(const Lowered &value) const {
    const std::vector<Stretch> &all = value.channels.stretches();
    return std::all_of(all.begin(), all.end(), [&](const Stretch &one) { return one.site == value.site; });
}

Lowered Lowering::moved(const Lowered &from, const Channels &channels, int rows) const {
    if (channels.empty()) throw Failure("the graph has a tensor without values");
    const Stretch &first = channels.stretches().front();
    Lowered value{from.form, -1, first.site, -1, false, false, channels, rows};
    if (rows == 0 && first.from == 0 && first.count == channels.count() &&
        first.count == tensor(first.tensor).shape.channels) {
        value.tensor = first.tensor;
        value.channels = {};
    }
    return value;
}

void Lowering::check_movable(const Node &node, const Lowered &value) const {
    if ((value.form != Lowered::codes && value.form != Lowered::quantized) || value.flat || value.tokens) refuse(node);
}

Lowered Lowering::joined(const Node &node, const std::vector<Lowered> &inputs) const {
    if (node.number("axis", 0) != 1 || inputs.size() != node.inputs.size()) refuse(node);
    Channels all;
    for (const Lowered &value : inputs) {
        check_movable(node, value);
        const bool alike = value.form == Lowered::quantized || value.site == inputs[0].site;
        if (value.form != inputs[0].form || !alike) refuse(node);
        all.append(channels_of(value));
    }
    return moved(inputs[0], all, 0);
}

void Lowering::split(const Node &node, const Lowered &value) {
    check_movable(node, value);
    const Channels channels = channels_of(value);
    const int64_t parts = static_cast<int64_t>(node.outputs.size()), all = channels.count();
    std::vector<int64_t> sizes(node.outputs.size(), (all + parts - 1) / parts);
    sizes.back() = all - (parts - 1) * sizes.back();
    if (node.inputs.size() > 1) sizes = constant(node, 1);
    if (value.rows != 0 || node.number("axis", 0) != 1 || sizes.size() != node.outputs.size()) refuse(node);
    int64_t from = 0;
    for (size_t i = 0; i < sizes.size(); from += sizes[i++]) {
        if (sizes[i] < 1 || sizes[i] > all - from) refuse(node);
        const Channels part = channels.part(static_cast<int>(from), static_cast<int>(sizes[i]));
        values_[node.outputs[i]] = moved(value, part, 0);
    }
    if (from != all) refuse(node);
}

Lowered Lowering::sliced(const Node &node, const Lowered &value) const {
    check_movable(node, value);
    const std::vector<int64_t> &starts = constant(node, 1), &ends = constant(node, 2), &axes = constant(node, 3);
    const bool steps = node.inputs.size() < 5 || constant(node, 4) == std::vector<int64_t>{1};
    if (starts.size() != 1 || ends.size() != 1 || axes != std::vector<int64_t>{1} || !steps) refuse(node);
    const Channels channels = channels_of(value);
    const auto place = [&](int64_t at) {
        const int64_t all = channels.count();
        return static_cast<int>(std::min(std::max(at < 0 ? at + all : at, int64_t{0}), all));
    };
    const int from = place(starts[0]);
    return moved(value, channels.part(from, place(ends[0]) - from), 0);
}

Lowered Lowering::folded(const Node &node, const Lowered &value) const {
    check_movable(node, value);
    const std::vector<int64_t> &shape = constant(node, 1);
    const Channels channels = channels_of(value);
    const Shape one = tensor(channels.stretches().front().tensor).shape;
    const int64_t all = channels.count(), rows = shape[1];
    if (shape[0] != -1 || rows < 1 || rows > all || all % rows != 0 || shape[2] != all / rows ||
        shape[3] != one.height || shape[4] != one.width) {
        refuse(node);
    }
    return moved(value, channels, static_cast<int>(rows));
}

Lowered Lowering::shuffled(const Node &node, const Lowered &value) const {
    if (node.numbers("perm") != std::vector<int64_t>{0, 2, 1, 3, 4}) refuse(node);
    return moved(value, value.channels.turned(value.rows), value.channels.count() / value.rows);
}

Lowered Lowering::unfolded(const Node &node, const Lowered &value) const {
    check_movable(node, value);
    const Channels channels = channels_of(value);
    const Shape one = tensor(channels.stretches().front().tensor).shape;
    if (constant(node, 1) != std::vector<int64_t>{-1, channels.count(), one.height, one.width}) refuse(node);
    return moved(value, channels, 0);
}

void Lowering::add_join(const Node &node, const Channels &channels) {
    Step step;
    step.kind = Kind::join;
    step.name = node.name;
    std::map<std::pair<int, std::string>, int> known;
    for (const Stretch &one : channels.stretches()) {
        const int next = static_cast<int>(step.inputs.size());
        const auto found = known.emplace(std::make_pair(one.tensor, one.site), next);
        if (found.second) {
            step.inputs.push_back(one.tensor);
            step.input_sites.push_back(one.site);
            read(one.tensor, 0);
        }
        step.runs.push_back({found.first->second, one.from, one.count});
    }
    program_.steps.push_back(std::move(step));
}

Lowered Lowering::solid(const Node &node, const Lowered &value) {
    if (value.channels.empty()) return value;
    if (!on_one_grid(value)) refuse(node);
    add_join(node, value.channels);
    Step &step = program_.steps.back();
    step.site = step.clamp = value.site;
    check_alike(step);
    const int made = add_tensor(output_shape(step, 0));
    step.output = made;
    return {value.form, made, value.site, -1, false};
}

// Codes of a site's own name are what a trace compares, also where they are about to be shuffled.
Lowered Lowering::shown(const Node &node, const Lowered &value) {
    Lowered flat = value;
    flat.rows = 0;
    const Lowered made = solid(node, flat);
    maker(made.tensor).shown = true;
    return value.rows == 0 ? made : moved(made, channels_of(made), value.rows);
}

}  // namespace emq
