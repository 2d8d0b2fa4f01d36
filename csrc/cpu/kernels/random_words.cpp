// Philox's first words: the same bits as the reference of the operation (kernels/philox.py).
#include "philox.h"
#include "table.h"

namespace masked_swin {
namespace MASKED_SWIN_ISA {

void random_words(const RandomWords& w, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; row++) {
    const uint32_t head = (uint32_t)(w.first_head + row % w.heads);
    int64_t* const out = w.out + row * w.count;
    each_block(w.first, w.count, w.key, row / w.heads, head, [=](const Words& words, int64_t at, int64_t count) {
      for (int64_t i = 0; i < count; i++) out[at + i] = words.c0[i];
    });
  }
}

}  // namespace MASKED_SWIN_ISA
}  // namespace masked_swin
