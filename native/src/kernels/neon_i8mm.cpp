// NEON with matrices of bytes: two channels times two positions, eight inputs deep, at once.
#include "neon.h"

namespace emq::neon {
namespace {

// Registers of two channels, eight inputs each, out of two steps of four channels and four inputs.
uint8x16_t first_two(uint8x16_t a, uint8x16_t b) {
    return vreinterpretq_u8_u32(vzip1q_u32(vreinterpretq_u32_u8(a), vreinterpretq_u32_u8(b)));
}

uint8x16_t last_two(uint8x16_t a, uint8x16_t b) {
    return vreinterpretq_u8_u32(vzip2q_u32(vreinterpretq_u32_u8(a), vreinterpretq_u32_u8(b)));
}

template <int rows>
__attribute__((noinline)) void tile(const LayerCall &call, const uint8_t *codes, int step, int channel, int first,
                                    int last) {
    const Window &w = call.window;
    const uint8x16_t mask[2] = {vld1q_u8(call.mask + 4 * channel), vld1q_u8(call.mask + 4 * channel + 16)};
    const auto load = [&](const uint8_t *at, int part) { return vandq_u8(vld1q_u8(at + 16 * part), mask[part]); };
    constexpr int pairs = rows / 2;
    const int8_t *row[rows];
    int32x4_t sums[pairs][4];  // of two channels: first position, second, of the next channel likewise
#pragma GCC unroll 4
    for (int i = 0; i < pairs; i++) {
        for (int r = 2 * i; r < 2 * i + 2; r++) {
            row[r] = row_of(call, first + r, last);
        }
        for (int32x4_t &sum : sums[i]) sum = vdupq_n_s32(0);
    }
    for (int t = 0; t < w.taps; t++) {
        const ptrdiff_t tap = static_cast<ptrdiff_t>(w.tap[t]) * w.stride;
        const auto eight = [&](int c, uint8x16_t left, uint8x16_t left_next, uint8x16_t right, uint8x16_t right_next) {
            const uint8x16_t weights[4] = {first_two(left, left_next), last_two(left, left_next),
                                           first_two(right, right_next), last_two(right, right_next)};
#pragma GCC unroll 4
            for (int i = 0; i < pairs; i++) {
                const int8x16_t a = vcombine_s8(vld1_s8(row[2 * i] + tap + c), vld1_s8(row[2 * i + 1] + tap + c));
#pragma GCC unroll 4
                for (int j = 0; j < 4; j++) sums[i][j] = vusmmlaq_s32(sums[i][j], weights[j], a);
            }
        };
        int c = 0;
        for (; c + 8 <= w.depth; c += 8, codes += 2 * step) {
            eight(c, load(codes, 0), load(codes + step, 0), load(codes, 1), load(codes + step, 1));
        }
        if (c == w.depth) continue;
        const uint8x16_t nothing = vdupq_n_u8(0);
        eight(c, load(codes, 0), nothing, load(codes, 1), nothing);
        codes += step;
    }
    for (int r = 0; r < std::min(rows, last - first); r++) {
        const int32x4_t *pair = sums[r / 2];
        const int32x4_t total[2] = {r % 2 == 0 ? vuzp1q_s32(pair[0], pair[1]) : vuzp2q_s32(pair[0], pair[1]),
                                    r % 2 == 0 ? vuzp1q_s32(pair[2], pair[3]) : vuzp2q_s32(pair[2], pair[3])};
        finish<true, 2>(call, total, first + r, channel);
    }
}

void run(const LayerCall &call, int from, int to) {
    every_tile(call, from, to, {{8, tile<8>}, {4, tile<4>}, {2, tile<2>}});
}

const LayerMethod matrices = {"int8, i8mm", always, none, none, sum_pixels, run, none, nullptr};
const LayerMethod *const methods[] = {&matrices, &dot, &lookup, nullptr};

}  // namespace
}  // namespace emq::neon

namespace emq {

const Kernels i8mm_kernels = {"i8mm", neon::methods, sum_positions, neon::depthwise,
                              neon::add, neon::maximum, neon::accumulate, neon::quantize};

}  // namespace emq
