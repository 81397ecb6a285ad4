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

// The checkpoint at a path, that of a bundle once it matches its hash in the manifest.
// Throws `Failure` for what is missing, no regular file, too large, outside of its bundle, or altered.
File read_checkpoint(const std::string &path);

}  // namespace emq
