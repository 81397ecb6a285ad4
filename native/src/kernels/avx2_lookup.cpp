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

void prepare(const LayerCall &call, int from, int to) {
    const Window &w = call.window;
    sum_pixels(call, from, to);
    alignas(16) uint8_t bytes[group][16];
    for (int i = 0; i < group; i++) {
        // Byte i where the entry has bit i, zero elsewhere.
        for (int entry = 0; entry < 16; entry++) bytes[i][entry] = static_cast<uint8_t>(entry >> i & 1 ? i : 0x80);
    }
    __m128i places[group];
    for (int i = 0; i < group; i++) places[i] = _mm_load_si128(reinterpret_cast<const __m128i *>(bytes[i]));
    for (int p = from; p < to; p++) {
        const int8_t *pixel = call.input + static_cast<ptrdiff_t>(p) * w.stride;
        uint8_t *table = call.scratch + static_cast<size_t>(p) * static_cast<size_t>(groups(w)) * 16;
        for (int c = 0; c < w.channels; c += group, table += 16) {
            int32_t four = 0;
            __builtin_memcpy(&four, pixel + c, static_cast<size_t>(std::min(group, w.channels - c)));
            const __m128i a = _mm_cvtsi32_si128(four);
            const __m128i low = _mm_add_epi8(_mm_shuffle_epi8(a, places[0]), _mm_shuffle_epi8(a, places[1]));
            const __m128i high = _mm_add_epi8(_mm_shuffle_epi8(a, places[2]), _mm_shuffle_epi8(a, places[3]));
            _mm_store_si128(reinterpret_cast<__m128i *>(table), _mm_add_epi8(low, high));
        }
    }
}

template <int height, int bits>
__attribute__((noinline)) void tile(const LayerCall &call, const uint8_t *indices, int channel, int first,
                                           int last) {
    const Window &w = call.window;
    const int pixel_groups = groups(w);
    const int largest = std::max(1, call.largest);
    const int byte_lookups = most_bytes / (group * largest);
    const int word_folds = std::max(1, most_unsigned_words / (byte_lookups * group * largest * ((1 << bits) - 1)));
    const __m256i half = _mm256_set1_epi8(15), byte = _mm256_set1_epi16(255);
    const uint8_t *row[height];
    __m256i words[height][2], wide[height][4];
#pragma GCC unroll 8
    for (int i = 0; i < height; i++) {
        row[i] = call.scratch + static_cast<size_t>(w.position[std::min(first + i, last - 1)]) *
                                    static_cast<size_t>(pixel_groups) * 16;
        words[i][0] = words[i][1] = _mm256_setzero_si256();
        for (__m256i &one : wide[i]) one = _mm256_setzero_si256();
    }
    const int steps = w.taps * pixel_groups;
    int folds = 0, tap = 0, inside = 0;
    for (int step = 0; step < steps;) {
        const int end = std::min(steps, step + byte_lookups);
        __m256i bytes[height][bits];
#pragma GCC unroll 8
        for (int i = 0; i < height; i++) {
#pragma GCC unroll 2
            for (int b = 0; b < bits; b++) bytes[i][b] = _mm256_setzero_si256();
        }
        for (; step < end; step++, indices += 32) {
            const ptrdiff_t at = (static_cast<ptrdiff_t>(w.tap[tap]) * pixel_groups + inside) * 16;
            if (++inside == pixel_groups) inside = 0, tap++;
            __m256i index[bits];
            index[0] = _mm256_and_si256(load(indices), half);
            if (bits > 1) index[bits - 1] = _mm256_and_si256(_mm256_srli_epi16(load(indices), 4), half);
#pragma GCC unroll 8
            for (int i = 0; i < height; i++) {
                const __m256i table =
                    _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i *>(row[i] + at)));
#pragma GCC unroll 2
                for (int b = 0; b < bits; b++) {
                    bytes[i][b] = _mm256_add_epi8(bytes[i][b], _mm256_shuffle_epi8(table, index[b]));
                }
            }
        }
        const bool widen = ++folds == word_folds || step == steps;
        if (widen) folds = 0;
#pragma GCC unroll 8
        for (int i = 0; i < height; i++) {
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
                wide[i][2 * h] = _mm256_add_epi32(wide[i][2 * h], _mm256_cvtepu16_epi32(low));
                wide[i][2 * h + 1] = _mm256_add_epi32(wide[i][2 * h + 1], _mm256_cvtepu16_epi32(high));
                words[i][h] = _mm256_setzero_si256();
            }
        }
    }
    for (int i = 0; i < std::min(height, last - first); i++) {
        for (int part = 0; part < 4; part++) finish<false>(call, wide[i][part], first + i, channel + half_vector * part);
    }
}

template <int height, int bits>
void strip(const LayerCall &call, int from, int to) {
    const Window &w = call.window;
    const size_t bytes = static_cast<size_t>(w.taps * groups(w)) * 32;
    for (int vector = 0; vector < vectors(w); vector++) {
        const uint8_t *indices = call.tables + static_cast<size_t>(vector) * bytes;
        for (int p = from; p < to; p += height) {
            tile<height, bits>(call, indices, vector * channels_of_indices, p, to);
        }
    }
}

void run(const LayerCall &call, int from, int to) {
    sum_positions(call, from, to);
    call.bits == 1 ? strip<8, 1>(call, from, to) : strip<4, 2>(call, from, to);
}

}  // namespace

const LayerMethod lookup = {"lookup, AVX2", able, scratch_bytes, prepare, run, table_bytes, pack};

}  // namespace emq::avx2
