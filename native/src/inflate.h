// Unpacks what zlib packed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "span.h"

namespace emq {

// Throws `Failure` for bytes that are no such stream, or unpack to more than `most`.
std::vector<uint8_t> inflate(Span packed, size_t most);

}  // namespace emq
