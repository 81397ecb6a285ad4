// Text of other people.
#pragma once

#include <cstdint>
#include <string>

namespace emq {

// Bytes of the letter at a place before `end`, 0 where there is none of UTF-8 in its shortest form.
int letter_length(const uint8_t *at, const uint8_t *end);

// The text with a question mark for whatever cannot be printed in one line.
std::string printable(const std::string &text);

}  // namespace emq
