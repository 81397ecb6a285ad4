// Kernels of AVX-512 with VNNI that its extensions share.
#pragma once

#include <immintrin.h>

#include <algorithm>

#include "kernels.h"

namespace emq::avx512 {

// The sum of the channels of every pixel in a range, into call.sums.
void sum_pixels(const LayerCall &call, int from, int to);

// From sums of code times activation to output codes, or to the answer: of `rows` positions from `first` on and `vectors`
// vectors of sixteen channels from `channel` on, which lie position by position. `finish` is for codes of eight bits,
// `finish_looked_up` for codes of as many bits as they have.
void finish(const LayerCall &call, __m512i *sums, int rows, int vectors, int first, int channel);
void finish_looked_up(const LayerCall &call, __m512i *sums, int rows, int vectors, int first, int channel);

extern const LayerMethod direct;
void depthwise(const DepthwiseCall &call, int from, int to);
void add(const AddCall &call);
void maximum(const MaximumCall &call);
void accumulate(int32_t *sums, const int8_t *input, size_t count);
void quantize(const QuantizeCall &call);

}  // namespace emq::avx512
