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

// Eight channels of a position, from the sums of code times activation to output codes, or to the answer.
template <bool dropped>
static inline void finish(const LayerCall &call, __m256i sum, int position, int channel) {
    const Scaling &s = call.scaling;
    const int left = call.window.outputs - channel;
    if (left <= 0) return;
    if (dropped) sum = _mm256_srav_epi32(sum, load(s.drop + channel));
    const __m256i plain = _mm256_set1_epi32(call.sums[call.window.pixels + position]);
    __m256i total = _mm256_mullo_epi32(sum, load(s.gain + channel));
    total = _mm256_add_epi32(total, _mm256_mullo_epi32(plain, load(s.shift + channel)));
    total = _mm256_add_epi32(total, load(s.bias + channel));
    const __m256 value = _mm256_mul_ps(_mm256_cvtepi32_ps(total), _mm256_load_ps(s.scale + channel));
    if (call.answer != nullptr) {
        alignas(32) float all[half_vector];
        _mm256_store_ps(all, value);
        float *answer = call.answer + static_cast<size_t>(position) * static_cast<size_t>(call.window.outputs) + channel;
        std::copy_n(all, std::min(left, half_vector), answer);
        return;
    }
    store(call.output + call.window.target[position] + channel, _mm256_cvtps_epi32(kept(value, s.low, s.high)), left);
}

static inline __m256i quad(const int8_t *activations) {
    int32_t four;
    __builtin_memcpy(&four, activations, sizeof four);
    return _mm256_set1_epi32(four);
}

// Calls tile(codes, bytes from one step to the next, channel, position) for every vector of channels and tile of rows.
template <int rows, typename Tile>
static inline void every_tile(const LayerCall &call, int from, int to, Tile tile) {
    const Window &w = call.window;
    sum_positions(call, from, to);
    const int vectors = (w.outputs + vector_channels - 1) / vector_channels;
    const size_t vector_bytes = static_cast<size_t>(w.taps) * static_cast<size_t>(w.depth) * vector_channels;
    for (int vector = 0; vector < vectors; vector++) {
        const int first = vector / block_vectors * block_vectors, width = std::min(block_vectors, vectors - first);
        const uint8_t *codes =
            call.codes + static_cast<size_t>(first) * vector_bytes + static_cast<size_t>(vector - first) * 64;
        for (int p = from; p < to; p += rows) tile(codes, 64 * width, vector * vector_channels, p);
    }
}

// The sum of the channels of every pixel in a range, into call.sums.
void sum_pixels(const LayerCall &call, int from, int to);

extern const LayerMethod lookup;
void depthwise(const DepthwiseCall &call, int from, int to);
void add(const AddCall &call);
void maximum(int8_t *output, const int8_t *input, size_t count);
void accumulate(int32_t *sums, const int8_t *input, size_t count);
void quantize(int8_t *output, int stride, const float *input, int width, float scale, int zero);

}  // namespace emq::avx2
