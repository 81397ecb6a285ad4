// What the ARM kernels share. A register holds the sums of four channels, or four inputs of four channels.
#pragma once

#include <arm_neon.h>

#include <algorithm>
#include <initializer_list>

#include "kernels.h"

namespace emq::neon {

constexpr int lanes = 4;          // channels of a register
constexpr int tile_channels = 8;  // channels of a tile: two registers

static inline size_t none(const Window &) { return 0; }
static inline bool always(const LayerCall &) { return true; }

// Computes a tile: eight channels, from `channel` on, of the positions from `first` on that come before `last`. `codes`
// are those of the first step of four inputs; the next step's lie `step` bytes behind.
using Tile = void (*)(const LayerCall &call, const uint8_t *codes, int step, int channel, int first, int last);

struct Height {
    int positions;
    Tile tile;
};

// Covers all channels of a range of positions with tiles: the tallest, and at the end the lowest that suffices.
// `heights` are ordered from tall to low.
void every_tile(const LayerCall &call, int from, int to, std::initializer_list<Height> heights);

// The sum of the channels of every pixel in a range, into call.sums.
void sum_pixels(const LayerCall &call, int from, int to);

// Where activations can be negative, int8 kernels take codes less 128, for products of signed bytes: what that took from
// the sum of a position.
template <bool negative>
static inline int32x4_t taken(const LayerCall &call, int position) {
    return vdupq_n_s32(negative ? 128 * call.totals[position] : 0);
}

// Those bits of four activations that belong to channels from `c` on: what fills up the depth meets such codes as well.
static inline uint8x16_t belonging(const Window &window, int c) {
    const int left = window.channels - c;
    return vreinterpretq_u8_u32(vdupq_n_u32(left >= lanes ? ~0u : (1u << 8 * left) - 1));
}

static inline uint8x16_t four_activations(const int8_t *at) {
    uint32_t four;
    __builtin_memcpy(&four, at, sizeof four);
    return vreinterpretq_u8_u32(vdupq_n_u32(four));
}

static inline void write(int8_t *output, int8x16_t codes, int count) {
    alignas(16) int8_t all[16];
    vst1q_s8(all, codes);
    std::copy_n(all, count, output);
}

// Channels of a position, from the sums of code times activation to output codes, or to the answer.
template <bool dropped, int registers>
static inline void finish(const LayerCall &call, const int32x4_t *sums, int position, int channel) {
    const Scaling &s = call.scaling;
    const int left = std::min(call.window.outputs - channel, lanes * registers);
    if (left <= 0) return;
    const int32_t plain = call.totals[position];
    float32x4_t values[4] = {};
    for (int j = 0; j < registers; j++) {
        const int n = channel + lanes * j;
        const int32x4_t sum = dropped ? vshlq_s32(sums[j], vnegq_s32(vld1q_s32(s.drop + n))) : sums[j];
        const int32x4_t total = vmlaq_n_s32(vmlaq_s32(vld1q_s32(s.bias + n), sum, vld1q_s32(s.gain + n)),
                                            vld1q_s32(s.shift + n), plain);
        values[j] = vmulq_f32(vcvtq_f32_s32(total), vld1q_f32(s.scale + n));
    }
    if (call.answer != nullptr) {
        alignas(16) float all[16];
        for (int j = 0; j < registers; j++) vst1q_f32(all + lanes * j, values[j]);
        std::copy_n(all, left, call.answer + static_cast<ptrdiff_t>(position) * call.answer_row + channel);
        return;
    }
    int16x4_t codes[4] = {};
    for (int j = 0; j < registers; j++) {
        const float32x4_t kept = vminq_f32(vmaxq_f32(values[j], vdupq_n_f32(s.low)), vdupq_n_f32(s.high));
        codes[j] = vmovn_s32(vcvtnq_s32_f32(kept));
    }
    const int8x8_t low = vmovn_s16(vcombine_s16(codes[0], codes[1])), high = vmovn_s16(vcombine_s16(codes[2], codes[3]));
    int8_t *output = call.output + call.window.target[position] + channel;
    left == lanes * registers ? write(output, vcombine_s8(low, high), lanes * registers)
                              : write(output, vcombine_s8(low, high), left);
}

extern const LayerMethod lookup;
extern const LayerMethod dot;

void depthwise(const DepthwiseCall &call, int from, int to);
void add(const AddCall &call);
void maximum(const MaximumCall &call);
void accumulate(int32_t *sums, const int8_t *input, size_t count);
void quantize(const QuantizeCall &call);

}  // namespace emq::neon
