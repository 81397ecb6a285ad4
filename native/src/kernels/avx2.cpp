// AVX2 without VNNI: ways to sum, each as long in narrow lanes as they cannot overflow.
#include "avx2.h"

namespace emq::avx2 {
namespace {

constexpr int most_words = 32767;

// --- int8: codes less 128 times activations of 0..127; two products fit 16 bits (2 * 128 * 127) ----------------------

constexpr int rows = 4;

// Codes of zero, which fill up the depth, count as -128 here: what they meet has to be zero as well.
bool able_in_int8(const LayerCall &call) {
    const Window &w = call.window;
    return call.smallest >= 0 && (w.channels == w.depth || w.whole);
}

__attribute__((noinline)) void int8_tile(const LayerCall &call, const uint8_t *codes, int step, int channel, int first,
                                         int last) {
    const Window &w = call.window;
    const __m256i ones = _mm256_set1_epi16(1), centre = _mm256_set1_epi8(-128);
    const uint8_t *mask = call.mask + 4 * channel;
    const int8_t *row[rows];
    __m256i sums[rows][2];
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++) {
        row[i] = row_of(call, first + i, last);
        sums[i][0] = sums[i][1] = _mm256_setzero_si256();
    }
    for (int t = 0; t < w.taps; t++) {
        const ptrdiff_t tap = static_cast<ptrdiff_t>(w.tap[t]) * w.stride;
        for (int c = 0; c < w.depth; c += 4, codes += step) {
            const __m256i low = _mm256_xor_si256(_mm256_and_si256(load(codes), load(mask)), centre);
            const __m256i high = _mm256_xor_si256(_mm256_and_si256(load(codes + 32), load(mask + 32)), centre);
#pragma GCC unroll 4
            for (int i = 0; i < rows; i++) {
                const __m256i a = quad(row[i] + tap + c);
                sums[i][0] = _mm256_add_epi32(sums[i][0], _mm256_madd_epi16(_mm256_maddubs_epi16(a, low), ones));
                sums[i][1] = _mm256_add_epi32(sums[i][1], _mm256_madd_epi16(_mm256_maddubs_epi16(a, high), ones));
            }
        }
    }
    for (int i = 0; i < std::min(rows, last - first); i++) {
        const __m256i centred = _mm256_set1_epi32(128 * call.sums[w.pixels + first + i]);
        for (int h = 0; h < 2; h++) {
            finish<true>(call, _mm256_add_epi32(sums[i][h], centred), first + i, channel + half_vector * h);
        }
    }
}

void int8_run(const LayerCall &call, int from, int to) {
    every_tile<rows>(call, from, to, [&](const uint8_t *codes, int step, int channel, int p) {
        int8_tile(call, codes, step, channel, p, to);
    });
}

// --- deferred: halves of codes, 0..15, times activations; 16-bit sums are widened only before they could overflow -----

template <bool both>
__attribute__((noinline)) void deferred_tile(const LayerCall &call, const uint8_t *codes, int step, int channel,
                                             int first, int last) {
    const Window &w = call.window;
    const __m256i ones = _mm256_set1_epi16(1), half = _mm256_set1_epi8(15);
    const uint8_t *mask = call.mask + 4 * channel;
    const int most = std::max(1, std::max(call.largest, -call.smallest));
    const int until_wide = most_words / (2 * 15 * most) * 4;  // in inputs
    const int8_t *row[rows];
    __m256i wide[rows][2][2];
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++) {
        row[i] = row_of(call, first + i, last);
        for (int h = 0; h < 2; h++) wide[i][h][0] = wide[i][h][1] = _mm256_setzero_si256();
    }
    for (int t = 0; t < w.taps; t++) {
        const ptrdiff_t tap = static_cast<ptrdiff_t>(w.tap[t]) * w.stride;
        for (int c = 0; c < w.depth;) {
            const int end = std::min(w.depth, c + until_wide), start = c;
            const uint8_t *begin = codes;
            for (int part = 0; part < (both ? 2 : 1); part++) {  // the upper halves, then the lower ones
                __m256i sums[rows][2];
#pragma GCC unroll 4
                for (int i = 0; i < rows; i++) sums[i][0] = sums[i][1] = _mm256_setzero_si256();
                codes = begin;
                for (c = start; c < end; c += 4, codes += step) {
                    __m256i low = _mm256_and_si256(load(codes), load(mask));
                    __m256i high = _mm256_and_si256(load(codes + 32), load(mask + 32));
                    if (part == 0) {
                        low = _mm256_srli_epi16(low, 4);
                        high = _mm256_srli_epi16(high, 4);
                    }
                    low = _mm256_and_si256(low, half);
                    high = _mm256_and_si256(high, half);
#pragma GCC unroll 4
                    for (int i = 0; i < rows; i++) {
                        const __m256i a = quad(row[i] + tap + c);
                        sums[i][0] = _mm256_add_epi16(sums[i][0], _mm256_maddubs_epi16(low, a));
                        sums[i][1] = _mm256_add_epi16(sums[i][1], _mm256_maddubs_epi16(high, a));
                    }
                }
#pragma GCC unroll 4
                for (int i = 0; i < rows; i++) {
                    for (int h = 0; h < 2; h++) {
                        wide[i][h][part] = _mm256_add_epi32(wide[i][h][part], _mm256_madd_epi16(sums[i][h], ones));
                    }
                }
            }
        }
    }
    for (int i = 0; i < std::min(rows, last - first); i++) {
        for (int h = 0; h < 2; h++) {
            const __m256i sum = _mm256_add_epi32(_mm256_slli_epi32(wide[i][h][0], 4), wide[i][h][1]);
            finish<true>(call, sum, first + i, channel + half_vector * h);
        }
    }
}

void deferred_run(const LayerCall &call, int from, int to) {
    every_tile<rows>(call, from, to, [&](const uint8_t *codes, int step, int channel, int p) {
        call.bits > 4 ? deferred_tile<true>(call, codes, step, channel, p, to)
                      : deferred_tile<false>(call, codes, step, channel, p, to);
    });
}

}  // namespace

void sum_pixels(const LayerCall &call, int from, int to) {
    const Window &w = call.window;
    const __m256i ones = _mm256_set1_epi8(1), words = _mm256_set1_epi16(1);
    for (int p = from; p < to; p++) {
        const int8_t *pixel = call.input + static_cast<ptrdiff_t>(p) * w.stride;
        __m256i sums = _mm256_setzero_si256();
        int c = 0;
        for (; c + 32 <= w.channels; c += 32) {
            const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(pixel + c));
            sums = _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(ones, bytes), words));
        }
        alignas(32) int32_t lanes[8];
        _mm256_store_si256(reinterpret_cast<__m256i *>(lanes), sums);
        int sum = 0;
        for (const int lane : lanes) sum += lane;
        for (; c < w.channels; c++) sum += pixel[c];
        call.sums[p] = sum;
    }
}

const LayerMethod int8 = {"int8, AVX2", able_in_int8, none, sum_pixels, int8_run, none, nullptr};
const LayerMethod deferred = {"int16 deferred, AVX2", always, none, sum_pixels, deferred_run, none, nullptr};

}  // namespace emq::avx2

namespace emq {
namespace {
const LayerMethod *const methods[] = {&avx2::deferred, &avx2::int8, &avx2::lookup, nullptr};
}

const Kernels avx2_kernels = {"avx2",        methods,          avx2::depthwise, avx2::add,
                              avx2::maximum, avx2::accumulate, avx2::quantize};

}  // namespace emq
