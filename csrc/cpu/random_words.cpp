// The operator random_words on the CPU.
#include "random_key.h"
#include "torch_threads.h"

namespace masked_swin {
namespace {

Tensor random_words(Tensor seed, Tensor draw, Tensor sample, int64_t first, int64_t count, int64_t first_head,
                    int64_t heads) {
  const RandomKeyTensors key(seed, draw, sample);
  STD_TORCH_CHECK(count >= 0 && heads >= 0, "masked_swin: random_words got arguments out of range");
  Tensor out = empty(sample, {key.samples(), heads, count});
  const RandomWords words{
      .key = key.key(),
      .first = first,
      .count = count,
      .first_head = first_head,
      .heads = heads,
      .out = data<int64_t>(out),
  };
  run_rows(words, kernels().random_words, key.samples() * heads);
  return out;
}

}  // namespace
}  // namespace masked_swin

STABLE_TORCH_LIBRARY_IMPL(masked_swin, CPU, m) { m.impl("random_words_cpu", TORCH_BOX(&masked_swin::random_words)); }
