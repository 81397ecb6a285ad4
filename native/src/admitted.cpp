#include "admitted.h"

#include <algorithm>

#include "failure.h"

namespace emq {
namespace {

// The attributes that the operators here may have; what another one would mean, nothing here computes.
const std::map<std::string, std::vector<std::string>> &known_attributes() {
    static const std::map<std::string, std::vector<std::string>> known = {
        {"QuantizeLinear", {}},
        {"DequantizeLinear", {"axis"}},
        {"Clip", {}},
        {"Identity", {}},
        {"MaxPool", {"kernel_shape", "pads", "strides", "dilations", "ceil_mode", "auto_pad", "storage_order"}},
        {"AveragePool",
         {"kernel_shape", "pads", "strides", "dilations", "ceil_mode", "auto_pad", "count_include_pad"}},
        {"Pad", {"mode"}},
        {"Flatten", {"axis"}},
        {"Reshape", {"allowzero"}},
        {"Squeeze", {}},
        {"Transpose", {"perm"}},
        {"Split", {"axis", "num_outputs"}},
        {"Slice", {}},
        {"Conv", {"kernel_shape", "pads", "strides", "dilations", "group", "auto_pad"}},
        {"Gemm", {"transB"}},
        {"Add", {}},
        {"GlobalAveragePool", {}},
        {"Concat", {"axis"}}};
    return known;
}

}  // namespace

void refuse(const Node &node) {
    throw Failure("operator " + node.operation + " (" + node.name +
                  ") has no integer kernel of its own; run this network in onnxruntime");
}

void check_admitted(const Node &node) {
    const auto admitted = known_attributes().find(node.operation);
    if (admitted == known_attributes().end()) refuse(node);
    for (const auto &attribute : node.attributes) {
        const auto &names = admitted->second;
        const bool known = std::find(names.begin(), names.end(), attribute.first) != names.end();
        if (!known || attribute.second.empty()) refuse(node);
    }
    for (const char *zero : {"auto_pad", "storage_order", "mode"}) {
        if (node.number(zero, 0) != 0) refuse(node);
    }
}

}  // namespace emq
