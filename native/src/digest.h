// Digests of what a file holds.
#pragma once

#include <initializer_list>
#include <string>

#include "span.h"

namespace emq {

// In hexadecimal, of the parts one behind the other.
std::string sha256(std::initializer_list<Span> parts);
std::string blake2b_128(std::initializer_list<Span> parts);

}  // namespace emq
