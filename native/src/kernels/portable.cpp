// Plain C++: the kernels that every processor has, and that the others are held to.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels.h"

namespace emq {
namespace {

bool always(const LayerCall &) { return true; }
size_t none(const Window &) { return 0; }

void sum_pixels(const LayerCall &call, int from, int to) {
    const Window &w = call.window;
    for (int p = from; p < to; p++) {
        const int8_t *pixel = call.input + static_cast<ptrdiff_t>(p) * w.stride;
        call.sums[p - call.origin] = std::accumulate(pixel, pixel + w.channels, 0);
    }
}

void run(const LayerCall &call, int from, int to) {
    const Window &w = call.window;
    const Scaling &s = call.scaling;
    for (int p = from; p < to; p++) {
        for (int n = 0; n < w.outputs; n++) {
            const int32_t plain = call.totals[p];
            int32_t sum = 0;
            for (int t = 0; t < w.taps; t++) {
                const int8_t *a = call.input + static_cast<ptrdiff_t>(w.position[p] + w.tap[t]) * w.stride;
                for (int c = 0; c < w.channels; c++) {
                    sum += (call.codes[master_place(w, n, t, c)] & call.mask[4 * n]) * a[c];
                }
            }
            // The whole fits 32 bits, its parts may not: they wrap around, as those of vectors do.
            const uint32_t wrapped = static_cast<uint32_t>(s.gain[n]) * static_cast<uint32_t>(sum >> s.drop[n]) +
                                     static_cast<uint32_t>(s.shift[n]) * static_cast<uint32_t>(plain);
            const int32_t total = static_cast<int32_t>(wrapped + static_cast<uint32_t>(s.bias[n]));
            const float value = static_cast<float>(total) * s.scale[n];
            if (call.answer != nullptr) {
                call.answer[static_cast<ptrdiff_t>(p) * call.answer_row + n] = value;
            } else {
                call.output[w.target[p] + n] =
                    static_cast<int8_t>(std::nearbyint(std::min(std::max(value, s.low), s.high)));
            }
        }
    }
}

const LayerMethod direct = {"int8, portable", always, none, none, sum_pixels, run, none, nullptr};
const LayerMethod *const methods[] = {&direct, nullptr};

void depthwise(const DepthwiseCall &call, int from, int to) {
    for (int p = from; p < to; p++) {
        for (int c = 0; c < call.channels; c++) {
            int32_t sum = call.bias[c];
            for (int t = 0; t < call.taps; t++) {
                sum += call.input[static_cast<ptrdiff_t>(call.position[p] + call.tap[t]) * call.stride + c] *
                       call.weights[t * call.channels + c];
            }
            const float value = static_cast<float>(sum) * call.scale[c];
            call.output[call.target[p] + c] =
                static_cast<int8_t>(std::nearbyint(std::min(std::max(value, call.low), call.high)));
        }
    }
}

void add(const AddCall &call) {
    for (size_t i = 0; i < call.count; i++) {
        const float a = static_cast<float>(call.a[i] + call.zero_a), b = static_cast<float>(call.b[i] + call.zero_b);
        const float total = std::fma(a, call.ratio_a, std::fma(b, call.ratio_b, call.fixed));
        const float code = std::nearbyint(std::min(std::max(total, call.low), call.high));
        call.output[i] = static_cast<int8_t>(static_cast<int>(code) - call.zero);
    }
}

void maximum(const MaximumCall &call) {
    for (ptrdiff_t p = 0; p < call.pixels; p++) {
        int8_t *output = call.output + p * call.output_step;
        const int8_t *input = call.input + p * call.input_step;
        for (int c = 0; c < call.channels; c++) output[c] = std::max(output[c], input[c]);
    }
}

void accumulate(int32_t *sums, const int8_t *input, size_t count) {
    for (size_t i = 0; i < count; i++) sums[i] += input[i];
}

void quantize(const QuantizeCall &call) {
    for (int c = 0; c < call.channels; c++) {
        const float *input = call.input + c * call.apart;
        for (ptrdiff_t x = 0; x < call.width; x++) {
            const float code = std::nearbyint(input[x] / call.scale);
            // Comparisons in this order take a pixel that is not a number to the lowest code, as the runtimes do.
            call.output[x * call.stride + c] = static_cast<int8_t>(code > call.low ? std::min(code, call.high) : call.low);
        }
    }
}

}  // namespace

const Kernels portable_kernels = {"portable", methods, sum_positions, depthwise, add, maximum, accumulate, quantize};

}  // namespace emq
