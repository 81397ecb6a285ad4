// NEON: sums of four activations looked up for codes of one or two bits.
//
// The table of a pixel has, per four channels, the 16 sums that four activations can have with weights of one bit. A
// register of indices has 16 output channels, a plane in each half of its bytes. Bytes are added while they cannot
// overflow, then folded into 16 and 32 bits.
#include "neon.h"

namespace emq::neon {
namespace {

constexpr int group = 4, planes = 2, entries = 16;
constexpr int most_bytes = 255, most_words = 65535;

int groups(const Window &w) { return (w.channels + group - 1) / group; }
int vectors(const Window &w) { return (w.outputs + vector_channels - 1) / vector_channels; }

size_t vector_bytes(const Window &w) { return static_cast<size_t>(w.taps * groups(w)) * vector_channels; }

bool able(const LayerCall &call) { return can_look_up(call, planes, group); }
size_t table_bytes(const Window &w) { return static_cast<size_t>(vectors(w)) * vector_bytes(w); }

void pack(const Window &w, const uint8_t *codes, uint8_t *tables) {
    for (int n = 0; n < w.outputs; n++) {
        uint8_t *index = tables + static_cast<size_t>(n / vector_channels) * vector_bytes(w) + n % vector_channels;
        for (int t = 0; t < w.taps; t++) {
            for (int c = 0; c < w.channels; c++) {
                const int code = codes[master_place(w, n, t, c)], i = c % group;
                const size_t step = static_cast<size_t>(t * groups(w) + c / group);
                uint8_t &one = index[step * vector_channels];
                one = static_cast<uint8_t>(one | (code >> 7 & 1) << i | (code >> 6 & 1) << (group + i));
            }
        }
    }
}

size_t scratch_bytes(const Window &w) {
    return static_cast<size_t>(w.pixels) * static_cast<size_t>(groups(w)) * entries;
}

void prepare(const LayerCall &call, int from, int to) {
    const Window &w = call.window;
    sum_pixels(call, from, to);
    uint8x16_t has[group];  // the entries that an activation is part of
    for (int i = 0; i < group; i++) {
        alignas(16) uint8_t bytes[entries];
        for (int entry = 0; entry < entries; entry++) bytes[entry] = static_cast<uint8_t>(entry >> i & 1 ? 255 : 0);
        has[i] = vld1q_u8(bytes);
    }
    const auto sums_of = [&](uint8_t a, uint8_t b, uint8_t c, uint8_t d) {
        const uint8x16_t low = vaddq_u8(vandq_u8(vdupq_n_u8(a), has[0]), vandq_u8(vdupq_n_u8(b), has[1]));
        return vaddq_u8(low, vaddq_u8(vandq_u8(vdupq_n_u8(c), has[2]), vandq_u8(vdupq_n_u8(d), has[3])));
    };
    for (int p = from; p < to; p++) {
        const int8_t *pixel = call.input + static_cast<ptrdiff_t>(p) * w.stride;
        uint8_t *table = call.scratch + static_cast<size_t>(p - call.origin) * static_cast<size_t>(groups(w)) * entries;
        for (int c = 0; c < w.channels; c += group, table += entries) {
            uint8_t a[group] = {};
            __builtin_memcpy(a, pixel + c, static_cast<size_t>(std::min(group, w.channels - c)));
            vst1q_u8(table, sums_of(a[0], a[1], a[2], a[3]));
        }
    }
}

template <int rows, int width, int bits>
__attribute__((noinline)) void tile(const LayerCall &call, int vector, int first, int last) {
    const Window &w = call.window;
    const int pixel_groups = groups(w), largest = std::max(1, call.largest);
    const size_t pixel_bytes = static_cast<size_t>(pixel_groups) * entries;
    // Lookups until a byte could overflow, and folded bytes until a word could.
    const int byte_lookups = most_bytes / (group * largest);
    const int word_folds = std::max(1, most_words / (byte_lookups * group * largest * ((1 << bits) - 1)));
    const uint8_t *indices = call.tables + static_cast<size_t>(vector) * vector_bytes(w);
    const uint8x16_t half = vdupq_n_u8(15);
    const uint8_t *row[rows];
    uint16x8_t words[rows][width][2];
    uint32x4_t wide[rows][width][4];
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++) {
        row[i] = call.scratch + static_cast<size_t>(w.position[std::min(first + i, last - 1)] - call.origin) * pixel_bytes;
#pragma GCC unroll 2
        for (int j = 0; j < width; j++) {
            words[i][j][0] = words[i][j][1] = vdupq_n_u16(0);
            for (uint32x4_t &one : wide[i][j]) one = vdupq_n_u32(0);
        }
    }
    const int steps = w.taps * pixel_groups;
    int folds = 0, tap = 0, inside = 0;
    for (int step = 0; step < steps;) {
        const int end = std::min(steps, step + byte_lookups);
        uint8x16_t bytes[rows][width][bits];
#pragma GCC unroll 4
        for (int i = 0; i < rows; i++) {
#pragma GCC unroll 2
            for (int j = 0; j < width; j++) {
#pragma GCC unroll 2
                for (int b = 0; b < bits; b++) bytes[i][j][b] = vdupq_n_u8(0);
            }
        }
        for (; step < end; step++, indices += vector_channels) {
            const ptrdiff_t at = (static_cast<ptrdiff_t>(w.tap[tap]) * pixel_groups + inside) * entries;
            if (++inside == pixel_groups) inside = 0, tap++;
            uint8x16_t index[width][bits];
#pragma GCC unroll 2
            for (int j = 0; j < width; j++) {
                const uint8x16_t both = vld1q_u8(indices + static_cast<size_t>(j) * vector_bytes(w));
                index[j][0] = vandq_u8(both, half);
                if (bits > 1) index[j][bits - 1] = vshrq_n_u8(both, 4);
            }
#pragma GCC unroll 4
            for (int i = 0; i < rows; i++) {
                const uint8x16_t table = vld1q_u8(row[i] + at);
#pragma GCC unroll 2
                for (int j = 0; j < width; j++) {
#pragma GCC unroll 2
                    for (int b = 0; b < bits; b++) {
                        bytes[i][j][b] = vaddq_u8(bytes[i][j][b], vqtbl1q_u8(table, index[j][b]));
                    }
                }
            }
        }
        const bool widen = ++folds == word_folds || step == steps;
        if (widen) folds = 0;
#pragma GCC unroll 4
        for (int i = 0; i < rows; i++) {
#pragma GCC unroll 2
            for (int j = 0; j < width; j++) {
                uint16x8_t &low = words[i][j][0], &high = words[i][j][1];
                // The last plane counts once, the one above it twice.
                low = vaddw_u8(low, vget_low_u8(bytes[i][j][bits - 1]));
                high = vaddw_high_u8(high, bytes[i][j][bits - 1]);
                if (bits > 1) {
                    low = vaddq_u16(low, vshll_n_u8(vget_low_u8(bytes[i][j][0]), 1));
                    high = vaddq_u16(high, vshll_high_n_u8(bytes[i][j][0], 1));
                }
                if (!widen) continue;
                uint32x4_t *sums = wide[i][j];
                sums[0] = vaddw_u16(sums[0], vget_low_u16(low));
                sums[1] = vaddw_high_u16(sums[1], low);
                sums[2] = vaddw_u16(sums[2], vget_low_u16(high));
                sums[3] = vaddw_high_u16(sums[3], high);
                low = high = vdupq_n_u16(0);
            }
        }
    }
    for (int i = 0; i < std::min(rows, last - first); i++) {
        for (int j = 0; j < width; j++) {
            int32x4_t sums[4];
            for (int part = 0; part < 4; part++) sums[part] = vreinterpretq_s32_u32(wide[i][j][part]);
            finish<false, 4>(call, sums, first + i, (vector + j) * vector_channels);
        }
    }
}

template <int rows, int width, int bits>
void strip(const LayerCall &call, int vector, int from, int to) {
    for (int p = from; p < to; p += rows) tile<rows, width, bits>(call, vector, p, to);
}

void run(const LayerCall &call, int from, int to) {
    const int all = vectors(call.window);
    for (int vector = 0; vector < all;) {
        if (call.bits == 1 && all - vector >= 2) {
            strip<4, 2, 1>(call, vector, from, to);
            vector += 2;
        } else {
            call.bits == 1 ? strip<4, 1, 1>(call, vector, from, to) : strip<4, 1, 2>(call, vector, from, to);
            vector++;
        }
    }
}

}  // namespace

const LayerMethod lookup = {"lookup, NEON", able, scratch_bytes, none, prepare, run, table_bytes, pack};

}  // namespace emq::neon
