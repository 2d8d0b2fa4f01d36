// The table of one instruction set's kernels: what the operators (csrc/cpu) call.
#pragma once
#include "problem.h"

namespace masked_swin {

// The steps of one operation over windows (convolution: rows of pixels). `prepare` makes `prepared` first, in
// independent jobs. A chunk of the backward adds into its own `sums`. Then the chunks are added up in order, and
// `finish` makes gradients of the total, in independent jobs.
template <class Problem>
struct Steps {
  size_t (*prepared_size)(const Problem&);
  size_t (*sums_size)(const Problem&);
  int (*prepare_jobs)(const Problem&);
  int (*finish_jobs)(const Problem&);
  void (*prepare)(const Problem&, float* prepared, int job);
  bool (*forward)(const Problem&, const float* prepared, int64_t first, int64_t last);  // false: out of memory
  bool (*backward)(const Problem&, const float* prepared, float* sums, int64_t first, int64_t last);
  void (*finish)(const Problem&, const float* prepared, float* total, int job);
};

struct Kernels {
  const char* name;  // of the instruction set
  Steps<WindowAttention> window_attention;
  Steps<SwinBlock> swin_block;
  Steps<Convolution> convolution;
  void (*add)(float* to, const float* from, size_t count);
  void (*random_words)(const RandomWords&, int64_t first, int64_t last);  // rows of `out`
  void (*token_mask)(const TokenMask&, int64_t first, int64_t last);      // rows of `out`
  void (*normal)(const Normal&, int64_t first, int64_t last);             // samples
};

}  // namespace masked_swin
