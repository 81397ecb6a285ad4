// AVX-512 VBMI: sums of five activations looked up for codes of one or two bits.
//
// The table of a pixel has, per ten channels, 64 bytes: the 32 sums that five activations can have with weights of one
// bit, twice. One byte permutation looks up two such sums for 32 output channels; bytes are added while they cannot
// overflow, then folded into 16 and 32 bits.
#include <algorithm>

#include "avx512.h"

namespace emq {
namespace {

constexpr int group = 10, half = 5, planes = 2, channels_of_vector = 32;
constexpr int most_bytes = 255, most_words = 65535;

int groups(const Window &w) { return (w.channels + group - 1) / group; }
int vectors(const Window &w) { return (w.outputs + channels_of_vector - 1) / channels_of_vector; }

bool able(const LayerCall &call) { return can_look_up(call, planes, half); }

size_t table_bytes(const Window &w) {
    return static_cast<size_t>(vectors(w)) * static_cast<size_t>(w.taps * groups(w)) * planes * 64;
}

void pack(const Window &w, const uint8_t *codes, uint8_t *tables) {
    const int steps = w.taps * groups(w);
    for (int n = 0; n < vectors(w) * channels_of_vector; n++) {
        for (int step = 0; step < steps; step++) {
            for (int plane = 0; plane < planes; plane++) {
                const size_t vector = static_cast<size_t>(n / channels_of_vector);
                const size_t at = (vector * static_cast<size_t>(steps) + static_cast<size_t>(step)) * planes +
                                  static_cast<size_t>(plane);
                uint8_t *index = tables + at * 64 + 2 * (n % channels_of_vector);
                index[1] = 1 << half;  // the second table of the pair
                for (int i = 0; i < group; i++) {
                    const int c = step % groups(w) * group + i;
                    if (n >= w.outputs || c >= w.channels) continue;
                    const int code = codes[master_place(w, n, step / groups(w), c)];
                    index[i / half] = static_cast<uint8_t>(index[i / half] | ((code >> (7 - plane)) & 1) << (i % half));
                }
            }
        }
    }
}

size_t scratch_bytes(const Window &w) {
    return static_cast<size_t>(w.pixels) * static_cast<size_t>(groups(w)) * 64;
}

// Of each of the five activations: where it lies among ten bytes for every entry, and the entries that have it.
struct Places {
    __m512i from[half];
    __mmask64 has[half];

    Places() {
        for (int j = 0; j < half; j++) {
            alignas(64) uint8_t bytes[64];
            has[j] = 0;
            for (int entry = 0; entry < 64; entry++) {
                bytes[entry] = static_cast<uint8_t>(entry / 32 * half + j);
                if (entry >> j & 1) has[j] |= __mmask64{1} << entry;
            }
            from[j] = _mm512_load_si512(bytes);
        }
    }
};

void prepare(const LayerCall &call, int first, int last) {
    const Window &w = call.window;
    const Places places;
    avx512::sum_pixels(call, first, last);
    for (int p = first; p < last; p++) {
        const int8_t *pixel = call.input + static_cast<ptrdiff_t>(p) * w.stride;
        uint8_t *table = call.scratch + static_cast<size_t>(p) * static_cast<size_t>(groups(w)) * 64;
        for (int c = 0; c < w.channels; c += group, table += 64) {
            const __mmask16 valid = static_cast<__mmask16>((1 << std::min(group, w.channels - c)) - 1);
            const __m512i ten = _mm512_castsi128_si512(_mm_maskz_loadu_epi8(valid, pixel + c));
            __m512i sums = _mm512_maskz_permutexvar_epi8(places.has[0], places.from[0], ten);
#pragma GCC unroll 4
            for (int j = 1; j < half; j++) {
                sums = _mm512_add_epi8(sums, _mm512_maskz_permutexvar_epi8(places.has[j], places.from[j], ten));
            }
            _mm512_store_si512(table, sums);
        }
    }
}

template <int rows, int width, int bits>
__attribute__((noinline)) void tile(const LayerCall &call, const uint8_t *indices, int channel, int first, int last) {
    const Window &w = call.window;
    const int pixel_groups = groups(w);
    const size_t pixel_bytes = static_cast<size_t>(pixel_groups) * 64;
    const size_t vector_bytes = static_cast<size_t>(w.taps) * pixel_bytes * planes;
    // Lookups until a byte could overflow, and folded bytes until a word could.
    const int byte_lookups = most_bytes / (half * std::max(1, call.largest));
    const int word_folds = std::max(1, most_words / (byte_lookups * group * std::max(1, call.largest) * ((1 << bits) - 1)));
    const uint8_t *row[rows];
    __m512i wide[rows][width][2], words[rows][width];
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) {
        row[i] = call.scratch + static_cast<size_t>(w.position[std::min(first + i, last - 1)]) * pixel_bytes;
#pragma GCC unroll 4
        for (int j = 0; j < width; j++) wide[i][j][0] = wide[i][j][1] = words[i][j] = _mm512_setzero_si512();
    }
    const int steps = w.taps * pixel_groups;
    int folds = 0, tap = 0, inside = 0;
    for (int step = 0; step < steps;) {
        const int end = std::min(steps, step + byte_lookups);
        __m512i bytes[rows][width][bits];
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) {
#pragma GCC unroll 4
            for (int j = 0; j < width; j++) {
#pragma GCC unroll 2
                for (int b = 0; b < bits; b++) bytes[i][j][b] = _mm512_setzero_si512();
            }
        }
        for (; step < end; step++, indices += planes * 64) {
            const ptrdiff_t at = (static_cast<ptrdiff_t>(w.tap[tap]) * pixel_groups + inside) * 64;
            if (++inside == pixel_groups) inside = 0, tap++;
            __m512i table[rows];
#pragma GCC unroll 8
            for (int i = 0; i < rows; i++) table[i] = _mm512_load_si512(row[i] + at);
#pragma GCC unroll 4
            for (int j = 0; j < width; j++) {
#pragma GCC unroll 2
                for (int b = 0; b < bits; b++) {
                    const __m512i index = _mm512_load_si512(indices + static_cast<size_t>(j) * vector_bytes + 64 * b);
#pragma GCC unroll 8
                    for (int i = 0; i < rows; i++) {
                        bytes[i][j][b] = _mm512_add_epi8(bytes[i][j][b], _mm512_permutexvar_epi8(index, table[i]));
                    }
                }
            }
        }
        const bool widen = ++folds == word_folds || step == steps;
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) {
#pragma GCC unroll 4
            for (int j = 0; j < width; j++) {
#pragma GCC unroll 2
                for (int b = 0; b < bits; b++) {
                    const __m512i weight = _mm512_set1_epi8(static_cast<char>(1 << (bits - 1 - b)));
                    words[i][j] = _mm512_add_epi16(words[i][j], _mm512_maddubs_epi16(bytes[i][j][b], weight));
                }
                if (!widen) continue;
                const __m512i low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(words[i][j]));
                const __m512i high = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(words[i][j], 1));
                wide[i][j][0] = _mm512_add_epi32(wide[i][j][0], low);
                wide[i][j][1] = _mm512_add_epi32(wide[i][j][1], high);
                words[i][j] = _mm512_setzero_si512();
            }
        }
        if (widen) folds = 0;
    }
    for (int i = 0; i < std::min(rows, last - first); i++) {
#pragma GCC unroll 4
        for (int j = 0; j < width; j++) {
            const int n = channel + j * channels_of_vector;
            avx512::finish<false>(call, wide[i][j][0], first + i, n);
            if (n + 16 < w.outputs) avx512::finish<false>(call, wide[i][j][1], first + i, n + 16);
        }
    }
}

template <int rows, int width, int bits>
void strip(const LayerCall &call, int vector, int from, int to) {
    const Window &w = call.window;
    const uint8_t *indices =
        call.tables + static_cast<size_t>(vector) * static_cast<size_t>(w.taps * groups(w)) * planes * 64;
    for (int p = from; p < to; p += rows) tile<rows, width, bits>(call, indices, vector * channels_of_vector, p, to);
}

void run(const LayerCall &call, int from, int to) {
    sum_positions(call, from, to);
    const int all = vectors(call.window);
    for (int vector = 0; vector < all;) {
        const int left = all - vector;
        if (call.bits == 1) {
            if (left >= 4) {
                strip<4, 4, 1>(call, vector, from, to);
                vector += 4;
            } else if (left >= 2) {
                strip<6, 2, 1>(call, vector, from, to);
                vector += 2;
            } else {
                strip<8, 1, 1>(call, vector++, from, to);
            }
        } else if (left >= 2) {
            strip<4, 2, 2>(call, vector, from, to);
            vector += 2;
        } else {
            strip<8, 1, 2>(call, vector++, from, to);
        }
    }
}

const LayerMethod lookup = {"lookup, VBMI", able, scratch_bytes, prepare, run, table_bytes, pack};
const LayerMethod *const methods[] = {&avx512::direct, &lookup, nullptr};

}  // namespace

const Kernels vbmi_kernels = {"avx512vbmi",    methods,             avx512::depthwise, avx512::add,
                              avx512::maximum, avx512::accumulate, avx512::quantize};

}  // namespace emq
