// What people name, read whole: a checkpoint, or a bundle whose manifest names one.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace emq {

struct File {
    std::string path;
    std::vector<uint8_t> bytes;
};

// A file of at most so many bytes; `flags` are more ones of open. A pipe, a device or a directory is refused and never
// waited for. Throws `Failure` with what to do about it.
std::vector<uint8_t> read_regular(const std::string &path, int64_t most, int flags, const char *remedy);

// The checkpoint at a path, that of a bundle once it matches its hash in the manifest.
// Throws `Failure` for what is missing, no regular file, too large, outside of its bundle, or altered.
File read_checkpoint(const std::string &path);

}  // namespace emq
