// AVX-512 VBMI with VNNI: sums of four activations looked up for codes of one or two bits, added up in 32 bits at once.
//
// The table of sixteen channels of a pixel has 64 bytes: for each four of them the 16 sums that they can have with
// weights of one bit. One byte permutation looks up, for sixteen output channels, the sum of each four; one dot product
// with the weight of the plane adds these to the sums of the channels. Activations of more than six bits have two such
// tables, of their lower and upper four bits.
#include "avx512.h"
#include "vbmi.h"

namespace emq::vbmi {
namespace {

constexpr int quad = 4, group = 4 * quad, planes = 2, low_bits = 4, most_bytes = 255;

int groups(const Window &w) { return (w.channels + group - 1) / group; }
int vectors(const Window &w) { return (w.outputs + vector_channels - 1) / vector_channels; }
bool in_halves(const LayerCall &call) { return call.largest * quad > most_bytes; }
size_t pixel_bytes(const Window &w, bool halves) { return static_cast<size_t>(groups(w)) * (halves ? 128 : 64); }
size_t vector_bytes(const Window &w) { return static_cast<size_t>(w.taps) * static_cast<size_t>(groups(w)) * 64; }

size_t none(const Window &) { return 0; }
bool able(const LayerCall &call) { return can_look_up(call, planes, 1); }
size_t scratch_bytes(const Window &w) { return static_cast<size_t>(w.pixels) * pixel_bytes(w, true); }
size_t table_bytes(const Window &w) { return static_cast<size_t>(vectors(w)) * vector_bytes(w); }

// Blocks of vectors as in the master; in a block tap by tap, group by group, the vectors; in a vector four bytes for a
// channel, one for each four inputs: the upper plane in the lower half of the byte.
void pack(const Window &w, const uint8_t *codes, uint8_t *tables) {
    for (int n = 0; n < w.outputs; n++) {
        const int vector = n / vector_channels, block = vector / block_vectors;
        const int width = std::min(block_vectors, vectors(w) - block * block_vectors);
        uint8_t *first = tables + static_cast<size_t>(block * block_vectors) * vector_bytes(w);
        for (int t = 0; t < w.taps; t++) {
            for (int c = 0; c < w.channels; c += quad) {
                const size_t step = static_cast<size_t>(t * groups(w) + c / group);
                const size_t at = step * static_cast<size_t>(width) + static_cast<size_t>(vector % block_vectors);
                const uint8_t *four = codes + master_place(w, n, t, c);
                int index = 0;
                for (int i = 0; i < quad; i++) {
                    index |= (four[i] >> 7 & 1) << i | (four[i] >> 6 & 1) << (low_bits + i);
                }
                first[at * 64 + static_cast<size_t>(n % vector_channels * quad + c % group / quad)] =
                    static_cast<uint8_t>(index);
            }
        }
    }
}

// Of each of four activations of a quarter: where it lies for every entry, and the entries that have it.
struct Places {
    __m512i from[quad];
    __mmask64 has[quad];

    Places() {
        for (int i = 0; i < quad; i++) {
            alignas(64) uint8_t bytes[64];
            has[i] = 0;
            for (int entry = 0; entry < 64; entry++) {
                bytes[entry] = static_cast<uint8_t>(entry / 16 * quad + i);
                if (entry >> i & 1) has[i] |= __mmask64{1} << entry;
            }
            from[i] = _mm512_load_si512(bytes);
        }
    }

    __m512i sums(__m128i activations) const {
        const __m512i all = _mm512_castsi128_si512(activations);
        __m512i sums = _mm512_maskz_permutexvar_epi8(has[0], from[0], all);
        for (int i = 1; i < quad; i++) {
            sums = _mm512_add_epi8(sums, _mm512_maskz_permutexvar_epi8(has[i], from[i], all));
        }
        return sums;
    }
};

void prepare(const LayerCall &call, int first, int last) {
    const Window &w = call.window;
    const Places places;
    const bool halves = in_halves(call);
    const __m128i low = _mm_set1_epi8((1 << low_bits) - 1);
    avx512::sum_pixels(call, first, last);
    for (int p = first; p < last; p++) {
        const int8_t *pixel = call.input + static_cast<ptrdiff_t>(p) * w.stride;
        uint8_t *table = call.scratch + static_cast<size_t>(p - call.origin) * pixel_bytes(w, halves);
        for (int c = 0; c < w.channels; c += group, table += halves ? 128 : 64) {
            const __mmask16 valid = static_cast<__mmask16>((1 << std::min(group, w.channels - c)) - 1);
            const __m128i activations = _mm_maskz_loadu_epi8(valid, pixel + c);
            if (!halves) {
                _mm512_store_si512(table, places.sums(activations));
                continue;
            }
            const __m128i upper = _mm_and_si128(_mm_srli_epi16(activations, low_bits), low);
            _mm512_store_si512(table, places.sums(_mm_and_si128(activations, low)));
            _mm512_store_si512(table + 64, places.sums(upper));
        }
    }
}

template <int bits, bool halves>
struct Form {
    template <int rows, int width>
    static __attribute__((noinline)) void tile(const LayerCall &call, const uint8_t *indices, int channel, int first) {
        constexpr int tables = halves ? 2 : 1;
        const Window &w = call.window;
        const ptrdiff_t bytes = static_cast<ptrdiff_t>(pixel_bytes(w, halves));
        const __m512i half = _mm512_set1_epi8(15), quarters = _mm512_set1_epi32(0x30201000);
        const uint8_t *row[rows];
        __m512i sums[rows][width];
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) {
            row[i] = call.scratch + (w.position[first + i] - call.origin) * bytes;
#pragma GCC unroll 4
            for (int j = 0; j < width; j++) sums[i][j] = _mm512_setzero_si512();
        }
        for (int r = 0; r < w.runs; r++) {
            const ptrdiff_t from = w.run_tap[r] * bytes, to = from + w.run * bytes;
            for (ptrdiff_t at = from; at < to; at += 64 * tables, indices += 64 * width) {
                __m512i table[rows][tables];
#pragma GCC unroll 8
                for (int i = 0; i < rows; i++) {
#pragma GCC unroll 2
                    for (int h = 0; h < tables; h++) table[i][h] = _mm512_load_si512(row[i] + at + 64 * h);
                }
#pragma GCC unroll 4
                for (int j = 0; j < width; j++) {
                    const __m512i both = _mm512_load_si512(indices + 64 * j);
#pragma GCC unroll 2
                    for (int b = 0; b < bits; b++) {
                        // The half of the byte, and in its upper bits which quarter of the table: 0xea is (a & b) | c.
                        const __m512i shifted = b == 0 ? both : _mm512_srli_epi16(both, low_bits);
                        const __m512i index = _mm512_ternarylogic_epi32(shifted, half, quarters, 0xea);
#pragma GCC unroll 8
                        for (int i = 0; i < rows; i++) {
#pragma GCC unroll 2
                            for (int h = 0; h < tables; h++) {
                                const int weight = (h == 0 ? 1 : 1 << low_bits) << (bits - 1 - b);
                                const __m512i looked_up = _mm512_permutexvar_epi8(index, table[i][h]);
                                sums[i][j] = _mm512_dpbusd_epi32(sums[i][j], looked_up,
                                                                 _mm512_set1_epi8(static_cast<char>(weight)));
                            }
                        }
                    }
                }
            }
        }
        // A copy: what a call takes the address of would lie in memory all the time.
        __m512i kept[rows * width];
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) {
#pragma GCC unroll 4
            for (int j = 0; j < width; j++) kept[i * width + j] = sums[i][j];
        }
        avx512::finish_looked_up(call, kept, rows, width, first, channel);
    }

    static void run(const LayerCall &call, int from, int to) {
        const int all = vectors(call.window);
        for (int vector = 0; vector < all; vector += block_vectors) {
            const uint8_t *indices = call.tables + static_cast<size_t>(vector) * vector_bytes(call.window);
            const int channel = vector * vector_channels;
            switch (std::min(block_vectors, all - vector)) {
                case 4: even_tiles<Form, 4, 4>(call, indices, channel, from, to); break;
                case 3: even_tiles<Form, 5, 3>(call, indices, channel, from, to); break;
                case 2: even_tiles<Form, 6, 2>(call, indices, channel, from, to); break;
                default: even_tiles<Form, 8, 1>(call, indices, channel, from, to); break;
            }
        }
    }
};

void run(const LayerCall &call, int from, int to) {
    if (in_halves(call)) {
        call.bits == 1 ? Form<1, true>::run(call, from, to) : Form<2, true>::run(call, from, to);
    } else {
        call.bits == 1 ? Form<1, false>::run(call, from, to) : Form<2, false>::run(call, from, to);
    }
}

}  // namespace

const LayerMethod quads = {"lookup of four, VBMI", able, scratch_bytes, none, prepare, run, table_bytes, pack};

}  // namespace emq::vbmi
