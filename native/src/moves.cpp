// Channels that a graph splits, joins and shuffles.
#include <algorithm>
#include <utility>

#include "admitted.h"
#include "failure.h"
#include "lowering.h"

namespace emq {
namespace {

constexpr int64_t largest_padding = 4096;

}  // namespace

// An average that nobody has put on a grid stands in a stretch as a tensor below 0.
static int pending_average(int index) { return -1 - index; }

Channels Lowering::channels_of(const Lowered &value) const {
    if (!value.channels.empty()) return value.channels;
    if (value.form == Lowered::average) {
        const Step &step = averages_.at(static_cast<size_t>(value.tensor));
        return Channels({pending_average(value.tensor), "", 0, tensor(step.inputs[0]).shape.channels});
    }
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
    if (rows == 0 && first.tensor >= 0 && first.from == 0 && first.count == channels.count() &&
        first.count == tensor(first.tensor).shape.channels) {
        value.tensor = first.tensor;
        value.channels = {};
    }
    return value;
}

void Lowering::check_movable(const Node &node, const Lowered &value) const {
    if ((value.form != Lowered::codes && value.form != Lowered::quantized) || value.flat || value.tokens) refuse(node);
    for (const Stretch &one : value.channels.stretches()) {
        if (one.tensor < 0) refuse(node);
    }
}

Channels Lowering::gridded(const Channels &channels, const std::string &site) {
    std::map<int, int> made;
    Channels found;
    for (const Stretch &one : channels.stretches()) {
        if (one.tensor >= 0) {
            found.append(one);
            continue;
        }
        if (made.count(one.tensor) == 0) {
            Step &step = program_.steps.at(static_cast<size_t>(add_average(pending_average(one.tensor))));
            step.site = step.clamp = site;
            const Shape shape = output_shape(step, 0);
            const int tensor = add_tensor(shape);
            program_.steps.back().output = made[one.tensor] = tensor;
        }
        found.append({made[one.tensor], site, one.from, one.count});
    }
    return found;
}

Lowered Lowering::mean_of_parts(const Node &node, const Lowered &value) {
    check_movable(node, value);
    add_join(node, value.channels);
    Step &step = program_.steps.back();
    check_alike(step);
    step.kind = Kind::mean;
    return {Lowered::mean, -1, "", last_step(), false, false};
}

Lowered Lowering::joined(const Node &node, const std::vector<Lowered> &inputs) const {
    if (node.number("axis", 0) != 1 || inputs.size() != node.inputs.size()) refuse(node);
    Channels all;
    bool averages = false;
    for (const Lowered &value : inputs) {
        const bool average = value.form == Lowered::average;
        const bool alike = average || value.form == Lowered::quantized || value.site == inputs[0].site;
        // Averages join codes that have a grid.
        if (value.flat || value.tokens || value.rows != 0 || !alike) refuse(node);
        if (!average && value.form != Lowered::codes && value.form != Lowered::quantized) refuse(node);
        all.append(channels_of(value));
        averages = averages || average;
    }
    for (const Lowered &value : inputs) {
        const bool quantized = value.form == Lowered::average || value.form == Lowered::quantized;
        if (averages ? !quantized : value.form != inputs[0].form) refuse(node);
    }
    Lowered value = moved(inputs[0], all, 0);
    if (averages) value.form = Lowered::quantized;
    return value;
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

// Channels from one on, and rows and columns as windows of one value.
Lowered Lowering::sliced(const Node &node, Lowered value) {
    check_movable(node, value);
    const std::vector<int64_t> &starts = constant(node, 1), &ends = constant(node, 2), &axes = constant(node, 3);
    const std::vector<int64_t> none(starts.size(), 1), &steps = node.inputs.size() < 5 ? none : constant(node, 4);
    const bool given = starts.size() == ends.size() && starts.size() == axes.size() && starts.size() == steps.size();
    if (starts.empty() || !given || value.rows != 0) refuse(node);
    const Shape in = tensor(channels_of(value).stretches().front().tensor).shape;
    Geometry windows;
    for (size_t i = 0; i < starts.size(); i++) {
        const int64_t axis = axes[i], all = axis == 1 ? channels_of(value).count() : axis == 2 ? in.height : in.width;
        if (axis < 1 || axis > 3 || steps[i] < 1 || (axis == 1 && steps[i] != 1)) refuse(node);
        const auto place = [&](int64_t at) {
            return static_cast<int>(std::min(std::max(at < 0 ? at + all : at, int64_t{0}), all));
        };
        const int from = place(starts[i]), to = place(ends[i]), step = static_cast<int>(std::min(steps[i], all));
        if (to <= from) throw Failure("the graph has a tensor without values");
        if (axis == 1) value = moved(value, channels_of(value).part(from, to - from), 0);
        const int behind = (to - from - 1) / step * step + from + 1 - static_cast<int>(all);
        if (axis == 2) {
            windows.top = -from;
            windows.bottom = behind;
            windows.stride_height = step;
        } else if (axis == 3) {
            windows.left = -from;
            windows.right = behind;
            windows.stride_width = step;
        }
    }
    const bool channels_alone = std::all_of(axes.begin(), axes.end(), [](int64_t axis) { return axis == 1; });
    return channels_alone ? value : spread(node, solid(node, value), windows);
}

// Zeros around the rows and columns, and before and behind the channels.
Lowered Lowering::padded(const Node &node, const Lowered &value) {
    check_movable(node, value);
    const std::vector<int64_t> &pads = constant(node, 1);
    const auto filling = graph_.constants.find(node.inputs.size() > 2 ? node.inputs[2] : "");
    const bool zeros = filling == graph_.constants.end() ? node.inputs.size() < 3 || node.inputs[2].empty()
                                                         : filling->second.zero;
    if (value.form != Lowered::quantized || !on_one_grid(value) || node.inputs.size() > 3 || !zeros) refuse(node);
    if (pads.size() != 8 || pads[0] != 0 || pads[4] != 0) refuse(node);
    const auto beside = [&](size_t index) {
        if (pads[index] < 0 || pads[index] > largest_padding) refuse(node);
        return static_cast<int>(pads[index]);
    };
    add_join(node, channels_of(value));
    Step &step = program_.steps.back();
    step.site = step.clamp = value.site;
    check_alike(step);
    step.geometry.top = beside(2);
    step.geometry.left = beside(3);
    step.geometry.bottom = beside(6);
    step.geometry.right = beside(7);
    if (beside(1) > 0) step.runs.insert(step.runs.begin(), {-1, 0, beside(1)});
    if (beside(5) > 0) step.runs.push_back({-1, 0, beside(5)});
    const int made = add_tensor(output_shape(step, 0));
    program_.steps.back().output = made;
    return {value.form, made, value.site, -1, false};
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
    check_movable(node, value);
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
