// NEON: the operators beside layers.
#include "neon.h"

namespace emq::neon {
namespace {

float32x4_t kept(float32x4_t value, float low, float high) {
    return vminq_f32(vmaxq_f32(value, vdupq_n_f32(low)), vdupq_n_f32(high));
}

// Eight codes of 32-bit numbers that fit a byte.
int8x8_t narrow(int32x4_t low, int32x4_t high) {
    return vmovn_s16(vcombine_s16(vmovn_s32(low), vmovn_s32(high)));
}

void write_eight(int8_t *output, int8x8_t codes, int count) {
    count >= 8 ? vst1_s8(output, codes) : write(output, vcombine_s8(codes, codes), count);
}

}  // namespace

void depthwise(const DepthwiseCall &call, int from, int to) {
    for (int p = from; p < to; p++) {
        const ptrdiff_t position = call.position[p];
        for (int c = 0; c < call.channels; c += 8) {
            int32x4_t low = vld1q_s32(call.bias + c), high = vld1q_s32(call.bias + c + 4);
            for (int t = 0; t < call.taps; t++) {
                const int8x8_t a = vld1_s8(call.input + (position + call.tap[t]) * call.stride + c);
                const int8x8_t z = vld1_s8(call.weights + static_cast<ptrdiff_t>(t) * call.channels + c);
                const int16x8_t product = vmull_s8(a, z);
                low = vaddw_s16(low, vget_low_s16(product));
                high = vaddw_high_s16(high, product);
            }
            const float32x4_t first = vmulq_f32(vcvtq_f32_s32(low), vld1q_f32(call.scale + c));
            const float32x4_t second = vmulq_f32(vcvtq_f32_s32(high), vld1q_f32(call.scale + c + 4));
            const int8x8_t codes = narrow(vcvtnq_s32_f32(kept(first, call.low, call.high)),
                                          vcvtnq_s32_f32(kept(second, call.low, call.high)));
            write_eight(call.output + call.target[p] + c, codes, call.channels - c);
        }
    }
}

void add(const AddCall &call) {
    const float32x4_t ratio_a = vdupq_n_f32(call.ratio_a), ratio_b = vdupq_n_f32(call.ratio_b);
    const float32x4_t fixed = vdupq_n_f32(call.fixed);
    const int16x8_t zero_a = vdupq_n_s16(static_cast<int16_t>(call.zero_a));
    const int16x8_t zero_b = vdupq_n_s16(static_cast<int16_t>(call.zero_b));
    const int32x4_t zero = vdupq_n_s32(call.zero);
    const auto total = [&](int16x4_t a, int16x4_t b) {
        const float32x4_t rest = vfmaq_f32(fixed, vcvtq_f32_s32(vmovl_s16(b)), ratio_b);
        const float32x4_t sum = vfmaq_f32(rest, vcvtq_f32_s32(vmovl_s16(a)), ratio_a);
        return vsubq_s32(vcvtnq_s32_f32(kept(sum, call.low, call.high)), zero);
    };
    for (size_t i = 0; i < call.count; i += 8) {
        const int16x8_t a = vaddw_s8(zero_a, vld1_s8(call.a + i)), b = vaddw_s8(zero_b, vld1_s8(call.b + i));
        const int8x8_t codes =
            narrow(total(vget_low_s16(a), vget_low_s16(b)), total(vget_high_s16(a), vget_high_s16(b)));
        write_eight(call.output + i, codes, static_cast<int>(std::min<size_t>(call.count - i, 8)));
    }
}

void maximum(const MaximumCall &call) {
    for (ptrdiff_t p = 0; p < call.pixels; p++) {
        int8_t *output = call.output + p * call.output_step;
        const int8_t *input = call.input + p * call.input_step;
        int c = 0;
        for (; c + 16 <= call.channels; c += 16) {
            vst1q_s8(output + c, vmaxq_s8(vld1q_s8(output + c), vld1q_s8(input + c)));
        }
        for (; c < call.channels; c++) output[c] = std::max(output[c], input[c]);
    }
}

void accumulate(int32_t *sums, const int8_t *input, size_t count) {
    size_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const int16x8_t more = vmovl_s8(vld1_s8(input + i));
        vst1q_s32(sums + i, vaddw_s16(vld1q_s32(sums + i), vget_low_s16(more)));
        vst1q_s32(sums + i + 4, vaddw_high_s16(vld1q_s32(sums + i + 4), more));
    }
    for (; i < count; i++) sums[i] += input[i];
}

void quantize(const QuantizeCall &call) {
    const float32x4_t step = vdupq_n_f32(call.scale);
    for (int c = 0; c < call.channels; c++) {
        const float *input = call.input + c * call.apart;
        for (ptrdiff_t x = 0; x < call.width; x += lanes) {
            alignas(16) float pixels[lanes] = {};
            const ptrdiff_t left = std::min<ptrdiff_t>(lanes, call.width - x);
            std::copy_n(input + x, left, pixels);
            // Of a pixel that is not a number the maximum takes the other operand: the lowest code.
            const float32x4_t value = vmaxnmq_f32(vdivq_f32(vld1q_f32(pixels), step), vdupq_n_f32(call.low));
            alignas(16) int32_t codes[lanes];
            vst1q_s32(codes, vcvtnq_s32_f32(vminq_f32(value, vdupq_n_f32(call.high))));
            for (int i = 0; i < left; i++) call.output[(x + i) * call.stride + c] = static_cast<int8_t>(codes[i]);
        }
    }
}

}  // namespace emq::neon
