// AVX2: the operators beside layers.
#include "avx2.h"

namespace emq::avx2 {

void depthwise(const DepthwiseCall &call, int from, int to) {
    for (int p = from; p < to; p++) {
        const ptrdiff_t position = call.position[p];
        int c = 0;
        for (; c + half_vector <= call.channels; c += half_vector) {
            __m256i sum = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(call.bias + c));
            for (int t = 0; t < call.taps; t++) {
                const int8_t *a = call.input + (position + call.tap[t]) * call.stride + c;
                const int8_t *z = call.weights + static_cast<ptrdiff_t>(t) * call.channels + c;
                const __m256i product =
                    _mm256_mullo_epi32(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(a))),
                                       _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(z))));
                sum = _mm256_add_epi32(sum, product);
            }
            const __m256 value = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_loadu_ps(call.scale + c));
            store(call.output + call.target[p] + c, _mm256_cvtps_epi32(kept(value, call.low, call.high)), half_vector);
        }
        for (; c < call.channels; c++) {
            int32_t sum = call.bias[c];
            for (int t = 0; t < call.taps; t++) {
                sum += call.input[(position + call.tap[t]) * call.stride + c] * call.weights[t * call.channels + c];
            }
            const float value = static_cast<float>(sum) * call.scale[c];
            call.output[call.target[p] + c] =
                static_cast<int8_t>(_mm_cvtss_si32(_mm_set_ss(std::min(std::max(value, call.low), call.high))));
        }
    }
}

void add(const AddCall &call) {
    const __m256 ratio_a = _mm256_set1_ps(call.ratio_a), ratio_b = _mm256_set1_ps(call.ratio_b);
    const __m256 fixed = _mm256_set1_ps(call.fixed);
    const __m256i zero_a = _mm256_set1_epi32(call.zero_a), zero_b = _mm256_set1_epi32(call.zero_b);
    const __m256i zero = _mm256_set1_epi32(call.zero);
    for (size_t i = 0; i < call.count; i += half_vector) {
        const __m128i codes_a = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(call.a + i));
        const __m128i codes_b = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(call.b + i));
        const __m256 a = _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_cvtepi8_epi32(codes_a), zero_a));
        const __m256 b = _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_cvtepi8_epi32(codes_b), zero_b));
        const __m256 total = _mm256_fmadd_ps(a, ratio_a, _mm256_fmadd_ps(b, ratio_b, fixed));
        const __m256i code = _mm256_cvtps_epi32(kept(total, call.low, call.high));
        store(call.output + i, _mm256_sub_epi32(code, zero), static_cast<int>(std::min<size_t>(call.count - i, 8)));
    }
}

void maximum(const MaximumCall &call) {
    for (ptrdiff_t p = 0; p < call.pixels; p++) {
        int8_t *output = call.output + p * call.output_step;
        const int8_t *input = call.input + p * call.input_step;
        int c = 0;
        for (; c + 32 <= call.channels; c += 32) {
            __m256i *at = reinterpret_cast<__m256i *>(output + c);
            const __m256i other = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(input + c));
            _mm256_storeu_si256(at, _mm256_max_epi8(_mm256_loadu_si256(at), other));
        }
        for (; c < call.channels; c++) output[c] = std::max(output[c], input[c]);
    }
}

void accumulate(int32_t *sums, const int8_t *input, size_t count) {
    for (size_t i = 0; i < count; i++) sums[i] += input[i];
}

namespace {

// Codes of eight numbers; the maximum takes its second operand where the first one is not a number: the lowest code.
__m256i codes_of(const float *input, __m256 step, float low, float high) {
    return _mm256_cvtps_epi32(kept(_mm256_div_ps(_mm256_loadu_ps(input), step), low, high));
}

int8_t code_of(float input, float scale, float low, float high) {
    const __m128 value = _mm_max_ss(_mm_set_ss(input / scale), _mm_set_ss(low));
    return static_cast<int8_t>(_mm_cvtss_si32(_mm_min_ss(value, _mm_set_ss(high))));
}

}  // namespace

void quantize(const QuantizeCall &call) {
    constexpr int packed = 4;  // channels of a pixel that are written together
    const float low = static_cast<float>(-call.zero), high = static_cast<float>(255 - call.zero);
    const __m256 step = _mm256_set1_ps(call.scale);
    const __m256i byte = _mm256_set1_epi32(255);
    int x = 0;
    for (; call.stride == packed && call.channels <= packed && x + half_vector <= call.width; x += half_vector) {
        __m256i pixels = _mm256_setzero_si256();
        for (int c = 0; c < call.channels; c++) {
            const __m256i codes = _mm256_and_si256(codes_of(call.input + c * call.apart + x, step, low, high), byte);
            pixels = _mm256_or_si256(pixels, _mm256_slli_epi32(codes, 8 * c));
        }
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(call.output + static_cast<ptrdiff_t>(x) * packed), pixels);
    }
    for (int c = 0; c < call.channels; c++) {
        const float *input = call.input + c * call.apart;
        int8_t *output = call.output + c;
        ptrdiff_t i = x;
        for (; i + half_vector <= call.width; i += half_vector) {
            alignas(32) int32_t codes[half_vector];
            _mm256_store_si256(reinterpret_cast<__m256i *>(codes), codes_of(input + i, step, low, high));
            for (int k = 0; k < half_vector; k++) output[(i + k) * call.stride] = static_cast<int8_t>(codes[k]);
        }
        for (; i < call.width; i++) output[i * call.stride] = code_of(input[i], call.scale, low, high);
    }
}

}  // namespace emq::avx2
