// The table of one instruction set's kernels.
#include "kernels.h"

#include "simd.h"

namespace masked_swin {
namespace MASKED_SWIN_ISA {

extern const Steps<WindowAttention> window_attention_steps;
extern const Steps<SwinBlock> swin_block_steps;
extern const Steps<Convolution> convolution_steps;
void token_mask(const TokenMask& m, int64_t first, int64_t last);
void normal(const Normal& n, int64_t first, int64_t last);

namespace {
void add(float* to, const float* from, size_t count) {
  for (size_t i = 0; i < count; i++) to[i] += from[i];
}
}  // namespace

#define MASKED_SWIN_STRING_(x) #x
#define MASKED_SWIN_STRING(x) MASKED_SWIN_STRING_(x)
const Kernels& kernels() {
  static const Kernels table = {MASKED_SWIN_STRING(MASKED_SWIN_ISA),
                                window_attention_steps,
                                swin_block_steps,
                                convolution_steps,
                                add,
                                token_mask,
                                normal};
  return table;
}

}  // namespace MASKED_SWIN_ISA
}  // namespace masked_swin
