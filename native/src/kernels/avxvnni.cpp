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
        const int8_t *row[rows];
        for (int i = 0; i < rows; i++) row[i] = row_of(call, first + i);
        __m256i sums[2 * rows];
        add_products(call, codes, row, 1, sums, [](__m256i sum, __m256i four, __m256i a) {
            return _mm256_dpbusd_avx_epi32(sum, four, a);
        });
        finish(call, sums, rows, 2, first, channel);
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
