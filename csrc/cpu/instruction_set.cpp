// Chooses the instruction set: the best one of this machine that MASKED_SWIN_CPU_ISA allows.
#include <cstdlib>
#include <cstring>

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

namespace {

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
