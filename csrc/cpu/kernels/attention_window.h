// One window of window_attention: its tokens, and the bias of its queries and keys.
#pragma once
#include "attention_tile.h"

namespace masked_swin {
namespace MASKED_SWIN_ISA {
namespace {

struct AttentionWindow {
  const WindowAttention& a;
  const PreparedBias prepared;
  const int lanes;
  int64_t window = -1;
  int queries = 0, keys = 0;      // that have a q or a k of their own, or share that of the masked queries
  const int* bias_row = nullptr;  // of each key
  int *position, *identity;       // of each visible token, and 0, 1, 2 ...
  unsigned char* visible;         // of each position
  VisibleLanes* visible_lanes;    // of compact queries
  float *own_bias, *mask, *compact_bias, *compact_sums;

  AttentionWindow(const WindowAttention& problem, const float* shared_bias)
      : a(problem), prepared{a.bias, shared_bias}, lanes(PreparedBias::lanes(a.bias)) {}

  void lay_out(Scratch& s) {
    const size_t tile = PreparedBias::tile(a.bias);
    s.take(a.bias.keys, position, identity);
    s.take(a.bias.keys, visible);
    s.take(lanes / LANES, visible_lanes);
    if (a.window_mask) s.take(tile, own_bias, mask);
    if (a.compact_out()) s.take(tile + LANES, compact_bias, compact_sums);
  }
  void start() {
    for (int i = 0; i < a.bias.keys; i++) identity[i] = i;
  }

  float* row_of(const TokenRows& rows, int per_window, int i) const { return row_of(rows, per_window, i, window); }
  float* row_of(const TokenRows& rows, int per_window, int i, int64_t w) const {
    return rows.p + ((rows.compact ? a.offsets[w] : w * per_window) + i) * rows.stride;
  }
  int mask_pattern() const { return a.bias.mask_pattern ? a.bias.mask_pattern[window % a.bias.pattern_windows] : 0; }

  void enter(int64_t w) {
    window = w;
    const int visible_count = a.offsets ? a.offsets[w + 1] - a.offsets[w] : 0;
    if (a.offsets) {
      memset(visible, 0, a.bias.keys);
      for (int j = 0; j < visible_count; j++) visible[position[j] = a.position[a.offsets[w] + j]] = 1;
    }
    queries = a.compact_out() ? visible_count : a.bias.queries;
    keys = a.k.compact ? visible_count : a.bias.keys;
    bias_row = a.k.compact && !a.compact_out() ? position : identity;
    if (a.q.compact) find_visible_lanes();
    if (a.window_mask) transpose_mask();
  }

  // The bias and the window's mask: [key][query] of the window, for one head.
  const float* whole_bias(int head) const {
    const float* bias = prepared.at(mask_pattern(), head).bias;
    if (!a.window_mask) return bias;
    for (size_t i = 0; i < PreparedBias::tile(a.bias); i += LANES)
      store(own_bias + i, at_least_excluded(load(bias + i) + load(mask + i)));
    return own_bias;
  }

  // The same for the queries and keys in use. Rows are those of `bias_row`.
  const float* bias_of(int head) const {
    const float* bias = whole_bias(head);
    if (!a.compact_out() || !queries) return bias;
    compaction().gather(bias, compact_bias);
    return compact_bias;
  }
  // Where the gradient of the bias of one window and head is to be added, in rows as above.
  float* bias_sums(float* sums, int head) const {
    if (!a.compact_out()) return BiasSums::visible(a.bias, sums, head);
    memset(compact_sums, 0, sizeof(float) * keys * lanes);
    return compact_sums;
  }
  void finish_bias_sums(float* sums, int head) const {
    if (a.compact_out()) compaction().scatter_add(compact_sums, BiasSums::visible(a.bias, sums, head));
  }

  Compaction compaction() const { return {visible_lanes, position, queries, lanes, lanes}; }

  void find_visible_lanes() {
    for (int l = 0, count = 0; l < lanes; l += LANES) {
      const int before = count;
      uint32_t bits = 0;
      for (int t = l; t < l + LANES && t < a.bias.queries; t++) {
        bits |= (uint32_t)visible[t] << (t - l);
        count += visible[t];
      }
      visible_lanes[l / LANES] = {LaneSet(bits), before};
    }
  }

  void transpose_mask() const {
    const float* from = a.window_mask + window % a.mask_windows * a.bias.queries * a.bias.keys;
    transpose_bias(from, a.bias.queries, a.bias.keys, mask, lanes);
  }
};

}  // namespace
}  // namespace MASKED_SWIN_ISA
}  // namespace masked_swin
