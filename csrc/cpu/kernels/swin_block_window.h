// The sizes of a Swin block, and the tokens of its current window.
#pragma once
#include "attention_tile.h"

namespace masked_swin {
namespace MASKED_SWIN_ISA {
namespace {

// C channels, M hidden units, D channels a head. A window has `positions`; N of them are computed: in mode visible the
// visible ones, else all. `padded` has room for the constant 1 after the channels.
struct AnySizes {
  const int C, M, positions, D, heads, padded, kv_stride;
  int N, lanes;
  explicit AnySizes(const SwinBlock& a)
      : C(a.channels),
        M(a.hidden),
        positions(a.tokens()),
        D(a.head_dim),
        heads(a.bias.heads),
        padded(round_up(C + 1)),
        kv_stride(round_up(2 * C)),
        N(positions),
        lanes(round_up(N)) {}
  void compute(int tokens) {
    N = tokens;
    lanes = round_up(N);
  }
};

// Sizes that the compiler knows: constant loops and addresses save a tenth of the time.
template <int C_, int M_, int N_, int D_>
struct FixedSizes {
  static constexpr int C = C_, M = M_, N = N_, positions = N, D = D_, heads = C / D, lanes = round_up(N),
                       padded = round_up(C + 1), kv_stride = round_up(2 * C);
  explicit FixedSizes(const SwinBlock&) {}
  static void compute(int) {}
  static bool fit(const SwinBlock& a) {
    return a.mode != MaskMode::visible && a.channels == C && a.hidden == M && a.tokens() == N && a.head_dim == D;
  }
};

// The tokens of the current window. Rank order has the visible ones first.
template <class Sizes>
struct Tokens : Sizes {
  using Sizes::C, Sizes::N, Sizes::positions, Sizes::lanes;
  const SwinBlock& a;
  int64_t located = -1;  // the window of next_offset
  int visible_count = 0, mask_pattern = 0;
  float attention_factor = 1.0f, mlp_factor = 1.0f;  // stochastic depth
  size_t *offset, *next_offset;                      // position -> first channel in x, of this window and the next
  int *order, *rank;                                 // rank -> position and back
  int* position;                                     // mode visible: computed token -> position in the window
  unsigned char* visible;
  VisibleLanes* visible_lanes;

  explicit Tokens(const SwinBlock& problem) : Sizes(problem), a(problem) {}

  void lay_out(Scratch& s) {
    s.take(N, offset, next_offset);
    s.take(N, order, rank, position);
    s.take(N, visible);
    s.take(lanes / LANES, visible_lanes);
  }

  void locate(int64_t window, size_t* to) const {
    const int across = a.windows_across(), down = a.windows_down();
    const int64_t image = window / (across * down);
    const int row = window / across % down, column = window % across;
    for (int i = 0; i < a.window_height; i++) {
      int y = row * a.window_height + i + a.shift_height;
      if (y >= a.height) y -= a.height;
      for (int j = 0; j < a.window_width; j++) {
        int x = column * a.window_width + j + a.shift_width;
        if (x >= a.width) x -= a.width;
        *to++ = ((image * a.height + y) * a.width + x) * C;
      }
    }
  }

  __attribute__((noinline)) void enter(int64_t window) {
    if (located != window) locate(window, next_offset);
    size_t* const reused = offset;
    offset = next_offset;
    next_offset = reused;
    located = window + 1 < a.windows() ? window + 1 : window;
    locate(located, next_offset);
    int count = 0;
    for (int l = 0; l < positions; l += LANES) {
      const int before = count;
      uint32_t bits = 0;
      for (int t = l; t < l + LANES && t < positions; t++) {  // no branches: a random mask cannot be predicted
        const bool is_visible = !a.keep || a.keep[offset[t] / C];
        const int r = is_visible ? count : positions - 1 - (t - count);
        bits |= (uint32_t)is_visible << (t - l);
        visible[t] = is_visible;
        order[r] = t;
        rank[t] = r;
        count += is_visible;
      }
      visible_lanes[l / LANES] = {LaneSet(bits), before};
    }
    visible_count = count;
    mask_pattern = a.bias.mask_pattern ? a.bias.mask_pattern[window % a.bias.pattern_windows] : 0;
    if (a.drop_path_scale) {
      const int64_t image = window / (a.windows_across() * a.windows_down());
      attention_factor = a.drop_path_scale[image];
      mlp_factor = a.drop_path_scale[a.batch + image];
    }
    if (a.mode == MaskMode::visible) leave_out_masked();
  }

  // Copies masked tokens unchanged. From here on the window has its visible tokens only.
  void leave_out_masked() {
    const float* const from = a.grad_out ? a.grad_out : a.x;
    for (int r = visible_count; r < positions; r++)
      memcpy(a.out + offset[order[r]], from + offset[order[r]], sizeof(float) * C);
    for (int r = 0; r < visible_count; r++) {
      position[r] = order[r];
      offset[r] = offset[order[r]];
      order[r] = rank[r] = r;
    }
    Sizes::compute(visible_count);
  }

  // Fetch one of `parts` shares of what the next window reads, or this one writes. Called late in the current window:
  // what is fetched early is evicted again.
  void prefetch_next(const float* image, int part, int parts) const {
    for (int t = positions * part / parts; t < positions * (part + 1) / parts; t++)
      for (int c = 0; c < C; c += 16) __builtin_prefetch(image + next_offset[t] + c);
  }
  void prefetch_out(int part, int parts) const {
    for (int t = N * part / parts; t < N * (part + 1) / parts; t++)
      for (int c = 0; c < C; c += 16) __builtin_prefetch(a.out + offset[t] + c, 1);
  }
};

}  // namespace
}  // namespace MASKED_SWIN_ISA
}  // namespace masked_swin
