// Kernels of AVX-512 with VNNI that its extensions share.
#pragma once

#include <immintrin.h>

#include "kernels.h"

namespace emq::avx512 {

// The sum of the channels of every pixel in a range, into call.sums.
void sum_pixels(const LayerCall &call, int from, int to);

// Sixteen channels of a position, from the sums of code times activation to output codes, or to the answer.
template <bool dropped>
static inline void finish(const LayerCall &call, __m512i sum, int position, int channel) {
    const Scaling &s = call.scaling;
    const int left = call.window.outputs - channel;
    const __mmask16 valid = left >= vector_channels ? __mmask16(0xffff) : __mmask16((1 << left) - 1);
    if (dropped) sum = _mm512_srav_epi32(sum, _mm512_load_si512(s.drop + channel));
    const __m512i plain = _mm512_set1_epi32(call.sums[call.window.pixels + position]);
    __m512i total = _mm512_mullo_epi32(sum, _mm512_load_si512(s.gain + channel));
    total = _mm512_add_epi32(total, _mm512_mullo_epi32(plain, _mm512_load_si512(s.shift + channel)));
    total = _mm512_add_epi32(total, _mm512_load_si512(s.bias + channel));
    __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(total), _mm512_load_ps(s.scale + channel));
    if (call.answer != nullptr) {
        _mm512_mask_storeu_ps(call.answer + static_cast<size_t>(position) * static_cast<size_t>(call.window.outputs) +
                                  channel,
                              valid, value);
        return;
    }
    value = _mm512_min_ps(_mm512_max_ps(value, _mm512_set1_ps(s.low)), _mm512_set1_ps(s.high));
    _mm512_mask_cvtepi32_storeu_epi8(call.output + call.window.target[position] + channel, valid,
                                     _mm512_cvtps_epi32(value));
}

extern const LayerMethod direct;
void depthwise(const DepthwiseCall &call, int from, int to);
void add(const AddCall &call);
void maximum(int8_t *output, const int8_t *input, size_t count);
void accumulate(int32_t *sums, const int8_t *input, size_t count);
void quantize(int8_t *output, int stride, const float *input, int width, float scale, int zero);

}  // namespace emq::avx512
