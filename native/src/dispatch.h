// The kernels of this processor.
#pragma once

#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace emq {

// Those that it can run, best first; the portable ones are the last.
std::vector<const Kernels *> available_kernels();

// The best, or those that the environment variable EMQ_ISA names. Throws `Failure` for a name that is none of them.
const Kernels &chosen_kernels();

}  // namespace emq
