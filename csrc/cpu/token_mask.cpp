// Random masks: Philox-4x32-10, the same bits as kernels/token_mask.py.
#include "kernels.h"
#include "simd.h"

namespace masked_swin {
namespace MASKED_SWIN_ISA {
namespace {

constexpr uint32_t RESERVED = 0xFFFFFFFFu;
constexpr int BLOCK = 64;  // counters worked on together: plain loops that the compiler vectorises

void philox(uint32_t token, uint32_t sample, uint32_t draw, uint32_t head, uint64_t seed, uint32_t* word) {
  uint32_t c0[BLOCK], c1[BLOCK], c2[BLOCK], c3[BLOCK];
  for (int i = 0; i < BLOCK; i++) c0[i] = token + i, c1[i] = sample, c2[i] = draw, c3[i] = head;
  uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
  for (int round = 0; round < 10; round++) {
    for (int i = 0; i < BLOCK; i++) {
      const uint64_t p0 = (uint64_t)c0[i] * 0xD2511F53u, p1 = (uint64_t)c2[i] * 0xCD9E8D57u;
      c0[i] = (uint32_t)(p1 >> 32) ^ c1[i] ^ k0;
      c1[i] = (uint32_t)p1;
      c2[i] = (uint32_t)(p0 >> 32) ^ c3[i] ^ k1;
      c3[i] = (uint32_t)p0;
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  memcpy(word, c0, sizeof c0);
}

}  // namespace

void token_mask(const TokenMask& m, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; row++) {
    const uint32_t sample = (uint32_t)m.sample[row / m.heads], head = (uint32_t)(row % m.heads);
    uint32_t word[BLOCK];
    uint64_t percent = m.low;
    if (m.high > m.low) {
      philox(RESERVED, m.ratio_per_sample ? sample : RESERVED, m.draw, head, m.seed, word);
      percent += ((uint64_t)word[0] * (m.high - m.low + 1)) >> 32;
    }
    const uint64_t threshold = (percent << 32) / 100;
    for (int64_t token = 0; token < m.tokens; token += BLOCK) {
      philox((uint32_t)token, sample, m.draw, head, m.seed, word);
      const int64_t count = m.tokens - token < BLOCK ? m.tokens - token : BLOCK;
      for (int64_t i = 0; i < count; i++) m.out[row * m.tokens + token + i] = word[i] < threshold;
    }
  }
}

}  // namespace MASKED_SWIN_ISA
}  // namespace masked_swin
