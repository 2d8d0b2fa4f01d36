// A whole Swin block in one pass over the image: window by window, everything between reading x and writing y stays in
// cache. The backward computes a window's forward again from x. The mathematics is in kernels/README.md.
//
// "cm" is [channel][token of the window], tokens in the SIMD lanes: for products with packed weights, the second
// LayerNorm and GELU. "tm" is [token][channel]: for the work on visible tokens only, exact in their number, and for all
// weight gradients. Rows of tm buffers are in `rank` order, visible tokens first, unless they are said to be in place
// order. Column C of the normalised tokens holds 1: weight gradients then bring the gradient of the bias along. The
// LayerNorms' weight and bias are folded into the product that follows: W' = W diag(g), b' = b + W beta.
#include <math.h>

#include "gelu.h"
#include "swin_block_weights.h"
#include "swin_block_window.h"

namespace masked_swin {
namespace MASKED_SWIN_ISA {
namespace {

constexpr float LAYER_NORM_EPSILON = 1e-5f;

// out(row, lane, sum_k w[row][k] b[k][lane]) for a weight packed in blocks of PACK rows.
template <class A, class Out>
static void packed_product(int rows, int depth, const float* packed, const float* b, int lanes, Out&& out) {
  for (int first = 0; first < rows; first += PACK) {
    const Operand w{packed + (size_t)first * words<A>(depth), 1, PACK};
    int l = 0;
    auto at = [&](int i, int part, Vec v) INLINE_LAMBDA {
      if (rows % PACK == 0 || first + i < rows) out(first + i, l + part, v);
    };
    for (; l + VECTORS * LANES <= lanes; l += VECTORS * LANES)
      product_block<A, PACK, VECTORS>(words<A>(depth), w, b + l, lanes, at);
    for (; l < lanes; l += LANES) product_block<A, PACK, 1>(words<A>(depth), w, b + l, lanes, at);
  }
}

// A is what products compute in; `words` hold their operands in this form, for a moment.
template <class Sizes, class A>
struct Window : Tokens<Sizes> {
  typedef Tokens<Sizes> Base;
  using Base::a, Base::offset, Base::order, Base::rank, Base::visible, Base::groups, Base::visible_count, Base::kind,
      Base::attention_factor, Base::mlp_factor, Base::prefetch_rows;
  using Sizes::C, Sizes::M, Sizes::N, Sizes::D, Sizes::heads, Sizes::lanes, Sizes::padded, Sizes::kv_stride;
  const Prepared p;
  const float scale;
  Scratch scratch;
  // of the present window
  int query_rows = 0;    // tokens with a q of their own
  bool compact = false;  // masked queries are one
  Tile tile{};
  const float** pointers;
  float** targets;
  float *x_cm, *normed_cm, *attended_cm, *q_cm, *hidden_cm, *normed_tm, *q_tm, *kv_tm;
  float *raw, *exponentials, *inverse, *shared, *weight, *rstd1, *rstd2, *words[6];
  float *dy_cm, *slope_cm, *dx_cm, *dq_cm, *d_attended_cm, *dy_tm, *dx_tm, *d_attended_tm, *normed2_tm, *q_places,
      *dq_tm, *dkv_tm, *d_score, *d_normed_tm;

  Window(const Problem& problem, const float* prepared)
      : Base(problem), p(problem, prepared), scale(1.0f / sqrtf((float)D)), scratch([&](Scratch& s) { lay_out(s); }) {}

  void lay_out(Scratch& s) {
    const bool backward = a.grad_out;
    const size_t cm = (size_t)C * lanes, tm = (size_t)N * padded + padded + LANES;
    const size_t tile_size = (size_t)(N + 1) * lanes, kv = (size_t)(N + 1) * kv_stride + LANES;
    const size_t hidden = (size_t)M * lanes > tm ? (size_t)M * lanes : tm;
    Base::lay_out(s);
    s.take(N + 1, pointers);
    s.take(N + 1, targets);
    s.take(cm, x_cm, normed_cm, attended_cm, q_cm);
    s.take(hidden, hidden_cm);
    s.take(tm, normed_tm, q_tm);
    s.take(kv, kv_tm);
    s.take(backward ? tile_size * heads : tile_size, exponentials);
    s.take(tile_size, raw);
    s.take((size_t)heads * lanes, inverse, shared, weight);
    s.take(lanes, rstd1, rstd2);
    if (A::DEPTH > 1) {
      const size_t most = hidden > kv ? hidden : kv;
      for (float*& buffer : words) s.take(most > tile_size ? most : tile_size, buffer);
    }
    if (!backward) return;
    s.take(cm, dy_cm, dx_cm);
    s.take(hidden, slope_cm);
    s.take(tm, dy_tm, normed2_tm, d_normed_tm);
    s.take(kv, dkv_tm);
    s.take(tile_size, d_score);
    // Buffers that are never needed together share memory: the working set has to stay in the second-level cache.
    d_attended_cm = dy_cm;
    d_attended_tm = dy_tm;
    dx_tm = normed2_tm;
    dq_cm = x_cm;
    q_places = hidden_cm;
    dq_tm = slope_cm;
  }

  float* tile_of(int head) const { return exponentials + (a.grad_out ? (size_t)(N + 1) * lanes * head : 0); }
  Operand columns_of(const float* p, int at, int stride) const { return {p + at / A::DEPTH, stride / A::DEPTH, 1}; }
  int queries() const { return compact ? visible_count + 1 : N; }

  __attribute__((noinline)) void enter(int64_t window) {
    Base::enter(window);
    query_rows = a.mode == MaskMode::drop ? N : visible_count;
    tile = {lanes, lanes, visible_count, N, a.bias.masked, scale, order, visible};
    compact = tile.any_masked();
    if (compact) tile.groups = groups;
  }

  // f(number of vectors, first lane), in blocks whose vectors are worked on side by side
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

  // ---- forward

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
    if (tile.masked) {
      memcpy(kv + (size_t)visible_count * kv_stride, p.masked_kv, sizeof(float) * 2 * C);
      if (compact) memcpy(q + (size_t)visible_count * padded, p.masked_q, sizeof(float) * padded);
    }
    for (int i = 0; i < queries(); i++) pointers[i] = q + (size_t)(compact ? i : rank[i]) * padded;
    gather_transposed(pointers, queries(), round_up(queries()), C, q_cm, lanes);
  }

  __attribute__((noinline)) void attention() {
    const int rows = tile.rows(), wide = queries();
    const float* const q = by_rows<A>(q_cm, C, wide, lanes, words[0]);
    const float* const k = by_columns<A>(kv_tm, rows, C, kv_stride, words[1]);
    const float* const v = by_rows<A>(kv_tm + C, rows, C, kv_stride, words[2]);
    for (int head = 0; head < heads; head++) {
      const int at = head * D;
      float *score = tile_of(head), *inv = inverse + head * lanes;
      const Bias bias = p.bias.at(kind, head);
      auto multiply = [&] {
        product<A>(rows, wide, D, columns_of(k, at, kv_stride), q + (size_t)at / A::DEPTH * lanes, lanes, raw, lanes);
      };
      multiply();
      if (!tile.factored_softmax(bias, raw, score, inv, shared + head * lanes, weight + head * lanes)) {
        multiply();
        tile.softmax(bias, raw, score, inv, shared + head * lanes, weight + head * lanes);
      }
      float* out = attended_cm + (size_t)at * lanes;
      product<A>(D, lanes, rows, {v + at, 1, kv_stride}, by_rows<A>(score, rows, lanes, lanes, raw), lanes,
                 [=, this](int c, int l, Vec o)
                     INLINE_LAMBDA { store(out + (size_t)c * lanes + l, o * load(inv + l)); });
    }
  }

  // x_cm += projection; then the second LayerNorm
  __attribute__((noinline)) void middle() {
    float* const to = x_cm;
    const float *const bias = a.weights.proj_bias, factor = attention_factor;
    packed_product<A>(C, C, p.wp, by_rows<A>(attended_cm, C, lanes, lanes, words[0]), lanes,
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

  __attribute__((noinline)) void forward() {
    load_cm(a.x, x_cm);
    norm1();
    qkv();
    attention();
    middle();
    const Gelu gelu(p.gelu);
    float *const hidden = hidden_cm, *const to = x_cm;
    const float *const b1 = p.b1, *const b2 = a.weights.fc2_bias, factor = mlp_factor;
    packed_product<A>(M, C, p.w1, by_rows<A>(normed_cm, C, lanes, lanes, words[0]), lanes,
                      [=, this](int m, int l, Vec v) INLINE_LAMBDA {
                        if (m % PACK == 0 && l == 0) prefetch_rows(a.x, m / PACK, pack_up(M) / PACK);
                        store(hidden + (size_t)m * lanes + l, v + b1[m]);
                      });
    for (int i = 0; i < M * lanes; i += LANES) store(hidden + i, gelu.value(load(hidden + i)));
    packed_product<A>(C, M, p.w2, by_rows<A>(hidden_cm, M, lanes, lanes, words[0]), lanes,
                      [=, this](int n, int l, Vec v) INLINE_LAMBDA {
                        float* x = to + (size_t)n * lanes + l;
                        store(x, load(x) + (v + b2[n]) * factor);
                      });
    for (int t = 0; t < N; t++) targets[t] = a.out + offset[t];
    scatter_transposed(x_cm, lanes, N, C, targets);
  }

  // ---- backward

  // sums[row][column] += factor * sum over tokens of y_cm[row][token] x_tm[token][column]
  INLINE void weight_gradient(int rows, const float* y_cm, const float* x_tm, float* sums, float factor = 1.0f) {
    const Operand y = columns_of(by_columns<A>(y_cm, rows, lanes, lanes, words[0]), 0, lanes);
    token_sum<A>(rows, padded, N, y, by_rows<A>(x_tm, N, padded, padded, words[1]), padded, factor, true, sums, padded);
  }

  // to[c] += factor * sum of `count` rows
  static void add_rows(const float* rows, int stride, int count, int columns, float factor, float* to) {
    for (int c = 0; c < columns; c += LANES) {
      Vec total = {};
      for (int r = 0; r < count; r++) total += load(rows + (size_t)r * stride + c);
      store(to + c, load(to + c) + total * factor);
    }
  }

  INLINE void to_places(const float* cm, float* tm) {
    for (int t = 0; t < N; t++) targets[t] = tm + (size_t)t * padded;
    scatter_transposed(cm, lanes, N, C, targets);
  }

  __attribute__((noinline)) void mlp_backward(const Sums& s) {
    const Gelu gelu(p.gelu);
    float *const hidden = hidden_cm, *const slopes = slope_cm, *const dx = dx_cm;
    const float *const b1 = p.b1, factor = mlp_factor;
    packed_product<A>(M, C, p.w1, by_rows<A>(normed_cm, C, lanes, lanes, words[0]), lanes,
                      [=, this](int m, int l, Vec v)
                          INLINE_LAMBDA { store(hidden + (size_t)m * lanes + l, v + b1[m]); });
    for (int i = 0; i < M * lanes; i += LANES) {  // not in the product: its accumulators leave too few registers
      Vec value, slope;
      gelu.both(load(hidden + i), value, slope);
      store(hidden + i, value);
      store(slopes + i, slope);
    }
    packed_product<A>(M, C, p.w2_back, by_rows<A>(dy_cm, C, lanes, lanes, words[0]), lanes,
                      [=, this](int m, int l, Vec v) INLINE_LAMBDA {
                        float* u = slopes + (size_t)m * lanes + l;
                        store(u, v * load(u) * factor);
                      });
    weight_gradient(M, hidden_cm, dy_tm, s.fc2, mlp_factor);
    add_rows(dy_tm, padded, N, padded, mlp_factor, s.b_fc2);
    packed_product<A>(C, M, p.w1_back, by_rows<A>(slope_cm, M, lanes, lanes, words[0]), lanes,
                      [=, this](int c, int l, Vec v) INLINE_LAMBDA { store(dx + (size_t)c * lanes + l, v); });
    to_places(normed_cm, normed2_tm);
    for (int t = 0; t < N; t++) normed2_tm[(size_t)t * padded + C] = 1.0f;
    weight_gradient(M, slope_cm, normed2_tm, s.fc1);
    each_lane_block([this](auto vectors, int l) INLINE_LAMBDA {  // LayerNorm, then the residual
      constexpr int NV = decltype(vectors)::count;
      Vec mean[NV] = {}, dot[NV] = {}, rstd[NV];
      for (int c = 0; c < C; c++)
        for (int v = 0; v < NV; v++) {
          const size_t at = (size_t)c * lanes + l + v * LANES;
          mean[v] += load(dx_cm + at);
          dot[v] += load(dx_cm + at) * load(normed_cm + at);
        }
      for (int v = 0; v < NV; v++) {
        rstd[v] = load(rstd2 + l + v * LANES);
        mean[v] *= 1.0f / C;
        dot[v] *= 1.0f / C;
      }
      for (int c = 0; c < C; c++)
        for (int v = 0; v < NV; v++) {
          const size_t at = (size_t)c * lanes + l + v * LANES;
          store(dx_cm + at, load(dy_cm + at) + rstd[v] * (load(dx_cm + at) - mean[v] - load(normed_cm + at) * dot[v]));
        }
    });
  }

  __attribute__((noinline)) void proj_backward(const Sums& s) {
    float* const to = d_attended_cm;
    const float *const inv = inverse, factor = attention_factor;
    packed_product<A>(C, C, p.wp_back, by_rows<A>(dx_cm, C, lanes, lanes, words[0]), lanes,
                      [=, this](int c, int l, Vec v) INLINE_LAMBDA {
                        store(to + (size_t)c * lanes + l, v * load(inv + c / D * lanes + l) * factor);
                      });
    to_places(dx_cm, dx_tm);
    weight_gradient(C, attended_cm, dx_tm, s.proj, attention_factor);
    add_rows(dx_tm, padded, N, padded, attention_factor, s.b_proj);
    to_places(d_attended_cm, d_attended_tm);
  }

  // d_attended is the gradient of a head's output by the sum of its exponentials.
  __attribute__((noinline)) void attention_backward(const Sums& s) {
    const int rows = tile.rows(), wide = queries();
    const float* q_rows = q_tm;
    if (!compact && visible_count < N) {
      for (int t = 0; t < N; t++)
        memcpy(q_places + (size_t)t * padded, q_tm + (size_t)rank[t] * padded, sizeof(float) * padded);
      q_rows = q_places;
    }
    const float* const k = by_rows<A>(kv_tm, rows, C, kv_stride, words[0]);
    const float* const v = by_columns<A>(kv_tm + C, rows, C, kv_stride, words[1]);
    const float* const q = by_rows<A>(q_rows, wide, C, padded, words[2]);
    const float* const d_out = by_rows<A>(d_attended_cm, C, lanes, lanes, words[3]);
    const float* const d_out_tm = by_rows<A>(d_attended_tm, N, C, padded, words[4]);
    for (int head = 0; head < heads; head++) {
      const int at = head * D;
      float *score = tile_of(head), *ds = d_score;
      product<A>(rows, lanes, D, columns_of(v, at, kv_stride), d_out + (size_t)at / A::DEPTH * lanes, lanes, ds, lanes);
      tile.softmax_backward(p.bias.at(kind, head), score, ds, inverse + head * lanes, shared + head * lanes,
                            weight + head * lanes, BiasSums::visible(a.bias, s.bias, head),
                            a.bias.masked ? BiasSums::masked(a.bias, s.bias, kind, head) : nullptr);
      prefetch_rows(a.x, head, heads);
      prefetch_rows(a.grad_out, head, heads);
      if (compact) tile.gather_queries(d_score, ds = raw);
      float *const dq = dq_cm + (size_t)at * lanes, *const dk = dkv_tm + at, *const dv = dkv_tm + C + at;
      const float factor = scale;
      product<A>(D, wide, rows, {k + at, 1, kv_stride}, by_rows<A>(ds, rows, wide, lanes, words[5]), lanes,
                 [=, this](int c, int l, Vec v) INLINE_LAMBDA { store(dq + (size_t)c * lanes + l, v * factor); });
      const Operand ds_columns = columns_of(by_columns<A>(ds, rows, wide, lanes, words[5]), 0, lanes);
      token_sum<A>(rows, D, wide, ds_columns, q + at, padded, scale, false, dk, kv_stride);
      const Operand e_columns = columns_of(by_columns<A>(score, rows, lanes, lanes, words[5]), 0, lanes);
      token_sum<A>(rows, D, N, e_columns, d_out_tm + at, padded, 1.0f, false, dv, kv_stride);
    }
    for (int i = 0; i < wide; i++) targets[i] = dq_tm + (size_t)(compact ? i : rank[i]) * padded;
    scatter_transposed(dq_cm, lanes, wide, C, targets);
  }

  __attribute__((noinline)) void qkv_backward(const Sums& s) {
    if (compact) add_rows(dq_tm + (size_t)visible_count * padded, padded, 1, padded, 1.0f, s.b_masked);
    if (tile.masked)
      add_rows(dkv_tm + (size_t)visible_count * kv_stride, kv_stride, 1, kv_stride, 1.0f, s.b_masked + padded);
    auto add_to = [this](float* sums) {
      return [=, this](int n, int c, Vec v) INLINE_LAMBDA {
        float* to = sums + (size_t)n * padded + c;
        store(to, load(to) + v);
      };
    };
    const float* const normed = by_rows<A>(normed_tm, query_rows, padded, padded, words[0]);
    const float* const dq = by_rows<A>(dq_tm, query_rows, C, padded, words[1]);
    const float* const dkv = by_rows<A>(dkv_tm, visible_count, 2 * C, kv_stride, words[2]);
    product<A>(C, C + 1, query_rows, {dq, 1, padded}, normed, padded, add_to(s.qkv));
    product<A>(2 * C, C + 1, visible_count, {dkv, 1, kv_stride}, normed, padded, add_to(s.qkv + (size_t)C * padded));
    const Operand dq_columns = columns_of(by_columns<A>(dq_tm, query_rows, C, padded, words[1]), 0, padded);
    product<A>(query_rows, C, C, dq_columns, p.wq_back, padded, d_normed_tm, padded);
    const Operand dkv_columns =
        columns_of(by_columns<A>(dkv_tm, visible_count, 2 * C, kv_stride, words[2]), 0, kv_stride);
    product<A>(visible_count, C, 2 * C, dkv_columns, p.wkv_back, padded, add_to(d_normed_tm));
    for (int r = 0; r < query_rows; r++) {
      const float *d = d_normed_tm + (size_t)r * padded, *xh = normed_tm + (size_t)r * padded;
      float* dx = dx_tm + (size_t)order[r] * padded;
      Vec mean = {}, dot = {};
      for (int c = 0; c < C; c += LANES) {  // padding lanes of the weights, hence of d, are 0
        mean += load(d + c);
        dot += load(d + c) * load(xh + c);
      }
      const float m1 = sum(mean) / C, m2 = sum(dot) / C;
      for (int c = 0; c < C; c += LANES)
        store(dx + c, load(dx + c) + rstd1[r] * (load(d + c) - m1 - load(xh + c) * m2));
    }
  }

  __attribute__((noinline)) void backward(const Sums& s) {
    load_cm(a.x, x_cm);
    norm1();
    qkv();
    attention();
    middle();
    load_cm(a.grad_out, dy_cm);
    for (int t = 0; t < N; t++)
      for (int c = 0; c < C; c += LANES)
        store(dy_tm + (size_t)t * padded + c, load_first(pointers[t] + c, C - c < LANES ? C - c : LANES));
    mlp_backward(s);
    proj_backward(s);
    attention_backward(s);
    qkv_backward(s);
    for (int t = 0; t < N; t++)
      for (int c = 0; c < C; c += LANES)
        store_first(a.out + offset[t] + c, load(dx_tm + (size_t)t * padded + c), C - c < LANES ? C - c : LANES);
  }
};

// ---- steps

size_t prepared_size(const Problem& a) { return Prepared(a, nullptr).size; }
size_t sums_size(const Problem& a) { return Sums(a, nullptr).size; }
int prepare_jobs(const Problem& a) { return PREPARE_JOBS + a.bias.kinds * a.bias.heads; }

#if defined(__AVX512BF16__)
typedef Bf16 Narrow;
#else
typedef Fp32 Narrow;
#endif

void prepare(const Problem& a, float* prepared, int job) {
  const Prepared p(a, prepared);
  if (job < PREPARE_JOBS) return a.bf16 ? prepare_job<Narrow>(a, p, job) : prepare_job<Fp32>(a, p, job);
  job -= PREPARE_JOBS;
  PreparedBias::fill(a.bias, prepared, job / a.bias.heads, job % a.bias.heads);
}

// Forward if there are no sums.
template <class Sizes, class A>
bool run(const Problem& a, const float* prepared, float* sums, int64_t first, int64_t last) {
  Window<Sizes, A> window(a, prepared);
  if (!window.scratch.ok()) return false;
  for (int64_t w = first; w < last; w++) {
    window.enter(w);
    if (sums)
      window.backward(Sums(a, sums));
    else
      window.forward();
  }
  return true;
}

bool backward(const Problem& a, const float* prepared, float* sums, int64_t first, int64_t last) {
  typedef FixedSizes<60, 120, 64, 10> Published;
  if (Published::fit(a))
    return (a.bf16 ? run<Published, Narrow> : run<Published, Fp32>)(a, prepared, sums, first, last);
  return (a.bf16 ? run<AnySizes, Narrow> : run<AnySizes, Fp32>)(a, prepared, sums, first, last);
}

bool forward(const Problem& a, const float* prepared, int64_t first, int64_t last) {
  return backward(a, prepared, nullptr, first, last);
}

}  // namespace

extern const Steps<SwinBlock> swin_block_steps = {prepared_size, sums_size, prepare_jobs, finish_jobs,
                                                  prepare,       forward,   backward,     finish};

}  // namespace MASKED_SWIN_ISA
}  // namespace masked_swin
