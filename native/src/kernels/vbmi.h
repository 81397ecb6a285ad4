// Methods of AVX-512 VBMI that look up sums of activations.
#pragma once

#include "kernels.h"

namespace emq::vbmi {

extern const LayerMethod quads;

}  // namespace emq::vbmi
