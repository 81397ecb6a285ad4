// Which operators, with which attributes, a network may have here.
#pragma once

#include "graph.h"

namespace emq {

[[noreturn]] void refuse(const Node &node);
// Throws `Failure` for an operator that has no integer kernel here, and for an attribute that none follows.
void check_admitted(const Node &node);

}  // namespace emq
