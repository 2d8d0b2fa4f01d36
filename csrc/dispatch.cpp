// Chooses the instruction set.
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
  const char* wanted = std::getenv("MASKED_SWIN_CPU_ISA");  // this one or a lesser one
  [[maybe_unused]] auto asked_for = [&](const char* name) { return wanted && !std::strcmp(wanted, name); };
#ifdef MASKED_SWIN_X86
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool less = asked_for("avx2") || asked_for("portable");
  if (avx512 && __builtin_cpu_supports("avx512bf16") && !less && !asked_for("avx512")) return avx512_bf16::kernels();
  if (avx512 && !less) return avx512::kernels();
  if (!asked_for("portable") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2::kernels();
#endif
  return portable::kernels();
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = best_kernels();
  return chosen;
}

}  // namespace masked_swin

// The instruction set in use; MASKED_SWIN_CPU_ISA=portable|avx2|avx512|avx512_bf16 in the environment asks for a lesser
// one.
extern "C" __attribute__((visibility("default"))) const char* masked_swin_cpu_isa() {
  return masked_swin::kernels().name;
}
