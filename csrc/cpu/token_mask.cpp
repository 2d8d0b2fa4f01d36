// Random masks from the words of philox.h, the same bits as kernels/token_mask.py.
#include "kernels.h"
#include "philox.h"

namespace masked_swin {
namespace MASKED_SWIN_ISA {

void token_mask(const TokenMask& m, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; row++) {
    const uint32_t sample = (uint32_t)m.sample[row / m.heads], head = (uint32_t)(row % m.heads);
    uint64_t percent = m.low;
    if (m.high > m.low) {
      const Words words(RESERVED, m.ratio_per_sample ? sample : RESERVED, m.draw, head, m.seed);
      percent += ((uint64_t)words.c0[0] * (m.high - m.low + 1)) >> 32;
    }
    const uint64_t threshold = (percent << 32) / 100;
    for (int64_t token = 0; token < m.tokens; token += WORDS) {
      const Words words((uint32_t)token, sample, m.draw, head, m.seed);
      const int64_t count = m.tokens - token < WORDS ? m.tokens - token : WORDS;
      for (int64_t i = 0; i < count; i++) m.out[row * m.tokens + token + i] = words.c0[i] < threshold;
    }
  }
}

}  // namespace MASKED_SWIN_ISA
}  // namespace masked_swin
