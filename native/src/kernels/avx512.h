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

// The tile of as many rows as are `wanted`, which are at most `rows`.
template <typename Form, int rows, int vectors>
static inline void tile_of(int wanted, const LayerCall &call, const uint8_t *codes, int channel, int first) {
    if constexpr (rows > 1) {
        if (wanted < rows) return tile_of<Form, rows - 1, vectors>(wanted, call, codes, channel, first);
    }
    Form::template tile<rows, vectors>(call, codes, channel, first);
}

// Covers positions with tiles of at most `most` rows, as many in one as in the other.
template <typename Form, int most, int vectors>
static inline void even_tiles(const LayerCall &call, const uint8_t *codes, int channel, int from, int to) {
    for (int p = from; p < to;) {
        const int left = to - p, tiles = (left + most - 1) / most, rows = (left + tiles - 1) / tiles;
        tile_of<Form, most, vectors>(rows, call, codes, channel, p);
        p += rows;
    }
}

extern const LayerMethod direct;
void depthwise(const DepthwiseCall &call, int from, int to);
void add(const AddCall &call);
void maximum(const MaximumCall &call);
void accumulate(int32_t *sums, const int8_t *input, size_t count);
void quantize(const QuantizeCall &call);

}  // namespace emq::avx512
