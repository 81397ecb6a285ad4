#include "dispatch.h"

#include <cstdlib>

#if defined(EMQ_ARM) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include "failure.h"

namespace emq {

std::vector<const Kernels *> available_kernels() {
    std::vector<const Kernels *> found;
#if defined(EMQ_X86)
    __builtin_cpu_init();
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512vnni");
    if (avx512 && __builtin_cpu_supports("avx512vbmi")) found.push_back(&vbmi_kernels);
    if (avx512) found.push_back(&avx512_kernels);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&avx2_kernels);
#endif
    found.push_back(&portable_kernels);
    return found;
}

const Kernels &chosen_kernels() {
    const std::vector<const Kernels *> found = available_kernels();
    const char *wanted = std::getenv("EMQ_ISA");
    if (wanted == nullptr || *wanted == '\0') return *found.front();
    std::string names;
    for (const Kernels *kernels : found) {
        if (wanted == std::string(kernels->name)) return *kernels;
        names += names.empty() ? "" : ", ";
        names += kernels->name;
    }
    throw Failure("EMQ_ISA is '" + std::string(wanted) + "', this processor has kernels for: " + names);
}

}  // namespace emq
