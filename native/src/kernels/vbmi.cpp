// AVX-512 VBMI: sums of five activations looked up for codes of one or two bits.
//
// The table of a pixel has, per ten channels, 64 bytes: the 32 sums that five activations can have with weights of one
// bit, twice. One byte permutation looks up two such sums for 32 output channels; bytes are added while they cannot
// overflow, then folded into 16 and 32 bits.
#include <algorithm>

#include "avx512.h"
#include "vbmi.h"

namespace emq {
namespace {

constexpr int group = 10, half = 5, planes = 2, channels_of_vector = 32;
constexpr int most_bytes = 255, most_words = 65535;

int groups(const Window &w) { return (w.channels + group - 1) / group; }
int vectors(const Window &w) { return (w.outputs + channels_of_vector - 1) / channels_of_vector; }

size_t none(const Window &) { return 0; }
bool able(const LayerCall &call) { return can_look_up(call, planes, half); }

size_t table_bytes(const Window &w) {
    return static_cast<size_t>(vectors(w)) * static_cast<size_t>(w.taps * groups(w)) * planes * 64;
}

void pack(const Window &w, const uint8_t *codes, uint8_t *tables) {
    const size_t steps = static_cast<size_t>(w.taps * groups(w));
    for (int n = 0; n < vectors(w) * channels_of_vector; n++) {
        uint8_t *index = tables + static_cast<size_t>(n / channels_of_vector) * steps * planes * 64 +
                         2 * (n % channels_of_vector);
        // The second table of the pair.
        for (size_t step = 0; step < steps * planes; step++) index[64 * step + 1] = 1 << half;
        if (n >= w.outputs) continue;
        for (int t = 0; t < w.taps; t++) {
            for (int c = 0; c < w.channels; c++) {
                const int code = codes[master_place(w, n, t, c)], place = c % group / half, bit = c % group % half;
                uint8_t *to = index + static_cast<size_t>(t * groups(w) + c / group) * planes * 64 + place;
                for (int plane = 0; plane < planes; plane++, to += 64) {
                    *to = static_cast<uint8_t>(*to | (code >> (7 - plane) & 1) << bit);
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
        uint8_t *table = call.scratch + static_cast<size_t>(p - call.origin) * static_cast<size_t>(groups(w)) * 64;
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

template <int bits>
struct Sums {
    template <int rows, int width>
    static void tile(const LayerCall &call, const uint8_t *indices, int channel, int first);
};

template <int bits>
template <int rows, int width>
__attribute__((noinline)) void Sums<bits>::tile(const LayerCall &call, const uint8_t *indices, int channel, int first) {
    const Window &w = call.window;
    const int pixel_groups = groups(w);
    const size_t pixel_bytes = static_cast<size_t>(pixel_groups) * 64;
    const size_t vector_bytes = static_cast<size_t>(w.taps) * pixel_bytes * planes;
    // Lookups until a byte could overflow, and folded bytes until a word could.
    const int byte_lookups = most_bytes / (half * std::max(1, call.largest));
    const int word_folds = std::max(1, most_words / (byte_lookups * group * std::max(1, call.largest) * ((1 << bits) - 1)));
    const uint8_t *row[rows];
    __m512i wide[rows][2 * width], words[rows][width];
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) {
        row[i] = call.scratch + static_cast<size_t>(w.position[first + i] - call.origin) * pixel_bytes;
#pragma GCC unroll 4
        for (int j = 0; j < width; j++) wide[i][2 * j] = wide[i][2 * j + 1] = words[i][j] = _mm512_setzero_si512();
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
                wide[i][2 * j] = _mm512_add_epi32(wide[i][2 * j], low);
                wide[i][2 * j + 1] = _mm512_add_epi32(wide[i][2 * j + 1], high);
                words[i][j] = _mm512_setzero_si512();
            }
        }
        if (widen) folds = 0;
    }
    avx512::finish_looked_up(call, wide[0], rows, 2 * width, first, channel);
}

template <int bits>
void every_strip(const LayerCall &call, int from, int to) {
    const Window &w = call.window;
    const int all = vectors(w);
    constexpr int widest = bits == 1 ? 4 : 2;
    for (int vector = 0; vector < all;) {
        const uint8_t *indices =
            call.tables + static_cast<size_t>(vector) * static_cast<size_t>(w.taps * groups(w)) * planes * 64;
        const int channel = vector * channels_of_vector, left = all - vector;
        if (left >= widest) {
            even_tiles<Sums<bits>, 4, widest>(call, indices, channel, from, to);
            vector += widest;
        } else if (left >= 2) {
            even_tiles<Sums<bits>, 6, 2>(call, indices, channel, from, to);
            vector += 2;
        } else {
            even_tiles<Sums<bits>, 8, 1>(call, indices, channel, from, to);
            vector++;
        }
    }
}

void run(const LayerCall &call, int from, int to) {
    call.bits == 1 ? every_strip<1>(call, from, to) : every_strip<2>(call, from, to);
}

const LayerMethod lookup = {"lookup of five, VBMI", able, scratch_bytes, none, prepare, run, table_bytes, pack};
const LayerMethod *const methods[] = {&avx512::direct, &lookup, &vbmi::quads, nullptr};

}  // namespace

const Kernels vbmi_kernels = {"avx512vbmi", methods, sum_positions, avx512::depthwise,
                              avx512::add, avx512::maximum, avx512::accumulate, avx512::quantize};

}  // namespace emq
