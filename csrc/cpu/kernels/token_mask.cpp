// Random masks: the same bits as the reference of the operation (kernels/reference.py).
#include "philox.h"
#include "table.h"

namespace masked_swin {
namespace MASKED_SWIN_ISA {

void token_mask(const TokenMask& mask, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; row++) {
    const int64_t image = row / mask.heads, head = row % mask.heads;
    const int64_t drawn = mask.percent[image * mask.sample_stride + head * mask.head_stride];
    const uint64_t percent = drawn < 0 ? 0 : drawn > 100 ? 100 : (uint64_t)drawn;
    const uint64_t threshold = (percent << 32) / 100;
    bool* const out = mask.out + row * mask.tokens;
    each_block(0, mask.tokens, mask.key, image, (uint32_t)head, [=](const Words& words, int64_t at, int64_t count) {
      for (int64_t i = 0; i < count; i++) out[at + i] = words.c0[i] < threshold;
    });
  }
}

}  // namespace MASKED_SWIN_ISA
}  // namespace masked_swin
