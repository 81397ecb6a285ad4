#include "utf8.h"

#include <cstddef>

namespace emq {

int letter_length(const uint8_t *at, const uint8_t *end) {
    const uint8_t first = *at;
    const int length = first < 0x80 ? 1 : first < 0xc2 ? 0 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : first < 0xf5 ? 4 : 0;
    if (length == 0 || end - at < length) return 0;
    for (int i = 1; i < length; i++) {
        if ((at[i] & 0xc0) != 0x80) return 0;
    }
    if (length < 3) return length;
    const uint8_t second = at[1];
    const bool longer_than_needed = (first == 0xe0 && second < 0xa0) || (first == 0xf0 && second < 0x90);
    const bool no_letter = (first == 0xed && second > 0x9f) || (first == 0xf4 && second > 0x8f);
    return longer_than_needed || no_letter ? 0 : length;
}

std::string printable(const std::string &text) {
    std::string found;
    const uint8_t *at = reinterpret_cast<const uint8_t *>(text.data()), *const end = at + text.size();
    while (at != end) {
        const int length = letter_length(at, end);
        const bool control = *at < 0x20 || *at == 0x7f || (length == 2 && *at == 0xc2 && at[1] < 0xa0);
        if (length == 0 || control) {
            found += '?';
        } else {
            found.append(reinterpret_cast<const char *>(at), static_cast<size_t>(length));
        }
        at += length == 0 ? 1 : length;
    }
    return found;
}

}  // namespace emq
