// Bytes of somebody else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace emq {

struct Span {
    const uint8_t *data = nullptr;
    size_t size = 0;
    std::string text() const { return {reinterpret_cast<const char *>(data), size}; }
};

}  // namespace emq
