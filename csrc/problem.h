// The problems that a backend solves, one struct an operation, and their constants. Plain pointers and numbers: the
// backends share this file. The operators of a backend fill the structs, and its kernels read them.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace masked_swin {

constexpr float LAYER_NORM_EPSILON = 1e-5f;
constexpr float SHIFT_PENALTY = -100.0f;  // added to the bias of a query and a key of different shift regions
constexpr float EXCLUDED = -1e30f;        // stands for minus infinity
constexpr int MAX_HEAD_DIM = 128;         // of window_attention on the CPU; also in kernels/cpu/__init__.py

// Position bias and shift regions of windows. Only windows at the border of a shifted image hold several regions, in
// few different mask patterns (4 in Swin).
struct PositionBias {
  int heads, queries, keys;
  const float* bias;            // (heads, queries, keys), or a table
  bool shared_key;              // masked tokens are keys, all with the same k and v
  float penalty;                // added to the bias between regions
  int pattern_count;            // at least 1
  const int32_t* patterns;      // (pattern_count, keys): the region of each position; null without regions
  const int32_t* mask_pattern;  // (pattern_windows): window w has mask pattern mask_pattern[w % pattern_windows]
  int64_t pattern_windows;
  bool exponentials = true;       // whether the kernels read exp(bias), too
  int table_height, table_width;  // the window (h, w) of a table of ((2h-1) * (2w-1), heads); 0 without a table

  // Calls f(query, index of its entry in `bias`) for every query of one key.
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

// (heads * head_dim) floats a token: of all tokens (window * tokens + position) or, compact, of the visible ones.
struct TokenRows {
  float* p = nullptr;
  int64_t stride = 0;
  bool compact = false;
};

struct WindowAttention {
  int64_t windows;
  int head_dim;
  float scale;
  PositionBias bias;
  TokenRows q, k, v;
  const float* shared_qkv;   // (3, heads, head_dim) or null: q, k, v of every masked token
  const int32_t* offsets;    // (windows + 1): where the visible tokens of a window begin; null if nothing is compact
  const int32_t* position;   // visible token -> position in its window
  const float* window_mask;  // (mask_windows, queries, keys) or null, added to the bias
  int64_t mask_windows;
  TokenRows out;
  // backward only
  TokenRows grad_out, grad_q, grad_k, grad_v;
  float* grad_bias;        // (heads, queries, keys)
  float* grad_shared_qkv;  // (3, heads, head_dim)

  bool shared_queries() const { return shared_qkv && q.compact; }
  bool compact_out() const { return q.compact && !shared_qkv; }
};

// The order of MODES in kernels/swin_block.py.
enum class MaskMode : int { zero, token, drop, visible };

// One T for each parameter of a Swin block, in the order of the operator's `weights`, which is that of SwinBlockWeights
// in kernels/swin_block.py. Layouts are those of torch.nn.
template <class T>
struct BlockWeights {
  T norm1_weight, norm1_bias, qkv_weight, qkv_bias, position_bias_table, proj_weight, proj_bias;
  T norm2_weight, norm2_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias;
  static constexpr int COUNT = 13;

  // f(i) makes the i-th; braces evaluate in order.
  template <class F>
  static BlockWeights make(F&& f) {
    int i = 0;
    return {f(i++), f(i++), f(i++), f(i++), f(i++), f(i++), f(i++), f(i++), f(i++), f(i++), f(i++), f(i++), f(i++)};
  }
};

struct SwinBlock {
  int64_t batch;
  int height, width, channels, hidden, head_dim;
  int window_height, window_width, shift_height, shift_width;
  MaskMode mode;
  bool bf16;  // products of bf16 with fp32 sums, where the processor has them; sizes must be even
  PositionBias bias;
  BlockWeights<const float*> weights;
  const float* mask_token;       // (channels), mode `token` only
  const bool* keep;              // (batch, height * width), true = visible; null: all
  const float* drop_path_scale;  // (2, batch) or null
  const float* x;                // (batch, height, width, channels)
  float* out;                    // forward: y; backward: dx
  // backward only
  const float* grad_out;
  BlockWeights<float*> grads;
  float* grad_mask_token;

  int tokens() const { return window_height * window_width; }
  int windows_across() const { return width / window_width; }
  int windows_down() const { return height / window_height; }
  int64_t windows() const { return batch * windows_down() * windows_across(); }
};

// 3x3, stride 1, zero padding, on (batch, height, width, channels).
struct Convolution {
  int64_t batch;
  int height, width, in, out;      // in, out: channels
  const float *x, *weight, *bias;  // weight (out, in, 3, 3), bias (out)
  float* y;
  // backward only
  const float* grad_y;
  float *grad_x, *grad_weight, *grad_bias;

  int64_t rows() const { return batch * height; }  // of pixels
};

// Philox's words of the counter (index, sample, draw, head) with the key `seed`: see kernels/philox.py.
struct RandomKey {
  const int64_t *seed, *draw;  // one each
  const int64_t* sample;       // (samples)
};

// The first word of each counter.
struct RandomWords {
  RandomKey key;
  int64_t first, count;       // indices
  int64_t first_head, heads;  // heads
  int64_t* out;               // (samples, heads, count)
};

// A token is masked where its first word is below floor(percent * 2^32 / 100).
struct TokenMask {
  RandomKey key;
  const int64_t* percent;  // of (sample, head) at percent[sample * sample_stride + head * head_stride]
  int64_t sample_stride, head_stride;
  int64_t tokens, heads;
  bool* out;  // (samples, heads, tokens)
};

struct Normal {
  RandomKey key;
  int64_t channels, pixels;
  float* out;  // (samples, channels, pixels)
};

}  // namespace masked_swin
