// A whole Swin block in one pass over the image: window by window, everything between reading x and writing y stays in
// cache. The backward computes a window's forward again from x. The mathematics is in kernels/README.md.
//
// "cm" is [channel][token of the window], tokens in the SIMD lanes: for products with packed weights, the second
// LayerNorm and GELU. "tm" is [token][channel]: for the work on visible tokens only, exact in their number, and for all
// weight gradients. Rows of tm buffers are in `rank` order, visible tokens first, unless they are said to be in place
// order. Column C of the normalised tokens holds 1: weight gradients then bring the gradient of the bias along. The
// LayerNorms' weight and bias are folded into the product that follows: W' = W diag(g), b' = b + W beta.
#include <math.h>

#include "attention.h"
#include "swin_block_weights.h"

namespace masked_swin {
namespace MASKED_SWIN_ISA {
namespace {

// gelu(u) = u Phi(u) and its derivative, exact form; Phi by Abramowitz & Stegun 7.1.26 (absolute error 7.5e-8).
INLINE void gelu(Vec u, Vec& value, Vec& slope) {
  const Vec t = reciprocal(1.0f + max(u, -u) * (0.3275911f * 0.70710678f));
  const Vec e = exp(u * u * -0.5f);
  Vec q = t * 0.5307027145f - 0.7265760135f;
  q = q * t + 0.7107068705f;
  q = q * t - 0.142248368f;
  q = q * t + 0.127414796f;
  q = q * t * e;  // Phi(-|u|)
  const Vec phi = u < 0.0f ? q : 1.0f - q;
  value = u * phi;
  slope = u * e * 0.39894228f + phi;
}

// out(row, lane, sum_k w[row][k] b[k][lane]) for a weight packed in blocks of PACK rows.
template <class Out>
__attribute__((noinline)) void packed_product(int rows, int depth, const float* packed, const float* b, int lanes,
                                              Out&& out) {
  for (int first = 0; first < rows; first += PACK) {
    const Operand w{packed + (size_t)first * depth, 1, PACK};
    auto store_row = [&](int i, int l, Vec v) INLINE_LAMBDA {
      if (first + i < rows) out(first + i, l, v);
    };
    int l = 0;
    auto at = [&](int i, int part, Vec v) INLINE_LAMBDA { store_row(i, l + part, v); };
    for (; l + VECTORS * LANES <= lanes; l += VECTORS * LANES) product_block<PACK, VECTORS>(depth, w, b + l, lanes, at);
    for (; l < lanes; l += LANES) product_block<PACK, 1>(depth, w, b + l, lanes, at);
  }
}

struct Window {
  const Problem& a;
  const Prepared p;
  const int C, M, N, lanes, padded, kv_stride, heads, D;
  const float scale;
  Scratch scratch;
  // of the present window
  int visible_count = 0, query_rows = 0, kind = 0;
  float attention_factor = 1.0f, mlp_factor = 1.0f;  // stochastic depth
  Tile tile{};
  size_t *offset, *next_offset;  // place -> x, for this window and the next
  int *order, *rank;             // rank -> place and back
  unsigned char* visible;
  const float** pointers;
  float** targets;
  float *x_cm, *normed_cm, *attended_cm, *q_cm, *hidden_cm, *normed_tm, *q_tm, *kv_tm;
  float *exponentials, *inverse, *shared, *weight, *rstd1, *rstd2;
  float *dy_cm, *slope_cm, *dx_cm, *dq_cm, *d_attended_cm, *dy_tm, *dx_tm, *d_attended_tm, *normed2_tm, *q_places,
      *dq_tm, *dkv_tm, *d_score;
  float* d_normed_tm;

  Window(const Problem& problem, const float* prepared)
      : a(problem),
        p(a, prepared),
        C(a.channels),
        M(a.hidden),
        N(a.tokens()),
        lanes(lanes_of(a)),
        padded(round_up(C + 1)),
        kv_stride(round_up(2 * C)),
        heads(a.bias.heads),
        D(a.head_dim),
        scale(1.0f / sqrtf((float)D)),
        scratch([&](Scratch& s) { lay_out(s); }) {}

  void lay_out(Scratch& s) {
    const bool backward = a.grad_out;
    const size_t cm = (size_t)C * lanes, tm = (size_t)N * padded + LANES, tile_size = (size_t)(N + 1) * lanes;
    const size_t kv = (size_t)(N + 1) * kv_stride + LANES;
    s.take(N, offset, next_offset);
    s.take(N, order);
    s.take(N, rank);
    s.take(N, visible);
    s.take(N, pointers);
    s.take(N, targets);
    s.take(cm, x_cm, normed_cm, attended_cm, q_cm);
    const size_t hidden = (size_t)M * lanes;
    s.take(hidden > tm ? hidden : tm, hidden_cm);
    s.take(tm, normed_tm, q_tm);
    s.take(kv, kv_tm);
    s.take(backward ? tile_size * heads : tile_size, exponentials);
    s.take((size_t)heads * lanes, inverse, shared, weight);
    s.take(lanes, rstd1, rstd2);
    if (!backward) return;
    s.take(cm, dy_cm, dx_cm);
    s.take(hidden > tm ? hidden : tm, slope_cm);
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

  void locate(int64_t window, size_t* offsets) const {
    const int across = a.windows_across(), down = a.windows_down();
    const int64_t image = window / (across * down);
    const int row = window / across % down, column = window % across;
    for (int i = 0; i < a.window_height; i++) {
      int y = row * a.window_height + i + a.shift_height;
      if (y >= a.height) y -= a.height;
      for (int j = 0; j < a.window_width; j++) {
        int x = column * a.window_width + j + a.shift_width;
        if (x >= a.width) x -= a.width;
        *offsets++ = ((image * a.height + y) * a.width + x) * C;
      }
    }
  }

  // One of `parts` shares of the next window's rows. Late in the present window: what is fetched early is evicted
  // again.
  void prefetch_rows(const float* image, int part, int parts) const {
    for (int t = N * part / parts; t < N * (part + 1) / parts; t++)
      for (int c = 0; c < C; c += 16) __builtin_prefetch(image + next_offset[t] + c);
  }

  __attribute__((noinline)) void enter(int64_t window) {
    locate(window, offset);
    locate(window + 1 < a.windows() ? window + 1 : window, next_offset);
    const int64_t image = window / (a.windows_across() * a.windows_down());
    int count = 0, hidden_count = 0;
    for (int t = 0; t < N; t++) {
      visible[t] = !a.keep || a.keep[offset[t] / C];
      if (visible[t])
        order[count++] = t;
      else
        order[N - 1 - hidden_count++] = t;
    }
    for (int r = 0; r < N; r++) rank[order[r]] = r;
    visible_count = count;
    query_rows = a.mode == MaskMode::drop ? N : count;
    kind = a.bias.kind ? a.bias.kind[window % a.bias.pattern_windows] : 0;
    tile = {lanes, lanes, count, N, a.bias.masked, scale, order, visible};
    if (a.drop_path_scale) {
      attention_factor = a.drop_path_scale[image];
      mlp_factor = a.drop_path_scale[a.batch + image];
    }
  }

  // ---- forward

  __attribute__((noinline)) void load_cm(const float* from, float* cm) {
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
    product(query_rows, C, C, {normed_tm, padded, 1}, p.wq, padded,
            [&](int r, int n, Vec v) INLINE_LAMBDA { store(q_tm + (size_t)r * padded + n, v + load(p.bq + n)); });
    product(visible_count, 2 * C, C, {normed_tm, padded, 1}, p.wkv, kv_stride,
            [&](int r, int n, Vec v) INLINE_LAMBDA { store(kv_tm + (size_t)r * kv_stride + n, v + load(p.bkv + n)); });
    if (tile.masked) memcpy(kv_tm + (size_t)visible_count * kv_stride, p.masked_kv, sizeof(float) * 2 * C);
    for (int t = 0; t < N; t++) pointers[t] = rank[t] < query_rows ? q_tm + (size_t)rank[t] * padded : p.masked_q;
    gather_transposed(pointers, N, lanes, C, q_cm, lanes);
  }

  __attribute__((noinline)) void attention() {
    for (int head = 0; head < heads; head++) {
      const int at = head * D;
      float *score = tile_of(head), *inv = inverse + head * lanes;
      const Bias bias = p.bias.at(kind, head);
      auto multiply = [&] {
        product(tile.rows(), lanes, D, {kv_tm + at, kv_stride, 1}, q_cm + (size_t)at * lanes, lanes, score, lanes);
      };
      multiply();
      if (!tile.factored_softmax(bias, score, inv, shared + head * lanes, weight + head * lanes)) {
        multiply();
        tile.softmax(bias, score, inv, shared + head * lanes, weight + head * lanes);
      }
      float* out = attended_cm + (size_t)at * lanes;
      product(D, lanes, tile.rows(), {kv_tm + C + at, 1, kv_stride}, score, lanes,
              [&](int c, int l, Vec v) INLINE_LAMBDA { store(out + (size_t)c * lanes + l, v * load(inv + l)); });
    }
  }

  // x_cm += projection; then the second LayerNorm
  __attribute__((noinline)) void middle() {
    packed_product(C, C, p.wp, attended_cm, lanes, [&](int n, int l, Vec v) INLINE_LAMBDA {
      float* x = x_cm + (size_t)n * lanes + l;
      store(x, load(x) + (v + a.weights.proj_bias[n]) * attention_factor);
    });
    for (int l = 0; l < lanes; l += LANES) {
      const float* x = x_cm + l;
      float* out = normed_cm + l;
      Vec total[2] = {}, squares[2] = {};
      for (int c = 0; c < C; c++) total[c & 1] += load(x + (size_t)c * lanes);
      const Vec mean = (total[0] + total[1]) * (1.0f / C);
      for (int c = 0; c < C; c++) {
        const Vec v = load(x + (size_t)c * lanes) - mean;
        squares[c & 1] += v * v;
        store(out + (size_t)c * lanes, v);
      }
      const Vec variance = (squares[0] + squares[1]) * (1.0f / C) + LAYER_NORM_EPSILON;
      float roots[LANES];
      for (int i = 0; i < LANES; i++) roots[i] = 1.0f / sqrtf(variance[i]);
      const Vec rstd = load(roots);
      store(rstd2 + l, rstd);
      for (int c = 0; c < C; c++) store(out + (size_t)c * lanes, load(out + (size_t)c * lanes) * rstd);
    }
  }

  __attribute__((noinline)) void forward() {
    load_cm(a.x, x_cm);
    norm1();
    qkv();
    attention();
    middle();
    packed_product(M, C, p.w1, normed_cm, lanes, [&](int m, int l, Vec v) INLINE_LAMBDA {
      Vec value, slope;
      if (m % PACK == 0 && l == 0) prefetch_rows(a.x, m / PACK, pack_up(M) / PACK);
      gelu(v + p.b1[m], value, slope);
      store(hidden_cm + (size_t)m * lanes + l, value);
    });
    packed_product(C, M, p.w2, hidden_cm, lanes, [&](int n, int l, Vec v) INLINE_LAMBDA {
      float* x = x_cm + (size_t)n * lanes + l;
      store(x, load(x) + (v + a.weights.fc2_bias[n]) * mlp_factor);
    });
    for (int t = 0; t < N; t++) targets[t] = a.out + offset[t];
    scatter_transposed(x_cm, lanes, N, C, targets);
  }

  // ---- backward

  // sums[row][column] += factor * sum over tokens of y_cm[row][token] x_tm[token][column]
  void weight_gradient(int rows, const float* y_cm, const float* x_tm, float* sums, float factor = 1.0f) {
    token_sum(rows, padded, N, {y_cm, lanes, 1}, x_tm, padded, factor, true, sums, padded);
  }

  // to[c] += factor * sum of `count` rows
  static void add_rows(const float* rows, int stride, int count, int columns, float factor, float* to) {
    for (int c = 0; c < columns; c += LANES) {
      Vec total = {};
      for (int r = 0; r < count; r++) total += load(rows + (size_t)r * stride + c);
      store(to + c, load(to + c) + total * factor);
    }
  }

  __attribute__((noinline)) void to_places(const float* cm, float* tm) {
    for (int t = 0; t < N; t++) targets[t] = tm + (size_t)t * padded;
    scatter_transposed(cm, lanes, N, C, targets);
  }

  __attribute__((noinline)) void mlp_backward(const Sums& s) {
    packed_product(M, C, p.w1, normed_cm, lanes, [&](int m, int l, Vec v) INLINE_LAMBDA {
      Vec value, slope;
      gelu(v + p.b1[m], value, slope);
      store(hidden_cm + (size_t)m * lanes + l, value);
      store(slope_cm + (size_t)m * lanes + l, slope);
    });
    packed_product(M, C, p.w2_back, dy_cm, lanes, [&](int m, int l, Vec v) INLINE_LAMBDA {
      float* u = slope_cm + (size_t)m * lanes + l;
      store(u, v * load(u) * mlp_factor);
    });
    weight_gradient(M, hidden_cm, dy_tm, s.fc2, mlp_factor);
    add_rows(dy_tm, padded, N, padded, mlp_factor, s.b_fc2);
    packed_product(C, M, p.w1_back, slope_cm, lanes,
                   [&](int c, int l, Vec v) INLINE_LAMBDA { store(dx_cm + (size_t)c * lanes + l, v); });
    to_places(normed_cm, normed2_tm);
    for (int t = 0; t < N; t++) normed2_tm[(size_t)t * padded + C] = 1.0f;
    weight_gradient(M, slope_cm, normed2_tm, s.fc1);
    for (int l = 0; l < lanes; l += LANES) {  // LayerNorm, then the residual
      const float *xh = normed_cm + l, *dy = dy_cm + l;
      float* d = dx_cm + l;
      Vec mean[2] = {}, dot[2] = {};
      for (int c = 0; c < C; c++) {
        const Vec v = load(d + (size_t)c * lanes);
        mean[c & 1] += v;
        dot[c & 1] += v * load(xh + (size_t)c * lanes);
      }
      const Vec rstd = load(rstd2 + l), m1 = (mean[0] + mean[1]) * (1.0f / C), m2 = (dot[0] + dot[1]) * (1.0f / C);
      for (int c = 0; c < C; c++) {
        const size_t at = (size_t)c * lanes;
        store(d + at, load(dy + at) + rstd * (load(d + at) - m1 - load(xh + at) * m2));
      }
    }
  }

  __attribute__((noinline)) void attention_backward(const Sums& s) {
    packed_product(C, C, p.wp_back, dx_cm, lanes, [&](int c, int l, Vec v) INLINE_LAMBDA {
      store(d_attended_cm + (size_t)c * lanes + l, v * attention_factor);
    });
    to_places(dx_cm, dx_tm);
    weight_gradient(C, attended_cm, dx_tm, s.proj, attention_factor);
    add_rows(dx_tm, padded, N, padded, attention_factor, s.b_proj);
    to_places(d_attended_cm, d_attended_tm);
    for (int t = 0; t < N; t++) {
      const float* row = rank[t] < query_rows ? q_tm + (size_t)rank[t] * padded : p.masked_q;
      memcpy(q_places + (size_t)t * padded, row, sizeof(float) * padded);
    }
    const int rows = tile.rows();
    for (int head = 0; head < heads; head++) {
      const int at = head * D;
      float* score = tile_of(head);
      product(rows, lanes, D, {kv_tm + C + at, kv_stride, 1}, d_attended_cm + (size_t)at * lanes, lanes, d_score,
              lanes);
      tile.softmax_backward(p.bias.at(kind, head), score, d_score, inverse + head * lanes, shared + head * lanes,
                            weight + head * lanes, BiasSums::visible(a.bias, s.bias, head),
                            a.bias.masked ? BiasSums::masked(a.bias, s.bias, kind, head) : nullptr);
      prefetch_rows(a.x, head, heads);
      prefetch_rows(a.grad_out, head, heads);
      float *dq = dq_cm + (size_t)at * lanes, *dk = dkv_tm + at, *dv = dkv_tm + C + at;
      product(D, lanes, rows, {kv_tm + at, 1, kv_stride}, d_score, lanes,
              [&](int c, int l, Vec v) INLINE_LAMBDA { store(dq + (size_t)c * lanes + l, v * scale); });
      token_sum(rows, D, N, {d_score, lanes, 1}, q_places + at, padded, scale, false, dk, kv_stride);
      token_sum(rows, D, N, {score, lanes, 1}, d_attended_tm + at, padded, 1.0f, false, dv, kv_stride);
    }
    for (int t = 0; t < N; t++) targets[t] = dq_tm + (size_t)rank[t] * padded;
    scatter_transposed(dq_cm, lanes, N, C, targets);
  }

  __attribute__((noinline)) void qkv_backward(const Sums& s) {
    if (tile.masked) {
      add_rows(dq_tm + (size_t)query_rows * padded, padded, N - query_rows, padded, 1.0f, s.b_masked);
      add_rows(dkv_tm + (size_t)visible_count * kv_stride, kv_stride, 1, kv_stride, 1.0f, s.b_masked + padded);
    }
    auto add_to = [&](float* sums) {
      return [=, this](int n, int c, Vec v) INLINE_LAMBDA {
        float* to = sums + (size_t)n * padded + c;
        store(to, load(to) + v);
      };
    };
    product(C, C + 1, query_rows, {dq_tm, 1, padded}, normed_tm, padded, add_to(s.qkv));
    product(2 * C, C + 1, visible_count, {dkv_tm, 1, kv_stride}, normed_tm, padded, add_to(s.qkv + (size_t)C * padded));
    product(query_rows, C, C, {dq_tm, padded, 1}, p.wq_back, padded, d_normed_tm, padded);
    product(visible_count, C, 2 * C, {dkv_tm, kv_stride, 1}, p.wkv_back, padded, add_to(d_normed_tm));
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

void prepare(const Problem& a, float* prepared, int job) {
  if (job < PREPARE_JOBS) return prepare_job(a, Prepared(a, prepared), job);
  job -= PREPARE_JOBS;
  PreparedBias::fill(a.bias, prepared, job / a.bias.heads, job % a.bias.heads);
}

bool forward(const Problem& a, const float* prepared, int64_t first, int64_t last) {
  Window window(a, prepared);
  if (!window.scratch.ok()) return false;
  for (int64_t w = first; w < last; w++) {
    window.enter(w);
    window.forward();
  }
  return true;
}

bool backward(const Problem& a, const float* prepared, float* sums, int64_t first, int64_t last) {
  Window window(a, prepared);
  if (!window.scratch.ok()) return false;
  const Sums s(a, sums);
  for (int64_t w = first; w < last; w++) {
    window.enter(w);
    window.backward(s);
  }
  return true;
}

}  // namespace

extern const Steps<SwinBlock> swin_block_steps = {prepared_size, sums_size, prepare_jobs, prepare,
                                                  forward,       backward,  finish};

}  // namespace MASKED_SWIN_ISA
}  // namespace masked_swin
