// The constant inputs of a segment, as the network takes them.
#pragma once

#include <string>
#include <vector>

#include "emq.h"
#include "graph.h"
#include "onnxruntime_calls.h"

namespace emq::onnxruntime {

// Where each input stands. K children; C channels, those of all layers one layer behind the other; S sites. Layers and
// sites stand in the order in which the graph first names them.
enum Input : size_t {
    selector_input,     // int64 (1)
    graph_input,        // uint8: the segment as a serialised ONNX graph without numbers
    values_input,       // int64 (K): the value of the selector for each child
    codes_input,        // uint8: of every layer
    widths_input,       // uint8 (K, C): bits of the codes
    integers_input,     // int32 (K, 3, C): gain, shift, bias
    scales_input,       // float (K, C): of one step of a weight
    site_scales_input,  // float (S, K)
    site_bounds_input,  // int32 (2, S, K): lowest and highest code
    first_data_input,
};
constexpr ElementType input_types[] = {int64_type, uint8_type, int64_type, uint8_type, uint8_type,
                                       int32_type, float_type, float_type, int32_type, undefined_type};

// Memory of onnxruntime, read while a session is created: the network copies what it keeps.
class Constants {
  public:
    // Throws `Failure` where they are not constant or do not fit together.
    Constants(const Calls &calls, const KernelInfo *info);

    const emq_source &source() const { return source_; }
    const Graph &graph() const { return graph_; }
    const std::vector<int64_t> &values() const { return values_; }

  private:
    // The data of an input, which has to hold so many numbers.
    template <typename T>
    const T *numbers(Input input, size_t count) const;
    Shaped tensor(Input input) const;
    void name();
    void add_layers();
    void add_sites();

    const Calls &calls_;
    const KernelInfo *info_;
    Graph graph_;
    std::vector<int64_t> values_;
    std::vector<std::string> layer_names_, site_names_, value_names_;  // children go by their values
    std::vector<std::vector<emq_layer_numbers>> numbers_;
    std::vector<emq_layer> layers_;
    std::vector<emq_site> sites_;
    std::vector<const char *> child_names_;
    emq_source source_{};
};

}  // namespace emq::onnxruntime
