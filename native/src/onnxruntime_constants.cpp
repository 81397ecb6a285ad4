#include "onnxruntime_constants.h"

#include <algorithm>

namespace emq::onnxruntime {
namespace {

constexpr size_t most_children = 1024;

// Adds the start of a name that ends so, where it is new.
void note(const std::string &name, const std::string &ending, std::vector<std::string> &known) {
    if (name.size() <= ending.size() || name.compare(name.size() - ending.size(), ending.size(), ending) != 0) return;
    const std::string start = name.substr(0, name.size() - ending.size());
    if (std::find(known.begin(), known.end(), start) == known.end()) known.push_back(start);
}

size_t product(std::vector<int64_t>::const_iterator from, std::vector<int64_t>::const_iterator to) {
    size_t total = 1;
    for (; from != to; from++) {
        if (*from < 1 || *from > INT32_MAX || total > INT32_MAX) throw Failure("a layer has weights of no size");
        total *= static_cast<size_t>(*from);
    }
    return total;
}

}  // namespace

Constants::Constants(const Calls &calls, const KernelInfo *info) : calls_(calls), info_(info) {
    const Shaped bytes = tensor(graph_input), values = tensor(values_input);
    const size_t size = static_cast<size_t>(bytes.count()), children = static_cast<size_t>(values.count());
    if (children < 1 || children > most_children) throw Failure("a segment has no children, or too many");
    const int64_t *chosen = static_cast<const int64_t *>(values.data);
    values_.assign(chosen, chosen + children);
    for (const int64_t value : values_) value_names_.push_back(std::to_string(value));
    for (const std::string &one : value_names_) child_names_.push_back(one.c_str());
    graph_ = read_graph({static_cast<const uint8_t *>(bytes.data), size});
    name();
    add_layers();
    add_sites();
    source_.graph = static_cast<const uint8_t *>(bytes.data);
    source_.graph_size = size;
    source_.child_count = static_cast<int32_t>(children);
    source_.layer_count = static_cast<int32_t>(layers_.size());
    source_.site_count = static_cast<int32_t>(sites_.size());
    source_.child_names = child_names_.data();
    source_.layers = layers_.data();
    source_.sites = sites_.data();
    source_.threads = 1;
}

Shaped Constants::tensor(Input input) const {
    int constant = 0;
    const Value *value = nullptr;
    calls_(constant_input, info_, static_cast<size_t>(input), &constant, &value);
    if (constant == 0 || value == nullptr) throw Failure("a segment has a constant that is computed; export it again");
    return calls_.tensor(value);
}

template <typename T>
const T *Constants::numbers(Input input, size_t count) const {
    const Shaped found = tensor(input);
    if (static_cast<size_t>(found.count()) != count) {
        throw Failure("a segment has constants that do not fit together; export it again");
    }
    return static_cast<const T *>(found.data);
}

void Constants::name() {
    for (const Node &node : graph_.nodes) {
        if (node.operation != "QuantizeLinear" && node.operation != "DequantizeLinear") continue;
        note(node.inputs.at(0), ".weight", layer_names_);
        note(node.inputs.at(1), ".scale", site_names_);
    }
}

void Constants::add_layers() {
    size_t channels = 0, weights = 0;
    for (const std::string &layer : layer_names_) {
        const std::vector<int64_t> &shape = graph_.constants[layer + ".weight"].shape;
        if (shape.empty()) throw Failure("layer " + layer + " has no weights");
        const size_t outputs = product(shape.begin(), shape.begin() + 1), each = product(shape.begin() + 1, shape.end());
        layers_.push_back({layer.c_str(), static_cast<int64_t>(outputs), static_cast<int64_t>(each), nullptr, nullptr});
        channels += outputs;
        weights += outputs * each;
    }
    const size_t children = values_.size();
    const uint8_t *codes = numbers<uint8_t>(codes_input, weights);
    const uint8_t *widths = numbers<uint8_t>(widths_input, children * channels);
    const int32_t *integers = numbers<int32_t>(integers_input, 3 * children * channels);
    const float *scales = numbers<float>(scales_input, children * channels);
    size_t first = 0;
    for (emq_layer &layer : layers_) {
        layer.codes = codes;
        codes += layer.outputs * layer.fan_in;
        numbers_.emplace_back();
        for (size_t child = 0; child < children; child++) {
            const int32_t *gain = integers + 3 * child * channels + first;
            const size_t at = child * channels + first;
            numbers_.back().push_back({gain, gain + channels, gain + 2 * channels, widths + at, scales + at});
        }
        first += static_cast<size_t>(layer.outputs);
    }
    for (size_t i = 0; i < layers_.size(); i++) layers_[i].children = numbers_[i].data();
}

void Constants::add_sites() {
    const size_t children = values_.size(), total = children * site_names_.size();
    const float *scales = numbers<float>(site_scales_input, total);
    const int32_t *bounds = numbers<int32_t>(site_bounds_input, 2 * total);
    for (size_t i = 0; i < site_names_.size(); i++) {
        const size_t at = i * children;
        sites_.push_back({site_names_[i].c_str(), scales + at, bounds + at, bounds + total + at});
    }
}

}  // namespace emq::onnxruntime
