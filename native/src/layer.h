// One layer of a network: its weights packed once, the numbers of every child, and the way each child is computed.
#pragma once

#include <string>
#include <vector>

#include "emq.h"
#include "kernels/kernels.h"
#include "memory.h"
#include "program.h"
#include "tuning.h"

namespace emq {

// Where a layer's windows lie, for one group of channels.
struct Windows {
    std::vector<int32_t> tap, run_tap, position, target;
    Window window{};
    int group_inputs = 0, group_outputs = 0, groups = 1;
};

struct Range {
    int from, to;
};

// What a layer computes with.
struct LayerData {
    const int8_t *input;
    int8_t *output;     // or null
    float *answer;      // instead: channels, position by position
    int32_t *totals;    // one for each position
    uint8_t *prepared;  // `prepared_bytes` of the layer, for these pixels
    Range pixels;
    uint8_t *panel;  // `panel_bytes` of the layer
};

class Layer {
  public:
    // `output` is null for a layer that answers in float.
    Layer(const emq_layer &source, int children, const Step &step, const Tensor &input, const Tensor *output,
          const Kernels &kernels);

    const std::string &name() const { return name_; }
    int outputs() const { return windows_.groups * windows_.group_outputs; }
    int positions() const { return windows_.window.positions; }
    bool grouped() const { return windows_.groups > 1; }
    int blocks() const { return (windows_.group_outputs + block_channels - 1) / block_channels; }  // of one group
    int64_t fan_in() const { return static_cast<int64_t>(windows_.window.taps) * windows_.window.channels; }
    size_t bytes() const;
    size_t prepared_bytes(int child, int pixels) const;
    size_t panel_bytes(int child) const;

    // Sets what depends on the grids around the layer: `scale` of its input, and of its output or 1.
    void set_grids(int child, float input_scale, float output_scale, int smallest, int largest, float low, float high);
    // Chooses the fastest way for every child: the one that is known, or found by timing each on made-up codes.
    void tune(Tuning &tuning);
    const char *method(int child) const;

    int pixels() const { return windows_.window.pixels; }
    // The pixels that positions need.
    Range pixels_of(Range positions) const;
    // First `prepare` over the pixels of the data, in any number of parts, then `sum` over positions that need no others,
    // then `run` over those and blocks of channels.
    void prepare(int child, const LayerData &data, Range pixels) const;
    void sum(int child, const LayerData &data, Range positions) const;
    void run(int child, const LayerData &data, Range positions, Range blocks) const;

  private:
    struct Numbers {
        Array<int32_t> gain, shift, drop, bias;
        Array<float> weight_scale, scale;
        Array<uint8_t> mask;
        Array<int8_t> depthwise;  // the integer weights (taps, channels)
        int bits = 0, smallest = 0, largest = 0;
        float low = 0, high = 0;
        size_t method = 0;  // index among those of the kernels
    };

    // Of the codes of an output channel.
    struct Extremes {
        uint8_t least, most;
    };

    void check_channel(Extremes codes, const emq_layer_numbers &given, int n) const;
    void place(const emq_layer &source, const Step &step, const Tensor &input, const Tensor *output);
    void pack(const emq_layer &source);
    void pack_tables(size_t method);
    void pack_depthwise(const emq_layer &source, Numbers &numbers) const;
    LayerCall call(int child, int group, const LayerData &data, Range blocks) const;
    const LayerMethod &method_of(int child) const;
    struct Trial;
    std::vector<size_t> able_methods(int child);
    size_t chosen(int child, Tuning &tuning, Trial &trial);
    std::string numbers_of(int child, const std::vector<size_t> &able) const;
    size_t fastest(int child, const std::vector<size_t> &able, Trial &trial);
    size_t scratch_bytes(int child, int pixels) const;
    size_t padded_outputs() const;  // of one group

    std::string name_;
    const Kernels &kernels_;
    bool depthwise_ = false;
    Windows windows_;
    Array<uint8_t> codes_;                // group behind group
    std::vector<Array<uint8_t>> tables_;  // per method of the kernels; empty where it has none
    std::vector<Numbers> children_;
};

}  // namespace emq
