// Philox-4x32-10: the same bits as kernels/philox.py.
#pragma once
#include "problem.h"
#include "simd.h"

namespace masked_swin {
namespace MASKED_SWIN_ISA {
namespace {

constexpr int WORDS = 64;  // counters of a block: the compiler vectorises plain loops over them

// The four words of WORDS counters with consecutive indices. Each part of a counter counts modulo 2^32.
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

// f(words, at, count) for blocks of the indices first + at, at < total; the first `count` words of a block count.
template <class F>
INLINE void each_block(int64_t first, int64_t total, const RandomKey& key, int64_t image, uint32_t head, F&& f) {
  for (int64_t at = 0; at < total; at += WORDS) {
    const Words words((uint32_t)(first + at), (uint32_t)key.sample[image], (uint32_t)*key.draw, head,
                      (uint64_t)*key.seed);
    f(words, at, total - at < WORDS ? total - at : WORDS);
  }
}

}  // namespace
}  // namespace MASKED_SWIN_ISA
}  // namespace masked_swin
