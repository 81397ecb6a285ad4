// RFC 1950 and 1951. Codes are decoded a bit at a time, which is fast enough for a graph without its weights.
#include "inflate.h"

#include <array>

#include "failure.h"

namespace emq {
namespace {

constexpr int longest_code = 15;
constexpr size_t most_lengths = 288, most_distances = 30;

// How many codes each length has, and the symbols in the order of their codes.
struct Codes {
    std::array<uint16_t, longest_code + 1> count{};
    std::array<uint16_t, most_lengths> symbol{};

    Codes(const uint8_t *lengths, size_t symbols, bool may_lack) {
        for (size_t i = 0; i < symbols; i++) count[lengths[i]]++;
        count[0] = 0;
        std::array<uint16_t, longest_code + 2> first{};
        int left = 1, used = 0;
        for (size_t length = 1; length <= longest_code; length++) {
            left = 2 * left - count[length];
            used += count[length];
            if (left < 0) throw Failure("the packed graph has too many codes");
            first[length + 1] = static_cast<uint16_t>(first[length] + count[length]);
        }
        // A single code of one bit is how one distance, or none, is written.
        if (left > 0 && !(may_lack && used <= 1)) throw Failure("the packed graph lacks codes");
        for (size_t i = 0; i < symbols; i++) {
            if (lengths[i] != 0) symbol[first[lengths[i]]++] = static_cast<uint16_t>(i);
        }
    }
};

class Inflater {
  public:
    Inflater(Span packed, size_t most) : at_(packed.data), end_(packed.data + packed.size), most_(most) {}

    std::vector<uint8_t> run() {
        const unsigned method = bits(8), flags = bits(8);
        if ((method & 15) != 8 || (method << 8 | flags) % 31 != 0 || (flags & 32) != 0) {
            throw Failure("the packed graph has no head");
        }
        bool last = false;
        while (!last) {
            last = bits(1) != 0;
            switch (bits(2)) {
                case 0: stored(); break;
                case 1: fixed(); break;
                case 2: dynamic(); break;
                default: throw Failure("the packed graph has a strange block");
            }
        }
        check_sum();
        return std::move(found_);
    }

  private:
    unsigned bits(int count) {
        while (held_ < count) {
            if (at_ == end_) throw Failure("the packed graph is cut off");
            buffer_ |= static_cast<uint32_t>(*at_++) << held_;
            held_ += 8;
        }
        const unsigned value = buffer_ & ((1u << count) - 1);
        buffer_ >>= count;
        held_ -= count;
        return value;
    }

    unsigned symbol(const Codes &codes) {
        int code = 0, first = 0, index = 0;
        for (size_t length = 1; length <= longest_code; length++) {
            code |= static_cast<int>(bits(1));
            const int count = codes.count[length];
            if (code - count < first) return codes.symbol[static_cast<size_t>(index + code - first)];
            index += count;
            first = (first + count) << 1;
            code <<= 1;
        }
        throw Failure("the packed graph has a strange code");
    }

    void add(uint8_t byte) {
        if (found_.size() == most_) throw Failure("the graph is larger than " + std::to_string(most_ >> 20) + " MB");
        found_.push_back(byte);
    }

    void byte_edge() { buffer_ >>= held_ % 8, held_ -= held_ % 8; }

    void stored() {
        byte_edge();
        const unsigned length = bits(16), inverse = bits(16);
        if ((length ^ inverse) != 0xffff) throw Failure("the packed graph has a strange block");
        for (unsigned i = 0; i < length; i++) add(static_cast<uint8_t>(bits(8)));
    }

    void fixed() {
        std::array<uint8_t, most_lengths> lengths{};
        for (size_t i = 0; i < lengths.size(); i++) lengths[i] = i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8;
        std::array<uint8_t, 32> distances{};
        distances.fill(5);
        block(Codes(lengths.data(), lengths.size(), false), Codes(distances.data(), distances.size(), false));
    }

    void dynamic() {
        static constexpr uint8_t order[] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
        const size_t lengths = bits(5) + 257, distances = bits(5) + 1, described = bits(4) + 4;
        if (lengths > most_lengths - 2 || distances > most_distances) {
            throw Failure("the packed graph has too many codes");
        }
        std::array<uint8_t, 19> widths{};
        for (size_t i = 0; i < described; i++) widths[order[i]] = static_cast<uint8_t>(bits(3));
        const Codes codes(widths.data(), widths.size(), false);
        std::array<uint8_t, most_lengths + most_distances> all{};
        for (size_t i = 0; i < lengths + distances;) {
            const unsigned found = symbol(codes);
            if (found < 16) {
                all[i++] = static_cast<uint8_t>(found);
                continue;
            }
            if (found == 16 && i == 0) throw Failure("the packed graph repeats nothing");
            const uint8_t value = found == 16 ? all[i - 1] : uint8_t{0};
            const size_t times = found == 16 ? 3 + bits(2) : found == 17 ? 3 + bits(3) : 11 + bits(7);
            if (times > lengths + distances - i) throw Failure("the packed graph has too many codes");
            for (size_t end = i + times; i < end; i++) all[i] = value;
        }
        if (all[256] == 0) throw Failure("the packed graph has no end");
        block(Codes(all.data(), lengths, false), Codes(all.data() + lengths, distances, true));
    }

    void block(const Codes &lengths, const Codes &distances) {
        static constexpr uint16_t length_base[] = {3,  4,  5,  6,  7,  8,  9,  10, 11,  13,  15,  17,  19,  23, 27,
                                                   31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258};
        static constexpr uint8_t length_bits[] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2,
                                                  2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0};
        static constexpr uint16_t distance_base[] = {1,   2,   3,   4,   5,   7,    9,    13,   17,   25,
                                                     33,  49,  65,  97,  129, 193,  257,  385,  513,  769,
                                                     1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577};
        while (true) {
            const unsigned found = symbol(lengths);
            if (found == 256) return;
            if (found < 256) {
                add(static_cast<uint8_t>(found));
                continue;
            }
            const unsigned kind = found - 257;
            if (kind >= std::size(length_base)) throw Failure("the packed graph has a strange code");
            const size_t length = length_base[kind] + bits(length_bits[kind]);
            const unsigned far = symbol(distances);
            if (far >= most_distances) throw Failure("the packed graph has a strange code");
            const size_t distance = distance_base[far] + bits(far < 2 ? 0 : static_cast<int>(far / 2 - 1));
            if (distance > found_.size()) throw Failure("the packed graph reaches before its beginning");
            for (size_t i = 0; i < length; i++) add(found_[found_.size() - distance]);
        }
    }

    void check_sum() {
        byte_edge();
        uint32_t expected = 0, low = 1, high = 0;
        for (int i = 0; i < 4; i++) expected = expected << 8 | bits(8);
        for (const uint8_t byte : found_) {
            low = (low + byte) % 65521;
            high = (high + low) % 65521;
        }
        if (expected != (high << 16 | low)) throw Failure("the packed graph does not match its sum");
    }

    const uint8_t *at_, *const end_;
    const size_t most_;
    uint32_t buffer_ = 0;
    int held_ = 0;
    std::vector<uint8_t> found_;
};

}  // namespace

std::vector<uint8_t> inflate(Span packed, size_t most) { return Inflater(packed, most).run(); }

}  // namespace emq
