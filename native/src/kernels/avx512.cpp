// AVX-512 with VNNI: codes (unsigned bytes) times activations (signed bytes), four at a time into 32 bits.
#include "avx512.h"

#include <algorithm>

namespace emq::avx512 {
namespace {

size_t none(const Window &) { return 0; }
bool always(const LayerCall &) { return true; }

struct Products {
    template <int rows, int vectors>
    static void tile(const LayerCall &call, const uint8_t *codes, int channel, int first);
};

template <int rows, int vectors>
__attribute__((noinline)) void Products::tile(const LayerCall &call, const uint8_t *codes, int channel, int first) {
    const Window &w = call.window;
    __m512i sums[rows][vectors];
    const int8_t *row[rows];
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++) {
        row[i] = row_of(call, first + i);
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) sums[i][j] = _mm512_setzero_si512();
    }
    const uint8_t *mask = call.mask + 4 * channel;
    for (int r = 0; r < w.runs; r++) {
        const ptrdiff_t tap = static_cast<ptrdiff_t>(w.run_tap[r]) * w.stride;
        for (int c = 0; c < w.run * w.depth; c += 4, codes += 64 * vectors) {
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
    finish(call, sums[0], rows, vectors, first, channel);
}

void run(const LayerCall &call, int from, int to) {
    const Window &w = call.window;
    const int vectors = (w.outputs + vector_channels - 1) / vector_channels;
    const size_t vector_bytes = static_cast<size_t>(w.taps) * static_cast<size_t>(w.depth) * vector_channels;
    for (int vector = 0; vector < vectors; vector += block_vectors) {
        const uint8_t *codes = call.codes + static_cast<size_t>(vector) * vector_bytes;
        const int channel = vector * vector_channels;
        // Rows of positions by vectors of channels: as many sums as registers allow beside the weights.
        switch (std::min(block_vectors, vectors - vector)) {
            case 4: even_tiles<Products, 6, 4>(call, codes, channel, from, to); break;
            case 3: even_tiles<Products, 8, 3>(call, codes, channel, from, to); break;
            case 2: even_tiles<Products, 12, 2>(call, codes, channel, from, to); break;
            default: even_tiles<Products, 12, 1>(call, codes, channel, from, to); break;
        }
    }
}

}  // namespace

namespace {

// The sums of pixels of at most four bytes, sixteen at a time.
void sum_small_pixels(const LayerCall &call, int from, int to) {
    const int channels = call.window.channels;
    const __m512i ones = _mm512_set1_epi32(0x01010101 & (channels == 4 ? -1 : (1 << 8 * channels) - 1));
    for (int p = from; p < to; p += 16) {
        const __mmask16 valid = static_cast<__mmask16>((1u << std::min(16, to - p)) - 1);
        const __m512i pixels = _mm512_maskz_loadu_epi32(valid, call.input + static_cast<ptrdiff_t>(p) * 4);
        _mm512_mask_storeu_epi32(call.sums + (p - call.origin), valid, _mm512_dpbusd_epi32(_mm512_setzero_si512(), ones, pixels));
    }
}

// The sums of the sixteen numbers of four vectors.
__m128i sums_of(const __m512i *four) {
    const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(four[0], four[1]), _mm512_unpackhi_epi32(four[0], four[1]));
    const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(four[2], four[3]), _mm512_unpackhi_epi32(four[2], four[3]));
    const __m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

}  // namespace

void sum_pixels(const LayerCall &call, int from, int to) {
    const Window &w = call.window;
    if (w.stride == 4) return sum_small_pixels(call, from, to);
    const __m512i ones = _mm512_set1_epi8(1);
    for (int p = from; p < to; p += 4) {
        __m512i four[4];
        const int count = std::min(4, to - p);
        for (int i = 0; i < 4; i++) {
            const int8_t *pixel = call.input + static_cast<ptrdiff_t>(p + std::min(i, count - 1)) * w.stride;
            four[i] = _mm512_setzero_si512();
            for (int c = 0; c < w.channels; c += 64) {
                const int left = w.channels - c;
                const __mmask64 valid = left >= 64 ? ~__mmask64{0} : (__mmask64{1} << left) - 1;
                four[i] = _mm512_dpbusd_epi32(four[i], ones, _mm512_maskz_loadu_epi8(valid, pixel + c));
            }
        }
        _mm_mask_storeu_epi32(call.sums + (p - call.origin), static_cast<__mmask8>((1 << count) - 1), sums_of(four));
    }
}

namespace {

// Writes the codes of four vectors of sixteen channels, or of what is left of them.
void store_four(int8_t *output, const __m512i *codes, int left) {
    // Packing leaves four codes of every vector behind each other; they are brought in order at once.
    const __m512i order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
    const __m512i words[] = {_mm512_packs_epi32(codes[0], codes[1]), _mm512_packs_epi32(codes[2], codes[3])};
    const __m512i bytes = _mm512_permutexvar_epi32(order, _mm512_packs_epi16(words[0], words[1]));
    if (left >= 64) {
        _mm512_storeu_si512(output, bytes);
    } else {
        _mm512_mask_storeu_epi8(output, (__mmask64{1} << left) - 1, bytes);
    }
}

template <bool dropped>
void finish_sums(const LayerCall &call, __m512i *sums, int rows, int vectors, int first, int channel) {
    const Scaling &s = call.scaling;
    const int32_t *plain = call.totals + first;
    const __m512 low = _mm512_set1_ps(s.low), high = _mm512_set1_ps(s.high);
    for (int j = 0; j < vectors; j++) {
        const int n = channel + vector_channels * j, left = call.window.outputs - n;
        const __mmask16 valid = left >= vector_channels ? __mmask16(0xffff) : __mmask16((1 << std::max(0, left)) - 1);
        const __m512i gain = _mm512_load_si512(s.gain + n), shift = _mm512_load_si512(s.shift + n);
        const __m512i bias = _mm512_load_si512(s.bias + n), drop = _mm512_load_si512(s.drop + n);
        const __m512 scale = _mm512_load_ps(s.scale + n);
        for (int i = 0; i < rows; i++) {
            __m512i &sum = sums[i * vectors + j];
            const __m512i fixed = _mm512_add_epi32(_mm512_mullo_epi32(_mm512_set1_epi32(plain[i]), shift), bias);
            const __m512i codes = dropped ? _mm512_srav_epi32(sum, drop) : sum;
            const __m512 value =
                _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_mullo_epi32(codes, gain), fixed)), scale);
            if (call.answer != nullptr) {
                float *answer = call.answer + static_cast<ptrdiff_t>(first + i) * call.answer_row + n;
                _mm512_mask_storeu_ps(answer, valid, value);
            }
            sum = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(value, low), high));
        }
    }
    if (call.answer != nullptr) return;
    for (int i = 0; i < rows; i++) {
        int8_t *output = call.output + call.window.target[first + i] + channel;
        const __m512i *codes = sums + i * vectors;
        int left = call.window.outputs - channel, j = 0;
        for (; j + 4 <= vectors; j += 4, output += 64, left -= 64) store_four(output, codes + j, left);
        for (; j < vectors && left > 0; j++, output += vector_channels, left -= vector_channels) {
            const __mmask16 valid = left >= vector_channels ? __mmask16(0xffff) : __mmask16((1 << left) - 1);
            _mm_mask_storeu_epi8(output, valid, _mm512_cvtepi32_epi8(codes[j]));
        }
    }
}

}  // namespace

void finish(const LayerCall &call, __m512i *sums, int rows, int vectors, int first, int channel) {
    finish_sums<true>(call, sums, rows, vectors, first, channel);
}

void finish_looked_up(const LayerCall &call, __m512i *sums, int rows, int vectors, int first, int channel) {
    finish_sums<false>(call, sums, rows, vectors, first, channel);
}

const LayerMethod direct = {"int8, VNNI", always, none, none, sum_pixels, run, none, nullptr};

namespace {

// Of four rows of 64 channels, per channel the four bytes: vector j has in its part k channels 16k + 4j to 16k + 4j + 3.
void interleave(const __m512i *rows, __m512i *quads) {
    const __m512i low[] = {_mm512_unpacklo_epi8(rows[0], rows[1]), _mm512_unpacklo_epi8(rows[2], rows[3])};
    const __m512i high[] = {_mm512_unpackhi_epi8(rows[0], rows[1]), _mm512_unpackhi_epi8(rows[2], rows[3])};
    quads[0] = _mm512_unpacklo_epi16(low[0], low[1]);
    quads[1] = _mm512_unpackhi_epi16(low[0], low[1]);
    quads[2] = _mm512_unpacklo_epi16(high[0], high[1]);
    quads[3] = _mm512_unpackhi_epi16(high[0], high[1]);
}

// 64 numbers of 32 bits in the same order.
void load_interleaved(const void *numbers, int count, __m512i *quads) {
    __m512i in[4];
    for (int k = 0; k < 4; k++) {
        const int left = std::min(16, std::max(0, count - 16 * k));
        in[k] = _mm512_maskz_loadu_epi32(static_cast<__mmask16>((1u << left) - 1), static_cast<const int32_t *>(numbers) + 16 * k);
    }
    const __m512i a = _mm512_shuffle_i32x4(in[0], in[1], 0x44), b = _mm512_shuffle_i32x4(in[2], in[3], 0x44);
    const __m512i c = _mm512_shuffle_i32x4(in[0], in[1], 0xee), d = _mm512_shuffle_i32x4(in[2], in[3], 0xee);
    quads[0] = _mm512_shuffle_i32x4(a, b, 0x88);
    quads[1] = _mm512_shuffle_i32x4(a, b, 0xdd);
    quads[2] = _mm512_shuffle_i32x4(c, d, 0x88);
    quads[3] = _mm512_shuffle_i32x4(c, d, 0xdd);
}

}  // namespace

// Sixty-four channels at a time, four taps of each beside each other for one dot product. Activations are made unsigned
// by adding 128; what that adds to the sum is taken off the bias.
void depthwise(const DepthwiseCall &call, int from, int to) {
    constexpr int four = 4;
    const int groups = (call.taps + four - 1) / four;
    const __m512i flip = _mm512_set1_epi8(-128);
    const __m512 low = _mm512_set1_ps(call.low), high = _mm512_set1_ps(call.high);
    __m512i *weights = reinterpret_cast<__m512i *>(call.panel);
    for (int c = 0; c < call.channels; c += 64) {
        const int left = call.channels - c;
        const __mmask64 valid = left >= 64 ? ~__mmask64{0} : (__mmask64{1} << left) - 1;
        __m512i bias[four], scale[four];
        load_interleaved(call.bias + c, left, bias);
        load_interleaved(call.scale + c, left, scale);
        for (int g = 0; g < groups; g++) {
            __m512i rows[four];
            for (int i = 0; i < four; i++) {
                const int t = four * g + i;
                rows[i] = _mm512_maskz_loadu_epi8(t < call.taps ? valid : 0, call.weights + t * call.channels + c);
            }
            interleave(rows, weights + four * g);
            for (int j = 0; j < four; j++) {
                const __m512i added = _mm512_dpbusd_epi32(_mm512_setzero_si512(), flip, weights[four * g + j]);
                bias[j] = _mm512_sub_epi32(bias[j], added);
            }
        }
        for (int p = from; p < to; p++) {
            const int8_t *input = call.input + static_cast<ptrdiff_t>(call.position[p]) * call.stride + c;
            __m512i sums[four] = {bias[0], bias[1], bias[2], bias[3]};
            for (int g = 0; g < groups; g++) {
                __m512i rows[four], quads[four];
#pragma GCC unroll 4
                for (int i = 0; i < four; i++) {
                    // Beyond the last tap weights are zero, whatever is read.
                    const ptrdiff_t tap = call.tap[std::min(four * g + i, call.taps - 1)];
                    rows[i] = _mm512_xor_si512(_mm512_loadu_si512(input + tap * call.stride), flip);
                }
                interleave(rows, quads);
#pragma GCC unroll 4
                for (int j = 0; j < four; j++) sums[j] = _mm512_dpbusd_epi32(sums[j], quads[j], weights[four * g + j]);
            }
#pragma GCC unroll 4
            for (int j = 0; j < four; j++) {
                const __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[j]), _mm512_castsi512_ps(scale[j]));
                sums[j] = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(value, low), high));
            }
            // Packing takes apart what interleaving put together.
            const __m512i bytes = _mm512_packs_epi16(_mm512_packs_epi32(sums[0], sums[1]), _mm512_packs_epi32(sums[2], sums[3]));
            _mm512_mask_storeu_epi8(call.output + call.target[p] + c, valid, bytes);
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

void maximum(const MaximumCall &call) {
    for (int c = 0; c < call.channels; c += 64) {
        const int left = call.channels - c;
        const __mmask64 valid = left >= 64 ? ~__mmask64{0} : (__mmask64{1} << left) - 1;
        int8_t *output = call.output + c;
        const int8_t *input = call.input + c;
        for (int p = 0; p < call.pixels; p++, output += call.output_step, input += call.input_step) {
            const __m512i larger =
                _mm512_max_epi8(_mm512_maskz_loadu_epi8(valid, output), _mm512_maskz_loadu_epi8(valid, input));
            _mm512_mask_storeu_epi8(output, valid, larger);
        }
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

void quantize(const QuantizeCall &call) {
    const __m512 step = _mm512_set1_ps(call.scale), low = _mm512_set1_ps(call.low), high = _mm512_set1_ps(call.high);
    const auto codes_of = [&](int channel, int x, __mmask16 valid) {
        const float *input = call.input + channel * call.apart + x;
        const __m512 value = _mm512_div_ps(_mm512_maskz_loadu_ps(valid, input), step);
        // The maximum takes its second operand where the first one is not a number: the lowest code.
        return _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(value, low), high));
    };
    constexpr int packed = 4;  // channels of a pixel that are written together
    const bool together = call.stride == packed && call.channels <= packed;
    for (int x = 0; x < call.width; x += 16) {
        const int left = std::min(16, call.width - x);
        const __mmask16 valid = static_cast<__mmask16>((1u << left) - 1);
        int8_t *output = call.output + static_cast<ptrdiff_t>(x) * call.stride;
        if (together) {
            __m512i pixels = _mm512_setzero_si512();
            for (int c = 0; c < call.channels; c++) {
                const __m512i codes = _mm512_and_si512(codes_of(c, x, valid), _mm512_set1_epi32(255));
                pixels = _mm512_or_si512(pixels, _mm512_sllv_epi32(codes, _mm512_set1_epi32(8 * c)));
            }
            _mm512_mask_storeu_epi32(output, valid, pixels);
            continue;
        }
        for (int c = 0; c < call.channels; c++) {
            const __m128i bytes = _mm512_cvtepi32_epi8(codes_of(c, x, valid));
            if (call.stride == 1) {
                _mm_mask_storeu_epi8(output + c, valid, bytes);
                continue;
            }
            alignas(16) int8_t codes[16];
            _mm_store_si128(reinterpret_cast<__m128i *>(codes), bytes);
            for (int i = 0; i < left; i++) output[static_cast<ptrdiff_t>(i) * call.stride + c] = codes[i];
        }
    }
}

}  // namespace emq::avx512

namespace emq {
namespace {
const LayerMethod *const methods[] = {&avx512::direct, nullptr};
}

const Kernels avx512_kernels = {"avx512vnni", methods, sum_positions, avx512::depthwise,
                                avx512::add, avx512::maximum, avx512::accumulate, avx512::quantize};

}  // namespace emq
