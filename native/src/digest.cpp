// FIPS 180-4 and RFC 7693.
#include "digest.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace emq {
namespace {

// Cuts parts into blocks: whole ones are read where they lie, only what is left over is copied.
template <size_t block>
class Blocks {
  public:
    template <typename Take>
    void add(Span part, Take take) {
        total += part.size;
        while (part.size > 0) {
            if (used == block) {
                take(rest.data(), 1);
                used = 0;
            }
            // The last block is kept back: that it is the last is known when nothing follows.
            const size_t whole = used == 0 ? (part.size - 1) / block : 0;
            if (whole > 0) take(part.data, whole);
            part = {part.data + whole * block, part.size - whole * block};
            const size_t taken = std::min(block - used, part.size);
            std::memcpy(rest.data() + used, part.data, taken);
            used += taken;
            part = {part.data + taken, part.size - taken};
        }
    }

    std::array<uint8_t, block> rest{};
    size_t used = 0;
    uint64_t total = 0;
};

std::string hexadecimal(const uint8_t *bytes, size_t count) {
    static const char letters[] = "0123456789abcdef";
    std::string text;
    for (size_t i = 0; i < count; i++) {
        text += letters[bytes[i] >> 4];
        text += letters[bytes[i] & 15];
    }
    return text;
}

uint32_t turned(uint32_t value, int by) { return value >> by | value << (32 - by); }
uint64_t turned(uint64_t value, int by) { return value >> by | value << (64 - by); }

constexpr uint32_t sha_constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

using ShaState = std::array<uint32_t, 8>;

void sha_blocks(ShaState &state, const uint8_t *data, size_t count) {
    for (; count > 0; count--, data += 64) {
        uint32_t word[64];
        for (int i = 0; i < 16; i++) {
            word[i] = static_cast<uint32_t>(data[4 * i]) << 24 | static_cast<uint32_t>(data[4 * i + 1]) << 16 |
                      static_cast<uint32_t>(data[4 * i + 2]) << 8 | data[4 * i + 3];
        }
        for (int i = 16; i < 64; i++) {
            const uint32_t a = word[i - 15], b = word[i - 2];
            word[i] = word[i - 16] + (turned(a, 7) ^ turned(a, 18) ^ a >> 3) + word[i - 7] +
                      (turned(b, 17) ^ turned(b, 19) ^ b >> 10);
        }
        auto [a, b, c, d, e, f, g, h] = state;
        const auto round = [&word](uint32_t p, uint32_t q, uint32_t r, uint32_t &s, uint32_t t, uint32_t u, uint32_t v,
                                   uint32_t &w, int i) {
            w += (turned(t, 6) ^ turned(t, 11) ^ turned(t, 25)) + (v ^ (t & (u ^ v))) + sha_constants[i] + word[i];
            s += w;
            w += (turned(p, 2) ^ turned(p, 13) ^ turned(p, 22)) + ((p & q) | (r & (p | q)));
        };
        // Instead of moving the eight numbers on, every round calls each by the name of its neighbour.
        for (int i = 0; i < 64; i += 8) {
            round(a, b, c, d, e, f, g, h, i);
            round(h, a, b, c, d, e, f, g, i + 1);
            round(g, h, a, b, c, d, e, f, i + 2);
            round(f, g, h, a, b, c, d, e, i + 3);
            round(e, f, g, h, a, b, c, d, i + 4);
            round(d, e, f, g, h, a, b, c, i + 5);
            round(c, d, e, f, g, h, a, b, i + 6);
            round(b, c, d, e, f, g, h, a, i + 7);
        }
        const uint32_t added[] = {a, b, c, d, e, f, g, h};
        for (size_t i = 0; i < 8; i++) state[i] += added[i];
    }
}

constexpr uint64_t blake_start[8] = {0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b, 0xa54ff53a5f1d36f1,
                                     0x510e527fade682d1, 0x9b05688c2b3e6c1f, 0x1f83d9abfb41bd6b, 0x5be0cd19137e2179};

constexpr uint8_t blake_order[10][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
    {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4}, {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
    {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13}, {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
    {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11}, {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
    {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5}, {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0}};

using BlakeState = std::array<uint64_t, 8>;

void blake_block(BlakeState &state, const uint8_t *data, uint64_t total, bool last) {
    uint64_t message[16], v[16];
    std::memcpy(message, data, sizeof message);
    for (size_t i = 0; i < 8; i++) v[i] = state[i], v[i + 8] = blake_start[i];
    v[12] ^= total;
    if (last) v[14] = ~v[14];
    const auto mix = [&](int a, int b, int c, int d, uint64_t x, uint64_t y) {
        v[a] += v[b] + x;
        v[d] = turned(v[d] ^ v[a], 32);
        v[c] += v[d];
        v[b] = turned(v[b] ^ v[c], 24);
        v[a] += v[b] + y;
        v[d] = turned(v[d] ^ v[a], 16);
        v[c] += v[d];
        v[b] = turned(v[b] ^ v[c], 63);
    };
    for (int round = 0; round < 12; round++) {
        const uint8_t *s = blake_order[round % 10];
        for (int i = 0; i < 4; i++) mix(i, i + 4, i + 8, i + 12, message[s[2 * i]], message[s[2 * i + 1]]);
        for (int i = 0; i < 4; i++) {
            mix(i, (i + 1) % 4 + 4, (i + 2) % 4 + 8, (i + 3) % 4 + 12, message[s[2 * i + 8]], message[s[2 * i + 9]]);
        }
    }
    for (size_t i = 0; i < 8; i++) state[i] ^= v[i] ^ v[i + 8];
}

}  // namespace

std::string sha256(std::initializer_list<Span> parts) {
    ShaState state = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    Blocks<64> blocks;
    for (const Span part : parts) {
        blocks.add(part, [&](const uint8_t *data, size_t count) { sha_blocks(state, data, count); });
    }
    // A bit, zeros, and the length in bits at the end of a block.
    std::array<uint8_t, 128> tail{};
    std::copy_n(blocks.rest.data(), blocks.used, tail.data());
    tail[blocks.used] = 0x80;
    const size_t end = blocks.used < 56 ? 64 : 128;
    for (size_t i = 0; i < 8; i++) tail[end - 1 - i] = static_cast<uint8_t>((blocks.total * 8) >> (8 * i));
    sha_blocks(state, tail.data(), end / 64);
    uint8_t bytes[32];
    for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = static_cast<uint8_t>(state[i / 4] >> (24 - 8 * (i % 4)));
    return hexadecimal(bytes, sizeof bytes);
}

std::string blake2b_128(std::initializer_list<Span> parts) {
    constexpr size_t size = 16;
    BlakeState state;
    std::copy_n(blake_start, state.size(), state.data());
    state[0] ^= 0x01010000 ^ size;
    Blocks<128> blocks;
    uint64_t done = 0;
    for (const Span part : parts) {
        blocks.add(part, [&](const uint8_t *data, size_t count) {
            for (; count > 0; count--, data += 128) blake_block(state, data, done += 128, false);
        });
    }
    std::fill(blocks.rest.begin() + static_cast<ptrdiff_t>(blocks.used), blocks.rest.end(), uint8_t{0});
    blake_block(state, blocks.rest.data(), blocks.total, true);
    uint8_t bytes[size];
    std::memcpy(bytes, state.data(), size);
    return hexadecimal(bytes, size);
}

}  // namespace emq
