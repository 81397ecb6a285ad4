// AVX-512 with VNNI: codes (unsigned bytes) times activations (signed bytes), four at a time into 32 bits.
#include "avx512.h"

#include <algorithm>

namespace emq::avx512 {
namespace {

size_t none(const Window &) { return 0; }
bool always(const LayerCall &) { return true; }

// Rows of positions by vectors of channels: as many sums as registers allow beside the weights.
constexpr int rows_of(int vectors) { return vectors == 4 ? 6 : vectors == 3 ? 8 : 12; }

template <int rows, int vectors>
__attribute__((noinline)) void tile(const LayerCall &call, const uint8_t *codes, int channel, int first, int last) {
    const Window &w = call.window;
    __m512i sums[rows][vectors];
    const int8_t *row[rows];
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++) {
        row[i] = row_of(call, first + i, last);
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) sums[i][j] = _mm512_setzero_si512();
    }
    const uint8_t *mask = call.mask + 4 * channel;
    for (int t = 0; t < w.taps; t++) {
        const ptrdiff_t tap = static_cast<ptrdiff_t>(w.tap[t]) * w.stride;
        for (int c = 0; c < w.depth; c += 4, codes += 64 * vectors) {
            __m512i weights[vectors];
#pragma GCC unroll 4
            for (int j = 0; j < vectors; j++) {
                weights[j] = _mm512_and_si512(_mm512_load_si512(codes + 64 * j), _mm512_load_si512(mask + 64 * j));
            }
#pragma GCC unroll 12
            for (int i = 0; i < rows; i++) {
                int32_t quad;
                __builtin_memcpy(&quad, row[i] + tap + c, sizeof quad);
                const __m512i activations = _mm512_set1_epi32(quad);
#pragma GCC unroll 4
                for (int j = 0; j < vectors; j++) {
                    sums[i][j] = _mm512_dpbusd_epi32(sums[i][j], weights[j], activations);
                }
            }
        }
    }
    for (int i = 0; i < std::min(rows, last - first); i++) {
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) finish<true>(call, sums[i][j], first + i, channel + 16 * j);
    }
}

template <int vectors>
void block(const LayerCall &call, const uint8_t *codes, int channel, int from, int to) {
    constexpr int rows = rows_of(vectors);
    for (int p = from; p < to; p += rows) tile<rows, vectors>(call, codes, channel, p, to);
}

void run(const LayerCall &call, int from, int to) {
    const Window &w = call.window;
    sum_positions(call, from, to);
    const int vectors = (w.outputs + vector_channels - 1) / vector_channels;
    const size_t vector_bytes = static_cast<size_t>(w.taps) * static_cast<size_t>(w.depth) * vector_channels;
    for (int vector = 0; vector < vectors; vector += block_vectors) {
        const uint8_t *codes = call.codes + static_cast<size_t>(vector) * vector_bytes;
        const int channel = vector * vector_channels;
        switch (std::min(block_vectors, vectors - vector)) {
            case 4: block<4>(call, codes, channel, from, to); break;
            case 3: block<3>(call, codes, channel, from, to); break;
            case 2: block<2>(call, codes, channel, from, to); break;
            default: block<1>(call, codes, channel, from, to); break;
        }
    }
}

}  // namespace

void sum_pixels(const LayerCall &call, int from, int to) {
    const Window &w = call.window;
    const __m512i ones = _mm512_set1_epi8(1);
    for (int p = from; p < to; p++) {
        const int8_t *pixel = call.input + static_cast<ptrdiff_t>(p) * w.stride;
        __m512i sums = _mm512_setzero_si512();
        for (int c = 0; c < w.channels; c += 64) {
            const int left = w.channels - c;
            const __mmask64 valid = left >= 64 ? ~__mmask64{0} : (__mmask64{1} << left) - 1;
            sums = _mm512_dpbusd_epi32(sums, ones, _mm512_maskz_loadu_epi8(valid, pixel + c));
        }
        call.sums[p] = _mm512_reduce_add_epi32(sums);
    }
}

const LayerMethod direct = {"int8, VNNI", always, none, sum_pixels, run, none, nullptr};

void depthwise(const DepthwiseCall &call, int from, int to) {
    for (int c = 0; c < call.channels; c += 16) {
        const int left = call.channels - c;
        const __mmask16 valid = left >= 16 ? __mmask16(0xffff) : __mmask16((1 << left) - 1);
        const __m512i bias = _mm512_maskz_loadu_epi32(valid, call.bias + c);
        const __m512 scale = _mm512_maskz_loadu_ps(valid, call.scale + c);
        for (int p = from; p < to; p++) {
            const int8_t *input = call.input + static_cast<ptrdiff_t>(call.position[p]) * call.stride + c;
            const int8_t *weights = call.weights + c;
            __m512i sum = bias;
            for (int t = 0; t < call.taps; t++, weights += call.channels) {
                // Both are 16-bit numbers in lanes of 32, the upper half of the weight zero: one product a lane.
                const __m512i a = _mm512_cvtepi8_epi32(
                    _mm_maskz_loadu_epi8(valid, input + static_cast<ptrdiff_t>(call.tap[t]) * call.stride));
                const __m512i z = _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(valid, weights));
                sum = _mm512_add_epi32(sum, _mm512_madd_epi16(a, _mm512_maskz_mov_epi16(0x55555555, z)));
            }
            const __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), scale);
            const __m512 kept = _mm512_min_ps(_mm512_max_ps(value, _mm512_set1_ps(call.low)), _mm512_set1_ps(call.high));
            _mm512_mask_cvtepi32_storeu_epi8(call.output + call.target[p] + c, valid, _mm512_cvtps_epi32(kept));
        }
    }
}

void add(const AddCall &call) {
    const __m512 ratio_a = _mm512_set1_ps(call.ratio_a), ratio_b = _mm512_set1_ps(call.ratio_b);
    const __m512 fixed = _mm512_set1_ps(call.fixed), low = _mm512_set1_ps(call.low), high = _mm512_set1_ps(call.high);
    const __m512i zero_a = _mm512_set1_epi32(call.zero_a), zero_b = _mm512_set1_epi32(call.zero_b);
    const __m512i zero = _mm512_set1_epi32(call.zero);
    for (size_t i = 0; i < call.count; i += 16) {
        const size_t left = call.count - i;
        const __mmask16 valid = left >= 16 ? __mmask16(0xffff) : __mmask16((1 << left) - 1);
        const __m512i a = _mm512_add_epi32(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(valid, call.a + i)), zero_a);
        const __m512i b = _mm512_add_epi32(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(valid, call.b + i)), zero_b);
        __m512 total = _mm512_fmadd_ps(_mm512_cvtepi32_ps(b), ratio_b, fixed);
        total = _mm512_fmadd_ps(_mm512_cvtepi32_ps(a), ratio_a, total);
        const __m512i code = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(total, low), high));
        _mm512_mask_cvtepi32_storeu_epi8(call.output + i, valid, _mm512_sub_epi32(code, zero));
    }
}

void maximum(int8_t *output, const int8_t *input, size_t count) {
    for (size_t i = 0; i < count; i += 64) {
        const size_t left = count - i;
        const __mmask64 valid = left >= 64 ? ~__mmask64{0} : (__mmask64{1} << left) - 1;
        const __m512i larger =
            _mm512_max_epi8(_mm512_maskz_loadu_epi8(valid, output + i), _mm512_maskz_loadu_epi8(valid, input + i));
        _mm512_mask_storeu_epi8(output + i, valid, larger);
    }
}

void accumulate(int32_t *sums, const int8_t *input, size_t count) {
    for (size_t i = 0; i < count; i += 16) {
        const size_t left = count - i;
        const __mmask16 valid = left >= 16 ? __mmask16(0xffff) : __mmask16((1 << left) - 1);
        const __m512i more = _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(valid, input + i));
        _mm512_mask_storeu_epi32(sums + i, valid, _mm512_add_epi32(_mm512_maskz_loadu_epi32(valid, sums + i), more));
    }
}

void quantize(int8_t *output, int stride, const float *input, int width, float scale, int zero) {
    const __m512 step = _mm512_set1_ps(scale), low = _mm512_set1_ps(static_cast<float>(-zero)),
                 high = _mm512_set1_ps(static_cast<float>(255 - zero));
    alignas(64) int8_t codes[16];
    for (int x = 0; x < width; x += 16) {
        const int left = std::min(16, width - x);
        const __mmask16 valid = static_cast<__mmask16>((1u << left) - 1);
        const __m512 value = _mm512_div_ps(_mm512_maskz_loadu_ps(valid, input + x), step);
        // The maximum takes its second operand where the first one is not a number: the lowest code.
        const __m512 kept = _mm512_min_ps(_mm512_max_ps(value, low), high);
        _mm_store_si128(reinterpret_cast<__m128i *>(codes), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(kept)));
        for (int i = 0; i < left; i++) output[static_cast<ptrdiff_t>(x + i) * stride] = codes[i];
    }
}

}  // namespace emq::avx512

namespace emq {
namespace {
const LayerMethod *const methods[] = {&avx512::direct, nullptr};
}

const Kernels avx512_kernels = {"avx512vnni",    methods,             avx512::depthwise, avx512::add,
                                avx512::maximum, avx512::accumulate, avx512::quantize};

}  // namespace emq
