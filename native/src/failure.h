// One kind of exception inside the library; the C interface turns it into a code and a sentence.
#pragma once

#include <stdexcept>
#include <string>

namespace emq {

struct Failure : std::runtime_error {
    using std::runtime_error::runtime_error;
};

}  // namespace emq
