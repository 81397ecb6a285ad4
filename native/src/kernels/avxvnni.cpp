// AVX-VNNI, for processors without AVX-512: codes (unsigned bytes) times activations (signed bytes), four at a time.
#include "avx2.h"

namespace emq::avx2 {
namespace {

struct Products {
    static void expand(const LayerCall &call, __m256i codes, size_t at) {
        _mm256_store_si256(reinterpret_cast<__m256i *>(call.panel + at), codes);
    }

    template <int rows>
    static __attribute__((noinline)) void tile(const LayerCall &call, const uint8_t *codes, int channel, int first) {
        const Window &w = call.window;
        const int8_t *row[rows];
        __m256i sums[rows][2];
#pragma GCC unroll 6
        for (int i = 0; i < rows; i++) {
            row[i] = row_of(call, first + i);
            sums[i][0] = sums[i][1] = _mm256_setzero_si256();
        }
        for (int r = 0; r < w.runs; r++) {
            const ptrdiff_t tap = static_cast<ptrdiff_t>(w.run_tap[r]) * w.stride;
            for (ptrdiff_t c = tap; c < tap + w.run * w.depth; c += 4, codes += 64) {
                const __m256i low = load(codes), high = load(codes + 32);
#pragma GCC unroll 6
                for (int i = 0; i < rows; i++) {
                    const __m256i a = quad(row[i] + c);
                    sums[i][0] = _mm256_dpbusd_avx_epi32(sums[i][0], low, a);
                    sums[i][1] = _mm256_dpbusd_avx_epi32(sums[i][1], high, a);
                }
            }
        }
        __m256i kept[2 * rows];
#pragma GCC unroll 6
        for (int i = 0; i < rows; i++) kept[2 * i] = sums[i][0], kept[2 * i + 1] = sums[i][1];
        finish(call, kept, rows, 2, first, channel);
    }
};

void run(const LayerCall &call, int from, int to) { every_vector<Products, 6>(call, from, to); }

const LayerMethod direct = {"int8, AVX-VNNI", always, none, vector_bytes, sum_pixels, run, none, nullptr};
const LayerMethod *const methods[] = {&direct, &lookup, nullptr};

}  // namespace
}  // namespace emq::avx2

namespace emq {

const Kernels avxvnni_kernels = {"avxvnni", avx2::methods, sum_positions, avx2::depthwise,
                                 avx2::add, avx2::maximum, avx2::accumulate, avx2::quantize};

}  // namespace emq
