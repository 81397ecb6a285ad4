// AVX2 without VNNI: three ways to sum, each as long in narrow lanes as they cannot overflow.
#include <immintrin.h>

#include <algorithm>

#include "kernels.h"

namespace emq {
namespace {

constexpr int half_vector = 8;  // channels of one register of 32-bit sums
constexpr int most_words = 32767;

size_t none(const Window &) { return 0; }
bool always(const LayerCall &) { return true; }

__m256i load(const void *at) { return _mm256_load_si256(static_cast<const __m256i *>(at)); }

int sum_of_bytes(const int8_t *bytes, int count) {
    int sum = 0;
    for (int i = 0; i < count; i++) sum += bytes[i];
    return sum;
}

void sum_pixels(const LayerCall &call, int from, int to) {
    const Window &w = call.window;
    const __m256i ones = _mm256_set1_epi8(1), words = _mm256_set1_epi16(1);
    for (int p = from; p < to; p++) {
        const int8_t *pixel = call.input + static_cast<ptrdiff_t>(p) * w.stride;
        __m256i sums = _mm256_setzero_si256();
        int c = 0;
        for (; c + 32 <= w.channels; c += 32) {
            const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(pixel + c));
            sums = _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(ones, bytes), words));
        }
        alignas(32) int32_t lanes[8];
        _mm256_store_si256(reinterpret_cast<__m256i *>(lanes), sums);
        int sum = sum_of_bytes(pixel + c, w.channels - c);
        for (const int lane : lanes) sum += lane;
        call.sums[p] = sum;
    }
}

void store(int8_t *output, __m256i codes, int count) {
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1));
    const __m128i bytes = _mm_packs_epi16(words, words);
    if (count >= half_vector) {
        _mm_storel_epi64(reinterpret_cast<__m128i *>(output), bytes);
        return;
    }
    alignas(16) int8_t all[16];
    _mm_store_si128(reinterpret_cast<__m128i *>(all), bytes);
    for (int i = 0; i < count; i++) output[i] = all[i];
}

__m256 kept(__m256 value, float low, float high) {
    return _mm256_min_ps(_mm256_max_ps(value, _mm256_set1_ps(low)), _mm256_set1_ps(high));
}

// Eight channels of a position, from the sums of code times activation to output codes, or to the answer.
template <bool dropped>
void finish(const LayerCall &call, __m256i sum, int position, int channel) {
    const Scaling &s = call.scaling;
    const int left = call.window.outputs - channel;
    if (left <= 0) return;
    if (dropped) sum = _mm256_srav_epi32(sum, load(s.drop + channel));
    const __m256i plain = _mm256_set1_epi32(call.sums[call.window.pixels + position]);
    __m256i total = _mm256_mullo_epi32(sum, load(s.gain + channel));
    total = _mm256_add_epi32(total, _mm256_mullo_epi32(plain, load(s.shift + channel)));
    total = _mm256_add_epi32(total, load(s.bias + channel));
    const __m256 value = _mm256_mul_ps(_mm256_cvtepi32_ps(total), _mm256_load_ps(s.scale + channel));
    if (call.answer != nullptr) {
        alignas(32) float all[half_vector];
        _mm256_store_ps(all, value);
        float *answer = call.answer + static_cast<size_t>(position) * static_cast<size_t>(call.window.outputs) + channel;
        std::copy_n(all, std::min(left, half_vector), answer);
        return;
    }
    store(call.output + call.window.target[position] + channel, _mm256_cvtps_epi32(kept(value, s.low, s.high)), left);
}

__m256i quad(const int8_t *activations) {
    int32_t four;
    __builtin_memcpy(&four, activations, sizeof four);
    return _mm256_set1_epi32(four);
}

// Calls tile(codes, bytes from one step to the next, channel, position) for every vector of channels and tile of rows.
template <int rows, typename Tile>
void every_tile(const LayerCall &call, int from, int to, Tile tile) {
    const Window &w = call.window;
    sum_positions(call, from, to);
    const int vectors = (w.outputs + vector_channels - 1) / vector_channels;
    const size_t vector_bytes = static_cast<size_t>(w.taps) * static_cast<size_t>(w.depth) * vector_channels;
    for (int vector = 0; vector < vectors; vector++) {
        const int first = vector / block_vectors * block_vectors, width = std::min(block_vectors, vectors - first);
        const uint8_t *codes =
            call.codes + static_cast<size_t>(first) * vector_bytes + static_cast<size_t>(vector - first) * 64;
        for (int p = from; p < to; p += rows) tile(codes, 64 * width, vector * vector_channels, p);
    }
}

// --- int8: codes less 128 times activations of 0..127; two products fit 16 bits (2 * 128 * 127) ----------------------

constexpr int rows = 4;

// Codes of zero, which fill up the depth, count as -128 here: what they meet has to be zero as well.
bool able_in_int8(const LayerCall &call) {
    const Window &w = call.window;
    return call.smallest >= 0 && (w.channels == w.depth || w.whole);
}

__attribute__((noinline)) void int8_tile(const LayerCall &call, const uint8_t *codes, int step, int channel, int first,
                                         int last) {
    const Window &w = call.window;
    const __m256i ones = _mm256_set1_epi16(1), centre = _mm256_set1_epi8(-128);
    const uint8_t *mask = call.mask + 4 * channel;
    const int8_t *row[rows];
    __m256i sums[rows][2];
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++) {
        row[i] = call.input + static_cast<ptrdiff_t>(w.position[std::min(first + i, last - 1)]) * w.stride;
        sums[i][0] = sums[i][1] = _mm256_setzero_si256();
    }
    for (int t = 0; t < w.taps; t++) {
        const ptrdiff_t tap = static_cast<ptrdiff_t>(w.tap[t]) * w.stride;
        for (int c = 0; c < w.depth; c += 4, codes += step) {
            const __m256i low = _mm256_xor_si256(_mm256_and_si256(load(codes), load(mask)), centre);
            const __m256i high = _mm256_xor_si256(_mm256_and_si256(load(codes + 32), load(mask + 32)), centre);
#pragma GCC unroll 4
            for (int i = 0; i < rows; i++) {
                const __m256i a = quad(row[i] + tap + c);
                sums[i][0] = _mm256_add_epi32(sums[i][0], _mm256_madd_epi16(_mm256_maddubs_epi16(a, low), ones));
                sums[i][1] = _mm256_add_epi32(sums[i][1], _mm256_madd_epi16(_mm256_maddubs_epi16(a, high), ones));
            }
        }
    }
    for (int i = 0; i < std::min(rows, last - first); i++) {
        const __m256i centred = _mm256_set1_epi32(128 * call.sums[w.pixels + first + i]);
        for (int h = 0; h < 2; h++) {
            finish<true>(call, _mm256_add_epi32(sums[i][h], centred), first + i, channel + half_vector * h);
        }
    }
}

void int8_run(const LayerCall &call, int from, int to) {
    every_tile<rows>(call, from, to, [&](const uint8_t *codes, int step, int channel, int p) {
        int8_tile(call, codes, step, channel, p, to);
    });
}

// --- deferred: halves of codes, 0..15, times activations; 16-bit sums are widened only before they could overflow -----

template <bool both>
__attribute__((noinline)) void deferred_tile(const LayerCall &call, const uint8_t *codes, int step, int channel,
                                             int first, int last) {
    const Window &w = call.window;
    const __m256i ones = _mm256_set1_epi16(1), half = _mm256_set1_epi8(15);
    const uint8_t *mask = call.mask + 4 * channel;
    const int most = std::max(1, std::max(call.largest, -call.smallest));
    const int until_wide = most_words / (2 * 15 * most) * 4;  // in inputs
    const int8_t *row[rows];
    __m256i wide[rows][2][2];
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++) {
        row[i] = call.input + static_cast<ptrdiff_t>(w.position[std::min(first + i, last - 1)]) * w.stride;
        for (int h = 0; h < 2; h++) wide[i][h][0] = wide[i][h][1] = _mm256_setzero_si256();
    }
    for (int t = 0; t < w.taps; t++) {
        const ptrdiff_t tap = static_cast<ptrdiff_t>(w.tap[t]) * w.stride;
        for (int c = 0; c < w.depth;) {
            const int end = std::min(w.depth, c + until_wide), start = c;
            const uint8_t *begin = codes;
            for (int part = 0; part < (both ? 2 : 1); part++) {  // the upper halves, then the lower ones
                __m256i sums[rows][2];
#pragma GCC unroll 4
                for (int i = 0; i < rows; i++) sums[i][0] = sums[i][1] = _mm256_setzero_si256();
                codes = begin;
                for (c = start; c < end; c += 4, codes += step) {
                    __m256i low = _mm256_and_si256(load(codes), load(mask));
                    __m256i high = _mm256_and_si256(load(codes + 32), load(mask + 32));
                    if (part == 0) {
                        low = _mm256_srli_epi16(low, 4);
                        high = _mm256_srli_epi16(high, 4);
                    }
                    low = _mm256_and_si256(low, half);
                    high = _mm256_and_si256(high, half);
#pragma GCC unroll 4
                    for (int i = 0; i < rows; i++) {
                        const __m256i a = quad(row[i] + tap + c);
                        sums[i][0] = _mm256_add_epi16(sums[i][0], _mm256_maddubs_epi16(low, a));
                        sums[i][1] = _mm256_add_epi16(sums[i][1], _mm256_maddubs_epi16(high, a));
                    }
                }
#pragma GCC unroll 4
                for (int i = 0; i < rows; i++) {
                    for (int h = 0; h < 2; h++) {
                        wide[i][h][part] = _mm256_add_epi32(wide[i][h][part], _mm256_madd_epi16(sums[i][h], ones));
                    }
                }
            }
        }
    }
    for (int i = 0; i < std::min(rows, last - first); i++) {
        for (int h = 0; h < 2; h++) {
            const __m256i sum = _mm256_add_epi32(_mm256_slli_epi32(wide[i][h][0], 4), wide[i][h][1]);
            finish<true>(call, sum, first + i, channel + half_vector * h);
        }
    }
}

void deferred_run(const LayerCall &call, int from, int to) {
    every_tile<rows>(call, from, to, [&](const uint8_t *codes, int step, int channel, int p) {
        call.bits > 4 ? deferred_tile<true>(call, codes, step, channel, p, to)
                      : deferred_tile<false>(call, codes, step, channel, p, to);
    });
}

// --- lookup: sums of four activations for codes of one or two bits ---------------------------------------------------
//
// The table of a pixel has 16 bytes per four channels. A register of indices has 32 output channels, a plane in each
// half of its bytes; channel i in byte 2i, channel 16 + i in byte 2i + 1, so that words of both are a mask or a shift.

constexpr int group = 4, planes = 2, channels_of_indices = 32, most_bytes = 255, most_unsigned_words = 65535;

int groups(const Window &w) { return (w.channels + group - 1) / group; }
int index_vectors(const Window &w) { return (w.outputs + channels_of_indices - 1) / channels_of_indices; }

bool able_to_look_up(const LayerCall &call) { return can_look_up(call, planes, group); }

size_t table_bytes(const Window &w) {
    return static_cast<size_t>(index_vectors(w)) * static_cast<size_t>(w.taps * groups(w)) * 32;
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

void prepare_tables(const LayerCall &call, int from, int to) {
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
__attribute__((noinline)) void lookup_tile(const LayerCall &call, const uint8_t *indices, int channel, int first,
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
void lookup_strip(const LayerCall &call, int from, int to) {
    const Window &w = call.window;
    const size_t bytes = static_cast<size_t>(w.taps * groups(w)) * 32;
    for (int vector = 0; vector < index_vectors(w); vector++) {
        const uint8_t *indices = call.tables + static_cast<size_t>(vector) * bytes;
        for (int p = from; p < to; p += height) {
            lookup_tile<height, bits>(call, indices, vector * channels_of_indices, p, to);
        }
    }
}

void lookup_run(const LayerCall &call, int from, int to) {
    sum_positions(call, from, to);
    call.bits == 1 ? lookup_strip<8, 1>(call, from, to) : lookup_strip<4, 2>(call, from, to);
}

// --- the other operators ---------------------------------------------------------------------------------------------

void depthwise(const DepthwiseCall &call, int from, int to) {
    for (int p = from; p < to; p++) {
        const ptrdiff_t position = call.position[p];
        int c = 0;
        for (; c + half_vector <= call.channels; c += half_vector) {
            __m256i sum = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(call.bias + c));
            for (int t = 0; t < call.taps; t++) {
                const int8_t *a = call.input + (position + call.tap[t]) * call.stride + c;
                const int8_t *z = call.weights + static_cast<ptrdiff_t>(t) * call.channels + c;
                const __m256i product =
                    _mm256_mullo_epi32(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(a))),
                                       _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(z))));
                sum = _mm256_add_epi32(sum, product);
            }
            const __m256 value = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_loadu_ps(call.scale + c));
            store(call.output + call.target[p] + c, _mm256_cvtps_epi32(kept(value, call.low, call.high)), half_vector);
        }
        for (; c < call.channels; c++) {
            int32_t sum = call.bias[c];
            for (int t = 0; t < call.taps; t++) {
                sum += call.input[(position + call.tap[t]) * call.stride + c] * call.weights[t * call.channels + c];
            }
            const float value = static_cast<float>(sum) * call.scale[c];
            call.output[call.target[p] + c] =
                static_cast<int8_t>(_mm_cvtss_si32(_mm_set_ss(std::min(std::max(value, call.low), call.high))));
        }
    }
}

void add(const AddCall &call) {
    const __m256 ratio_a = _mm256_set1_ps(call.ratio_a), ratio_b = _mm256_set1_ps(call.ratio_b);
    const __m256 fixed = _mm256_set1_ps(call.fixed);
    const __m256i zero_a = _mm256_set1_epi32(call.zero_a), zero_b = _mm256_set1_epi32(call.zero_b);
    const __m256i zero = _mm256_set1_epi32(call.zero);
    for (size_t i = 0; i < call.count; i += half_vector) {
        const __m128i codes_a = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(call.a + i));
        const __m128i codes_b = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(call.b + i));
        const __m256 a = _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_cvtepi8_epi32(codes_a), zero_a));
        const __m256 b = _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_cvtepi8_epi32(codes_b), zero_b));
        const __m256 total = _mm256_fmadd_ps(a, ratio_a, _mm256_fmadd_ps(b, ratio_b, fixed));
        const __m256i code = _mm256_cvtps_epi32(kept(total, call.low, call.high));
        store(call.output + i, _mm256_sub_epi32(code, zero), static_cast<int>(std::min<size_t>(call.count - i, 8)));
    }
}

void maximum(int8_t *output, const int8_t *input, size_t count) {
    size_t i = 0;
    for (; i + 32 <= count; i += 32) {
        __m256i *at = reinterpret_cast<__m256i *>(output + i);
        const __m256i other = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(input + i));
        _mm256_storeu_si256(at, _mm256_max_epi8(_mm256_loadu_si256(at), other));
    }
    for (; i < count; i++) output[i] = std::max(output[i], input[i]);
}

void accumulate(int32_t *sums, const int8_t *input, size_t count) {
    for (size_t i = 0; i < count; i++) sums[i] += input[i];
}

void quantize(int8_t *output, int stride, const float *input, int width, float scale, int zero) {
    const float low = static_cast<float>(-zero), high = static_cast<float>(255 - zero);
    const __m256 step = _mm256_set1_ps(scale);
    int x = 0;
    for (; x + half_vector <= width; x += half_vector) {
        // The maximum takes its second operand where the first one is not a number: the lowest code.
        const __m256 value = kept(_mm256_div_ps(_mm256_loadu_ps(input + x), step), low, high);
        alignas(32) int32_t codes[half_vector];
        _mm256_store_si256(reinterpret_cast<__m256i *>(codes), _mm256_cvtps_epi32(value));
        for (int i = 0; i < half_vector; i++) {
            output[static_cast<ptrdiff_t>(x + i) * stride] = static_cast<int8_t>(codes[i]);
        }
    }
    for (; x < width; x++) {
        const __m128 value = _mm_max_ss(_mm_set_ss(input[x] / scale), _mm_set_ss(low));
        output[static_cast<ptrdiff_t>(x) * stride] =
            static_cast<int8_t>(_mm_cvtss_si32(_mm_min_ss(value, _mm_set_ss(high))));
    }
}

const LayerMethod int8 = {"int8, AVX2", able_in_int8, none, sum_pixels, int8_run, none, nullptr};
const LayerMethod deferred = {"int16 deferred, AVX2", always, none, sum_pixels, deferred_run, none, nullptr};
const LayerMethod lookup = {
    "lookup, AVX2", able_to_look_up, scratch_bytes, prepare_tables, lookup_run, table_bytes, pack};
const LayerMethod *const methods[] = {&deferred, &int8, &lookup, nullptr};

}  // namespace

const Kernels avx2_kernels = {"avx2", methods, depthwise, add, maximum, accumulate, quantize};

}  // namespace emq
