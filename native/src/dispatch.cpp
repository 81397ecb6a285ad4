#include "dispatch.h"

#include <cstdlib>

#if defined(EMQ_ARM) && defined(__linux__)
#include <sys/auxv.h>
#endif

#include "failure.h"

namespace emq {
namespace {

#if defined(EMQ_ARM) && defined(__linux__)
// Bits of AT_HWCAP and AT_HWCAP2 on 64-bit ARM, by number: the headers of old systems do not know the second one.
bool has_dotprod() { return (getauxval(AT_HWCAP) >> 20 & 1) != 0; }
bool has_i8mm() { return (getauxval(AT_HWCAP2) >> 13 & 1) != 0; }
#elif defined(EMQ_ARM)
bool has_dotprod() { return false; }
bool has_i8mm() { return false; }
#endif

}  // namespace

std::vector<const Kernels *> available_kernels() {
    std::vector<const Kernels *> found;
#if defined(EMQ_X86)
    __builtin_cpu_init();
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512vnni");
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (avx512 && __builtin_cpu_supports("avx512vbmi")) found.push_back(&vbmi_kernels);
    if (avx512) found.push_back(&avx512_kernels);
#if defined(EMQ_AVXVNNI)
    if (avx2 && __builtin_cpu_supports("avxvnni")) found.push_back(&avxvnni_kernels);
#endif
    if (avx2) found.push_back(&avx2_kernels);
#elif defined(EMQ_ARM)
#if defined(EMQ_I8MM)
    if (has_dotprod() && has_i8mm()) found.push_back(&i8mm_kernels);
#endif
#if defined(EMQ_DOTPROD)
    if (has_dotprod()) found.push_back(&dotprod_kernels);
#endif
    found.push_back(&neon_kernels);
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
