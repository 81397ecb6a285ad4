// What a kernel is given, and the tables of kernels of every instruction set.
//
// Activations are int8, centred: code minus zero point, so that padding is zero and never-negative tensors lie in
// 0..127. Tensors are NHWC. Weights are one master for every child, see `master_place`: a kernel reads the leading bits of
// each code and turns `sum code * a` into `sum z * a = gain * sum code * a + shift * sum a`, the affine map of a child.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace emq {

// Channels of one vector of 32-bit sums in the master's layout; a block has up to `block_vectors` of them.
constexpr int vector_channels = 16;
constexpr int block_vectors = 4;
constexpr int block_channels = vector_channels * block_vectors;

// Bytes that may be read behind the last byte of a tensor or of packed weights.
constexpr size_t slack = 128;

// A convolution, or a linear layer as one: output position p reads, for tap t, `depth` bytes of pixel
// position[p] + tap[t], and writes its channels at output[target[p]].
struct Window {
    int taps;
    int channels;  // of a tap
    int depth;     // those rounded up to a multiple of 4; what is read beyond `channels` meets weights of zero
    int outputs;   // channels of the layer
    int positions;
    const int32_t *tap;       // in pixels
    const int32_t *position;  // in pixels
    const int32_t *target;    // in bytes
    int pixels;               // of the padded input
    int stride;               // bytes of a pixel of it
    bool whole;               // whether a tap is a whole pixel and not one group of its channels
    int columns;              // positions of a row of the output
    int step;                 // pixels from one of them to the next
    // The same taps as `runs` times `run` of them whose pixels lie one behind the other, with nothing between.
    int runs, run;
    const int32_t *run_tap;
};

// What turns sums into output codes; arrays have `outputs` numbers, rounded up to whole blocks.
struct Scaling {
    const int32_t *gain;
    const int32_t *shift;
    const int32_t *drop;  // low bits of the codes that the channel does not use
    const int32_t *bias;
    const float *scale;  // of one accumulator step, in output steps
    float low, high;     // of the output's centred codes
};

// Everything that one layer's kernel reads and writes.
struct LayerCall {
    Window window;
    Scaling scaling;
    const uint8_t *codes;   // the master, see `master_place`
    const uint8_t *mask;    // bytes of the codes that count, four alike per channel, for whole blocks
    const uint8_t *tables;  // the planes as indices of look-up tables, or null
    int bits;               // the largest number of leading bits that a channel uses
    int smallest, largest;  // centred codes that the input can have
    const int8_t *input;
    int8_t *output;
    float *answer;    // instead of `output`: the sums times `scale`, for the last layer
    int answer_row;   // numbers from one position of it to the next
    uint8_t *scratch; // `scratch_bytes` of the method, for pixels from `origin` on
    uint8_t *panel;   // `panel_bytes` of the method
    int32_t *sums;    // of the channels of each pixel from `origin` on
    int32_t *totals;  // of the window of each position
    int origin;
};

using LayerKernel = void (*)(const LayerCall &call, int from, int to);

// A way to compute layers. `prepare` runs over pixels of the input, when that is done the kernels' `sum_positions` over
// the positions that need no others, and then `run` over those, of all channels or whole blocks.
struct LayerMethod {
    const char *name;
    bool (*able)(const LayerCall &call);
    size_t (*scratch_bytes)(const Window &window);
    size_t (*panel_bytes)(const Window &window);
    LayerKernel prepare;
    LayerKernel run;
    // Methods that look sums up keep the leading planes of the codes as indices, made once from the master.
    size_t (*table_bytes)(const Window &window);
    void (*pack)(const Window &window, const uint8_t *codes, uint8_t *tables);
};

// These are static: every file that includes them is compiled for another processor, and an inline function that the
// files shared would be that of any of them.

// Where the code of input `c` of tap `t` of channel `n` lies in the master: blocks of up to four vectors of sixteen
// channels, in them one step of four inputs behind the other, in a step the vectors, in a vector four bytes a channel.
static inline size_t master_place(const Window &window, int n, int t, int c) {
    const size_t steps = static_cast<size_t>(window.taps) * static_cast<size_t>(window.depth) / 4;
    const size_t vectors = static_cast<size_t>(window.outputs + vector_channels - 1) / vector_channels;
    const size_t vector = static_cast<size_t>(n) / vector_channels, block = vector / block_vectors;
    const size_t left = vectors - block * block_vectors, width = left < block_vectors ? left : block_vectors;
    const size_t step = (static_cast<size_t>(t) * static_cast<size_t>(window.depth) + static_cast<size_t>(c)) / 4;
    const size_t at = block * block_vectors * steps + step * width + vector % block_vectors;
    return at * 64 + static_cast<size_t>(n % vector_channels) * 4 + static_cast<size_t>(c % 4);
}

static inline size_t master_bytes(const Window &window) {
    const size_t vectors = static_cast<size_t>(window.outputs + vector_channels - 1) / vector_channels;
    return vectors * static_cast<size_t>(window.taps) * static_cast<size_t>(window.depth) / 4 * 64;
}

// Whether codes of a call can be looked up in tables of sums of `inputs` activations, for as many bits as `planes`.
static inline bool can_look_up(const LayerCall &call, int planes, int inputs) {
    if (call.bits > planes || call.smallest < 0 || call.largest * inputs > 255) return false;
    for (int n = 0; n < call.window.outputs; n++) {
        if (call.scaling.drop[n] != 8 - call.bits) return false;
    }
    return true;
}

// Where the window of a position starts in the input.
static inline const int8_t *row_of(const LayerCall &call, int position) {
    return call.input + static_cast<ptrdiff_t>(call.window.position[position]) * call.window.stride;
}

// The same; a tile's rows beyond the last position repeat that one.
static inline const int8_t *row_of(const LayerCall &call, int position, int last) {
    return row_of(call, std::min(position, last - 1));
}

// The tile of as many rows as are `wanted`, which are at most `rows`; `vectors` are of channels, where a form has several.
template <typename Form, int rows, int... vectors>
static inline void tile_of(int wanted, const LayerCall &call, const uint8_t *codes, int channel, int first) {
    if constexpr (rows > 1) {
        if (wanted < rows) return tile_of<Form, rows - 1, vectors...>(wanted, call, codes, channel, first);
    }
    Form::template tile<rows, vectors...>(call, codes, channel, first);
}

// Covers positions with tiles of at most `most` rows, as many in one as in the other.
template <typename Form, int most, int... vectors>
static inline void even_tiles(const LayerCall &call, const uint8_t *codes, int channel, int from, int to) {
    for (int p = from; p < to;) {
        const int left = to - p, tiles = (left + most - 1) / most, rows = (left + tiles - 1) / tiles;
        tile_of<Form, most, vectors...>(rows, call, codes, channel, p);
        p += rows;
    }
}

// Adds to each of `count` sums a number, those `step` apart; known steps are what a compiler makes vectors of.
template <int step>
static inline void add_each(int32_t *__restrict__ sums, const int32_t *__restrict__ numbers, int count, int apart) {
    for (int i = 0; i < count; i++) sums[i] += numbers[i * (step > 0 ? step : apart)];
}

static inline void add_each(int32_t *sums, const int32_t *numbers, int count, int step) {
    step == 1   ? add_each<1>(sums, numbers, count, 1)
    : step == 2 ? add_each<2>(sums, numbers, count, 2)
                : add_each<0>(sums, numbers, count, step);
}

// The sum of the window of every position in a range, into call.totals.
static inline void sum_positions(const LayerCall &call, int from, int to) {
    const Window &w = call.window;
    constexpr int longest = 512;
    int32_t columns[longest];  // sums of pixels one below the other, over the width of a row of windows
    for (int p = from; p < to;) {
        const int end = std::min(to, (p / w.columns + 1) * w.columns), count = end - p;
        const int32_t *pixels = call.sums + (w.position[p] - call.origin);
        int32_t *sums = call.totals + p;
        const int width = (count - 1) * w.step + w.run;
        std::fill_n(sums, count, 0);
        if (w.run > 1 && width <= longest) {
            std::fill_n(columns, width, 0);
            for (int r = 0; r < w.runs; r++) add_each<1>(columns, pixels + w.run_tap[r], width, 1);
            for (int k = 0; k < w.run; k++) add_each(sums, columns + k, count, w.step);
        } else {
            for (int t = 0; t < w.taps; t++) add_each(sums, pixels + w.tap[t], count, w.step);
        }
        p = end;
    }
}

struct DepthwiseCall {
    int taps, channels, stride;
    const int32_t *tap, *position, *target;
    const int8_t *weights;  // (taps, channels)
    const int32_t *bias;
    const float *scale;
    float low, high;
    const int8_t *input;
    int8_t *output;
    uint8_t *panel;  // `depthwise_panel_bytes`, for the weights of some channels as a kernel wants them
};

static inline size_t depthwise_panel_bytes(int taps) { return (static_cast<size_t>(taps) + 3) / 4 * 256; }

struct AddCall {
    size_t count;
    const int8_t *a, *b;
    int8_t *output;
    float ratio_a, ratio_b, fixed;  // output code = ratio_a * code_a + (ratio_b * code_b + fixed), fused
    int zero_a, zero_b, zero;
    float low, high;  // codes, not centred
};

// output[i] = max(output[i], input[i]) for every channel of `pixels` pixels; steps are bytes from one to the next.
struct MaximumCall {
    int channels, pixels, output_step, input_step;
    const int8_t *input;
    int8_t *output;
};

// A row of `width` pixels: channels that lie `apart` numbers from each other into pixels of `stride` bytes, as
// round(x / scale) kept between `low` and `high`; what is no number becomes the lowest code.
struct QuantizeCall {
    int channels, width, stride;
    ptrdiff_t apart;
    float scale, low, high;
    const float *input;
    int8_t *output;
};

struct Kernels {
    const char *name;
    const LayerMethod *const *methods;  // ends with a null
    LayerKernel sum_positions;
    void (*depthwise)(const DepthwiseCall &call, int from, int to);
    void (*add)(const AddCall &call);
    void (*maximum)(const MaximumCall &call);
    // sums[c] += input[c]
    void (*accumulate)(int32_t *sums, const int8_t *input, size_t count);
    void (*quantize)(const QuantizeCall &call);
};

// Which of these there are depends on the processor that the library is built for, and on what its compiler knows.
extern const Kernels portable_kernels;
extern const Kernels avx2_kernels;
extern const Kernels avxvnni_kernels;
extern const Kernels avx512_kernels;  // VNNI
extern const Kernels vbmi_kernels;    // VNNI and VBMI
extern const Kernels neon_kernels;
extern const Kernels dotprod_kernels;
extern const Kernels i8mm_kernels;

}  // namespace emq
