// What the kernels of AVX2 and of its extensions share.
#pragma once

#include <immintrin.h>

#include <algorithm>

#include "kernels.h"

namespace emq::avx2 {

constexpr int half_vector = 8;  // channels of one register of 32-bit sums

static inline size_t none(const Window &) { return 0; }
static inline bool always(const LayerCall &) { return true; }

static inline __m256i load(const void *at) { return _mm256_load_si256(static_cast<const __m256i *>(at)); }

static inline void store(int8_t *output, __m256i codes, int count) {
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1));
    const __m128i bytes = _mm_packs_epi16(words, words);
    if (count >= half_vector) {
        _mm_storel_epi64(reinterpret_cast<__m128i *>(output), bytes);
        return;
    }
    alignas(16) int8_t all[16];
    _mm_store_si128(reinterpret_cast<__m128i *>(all), bytes);
    for (int i = 0; i < count; i++) output[i] = all[i];
}

static inline __m256 kept(__m256 value, float low, float high) {
    return _mm256_min_ps(_mm256_max_ps(value, _mm256_set1_ps(low)), _mm256_set1_ps(high));
}

// From sums of code times activation to output codes, or to the answer: of `rows` positions from `first` on and `halves`
// registers of eight channels from `channel` on, which lie position by position. `finish` is for codes of eight bits,
// `finish_looked_up` for codes of as many bits as they have.
void finish(const LayerCall &call, const __m256i *sums, int rows, int halves, int first, int channel);
void finish_looked_up(const LayerCall &call, const __m256i *sums, int rows, int halves, int first, int channel);

static inline __m256i quad(const int8_t *activations) {
    int32_t four;
    __builtin_memcpy(&four, activations, sizeof four);
    return _mm256_set1_epi32(four);
}

static inline size_t vector_bytes(const Window &w) {
    return static_cast<size_t>(w.taps) * static_cast<size_t>(w.depth) * vector_channels;
}

// Computes vector after vector of sixteen channels: their codes are written into the panel once, as the form wants them,
// from where all tiles read them. `expand` gets those of eight channels and four inputs, and their place in the vector.
template <typename Form, int most>
static inline void every_vector(const LayerCall &call, int from, int to) {
    const Window &w = call.window;
    const int vectors = (w.outputs + vector_channels - 1) / vector_channels;
    for (int vector = 0; vector < vectors; vector++) {
        const int first = vector / block_vectors * block_vectors, width = std::min(block_vectors, vectors - first);
        const uint8_t *codes = call.codes + static_cast<size_t>(first) * vector_bytes(w) + 64 * (vector - first);
        const uint8_t *mask = call.mask + 64 * vector;
        for (size_t at = 0; at < vector_bytes(w); at += 64, codes += 64 * width) {
            for (int half = 0; half < 64; half += 32) {
                Form::expand(call, _mm256_and_si256(load(codes + half), load(mask + half)), at + half);
            }
        }
        even_tiles<Form, most>(call, call.panel, vector * vector_channels, from, to);
    }
}

// Adds up what `product` makes of a sum, codes of eight channels and activations, in all inputs of some positions, and
// keeps the sums position by position. `row` is where each position starts; an input has `bytes` in it, and one step of
// 64 bytes of codes meets four bytes of it.
template <int rows, typename Product>
__attribute__((always_inline)) static inline void add_products(const LayerCall &call, const uint8_t *codes,
                                                               const int8_t *const (&row)[rows], int bytes,
                                                               __m256i (&kept)[2 * rows], const Product &product) {
    const Window &w = call.window;
    __m256i sums[rows][2];
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) sums[i][0] = sums[i][1] = _mm256_setzero_si256();
    for (int r = 0; r < w.runs; r++) {
        const ptrdiff_t tap = static_cast<ptrdiff_t>(bytes) * w.run_tap[r] * w.stride;
        for (ptrdiff_t c = tap; c < tap + bytes * w.run * w.depth; c += 4, codes += 64) {
            const __m256i low = load(codes), high = load(codes + 32);
#pragma GCC unroll 6
            for (int i = 0; i < rows; i++) {
                const __m256i a = quad(row[i] + c);
                sums[i][0] = product(sums[i][0], low, a);
                sums[i][1] = product(sums[i][1], high, a);
            }
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) kept[2 * i] = sums[i][0], kept[2 * i + 1] = sums[i][1];
}

// The sum of the channels of every pixel in a range, into call.sums.
void sum_pixels(const LayerCall &call, int from, int to);

extern const LayerMethod lookup;
void depthwise(const DepthwiseCall &call, int from, int to);
void add(const AddCall &call);
void maximum(const MaximumCall &call);
void accumulate(int32_t *sums, const int8_t *input, size_t count);
void quantize(const QuantizeCall &call);

}  // namespace emq::avx2
