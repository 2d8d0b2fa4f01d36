// What the operators (ops.cpp) and the kernels of each instruction set (csrc/cpu/*.cpp) agree on: plain structs and pointers.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace masked_swin {

// Rows of (heads * head_dim) floats; `rows` lists are either windowed (row = window * tokens + place) or compact.
struct Rows {
  float* p = nullptr;
  int64_t stride = 0;
  bool compact = false;
};

struct WindowAttention {
  int64_t windows;
  int queries, keys;  // per window; with compact rows, places of the window
  int heads, head_dim;
  float scale;
  Rows q, k, v;
  const float* bias;           // (heads, queries, keys)
  const float* masked;         // (3, heads, head_dim) or null: q, k, v of every masked token
  const int32_t* offsets;      // (windows + 1), null without compact rows
  const int32_t* position;     // compact row -> place in its window
  const int32_t* regions;      // (region_windows, keys) or null
  int64_t region_windows;
  const float* window_mask;    // (mask_windows, queries, keys) or null, added to the bias
  int64_t mask_windows;
  Rows out;
  float* stats;  // (windows, 2, heads, queries): maximum of the scores and 1 / sum of exponentials
  // backward only
  Rows grad_out, grad_q, grad_k, grad_v;
  float* grad_bias;    // (heads, queries, keys)
  float* grad_masked;  // (3, heads, head_dim)

  bool masked_queries() const { return masked && q.compact; }
  // The number of window places is the same for queries and keys wherever rows are compact.
  bool compact_queries() const { return q.compact && !masked; }
};

// Work is cut into this many chunks, whatever the number of threads: sums over windows then have a fixed order.
constexpr int MAX_CHUNKS = 16;

struct TokenMask {
  uint64_t seed;
  uint32_t draw;
  const int64_t* sample;
  int64_t samples, tokens, heads;
  uint32_t low, high;  // percent
  bool ratio_per_sample;
  bool* out;  // (samples, heads, tokens)
};

// One instruction set's kernels. `prepared` is scratch that all chunks read (window_attention_scratch floats); a chunk of the
// backward adds into its own `sums` (window_attention_sums floats), which window_attention_reduce adds up in order.
struct Kernels {
  const char* name;
  size_t (*window_attention_scratch)(const WindowAttention&);
  size_t (*window_attention_sums)(const WindowAttention&);
  void (*window_attention_prepare)(const WindowAttention&, float* prepared);
  bool (*window_attention_forward)(const WindowAttention&, const float* prepared, int64_t first, int64_t last);
  bool (*window_attention_backward)(const WindowAttention&, const float* prepared, float* sums, int64_t first, int64_t last);
  void (*window_attention_reduce)(const WindowAttention&, const float* prepared, const float* sums, int chunks);
  void (*token_mask)(const TokenMask&, int64_t first, int64_t last);  // rows of `out`
};

}  // namespace masked_swin
