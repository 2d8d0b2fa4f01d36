// What the operators (csrc/*.cpp) and the kernels of each instruction set (csrc/cpu/*.cpp) agree on: plain structs and
// pointers.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace masked_swin {

constexpr float EXCLUDED = -1e30f;  // stands for minus infinity

// Position bias and shift regions. Windows at the border of a shifted image hold several regions; there are few
// different patterns of them (4 in Swin), the kinds of windows.
struct PositionBias {
  int heads, queries, keys;
  const float* bias;        // (heads, queries, keys), or a table (see below)
  bool masked;              // masked tokens take part
  float penalty;            // added between regions
  int kinds;                // at least 1
  const int32_t* patterns;  // (kinds, keys): the region of each place; null without regions
  const int32_t* kind;      // (pattern_windows): the kind of window w is kind[w % pattern_windows]
  int64_t pattern_windows;
  int table_height, table_width;  // window h, w of a table ((2h-1) * (2w-1), heads) of relative positions; 0: dense

  // f(query, index of its entry in `bias`) for one key
  template <class F>
  void each_query(int head, int key, F&& f) const {
    if (!table_width)
      for (int i = 0; i < queries; i++) f(i, ((size_t)head * queries + i) * keys + key);
    for (int y = 0; y < (table_width ? table_height : 0); y++)
      for (int x = 0; x < table_width; x++) {
        const int down = y - key / table_width + table_height - 1, across = x - key % table_width + table_width - 1;
        f(y * table_width + x, (size_t)(down * (2 * table_width - 1) + across) * heads + head);
      }
  }
};

// Rows of (heads * head_dim) floats, either windowed (row = window * tokens + place) or compact.
struct Rows {
  float* p = nullptr;
  int64_t stride = 0;
  bool compact = false;
};

struct WindowAttention {
  int64_t windows;
  int head_dim;
  float scale;
  PositionBias bias;
  Rows q, k, v;
  const float* masked;       // (3, heads, head_dim) or null: q, k, v of every masked token
  const int32_t* offsets;    // (windows + 1), null without compact rows
  const int32_t* position;   // compact row -> place in its window
  const float* window_mask;  // (mask_windows, queries, keys) or null, added to the bias
  int64_t mask_windows;
  Rows out;
  // backward only
  Rows grad_out, grad_q, grad_k, grad_v;
  float* grad_bias;    // (heads, queries, keys)
  float* grad_masked;  // (3, heads, head_dim)

  bool masked_queries() const { return masked && q.compact; }
  bool compact_queries() const { return q.compact && !masked; }
};

enum class MaskMode : int { zero, token, drop, visible };

// Parameters of a Swin block in torch.nn's layouts, or their gradients.
struct BlockWeights {
  float *norm1_weight, *norm1_bias, *qkv_weight, *qkv_bias, *bias, *proj_weight, *proj_bias;
  float *norm2_weight, *norm2_bias, *fc1_weight, *fc1_bias, *fc2_weight, *fc2_bias, *mask_token;
};

struct SwinBlock {
  int64_t batch;
  int height, width, channels, hidden, head_dim;
  int window_height, window_width, shift_height, shift_width;
  MaskMode mode;
  bool bf16;  // products of bf16 with fp32 sums, where the processor has them; sizes must be even
  PositionBias bias;
  BlockWeights weights;
  const bool* keep;              // (batch, height * width), true = visible; null: all
  const float* drop_path_scale;  // (2, batch) or null
  const float* x;                // (batch, height, width, channels)
  float* out;                    // forward: y; backward: dx
  const float* grad_out;         // backward only
  BlockWeights grads;            // backward only

  int tokens() const { return window_height * window_width; }
  int windows_across() const { return width / window_width; }
  int windows_down() const { return height / window_height; }
  int64_t windows() const { return batch * windows_down() * windows_across(); }
};

// 3x3, stride 1, zero padding, on (batch, height, width, channels).
struct Convolution {
  int64_t batch;
  int height, width, in, out;      // channels
  const float *x, *weight, *bias;  // weight (out, in, 3, 3), bias (out)
  float* y;
  // backward only
  const float* grad_y;
  float *grad_x, *grad_weight, *grad_bias;

  int64_t rows() const { return batch * height; }  // of pixels
};

struct TokenMask {
  uint64_t seed;
  uint32_t draw;
  const int64_t* sample;
  int64_t tokens, heads;
  uint32_t low, high;  // percent
  bool ratio_per_sample;
  bool* out;  // (samples, heads, tokens)
};

struct Normal {
  uint64_t seed;
  uint32_t draw;
  const int64_t* sample;
  int64_t channels, pixels;
  float* out;  // (samples, channels, pixels)
};

// The steps of one operation over windows (convolution: rows). `prepared` is made first, in independent jobs. A chunk
// of the backward adds into its own `sums`; then the chunks are added up, in order, and `finish` makes gradients of the
// total, in independent jobs, too.
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

// One instruction set's kernels.
struct Kernels {
  const char* name;
  Steps<WindowAttention> window_attention;
  Steps<SwinBlock> swin_block;
  Steps<Convolution> convolution;
  void (*add)(float* to, const float* from, size_t count);
  void (*token_mask)(const TokenMask&, int64_t first, int64_t last);  // rows of `out`
  void (*normal)(const Normal&, int64_t first, int64_t last);         // samples
};

}  // namespace masked_swin
