// Tiles of the position bias, made of PositionBias once per call, and the sums for its gradient.
#pragma once
#include "problem.h"
#include "simd.h"

namespace masked_swin {
namespace MASKED_SWIN_ISA {
namespace {

// The bias of one head and mask pattern, [key of the window][query].
struct BiasTile {
  const float* bias;
  const float* top;        // [query]: the largest bias over the keys
  const float* exp_total;  // [query]: the sum of exp_bias over the keys
  const float* exp_bias;   // exp(bias - top)
};

// out[j][i] = rows[i][j], and 0 for i from `queries` up to `lanes`.
void transpose_bias(const float* rows, int queries, int keys, float* out, int lanes) {
  for (int i = 0; i < queries; i += LANES) {
    const float* pointers[LANES];
    const int count = queries - i < LANES ? queries - i : LANES;
    for (int k = 0; k < count; k++) pointers[k] = rows + (size_t)(i + k) * keys;
    gather_transposed(pointers, count, LANES, keys, out + i, lanes);
  }
}

// Minus infinity is as good as EXCLUDED, but not as safe.
INLINE Vec at_least_excluded(Vec bias) { return bias < EXCLUDED ? splat(EXCLUDED) : bias; }

// Makes top, exp_total and exp_bias of the bias.
void exponentiate(int keys, int lanes, const float* bias, float* top, float* exp_total, float* exp_bias) {
  for (int l = 0; l < lanes; l += LANES) {
    Vec highest = load(bias + l), total = {};
    for (int j = 1; j < keys; j++) highest = max(highest, load(bias + (size_t)j * lanes + l));
    store(top + l, highest);
    for (int j = 0; j < keys; j++) {
      const Vec e = exp(load(bias + (size_t)j * lanes + l) - highest);
      store(exp_bias + (size_t)j * lanes + l, e);
      total += e;
    }
    store(exp_total + l, total);
  }
}

// The bias of every mask pattern and head, made once per call and read by all windows.
struct PreparedBias {
  const PositionBias& p;
  const float* memory;

  static int lanes(const PositionBias& p) { return round_up(p.queries); }
  static size_t tile(const PositionBias& p) { return (size_t)p.keys * lanes(p); }
  static size_t per_head(const PositionBias& p) { return p.exponentials ? 2 * tile(p) + 2 * lanes(p) : tile(p); }
  static size_t size(const PositionBias& p) { return per_head(p) * p.heads * p.pattern_count; }

  BiasTile at(int pattern, int head) const {
    const float* bias = memory + per_head(p) * (pattern * p.heads + head);
    const float* top = bias + tile(p);
    return {bias, top, top + lanes(p), top + 2 * lanes(p)};
  }

  // Fills all mask patterns of one head.
  static void fill(const PositionBias& p, float* memory, int head) {
    const int wide = lanes(p);
    float* first = memory + per_head(p) * head;  // pattern 0 holds the bias alone until the others have read it
    gather(p, first, head);
    for (int pattern = p.pattern_count - 1; pattern >= 0; pattern--) {
      float* tiles = memory + per_head(p) * (pattern * p.heads + head);
      const int32_t* region = p.patterns ? p.patterns + (size_t)pattern * p.keys : nullptr;
      for (int j = 0; j < p.keys; j++) {
        float* row = tiles + (size_t)j * wide;
        if (pattern > 0) memcpy(row, first + (size_t)j * wide, sizeof(float) * wide);
        for (int i = 0; region && i < p.queries; i++) row[i] += region[i] != region[j] ? p.penalty : 0.0f;
      }
      if (!p.exponentials) continue;
      float* top = tiles + tile(p);
      exponentiate(p.keys, wide, tiles, top, top + wide, top + 2 * wide);
    }
  }

 private:
  static void gather(const PositionBias& p, float* tiles, int head) {
    if (!p.table_width) {
      transpose_bias(p.bias + (size_t)head * p.queries * p.keys, p.queries, p.keys, tiles, lanes(p));
      for (size_t i = 0; i < tile(p); i += LANES) store(tiles + i, at_least_excluded(load(tiles + i)));
      return;
    }
    memset(tiles, 0, sizeof(float) * tile(p));
    for (int j = 0; j < p.keys; j++) {
      float* row = tiles + (size_t)j * lanes(p);
      p.each_query(head, j, [=](int i, size_t entry) { row[i] = p.bias[entry]; });
    }
  }
};

// Sums of one chunk for the gradient of the bias: [key][query] per head, then the sum of U (see softmax_backward) of
// the shared key, [query] per mask pattern and head.
struct BiasSums {
  static size_t size(const PositionBias& p) {
    return PreparedBias::tile(p) * p.heads +
           (p.shared_key ? (size_t)PreparedBias::lanes(p) * p.heads * p.pattern_count : 0);
  }
  static float* visible(const PositionBias& p, float* sums, int head) { return sums + PreparedBias::tile(p) * head; }
  static float* shared(const PositionBias& p, float* sums, int pattern, int head) {
    return sums + PreparedBias::tile(p) * p.heads + (size_t)PreparedBias::lanes(p) * (pattern * p.heads + head);
  }

  // Adds the sums of all chunks to `grad`, which is laid out as the bias.
  static void finish(const PreparedBias& prepared, float* total, float* grad, int head) {
    const PositionBias& p = prepared.p;
    const int lanes = PreparedBias::lanes(p);
    float* entries = visible(p, total, head);
    for (int pattern = 0; p.shared_key && pattern < p.pattern_count; pattern++) {
      const float *exp_bias = prepared.at(pattern, head).exp_bias, *u = shared(p, total, pattern, head);
      for (int j = 0; j < p.keys; j++)
        for (int l = 0; l < lanes; l += LANES) {
          float* entry = entries + (size_t)j * lanes + l;
          store(entry, load(entry) + load(exp_bias + (size_t)j * lanes + l) * load(u + l));
        }
    }
    if (!p.table_width) {
      for (int i = 0; i < p.queries; i += LANES) {
        float* rows[LANES];
        const int count = p.queries - i < LANES ? p.queries - i : LANES;
        for (int k = 0; k < count; k++) rows[k] = grad + ((size_t)head * p.queries + i + k) * p.keys;
        scatter_transposed(entries + i, lanes, count, p.keys, rows);
      }
      return;
    }
    for (int j = 0; j < p.keys; j++)
      p.each_query(head, j, [=](int i, size_t entry) { grad[entry] += entries[(size_t)j * lanes + i]; });
  }
};

}  // namespace
}  // namespace MASKED_SWIN_ISA
}  // namespace masked_swin
