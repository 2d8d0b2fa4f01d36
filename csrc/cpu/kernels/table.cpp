#include "table.h"

#include "simd.h"

namespace masked_swin {
namespace MASKED_SWIN_ISA {

extern const Steps<WindowAttention> window_attention_steps;
extern const Steps<SwinBlock> swin_block_steps;
extern const Steps<Convolution> convolution_steps;
void random_words(const RandomWords& words, int64_t first, int64_t last);
void token_mask(const TokenMask& mask, int64_t first, int64_t last);
void normal(const Normal& normal, int64_t first, int64_t last);

namespace {
void add(float* to, const float* from, size_t count) {
  for (size_t i = 0; i < count; i++) to[i] += from[i];
}
}  // namespace

#define MASKED_SWIN_STRING_(x) #x
#define MASKED_SWIN_STRING(x) MASKED_SWIN_STRING_(x)
const Kernels& kernels() {
  static const Kernels table = {
      .name = MASKED_SWIN_STRING(MASKED_SWIN_ISA),
      .window_attention = window_attention_steps,
      .swin_block = swin_block_steps,
      .convolution = convolution_steps,
      .add = add,
      .random_words = random_words,
      .token_mask = token_mask,
      .normal = normal,
  };
  return table;
}

}  // namespace MASKED_SWIN_ISA
}  // namespace masked_swin
