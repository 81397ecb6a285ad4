// AVX2 without VNNI: ways to sum, each as long in narrow lanes as they cannot overflow.
#include "avx2.h"

namespace emq::avx2 {
namespace {

constexpr int most_words = 32767, rows_of_tiles = 4;

void write(uint8_t *at, __m256i bytes) { _mm256_store_si256(reinterpret_cast<__m256i *>(at), bytes); }

// --- int8: codes less 128 times activations of 0..127; two products fit 16 bits (2 * 128 * 127) ----------------------

// Codes of zero, which fill up the depth, count as -128 here: what they meet has to be zero as well.
bool able_in_int8(const LayerCall &call) {
    const Window &w = call.window;
    return call.smallest >= 0 && (w.channels == w.depth || w.whole);
}

struct Int8 {
    static void expand(const LayerCall &call, __m256i codes, size_t at) {
        write(call.panel + at, _mm256_xor_si256(codes, _mm256_set1_epi8(-128)));
    }

    template <int rows>
    static __attribute__((noinline)) void tile(const LayerCall &call, const uint8_t *codes, int channel, int first) {
        const __m256i ones = _mm256_set1_epi16(1);
        const int8_t *row[rows];
        for (int i = 0; i < rows; i++) row[i] = row_of(call, first + i);
        __m256i sums[2 * rows];
        add_products(call, codes, row, 1, sums, [ones](__m256i sum, __m256i four, __m256i a) {
            return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(a, four), ones));
        });
        for (int i = 0; i < rows; i++) {
            const __m256i centre = _mm256_set1_epi32(128 * call.totals[first + i]);
            for (int h = 0; h < 2; h++) sums[2 * i + h] = _mm256_add_epi32(sums[2 * i + h], centre);
        }
        finish(call, sums, rows, 2, first, channel);
    }
};

// --- whole: codes and activations of 16 bits, two products fit 32 bits; for codes and activations of all eight bits ----

size_t word_bytes(const Window &w) { return 2 * static_cast<size_t>(w.pixels) * static_cast<size_t>(w.stride); }

void widen_pixels(const LayerCall &call, int from, int to) {
    sum_pixels(call, from, to);
    const ptrdiff_t first = static_cast<ptrdiff_t>(from) * call.window.stride;
    uint8_t *words = call.scratch + 2 * static_cast<ptrdiff_t>(from - call.origin) * call.window.stride;
    // Of the last pixel only what the group has: the memory behind that of the last group may end.
    const ptrdiff_t last = static_cast<ptrdiff_t>(to - 1) * call.window.stride + call.window.depth;
    for (ptrdiff_t i = first; i < last; i += 16) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i *>(call.input + i));
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(words + 2 * (i - first)), _mm256_cvtepi8_epi16(bytes));
    }
}

struct Whole {
    // Of a step the first two inputs of sixteen channels, then the other two.
    static void expand(const LayerCall &call, __m256i codes, size_t at) {
        // A word from a byte: that byte, then zero.
        const __m256i first = _mm256_broadcastsi128_si256(
            _mm_setr_epi8(0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13, -1));
        const __m256i second = _mm256_broadcastsi128_si256(
            _mm_setr_epi8(2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15, -1));
        uint8_t *panel = call.panel + 2 * (at / 64 * 64) + at % 64;
        write(panel, _mm256_shuffle_epi8(codes, first));
        write(panel + 64, _mm256_shuffle_epi8(codes, second));
    }

    template <int rows>
    static __attribute__((noinline)) void tile(const LayerCall &call, const uint8_t *codes, int channel, int first) {
        const Window &w = call.window;
        const int8_t *words = reinterpret_cast<const int8_t *>(call.scratch), *row[rows];
        for (int i = 0; i < rows; i++) {
            row[i] = words + 2 * static_cast<ptrdiff_t>(w.position[first + i] - call.origin) * w.stride;
        }
        __m256i sums[2 * rows];
        add_products(call, codes, row, 2, sums, [](__m256i sum, __m256i two, __m256i a) {
            return _mm256_add_epi32(sum, _mm256_madd_epi16(a, two));
        });
        finish(call, sums, rows, 2, first, channel);
    }
};

// --- deferred: codes of up to seven bits times activations; 16-bit sums are widened only before they could overflow ----

bool able_to_defer(const LayerCall &call) { return call.bits < 8; }

struct Deferred {
    static void expand(const LayerCall &call, __m256i codes, size_t at) {
        // Words are shifted, so what comes from the neighbouring byte is taken off.
        const __m256i kept = _mm256_set1_epi8(static_cast<char>((1 << call.bits) - 1));
        write(call.panel + at, _mm256_and_si256(_mm256_srl_epi16(codes, _mm_cvtsi32_si128(8 - call.bits)), kept));
    }

    template <int rows>
    static __attribute__((noinline)) void tile(const LayerCall &call, const uint8_t *codes, int channel, int first) {
        const Window &w = call.window;
        const __m256i ones = _mm256_set1_epi16(1);
        const int most = std::max(1, std::max(call.largest, -call.smallest));
        const int until_wide = most_words / (2 * ((1 << call.bits) - 1) * most) * 4;  // in inputs
        const int8_t *row[rows];
        __m256i all[2 * rows];
#pragma GCC unroll 4
        for (int i = 0; i < rows; i++) {
            row[i] = row_of(call, first + i);
            all[2 * i] = all[2 * i + 1] = _mm256_setzero_si256();
        }
        for (int r = 0; r < w.runs; r++) {
            const ptrdiff_t tap = static_cast<ptrdiff_t>(w.run_tap[r]) * w.stride, end = tap + w.run * w.depth;
            for (ptrdiff_t c = tap; c < end;) {
                const ptrdiff_t until = std::min(end, c + until_wide);
                __m256i sums[rows][2];
#pragma GCC unroll 4
                for (int i = 0; i < rows; i++) sums[i][0] = sums[i][1] = _mm256_setzero_si256();
                for (; c < until; c += 4, codes += 64) {
                    const __m256i low = load(codes), high = load(codes + 32);
#pragma GCC unroll 4
                    for (int i = 0; i < rows; i++) {
                        const __m256i a = quad(row[i] + c);
                        sums[i][0] = _mm256_add_epi16(sums[i][0], _mm256_maddubs_epi16(low, a));
                        sums[i][1] = _mm256_add_epi16(sums[i][1], _mm256_maddubs_epi16(high, a));
                    }
                }
#pragma GCC unroll 4
                for (int i = 0; i < rows; i++) {
                    all[2 * i] = _mm256_add_epi32(all[2 * i], _mm256_madd_epi16(sums[i][0], ones));
                    all[2 * i + 1] = _mm256_add_epi32(all[2 * i + 1], _mm256_madd_epi16(sums[i][1], ones));
                }
            }
        }
        // As those of the whole codes, whose lower bits are zero.
        for (__m256i &sum : all) sum = _mm256_sll_epi32(sum, _mm_cvtsi32_si128(8 - call.bits));
        finish(call, all, rows, 2, first, channel);
    }
};

size_t two_panels(const Window &w) { return 2 * vector_bytes(w); }

template <typename Form>
void run(const LayerCall &call, int from, int to) {
    every_vector<Form, rows_of_tiles>(call, from, to);
}

template <bool dropped>
void finish_sums(const LayerCall &call, const __m256i *sums, int rows, int halves, int first, int channel) {
    const Scaling &s = call.scaling;
    const int32_t *plain = call.totals + first;
    for (int j = 0; j < halves; j++) {
        const int n = channel + half_vector * j, left = call.window.outputs - n;
        if (left <= 0) return;
        const __m256i gain = load(s.gain + n), shift = load(s.shift + n);
        const __m256i bias = load(s.bias + n), drop = load(s.drop + n);
        const __m256 scale = _mm256_load_ps(s.scale + n);
        for (int i = 0; i < rows; i++) {
            const __m256i sum = sums[i * halves + j], codes = dropped ? _mm256_srav_epi32(sum, drop) : sum;
            const __m256i fixed = _mm256_add_epi32(_mm256_mullo_epi32(_mm256_set1_epi32(plain[i]), shift), bias);
            const __m256i total = _mm256_add_epi32(_mm256_mullo_epi32(codes, gain), fixed);
            const __m256 value = _mm256_mul_ps(_mm256_cvtepi32_ps(total), scale);
            if (call.answer != nullptr) {
                alignas(32) float all[half_vector];
                _mm256_store_ps(all, value);
                std::copy_n(all, std::min(left, half_vector),
                            call.answer + static_cast<ptrdiff_t>(first + i) * call.answer_row + n);
                continue;
            }
            store(call.output + call.window.target[first + i] + n, _mm256_cvtps_epi32(kept(value, s.low, s.high)), left);
        }
    }
}

}  // namespace

void finish(const LayerCall &call, const __m256i *sums, int rows, int halves, int first, int channel) {
    finish_sums<true>(call, sums, rows, halves, first, channel);
}

void finish_looked_up(const LayerCall &call, const __m256i *sums, int rows, int halves, int first, int channel) {
    finish_sums<false>(call, sums, rows, halves, first, channel);
}

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
        call.sums[p - call.origin] = sum;
    }
}

const LayerMethod int8 = {"int8, AVX2", able_in_int8, none, vector_bytes, sum_pixels, run<Int8>, none, nullptr};
const LayerMethod whole = {"int16, AVX2", always, word_bytes, two_panels, widen_pixels, run<Whole>, none, nullptr};
const LayerMethod deferred = {"int16 deferred, AVX2", able_to_defer, none, vector_bytes, sum_pixels,
                              run<Deferred>, none, nullptr};

}  // namespace emq::avx2

namespace emq {
namespace {
const LayerMethod *const methods[] = {&avx2::whole, &avx2::deferred, &avx2::int8, &avx2::lookup, nullptr};
}

const Kernels avx2_kernels = {"avx2", methods, sum_positions, avx2::depthwise,
                              avx2::add, avx2::maximum, avx2::accumulate, avx2::quantize};

}  // namespace emq
