// AVX-VNNI, for processors without AVX-512: codes (unsigned bytes) times activations (signed bytes), four at a time.
#include "avx2.h"

namespace emq::avx2 {
namespace {

constexpr int rows = 6;

__attribute__((noinline)) void tile(const LayerCall &call, const uint8_t *codes, int step, int channel, int first,
                                    int last) {
    const Window &w = call.window;
    const uint8_t *mask = call.mask + 4 * channel;
    const int8_t *row[rows];
    __m256i sums[rows][2];
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) {
        row[i] = row_of(call, first + i, last);
        sums[i][0] = sums[i][1] = _mm256_setzero_si256();
    }
    for (int t = 0; t < w.taps; t++) {
        const ptrdiff_t tap = static_cast<ptrdiff_t>(w.tap[t]) * w.stride;
        for (int c = 0; c < w.depth; c += 4, codes += step) {
            const __m256i low = _mm256_and_si256(load(codes), load(mask));
            const __m256i high = _mm256_and_si256(load(codes + 32), load(mask + 32));
#pragma GCC unroll 6
            for (int i = 0; i < rows; i++) {
                const __m256i a = quad(row[i] + tap + c);
                sums[i][0] = _mm256_dpbusd_avx_epi32(sums[i][0], low, a);
                sums[i][1] = _mm256_dpbusd_avx_epi32(sums[i][1], high, a);
            }
        }
    }
    for (int i = 0; i < std::min(rows, last - first); i++) {
        for (int h = 0; h < 2; h++) finish<true>(call, sums[i][h], first + i, channel + half_vector * h);
    }
}

void run(const LayerCall &call, int from, int to) {
    every_tile<rows>(call, from, to, [&](const uint8_t *codes, int step, int channel, int p) {
        tile(call, codes, step, channel, p, to);
    });
}

const LayerMethod direct = {"int8, AVX-VNNI", always, none, sum_pixels, run, none, nullptr};
const LayerMethod *const methods[] = {&direct, &lookup, nullptr};

}  // namespace
}  // namespace emq::avx2

namespace emq {

const Kernels avxvnni_kernels = {"avxvnni",     avx2::methods,    avx2::depthwise, avx2::add,
                                 avx2::maximum, avx2::accumulate, avx2::quantize};

}  // namespace emq
