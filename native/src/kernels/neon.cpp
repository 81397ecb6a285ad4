// NEON, as every 64-bit ARM processor has it: products in 16 bits that are summed as long as they cannot overflow.
#include "neon.h"

namespace emq::neon {
namespace {

// How codes and activations are multiplied. Where activations can be negative, both have signs.
struct Unsigned {
    using Bytes = uint8x16_t;
    using Words = uint16x8_t;
    using Sums = uint32x4_t;
    static constexpr int most_words = 65535;

    static Bytes bytes(uint8x16_t codes) { return codes; }
    static Bytes centred(uint8x16_t codes) { return codes; }
    static int32x4_t taken(const LayerCall &, int) { return vdupq_n_s32(0); }
    static Words low(Bytes codes, Bytes a) { return vmull_u8(vget_low_u8(codes), vget_low_u8(a)); }
    static Words high(Bytes codes, Bytes a) { return vmull_high_u8(codes, a); }
    static Words low(Words sum, Bytes codes, Bytes a) { return vmlal_u8(sum, vget_low_u8(codes), vget_low_u8(a)); }
    static Words high(Words sum, Bytes codes, Bytes a) { return vmlal_high_u8(sum, codes, a); }
    static Sums widened(Sums sum, Words words) { return vpadalq_u16(sum, words); }
    // Two lanes a channel, in two registers, become one register of four channels.
    static int32x4_t joined(Sums a, Sums b) { return vreinterpretq_s32_u32(vpaddq_u32(a, b)); }
};

struct Signed {
    using Bytes = int8x16_t;
    using Words = int16x8_t;
    using Sums = int32x4_t;
    static constexpr int most_words = 32767;

    static Bytes bytes(uint8x16_t codes) { return vreinterpretq_s8_u8(codes); }
    static Bytes centred(uint8x16_t codes) { return bytes(veorq_u8(codes, vdupq_n_u8(128))); }
    static int32x4_t taken(const LayerCall &call, int position) { return neon::taken<true>(call, position); }
    static Words low(Bytes codes, Bytes a) { return vmull_s8(vget_low_s8(codes), vget_low_s8(a)); }
    static Words high(Bytes codes, Bytes a) { return vmull_high_s8(codes, a); }
    static Words low(Words sum, Bytes codes, Bytes a) { return vmlal_s8(sum, vget_low_s8(codes), vget_low_s8(a)); }
    static Words high(Words sum, Bytes codes, Bytes a) { return vmlal_high_s8(sum, codes, a); }
    static Sums widened(Sums sum, Words words) { return vpadalq_s16(sum, words); }
    static int32x4_t joined(Sums a, Sums b) { return vpaddq_s32(a, b); }
};

// --- int8: two products fit 16 bits, whatever the codes: 2 * 255 * 127, with signs 2 * 128 * 127 ---------------------

template <int rows, typename Numbers>
__attribute__((noinline)) void int8_tile(const LayerCall &call, const uint8_t *codes, int step, int channel, int first,
                                         int last) {
    using Bytes = typename Numbers::Bytes;
    const Window &w = call.window;
    const uint8x16_t mask[2] = {vld1q_u8(call.mask + 4 * channel), vld1q_u8(call.mask + 4 * channel + 16)};
    const auto load = [&](const uint8_t *at, int part) {
        return Numbers::centred(vandq_u8(vld1q_u8(at + 16 * part), mask[part]));
    };
    const int8_t *row[rows];
    typename Numbers::Sums sums[rows][4] = {};
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++) {
        row[i] = row_of(call, first + i, last);
    }
    for (int t = 0; t < w.taps; t++) {
        const ptrdiff_t tap = static_cast<ptrdiff_t>(w.tap[t]) * w.stride;
        int c = 0;
        for (; c + 8 <= w.channels; c += 8, codes += 2 * step) {
            const Bytes left[2] = {load(codes, 0), load(codes, 1)};
            const Bytes right[2] = {load(codes + step, 0), load(codes + step, 1)};
#pragma GCC unroll 4
            for (int i = 0; i < rows; i++) {
                const Bytes a = Numbers::bytes(four_activations(row[i] + tap + c));
                const Bytes b = Numbers::bytes(four_activations(row[i] + tap + c + 4));
#pragma GCC unroll 2
                for (int part = 0; part < 2; part++) {
                    auto &low = sums[i][2 * part], &high = sums[i][2 * part + 1];
                    low = Numbers::widened(low, Numbers::low(Numbers::low(left[part], a), right[part], b));
                    high = Numbers::widened(high, Numbers::high(Numbers::high(left[part], a), right[part], b));
                }
            }
        }
        for (; c < w.depth; c += 4, codes += step) {
            const Bytes left[2] = {load(codes, 0), load(codes, 1)};
#pragma GCC unroll 4
            for (int i = 0; i < rows; i++) {
                const Bytes a = Numbers::bytes(vandq_u8(four_activations(row[i] + tap + c), belonging(w, c)));
#pragma GCC unroll 2
                for (int part = 0; part < 2; part++) {
                    sums[i][2 * part] = Numbers::widened(sums[i][2 * part], Numbers::low(left[part], a));
                    sums[i][2 * part + 1] = Numbers::widened(sums[i][2 * part + 1], Numbers::high(left[part], a));
                }
            }
        }
    }
    for (int i = 0; i < std::min(rows, last - first); i++) {
        const int32x4_t more = Numbers::taken(call, first + i);
        const int32x4_t total[2] = {vaddq_s32(Numbers::joined(sums[i][0], sums[i][1]), more),
                                    vaddq_s32(Numbers::joined(sums[i][2], sums[i][3]), more)};
        finish<true, 2>(call, total, first + i, channel);
    }
}

void int8_run(const LayerCall &call, int from, int to) {
    call.smallest < 0 ? every_tile(call, from, to, {{4, int8_tile<4, Signed>}, {2, int8_tile<2, Signed>}})
                      : every_tile(call, from, to, {{4, int8_tile<4, Unsigned>}, {2, int8_tile<2, Unsigned>}});
}

// --- deferred: codes shifted down to the bits that count, so that many products fit 16 bits --------------------------

constexpr int fewest_products = 4;  // for which this is worth while

int products_that_fit(const LayerCall &call) {
    const int most = std::max(1, std::max(call.largest, -call.smallest)) * ((1 << call.bits) - 1);
    return (call.smallest < 0 ? Signed::most_words : Unsigned::most_words) / most;
}

bool able_to_defer(const LayerCall &call) {
    return products_that_fit(call) >= fewest_products && (call.smallest >= 0 || call.bits < 8);
}

template <int rows, typename Numbers>
__attribute__((noinline)) void deferred_tile(const LayerCall &call, const uint8_t *codes, int step, int channel,
                                             int first, int last) {
    using Bytes = typename Numbers::Bytes;
    const Window &w = call.window;
    int8x16_t down[2];  // the shift of every byte, to the right
    for (int part = 0; part < 2; part++) {
        const uint32x4_t drop = vreinterpretq_u32_s32(vld1q_s32(call.scaling.drop + channel + lanes * part));
        down[part] = vnegq_s8(vreinterpretq_s8_u32(vmulq_n_u32(drop, 0x01010101)));
    }
    const int8_t *row[rows];
    typename Numbers::Words sums[rows][4] = {};
    typename Numbers::Sums wide[rows][4] = {};
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++) {
        row[i] = row_of(call, first + i, last);
    }
    const auto widen = [&] {
#pragma GCC unroll 4
        for (int i = 0; i < rows; i++) {
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                wide[i][j] = Numbers::widened(wide[i][j], sums[i][j]);
                sums[i][j] = typename Numbers::Words{};
            }
        }
    };
    const int fit = products_that_fit(call);
    int left = fit;
    for (int t = 0; t < w.taps; t++) {
        const ptrdiff_t tap = static_cast<ptrdiff_t>(w.tap[t]) * w.stride;
        // Codes of zero fill up the depth, so what they meet does not matter.
        for (int c = 0; c < w.depth; c += 4, codes += step) {
            const Bytes first_four = Numbers::bytes(vshlq_u8(vld1q_u8(codes), down[0]));
            const Bytes last_four = Numbers::bytes(vshlq_u8(vld1q_u8(codes + 16), down[1]));
#pragma GCC unroll 4
            for (int i = 0; i < rows; i++) {
                const Bytes a = Numbers::bytes(four_activations(row[i] + tap + c));
                sums[i][0] = Numbers::low(sums[i][0], first_four, a);
                sums[i][1] = Numbers::high(sums[i][1], first_four, a);
                sums[i][2] = Numbers::low(sums[i][2], last_four, a);
                sums[i][3] = Numbers::high(sums[i][3], last_four, a);
            }
            if (--left > 0) continue;
            widen();
            left = fit;
        }
    }
    widen();
    for (int i = 0; i < std::min(rows, last - first); i++) {
        const int32x4_t total[2] = {Numbers::joined(wide[i][0], wide[i][1]), Numbers::joined(wide[i][2], wide[i][3])};
        finish<false, 2>(call, total, first + i, channel);
    }
}

void deferred_run(const LayerCall &call, int from, int to) {
    call.smallest < 0 ? every_tile(call, from, to, {{4, deferred_tile<4, Signed>}, {2, deferred_tile<2, Signed>}})
                      : every_tile(call, from, to, {{4, deferred_tile<4, Unsigned>}, {2, deferred_tile<2, Unsigned>}});
}

}  // namespace

void every_tile(const LayerCall &call, int from, int to, std::initializer_list<Height> heights) {
    const Window &w = call.window;
    const size_t vector_bytes = static_cast<size_t>(w.taps) * static_cast<size_t>(w.depth) * vector_channels;
    const int vectors = (w.outputs + vector_channels - 1) / vector_channels;
    for (int channel = 0; channel < w.outputs; channel += tile_channels) {
        const int vector = channel / vector_channels, inside = channel % vector_channels;
        const int first = vector / block_vectors * block_vectors, width = std::min(block_vectors, vectors - first);
        const uint8_t *codes = call.codes + static_cast<size_t>(first) * vector_bytes +
                               static_cast<size_t>(vector - first) * 64 + static_cast<size_t>(inside) * 4;
        for (int p = from; p < to;) {
            const Height *chosen = heights.begin();
            for (const Height &height : heights) {
                if (height.positions >= to - p) chosen = &height;
            }
            chosen->tile(call, codes, 64 * width, channel, p, to);
            p += chosen->positions;
        }
    }
}

void sum_pixels(const LayerCall &call, int from, int to) {
    const Window &w = call.window;
    for (int p = from; p < to; p++) {
        const int8_t *pixel = call.input + static_cast<ptrdiff_t>(p) * w.stride;
        int32x4_t sums = vdupq_n_s32(0);
        int c = 0;
        for (; c + 16 <= w.channels; c += 16) sums = vpadalq_s16(sums, vpaddlq_s8(vld1q_s8(pixel + c)));
        int sum = vaddvq_s32(sums);
        for (; c < w.channels; c++) sum += pixel[c];
        call.sums[p - call.origin] = sum;
    }
}

const LayerMethod int8 = {"int8, NEON", always, none, none, sum_pixels, int8_run, none, nullptr};
const LayerMethod deferred = {"int16 deferred, NEON", able_to_defer, none, none, sum_pixels, deferred_run, none, nullptr};

}  // namespace emq::neon

namespace emq {
namespace {
const LayerMethod *const methods[] = {&neon::int8, &neon::deferred, &neon::lookup, nullptr};
}

const Kernels neon_kernels = {"neon", methods, sum_positions, neon::depthwise,
                              neon::add, neon::maximum, neon::accumulate, neon::quantize};

}  // namespace emq
