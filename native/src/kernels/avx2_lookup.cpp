// AVX2: sums of four activations looked up for codes of one or two bits.
//
// The table of a pixel has 16 bytes per four channels. A register of indices has 32 output channels, a plane in each
// half of its bytes; channel i in byte 2i, channel 16 + i in byte 2i + 1, so that words of both are a mask or a shift.
#include "avx2.h"

namespace emq::avx2 {
namespace {

constexpr int group = 4, planes = 2, channels_of_indices = 32, most_bytes = 255, most_unsigned_words = 65535;

int groups(const Window &w) { return (w.channels + group - 1) / group; }
int vectors(const Window &w) { return (w.outputs + channels_of_indices - 1) / channels_of_indices; }

bool able(const LayerCall &call) { return can_look_up(call, planes, group); }

size_t table_bytes(const Window &w) {
    return static_cast<size_t>(vectors(w)) * static_cast<size_t>(w.taps * groups(w)) * 32;
}

void pack(const Window &w, const uint8_t *codes, uint8_t *tables) {
    const int steps = w.taps * groups(w);
    for (int n = 0; n < w.outputs; n++) {
        const int inside = n % channels_of_indices;
        for (int step = 0; step < steps; step++) {
            const size_t at = static_cast<size_t>(n / channels_of_indices) * static_cast<size_t>(steps) +
                              static_cast<size_t>(step);
            uint8_t &index = tables[at * 32 + static_cast<size_t>(inside < 16 ? 2 * inside : 2 * inside - 31)];
            for (int i = 0; i < group; i++) {
                const int c = step % groups(w) * group + i;
                if (c >= w.channels) continue;
                const int code = codes[master_place(w, n, step / groups(w), c)];
                index = static_cast<uint8_t>(index | (code >> 7 & 1) << i | (code >> 6 & 1) << (4 + i));
            }
        }
    }
}

size_t scratch_bytes(const Window &w) { return static_cast<size_t>(w.pixels) * static_cast<size_t>(groups(w)) * 16; }

// Of each of four activations of either half: where it lies for every entry that has it, nothing for the others.
struct Places {
    __m256i from[group];

    Places() {
        for (int i = 0; i < group; i++) {
            alignas(32) uint8_t bytes[32];
            for (int entry = 0; entry < 32; entry++) {
                bytes[entry] = static_cast<uint8_t>(entry >> i & 1 ? entry / 16 * group + i : 0x80);
            }
            from[i] = load(bytes);
        }
    }

    // The tables of eight activations.
    __m256i sums(int64_t activations) const {
        const __m256i all = _mm256_set1_epi64x(activations);
        const __m256i low = _mm256_add_epi8(_mm256_shuffle_epi8(all, from[0]), _mm256_shuffle_epi8(all, from[1]));
        const __m256i high = _mm256_add_epi8(_mm256_shuffle_epi8(all, from[2]), _mm256_shuffle_epi8(all, from[3]));
        return _mm256_add_epi8(low, high);
    }
};

void prepare(const LayerCall &call, int from, int to) {
    const Window &w = call.window;
    const Places places;
    sum_pixels(call, from, to);
    for (int p = from; p < to; p++) {
        const int8_t *pixel = call.input + static_cast<ptrdiff_t>(p) * w.stride;
        uint8_t *table = call.scratch + static_cast<size_t>(p - call.origin) * static_cast<size_t>(groups(w)) * 16;
        int c = 0;
        for (; c + 2 * group <= w.channels; c += 2 * group, table += 32) {
            int64_t eight;
            __builtin_memcpy(&eight, pixel + c, sizeof eight);
            _mm256_storeu_si256(reinterpret_cast<__m256i *>(table), places.sums(eight));
        }
        for (; c < w.channels; c += group, table += 16) {
            int64_t four = 0;
            __builtin_memcpy(&four, pixel + c, static_cast<size_t>(std::min(group, w.channels - c)));
            _mm_store_si128(reinterpret_cast<__m128i *>(table), _mm256_castsi256_si128(places.sums(four)));
        }
    }
}

template <int bits>
struct Sums {
    template <int rows>
    static void tile(const LayerCall &call, const uint8_t *indices, int channel, int first);
};

template <int bits>
template <int rows>
__attribute__((noinline)) void Sums<bits>::tile(const LayerCall &call, const uint8_t *indices, int channel, int first) {
    const Window &w = call.window;
    const ptrdiff_t pixel_bytes = static_cast<ptrdiff_t>(groups(w)) * 16;
    const int largest = std::max(1, call.largest);
    const int byte_lookups = most_bytes / (group * largest);
    const int word_folds = std::max(1, most_unsigned_words / (byte_lookups * group * largest * ((1 << bits) - 1)));
    const __m256i half = _mm256_set1_epi8(15), byte = _mm256_set1_epi16(255);
    const uint8_t *row[rows];
    __m256i words[rows][2], wide[rows * 4];
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) {
        row[i] = call.scratch + (w.position[first + i] - call.origin) * pixel_bytes;
        words[i][0] = words[i][1] = _mm256_setzero_si256();
        for (int part = 0; part < 4; part++) wide[4 * i + part] = _mm256_setzero_si256();
    }
    int left = w.taps * groups(w), folds = 0;
    const int32_t *run_tap = w.run_tap;
    ptrdiff_t at = *run_tap * pixel_bytes, end = at + w.run * pixel_bytes;
    while (left > 0) {
        __m256i bytes[rows][bits];
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) {
#pragma GCC unroll 2
            for (int b = 0; b < bits; b++) bytes[i][b] = _mm256_setzero_si256();
        }
        for (int count = std::min(left, byte_lookups); count > 0; count--, left--, at += 16, indices += 32) {
            if (at == end) {
                at = *++run_tap * pixel_bytes;
                end = at + w.run * pixel_bytes;
            }
            __m256i index[bits];
            index[0] = _mm256_and_si256(load(indices), half);
            if (bits > 1) index[bits - 1] = _mm256_and_si256(_mm256_srli_epi16(load(indices), 4), half);
#pragma GCC unroll 8
            for (int i = 0; i < rows; i++) {
                const __m256i table =
                    _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i *>(row[i] + at)));
#pragma GCC unroll 2
                for (int b = 0; b < bits; b++) {
                    bytes[i][b] = _mm256_add_epi8(bytes[i][b], _mm256_shuffle_epi8(table, index[b]));
                }
            }
        }
        const bool widen = ++folds == word_folds || left == 0;
        if (widen) folds = 0;
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) {
#pragma GCC unroll 2
            for (int b = 0; b < bits; b++) {
                const int weight = bits - 1 - b;
                const __m256i even = _mm256_slli_epi16(_mm256_and_si256(bytes[i][b], byte), weight);
                const __m256i odd = _mm256_slli_epi16(_mm256_srli_epi16(bytes[i][b], 8), weight);
                words[i][0] = _mm256_add_epi16(words[i][0], even);
                words[i][1] = _mm256_add_epi16(words[i][1], odd);
            }
            if (!widen) continue;
            for (int h = 0; h < 2; h++) {
                const __m128i low = _mm256_castsi256_si128(words[i][h]), high = _mm256_extracti128_si256(words[i][h], 1);
                __m256i *to = wide + 4 * i + 2 * h;
                to[0] = _mm256_add_epi32(to[0], _mm256_cvtepu16_epi32(low));
                to[1] = _mm256_add_epi32(to[1], _mm256_cvtepu16_epi32(high));
                words[i][h] = _mm256_setzero_si256();
            }
        }
    }
    finish_looked_up(call, wide, rows, 4, first, channel);
}

template <int bits, int most>
void every_strip(const LayerCall &call, int from, int to) {
    const Window &w = call.window;
    const size_t bytes = static_cast<size_t>(w.taps * groups(w)) * 32;
    for (int vector = 0; vector < vectors(w); vector++) {
        const uint8_t *indices = call.tables + static_cast<size_t>(vector) * bytes;
        even_tiles<Sums<bits>, most>(call, indices, vector * channels_of_indices, from, to);
    }
}

void run(const LayerCall &call, int from, int to) {
    call.bits == 1 ? every_strip<1, 8>(call, from, to) : every_strip<2, 4>(call, from, to);
}

}  // namespace

const LayerMethod lookup = {"lookup, AVX2", able, scratch_bytes, none, prepare, run, table_bytes, pack};

}  // namespace emq::avx2
