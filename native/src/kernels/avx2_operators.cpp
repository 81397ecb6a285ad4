// AVX2: the operators beside layers.
#include "avx2.h"

namespace emq::avx2 {

namespace {

__m256i widened(const int8_t *bytes) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(bytes)));
}

__m256i joined(__m128i low, __m128i high) { return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1); }

// Sixteen channels from `c` on, of which some may be beyond the last: two taps of each beside each other, so that one
// product of pairs of words adds them. Part k of `low` has channels 8k to 8k + 3, part k of `high` the next four.
void depthwise_strip(const DepthwiseCall &call, int c, int from, int to) {
    const int left = std::min(16, call.channels - c), pairs = (call.taps + 1) / 2;
    alignas(32) int32_t biases[16] = {};
    alignas(32) float scales[16] = {};
    std::copy_n(call.bias + c, left, biases);
    std::copy_n(call.scale + c, left, scales);
    const __m128i *b = reinterpret_cast<const __m128i *>(biases);
    const __m256i bias_low = joined(b[0], b[2]), bias_high = joined(b[1], b[3]);
    const __m128i *s = reinterpret_cast<const __m128i *>(scales);
    const __m256 scale_low = _mm256_castsi256_ps(joined(s[0], s[2])), scale_high = _mm256_castsi256_ps(joined(s[1], s[3]));
    __m256i *weights = reinterpret_cast<__m256i *>(call.panel);
    for (int pair = 0; pair < pairs; pair++) {
        alignas(16) int8_t taps[2][16] = {};
        for (int i = 0; i < 2 && 2 * pair + i < call.taps; i++) {
            std::copy_n(call.weights + static_cast<ptrdiff_t>(2 * pair + i) * call.channels + c, left, taps[i]);
        }
        weights[2 * pair] = _mm256_unpacklo_epi16(widened(taps[0]), widened(taps[1]));
        weights[2 * pair + 1] = _mm256_unpackhi_epi16(widened(taps[0]), widened(taps[1]));
    }
    for (int p = from; p < to; p++) {
        const int8_t *input = call.input + static_cast<ptrdiff_t>(call.position[p]) * call.stride + c;
        __m256i low = bias_low, high = bias_high;
        for (int pair = 0; pair < pairs; pair++) {
            // Beyond the last tap weights are zero, whatever is read.
            const ptrdiff_t one = call.tap[2 * pair], other = call.tap[std::min(2 * pair + 1, call.taps - 1)];
            const __m256i a = widened(input + one * call.stride), z = widened(input + other * call.stride);
            low = _mm256_add_epi32(low, _mm256_madd_epi16(_mm256_unpacklo_epi16(a, z), weights[2 * pair]));
            high = _mm256_add_epi32(high, _mm256_madd_epi16(_mm256_unpackhi_epi16(a, z), weights[2 * pair + 1]));
        }
        low = _mm256_cvtps_epi32(kept(_mm256_mul_ps(_mm256_cvtepi32_ps(low), scale_low), call.low, call.high));
        high = _mm256_cvtps_epi32(kept(_mm256_mul_ps(_mm256_cvtepi32_ps(high), scale_high), call.low, call.high));
        const __m256i words = _mm256_packs_epi32(low, high);
        const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
        int8_t *output = call.output + call.target[p] + c;
        if (left == 16) {
            _mm_storeu_si128(reinterpret_cast<__m128i *>(output), bytes);
        } else {
            alignas(16) int8_t all[16];
            _mm_store_si128(reinterpret_cast<__m128i *>(all), bytes);
            for (int i = 0; i < left; i++) output[i] = all[i];
        }
    }
}

}  // namespace

void depthwise(const DepthwiseCall &call, int from, int to) {
    for (int c = 0; c < call.channels; c += 16) depthwise_strip(call, c, from, to);
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
    const float low = call.low, high = call.high;
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
            const __m256i codes = codes_of(input + i, step, low, high);
            if (call.stride == 1) {
                store(output + i, codes, half_vector);
                continue;
            }
            alignas(32) int32_t all[half_vector];
            _mm256_store_si256(reinterpret_cast<__m256i *>(all), codes);
            for (int k = 0; k < half_vector; k++) output[(i + k) * call.stride] = static_cast<int8_t>(all[k]);
        }
        for (; i < call.width; i++) output[i * call.stride] = code_of(input[i], call.scale, low, high);
    }
}

}  // namespace emq::avx2
