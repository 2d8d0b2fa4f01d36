// A whole Swin block in one pass over the image, window by window: everything between reading x and writing y stays in
// cache. The mathematics is in kernels/README.md.
//
// "cm" is [channel][token of the window], tokens in the SIMD lanes: for products with packed weights, the second
// LayerNorm and GELU. "tm" is [token][channel]: for work on exactly the visible tokens, and for all weight gradients.
// The tokens of normed_tm, q_tm, kv_tm and their gradients are in rank order, visible ones first; other tm buffers hold
// them in the order of positions. Column C of the normalised tokens holds 1, so that weight gradients contain the
// gradient of the bias. The weight and bias of a LayerNorm are folded into the product that follows: W' = W diag(g), b'
// = b + W beta.
#pragma once
#include <math.h>

#include "gelu.h"
#include "swin_block_weights.h"
#include "swin_block_window.h"

namespace masked_swin {
namespace MASKED_SWIN_ISA {
namespace {

// out(row, lane, sum_k w[row][k] b[k][lane]) for a weight packed in blocks of PACK rows of `packed_depth` values, of
// which the first `depth` count.
template <class A, class Out>
static void packed_product(int rows, int depth, const float* packed, int packed_depth, const float* b, int lanes,
                           Out&& out) {
  for (int first = 0; first < rows; first += PACK) {
    const Operand w{packed + (size_t)first * word_count<A>(packed_depth), 1, PACK};
    int l = 0;
    auto at = [&](int i, int part, Vec v) INLINE_LAMBDA {
      if (rows % PACK == 0 || first + i < rows) out(first + i, l + part, v);
    };
    for (; l + VECTORS * LANES <= lanes; l += VECTORS * LANES)
      product_block<A, PACK, VECTORS>(word_count<A>(depth), w, b + l, lanes, at);
    for (; l + 2 * LANES <= lanes; l += 2 * LANES) product_block<A, PACK, 2>(word_count<A>(depth), w, b + l, lanes, at);
    for (; l < lanes; l += LANES) product_block<A, PACK, 1>(word_count<A>(depth), w, b + l, lanes, at);
  }
}

// A is the arithmetic of products (product.h); `words` hold their operands in its form.
template <class Sizes, class A>
struct Forward : Tokens<Sizes> {
  typedef Tokens<Sizes> Base;
  using Base::a, Base::offset, Base::order, Base::rank, Base::position, Base::visible, Base::visible_lanes,
      Base::visible_count, Base::mask_pattern, Base::attention_factor, Base::mlp_factor, Base::prefetch_next,
      Base::prefetch_out;
  using Sizes::C, Sizes::M, Sizes::N, Sizes::positions, Sizes::D, Sizes::heads, Sizes::lanes, Sizes::padded,
      Sizes::kv_stride;
  const Prepared p;
  const float scale;
  const size_t cm, tm, kv, tile_size, any;  // sizes of buffers; `any` fits a cm, a tm and HIDDEN rows of lanes
  // of the current window
  int query_rows = 0;         // tokens with a q of their own
  bool shared_query = false;  // all masked tokens have one q
  Tile tile{};
  const float** pointers;
  float** targets;
  float *x_cm, *normed_cm, *attended_cm, *q_cm, *hidden_cm, *normed_tm, *q_tm, *kv_tm;
  float *qk, *exponentials, *inverse, *shared, *weight, *rstd1, *rstd2, *compact_bias, *words[6];

  Forward(const Problem& problem, const float* prepared)
      : Base(problem),
        p(problem, prepared),
        scale(1.0f / sqrtf((float)D)),
        cm((size_t)C * lanes),
        tm((size_t)(N + 1) * padded + LANES),
        kv((size_t)(N + 1) * kv_stride + LANES),
        tile_size((size_t)(N + 1) * lanes),
        any(largest(cm, largest(tm, (size_t)HIDDEN * lanes))) {}

  void lay_out(Scratch& s) {
    Base::lay_out(s);
    s.take(N + 1, pointers);
    s.take(N + 1, targets);
    s.take(cm, x_cm, normed_cm);
    s.take(any, attended_cm, hidden_cm);
    q_cm = hidden_cm;  // never needed together
    s.take(tm, normed_tm, q_tm);
    s.take(kv, kv_tm);
    s.take(a.grad_out ? tile_size * heads : tile_size, exponentials);
    s.take(tile_size, qk);
    s.take((size_t)heads * lanes, inverse, shared, weight);
    s.take(lanes, rstd1, rstd2);
    s.take(a.mode == MaskMode::visible ? tile_size : 0, compact_bias);
    for (float*& buffer : words) s.take(A::DEPTH == 1 ? 0 : largest(any, kv + tile_size), buffer);
  }

  static size_t largest(size_t a, size_t b) { return a > b ? a : b; }
  float* tile_of(int head) const { return exponentials + (a.grad_out ? (size_t)(N + 1) * lanes * head : 0); }
  Operand columns_of(const float* p, int at, int stride) const { return {p + at / A::DEPTH, stride / A::DEPTH, 1}; }
  int unique_queries() const { return shared_query ? visible_count + 1 : N; }
  Compaction compaction() const { return {visible_lanes, position, N, PreparedBias::lanes(a.bias), lanes}; }
  // A tile of the bias for the computed tokens. `top` stays that of the window: it tells which queries may have no key,
  // and every computed query has its own.
  const float* compacted(const float* tile) const {
    if (N == positions) return tile;
    compaction().gather(tile, compact_bias);
    return compact_bias;
  }

  __attribute__((noinline)) void enter(int64_t window) {
    Base::enter(window);
    query_rows = a.mode == MaskMode::drop ? N : visible_count;
    tile = {lanes, lanes, visible_count, N, a.bias.shared_key, scale, order, visible};
    shared_query = tile.any_masked();
    if (shared_query) tile.shared_query = visible_lanes;
  }

  // f(number of vectors, first lane) for blocks of vectors that are worked on together
  template <int N>
  struct Vectors {
    static constexpr int count = N;
  };
  template <class F>
  INLINE void each_lane_block(F&& f) const {
    int l = 0;
    for (; l + 4 * LANES <= lanes; l += 4 * LANES) f(Vectors<4>(), l);
    for (; l < lanes; l += LANES) f(Vectors<1>(), l);
  }

  INLINE void load_cm(const float* from, float* cm) {
    for (int t = 0; t < N; t++) pointers[t] = from + offset[t];
    gather_transposed(pointers, N, lanes, C, cm, lanes);
  }

  __attribute__((noinline)) void norm1() {
    for (int r = 0; r < query_rows; r++) {
      const float* row = a.x + offset[order[r]];
      float* out = normed_tm + (size_t)r * padded;
      Vec total = {}, squares = {};
      for (int c = 0; c < C; c += LANES) total += C - c < LANES ? load_first(row + c, C - c) : load(row + c);
      const float mean = sum(total) / C;
      for (int c = 0; c < C; c += LANES) {
        store(out + c, C - c < LANES ? load_first(row + c, C - c) - mean : load(row + c) - mean);
        const Vec v = C - c < LANES ? load_first(out + c, C - c) : load(out + c);  // padding lanes become 0
        squares += v * v;
        store(out + c, v);
      }
      rstd1[r] = 1.0f / sqrtf(sum(squares) / C + LAYER_NORM_EPSILON);
      for (int c = 0; c < C; c += LANES) store(out + c, load(out + c) * rstd1[r]);
      out[C] = 1.0f;
    }
  }

  __attribute__((noinline)) void qkv() {
    float *const q = q_tm, *const kv = kv_tm;
    const float *const bq = p.bq, *const bkv = p.bkv;
    const Operand normed = columns_of(by_columns<A>(normed_tm, query_rows, C, padded, words[0]), 0, padded);
    product<A>(query_rows, C, C, normed, p.wq, padded,
               [=, this](int r, int n, Vec v) INLINE_LAMBDA { store(q + (size_t)r * padded + n, v + load(bq + n)); });
    product<A>(visible_count, 2 * C, C, normed, p.wkv, kv_stride, [=, this](int r, int n, Vec v) INLINE_LAMBDA {
      store(kv + (size_t)r * kv_stride + n, v + load(bkv + n));
    });
    if (tile.shared_key) {
      memcpy(kv + (size_t)visible_count * kv_stride, p.shared_kv, sizeof(float) * 2 * C);
      if (shared_query) memcpy(q + (size_t)visible_count * padded, p.shared_q, sizeof(float) * padded);
    }
    const int queries = unique_queries();
    for (int i = 0; i < queries; i++) pointers[i] = q + (size_t)(shared_query ? i : rank[i]) * padded;
    gather_transposed(pointers, queries, round_up(queries), C, q_cm, lanes);
  }

  // The exponentials of one head. Without masked keys nothing is saved by the factored form.
  template <class F>
  INLINE void softmax(BiasTile bias, float* products, float* score, float* inv, float* common, float* sum, F&& again) {
    if (tile.any_masked() || N < positions) {
      bias.exp_bias = compacted(bias.exp_bias);
      if (tile.factored_softmax(bias, products, score, inv, common, sum)) return;
      again();
    }
    bias.bias = compacted(bias.bias);
    tile.softmax(bias, products, score, inv, common, sum);
  }

  __attribute__((noinline)) void attention() {
    const int rows = tile.rows(), wide = unique_queries();
    const float* const q = by_rows<A>(q_cm, C, wide, lanes, words[0]);
    const float* const k = by_columns<A>(kv_tm, rows, C, kv_stride, words[1]);
    const float* const v = by_rows<A>(kv_tm + C, rows, C, kv_stride, words[2]);
    for (int head = 0; head < heads; head++) {
      const int at = head * D;
      float *score = tile_of(head), *inv = inverse + head * lanes;
      const BiasTile bias = p.bias.at(mask_pattern, head);
      float* const products = shared_query ? qk : score;
      auto multiply = [&] {
        product<A>(rows, wide, D, columns_of(k, at, kv_stride), q + (size_t)at / A::DEPTH * lanes, lanes, products,
                   lanes);
      };
      multiply();
      softmax(bias, products, score, inv, shared + head * lanes, weight + head * lanes, multiply);
      float* out = attended_cm + (size_t)at * lanes;
      product<A>(D, lanes, rows, {v + at, 1, kv_stride}, by_rows<A>(score, rows, lanes, lanes, qk), lanes,
                 [=, this](int c, int l, Vec o)
                     INLINE_LAMBDA { store(out + (size_t)c * lanes + l, o * load(inv + l)); });
    }
  }

  // x_cm += projection; then the second LayerNorm
  __attribute__((noinline)) void middle() {
    float* const to = x_cm;
    const float *const bias = a.weights.proj_bias, factor = attention_factor;
    packed_product<A>(C, C, p.wp, C, by_rows<A>(attended_cm, C, lanes, lanes, words[0]), lanes,
                      [=, this](int n, int l, Vec v) INLINE_LAMBDA {
                        float* x = to + (size_t)n * lanes + l;
                        store(x, load(x) + (v + bias[n]) * factor);
                      });
    each_lane_block([this](auto vectors, int l) INLINE_LAMBDA {
      constexpr int NV = decltype(vectors)::count;
      Vec total[NV] = {}, squares[NV] = {}, rstd[NV];
      for (int c = 0; c < C; c++)
        for (int v = 0; v < NV; v++) total[v] += load(x_cm + (size_t)c * lanes + l + v * LANES);
      for (int v = 0; v < NV; v++) total[v] *= 1.0f / C;
      for (int c = 0; c < C; c++)
        for (int v = 0; v < NV; v++) {
          const size_t at = (size_t)c * lanes + l + v * LANES;
          const Vec centred = load(x_cm + at) - total[v];
          squares[v] += centred * centred;
          store(normed_cm + at, centred);
        }
      for (int v = 0; v < NV; v++)
        store(rstd2 + l + v * LANES, rstd[v] = inverse_root(squares[v] * (1.0f / C) + LAYER_NORM_EPSILON));
      for (int c = 0; c < C; c++)
        for (int v = 0; v < NV; v++) {
          const size_t at = (size_t)c * lanes + l + v * LANES;
          store(normed_cm + at, load(normed_cm + at) * rstd[v]);
        }
    });
  }

  // Everything up to the MLP.
  void attend() {
    load_cm(a.x, x_cm);
    norm1();
    qkv();
    attention();
    middle();
  }

  __attribute__((noinline)) void run() {
    attend();
    const Gelu gelu(p.gelu);
    const float* const normed = by_rows<A>(normed_cm, C, lanes, lanes, words[0]);
    float *const to_hidden = hidden_cm, *const to = x_cm;
    const float *const b2 = a.weights.fc2_bias, factor = mlp_factor;
    for (int m0 = 0; m0 < M; m0 += HIDDEN) {
      const int count = M - m0 < HIDDEN ? M - m0 : HIDDEN;
      const float* const b1 = p.b1 + m0;
      packed_product<A>(count, C, p.w1 + (size_t)m0 * word_count<A>(C), C, normed, lanes,
                        [=, this](int m, int l, Vec v) INLINE_LAMBDA {
                          if (m % PACK == 0 && l == 0) {
                            prefetch_next(a.x, (m0 + m) / PACK, pack_up(M) / PACK);
                            prefetch_out((m0 + m) / PACK, pack_up(M) / PACK);
                          }
                          store(to_hidden + (size_t)m * lanes + l, v + b1[m]);
                        });
      for (int i = 0; i < count * lanes; i += LANES) store(to_hidden + i, gelu.value(load(to_hidden + i)));
      packed_product<A>(C, count, p.w2 + word_count<A>(m0) * PACK, M,
                        by_rows<A>(hidden_cm, count, lanes, lanes, words[1]), lanes,
                        [=, this](int n, int l, Vec v) INLINE_LAMBDA {
                          float* x = to + (size_t)n * lanes + l;
                          store(x, load(x) + (m0 ? v : v + b2[n]) * factor);
                        });
    }
    for (int t = 0; t < N; t++) targets[t] = a.out + offset[t];
    scatter_transposed(x_cm, lanes, N, C, targets);
  }
};

}  // namespace
}  // namespace MASKED_SWIN_ISA
}  // namespace masked_swin
