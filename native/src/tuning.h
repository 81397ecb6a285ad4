// Which kernel was fastest for which layer on this processor, kept from one time to the next in the user's cache.
//
// The file is data and never trusted: what it says is one of the kernels that can compute the layer, or it is ignored.
// So the worst that it can do is a slower kernel; every one is exact.
#pragma once

#include <map>
#include <string>

#include "kernels/kernels.h"

namespace emq {

class Tuning {
  public:
    // Reads what there is for these kernels on this processor; nothing where that cannot be read or is damaged.
    explicit Tuning(const Kernels &kernels);

    // The name of the kernel for a layer that has these numbers; empty where it is not known.
    std::string find(const std::string &numbers) const;
    void note(const std::string &numbers, const std::string &method);
    // Keeps what was noted beside what others have kept meanwhile; where nothing can be written, nothing is kept.
    void save() const noexcept;

  private:
    std::string header_, path_;  // no path: nothing is kept
    std::map<std::string, std::string> known_, fresh_;
};

// Removes the files of all processors and versions, so that networks that are opened from now on are timed again.
// False where one could not be removed.
bool forget_tuning();

}  // namespace emq
