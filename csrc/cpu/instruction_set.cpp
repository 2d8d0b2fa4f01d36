// Chooses the instruction set: the best one of this machine that MASKED_SWIN_CPU_ISA allows.
#include <cstdlib>
#include <cstring>
#if defined(MASKED_SWIN_ARM_BF16) && defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(MASKED_SWIN_ARM_BF16)
#include <sys/auxv.h>
#endif

#include "run.h"

namespace masked_swin {

namespace portable {
const Kernels& kernels();
}
#ifdef MASKED_SWIN_X86
namespace avx2 {
const Kernels& kernels();
}
namespace avx512 {
const Kernels& kernels();
}
namespace avx512_bf16 {
const Kernels& kernels();
}
#endif

#ifdef MASKED_SWIN_ARM_BF16
namespace neon_bf16 {
const Kernels& kernels();
}
#endif

namespace {

#ifdef MASKED_SWIN_ARM_BF16
bool has_arm_bf16() {
#ifdef __APPLE__
  int found = 0;
  size_t size = sizeof(found);
  return !sysctlbyname("hw.optional.arm.FEAT_BF16", &found, &size, nullptr, 0) && found;
#else
  constexpr unsigned long BF16 = 1ul << 14;  // HWCAP2_BF16, which older headers lack
  return getauxval(AT_HWCAP2) & BF16;
#endif
}
#endif

const Kernels& best_kernels() {
  const char* limit = std::getenv("MASKED_SWIN_CPU_ISA");
  [[maybe_unused]] auto limited_to = [&](const char* name) { return limit && !std::strcmp(limit, name); };
#ifdef MASKED_SWIN_X86
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool below_avx512 = limited_to("avx2") || limited_to("portable");
  if (avx512 && __builtin_cpu_supports("avx512bf16") && !below_avx512 && !limited_to("avx512"))
    return avx512_bf16::kernels();
  if (avx512 && !below_avx512) return avx512::kernels();
  if (!limited_to("portable") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return avx2::kernels();
#endif
#ifdef MASKED_SWIN_ARM_BF16
  if (!limited_to("portable") && has_arm_bf16()) return neon_bf16::kernels();
#endif
  return portable::kernels();
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = best_kernels();
  return chosen;
}

}  // namespace masked_swin

// The name of the instruction set in use, for kernels/cpu/library.py.
extern "C" __attribute__((visibility("default"))) const char* masked_swin_cpu_isa() {
  return masked_swin::kernels().name;
}
