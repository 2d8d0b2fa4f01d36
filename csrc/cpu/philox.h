// Philox-4x32-10, the same bits as kernels/token_mask.py.
#pragma once
#include "simd.h"

namespace masked_swin {
namespace MASKED_SWIN_ISA {

constexpr uint32_t RESERVED = 0xFFFFFFFFu;
constexpr int WORDS = 64;  // counters worked on together: plain loops that the compiler vectorises

// The four words of WORDS counters, the first of which increases.
struct Words {
  uint32_t c0[WORDS], c1[WORDS], c2[WORDS], c3[WORDS];

  INLINE Words(uint32_t index, uint32_t sample, uint32_t draw, uint32_t head, uint64_t seed) {
    for (int i = 0; i < WORDS; i++) c0[i] = index + i, c1[i] = sample, c2[i] = draw, c3[i] = head;
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
      for (int i = 0; i < WORDS; i++) {
        const uint64_t p0 = (uint64_t)c0[i] * 0xD2511F53u, p1 = (uint64_t)c2[i] * 0xCD9E8D57u;
        c0[i] = (uint32_t)(p1 >> 32) ^ c1[i] ^ k0;
        c1[i] = (uint32_t)p1;
        c2[i] = (uint32_t)(p0 >> 32) ^ c3[i] ^ k1;
        c3[i] = (uint32_t)p0;
      }
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
  }
};

}  // namespace MASKED_SWIN_ISA
}  // namespace masked_swin
