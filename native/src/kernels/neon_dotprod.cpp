// NEON with dot products: four products of bytes into 32 bits at once.
#include <type_traits>

#include "neon.h"

namespace emq::neon {
namespace {

// The codes of four channels times four activations, those of lane `lane` of sixteen.
template <bool negative, int lane>
int32x4_t more(int32x4_t sum, uint8x16_t codes, int8x16_t activations) {
    if (!negative) {
        const uint8x16_t a = vreinterpretq_u8_s8(activations);
        return vreinterpretq_s32_u32(vdotq_laneq_u32(vreinterpretq_u32_s32(sum), codes, a, lane));
    }
    return vdotq_laneq_s32(sum, vreinterpretq_s8_u8(codes), activations, lane);
}

template <int rows, bool negative>
__attribute__((noinline)) void tile(const LayerCall &call, const uint8_t *codes, int step, int channel, int first,
                                    int last) {
    const Window &w = call.window;
    const uint8x16_t mask[2] = {vld1q_u8(call.mask + 4 * channel), vld1q_u8(call.mask + 4 * channel + 16)};
    const uint8x16_t centre = vdupq_n_u8(negative ? 128 : 0);
    const auto load = [&](const uint8_t *at, int part) {
        const uint8x16_t kept = vandq_u8(vld1q_u8(at + 16 * part), mask[part]);
        return negative ? veorq_u8(kept, centre) : kept;
    };
    const int8_t *row[rows];
    int32x4_t sums[rows][2];
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) {
        row[i] = row_of(call, first + i, last);
        sums[i][0] = sums[i][1] = vdupq_n_s32(0);
    }
    for (int t = 0; t < w.taps; t++) {
        const ptrdiff_t tap = static_cast<ptrdiff_t>(w.tap[t]) * w.stride;
        int c = 0;
        for (; c + 16 <= w.channels; c += 16) {
            int8x16_t a[rows];
#pragma GCC unroll 8
            for (int i = 0; i < rows; i++) a[i] = vld1q_s8(row[i] + tap + c);
            const auto four = [&](auto lane) {
                const uint8x16_t low = load(codes, 0), high = load(codes, 1);
                codes += step;
#pragma GCC unroll 8
                for (int i = 0; i < rows; i++) {
                    sums[i][0] = more<negative, decltype(lane)::value>(sums[i][0], low, a[i]);
                    sums[i][1] = more<negative, decltype(lane)::value>(sums[i][1], high, a[i]);
                }
            };
            four(std::integral_constant<int, 0>());
            four(std::integral_constant<int, 1>());
            four(std::integral_constant<int, 2>());
            four(std::integral_constant<int, 3>());
        }
        for (; c < w.depth; c += 4, codes += step) {
            const uint8x16_t low = load(codes, 0), high = load(codes, 1);
#pragma GCC unroll 8
            for (int i = 0; i < rows; i++) {
                const int8x16_t a =
                    vreinterpretq_s8_u8(vandq_u8(four_activations(row[i] + tap + c), belonging(w, c)));
                sums[i][0] = more<negative, 0>(sums[i][0], low, a);
                sums[i][1] = more<negative, 0>(sums[i][1], high, a);
            }
        }
    }
    for (int i = 0; i < std::min(rows, last - first); i++) {
        const int32x4_t missing = taken<negative>(call, first + i);
        const int32x4_t total[2] = {vaddq_s32(sums[i][0], missing), vaddq_s32(sums[i][1], missing)};
        finish<true, 2>(call, total, first + i, channel);
    }
}

void run(const LayerCall &call, int from, int to) {
    call.smallest < 0 ? every_tile(call, from, to, {{8, tile<8, true>}, {4, tile<4, true>}, {2, tile<2, true>}})
                      : every_tile(call, from, to, {{8, tile<8, false>}, {4, tile<4, false>}, {2, tile<2, false>}});
}

}  // namespace

const LayerMethod dot = {"int8, dotprod", always, none, none, sum_pixels, run, none, nullptr};

}  // namespace emq::neon

namespace emq {
namespace {
const LayerMethod *const methods[] = {&neon::dot, &neon::lookup, nullptr};
}

const Kernels dotprod_kernels = {"dotprod", methods, sum_positions, neon::depthwise,
                                 neon::add, neon::maximum, neon::accumulate, neon::quantize};

}  // namespace emq
