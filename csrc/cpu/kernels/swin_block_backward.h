// The backward of a Swin block, which computes a window's forward again from x. See swin_block_forward.h for the
// layouts.
#pragma once
#include "swin_block_forward.h"

namespace masked_swin {
namespace MASKED_SWIN_ISA {
namespace {

template <class Sizes, class A>
struct Backward : Forward<Sizes, A> {
  typedef Forward<Sizes, A> Base;
  using Base::a, Base::p, Base::scale, Base::offset, Base::order, Base::rank, Base::visible_count, Base::mask_pattern,
      Base::tile, Base::shared_query, Base::query_rows, Base::attention_factor, Base::mlp_factor, Base::pointers,
      Base::targets;
  using Base::cm, Base::tm, Base::kv, Base::tile_size, Base::any;
  using Base::columns_of, Base::each_lane_block, Base::load_cm, Base::compaction, Base::prefetch_next,
      Base::prefetch_out, Base::unique_queries, Base::tile_of;
  using Base::x_cm, Base::normed_cm, Base::attended_cm, Base::hidden_cm, Base::normed_tm, Base::q_tm, Base::kv_tm,
      Base::qk, Base::inverse, Base::shared, Base::weight, Base::rstd1, Base::rstd2, Base::words;
  using Sizes::C, Sizes::M, Sizes::N, Sizes::positions, Sizes::D, Sizes::heads, Sizes::lanes, Sizes::padded,
      Sizes::kv_stride;
  float *dy_cm, *slope_cm, *dx_cm, *dq_cm, *d_attended_cm, *dy_tm, *dx_tm, *d_attended_tm, *normed2_tm, *q_positions,
      *dq_tm, *dkv_tm, *d_score, *d_normed_tm;

  using Base::Base;

  void lay_out(Scratch& s) {
    Base::lay_out(s);
    s.take(cm, dy_cm);
    s.take(any, slope_cm);
    s.take(tm, dy_tm, normed2_tm);
    s.take(kv, dkv_tm);
    s.take(tile_size, d_score);
    // Buffers that are never needed together share memory, so that the working set stays in the second-level cache.
    d_attended_cm = dy_cm;
    d_attended_tm = dy_tm;
    dx_tm = normed2_tm;
    d_normed_tm = attended_cm;
    dx_cm = dq_cm = x_cm;
    q_positions = hidden_cm;
    dq_tm = slope_cm;
  }

  // sums[row][column] += factor * sum over tokens of y_cm[row][token] x[token][column], x by rows
  INLINE void weight_gradient(int rows, const float* y_cm, const float* x, float* sums, float factor = 1.0f) {
    const Operand y = columns_of(by_columns<A>(y_cm, rows, lanes, lanes, words[0]), 0, lanes);
    token_sum<A>(rows, padded, N, y, x, padded, factor, true, sums, padded);
  }

  // to[c] += factor * sum over `count` rows
  static void add_rows(const float* rows, int stride, int count, int columns, float factor, float* to) {
    for (int c = 0; c < columns; c += LANES) {
      Vec total = {};
      for (int r = 0; r < count; r++) total += load(rows + (size_t)r * stride + c);
      store(to + c, load(to + c) + total * factor);
    }
  }

  INLINE void to_positions(const float* cm, float* tm) {
    for (int t = 0; t < N; t++) targets[t] = tm + (size_t)t * padded;
    scatter_transposed(cm, lanes, N, C, targets);
  }

  __attribute__((noinline)) void mlp_backward(const Sums& s) {
    const Gelu gelu(p.gelu);
    float *const values = hidden_cm, *const slopes = slope_cm, *const dx = dx_cm;
    const float factor = mlp_factor;
    to_positions(normed_cm, normed2_tm);
    for (int t = 0; t < N; t++) normed2_tm[(size_t)t * padded + C] = 1.0f;
    const float* const normed = by_rows<A>(normed_cm, C, lanes, lanes, words[1]);
    const float* const normed_rows = by_rows<A>(normed2_tm, N, padded, padded, words[2]);
    const float* const dy = by_rows<A>(dy_cm, C, lanes, lanes, words[3]);
    const float* const dy_rows = by_rows<A>(dy_tm, N, padded, padded, words[4]);
    for (int m0 = 0; m0 < M; m0 += HIDDEN) {
      const int count = M - m0 < HIDDEN ? M - m0 : HIDDEN;
      const float* const b1 = p.b1 + m0;
      packed_product<A>(count, C, p.w1 + (size_t)m0 * word_count<A>(C), C, normed, lanes,
                        [=, this](int m, int l, Vec v)
                            INLINE_LAMBDA { store(values + (size_t)m * lanes + l, v + b1[m]); });
      // A loop of its own: the product's accumulators leave too few registers.
      for (int i = 0; i < count * lanes; i += LANES) {
        Vec value, slope;
        gelu.both(load(values + i), value, slope);
        store(values + i, value);
        store(slopes + i, slope);
      }
      packed_product<A>(count, C, p.w2_back + (size_t)m0 * word_count<A>(C), C, dy, lanes,
                        [=, this](int m, int l, Vec v) INLINE_LAMBDA {
                          float* u = slopes + (size_t)m * lanes + l;
                          store(u, v * load(u) * factor);
                        });
      weight_gradient(count, hidden_cm, dy_rows, s.fc2 + (size_t)m0 * padded, mlp_factor);
      weight_gradient(count, slope_cm, normed_rows, s.fc1 + (size_t)m0 * padded);
      packed_product<A>(C, count, p.w1_back + word_count<A>(m0) * PACK, M,
                        by_rows<A>(slope_cm, count, lanes, lanes, words[0]), lanes,
                        [=, this](int c, int l, Vec v) INLINE_LAMBDA {
                          float* to = dx + (size_t)c * lanes + l;
                          store(to, m0 ? load(to) + v : v);
                        });
    }
    add_rows(dy_tm, padded, N, padded, mlp_factor, s.b_fc2);
    each_lane_block([this](auto vectors, int l) INLINE_LAMBDA {  // LayerNorm, then the skip connection
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
    packed_product<A>(C, C, p.wp_back, C, by_rows<A>(dx_cm, C, lanes, lanes, words[0]), lanes,
                      [=, this](int c, int l, Vec v) INLINE_LAMBDA {
                        store(to + (size_t)c * lanes + l, v * load(inv + c / D * lanes + l) * factor);
                      });
    to_positions(dx_cm, dx_tm);
    weight_gradient(C, attended_cm, by_rows<A>(dx_tm, N, padded, padded, words[1]), s.proj, attention_factor);
    add_rows(dx_tm, padded, N, padded, attention_factor, s.b_proj);
    to_positions(d_attended_cm, d_attended_tm);
  }

  // d_attended is the gradient of a head's output, divided by the sum of its exponentials.
  __attribute__((noinline)) void attention_backward(const Sums& s) {
    const int rows = tile.rows(), wide = unique_queries();
    const float* q_rows = q_tm;
    if (!shared_query && visible_count < N) {
      for (int t = 0; t < N; t++)
        memcpy(q_positions + (size_t)t * padded, q_tm + (size_t)rank[t] * padded, sizeof(float) * padded);
      q_rows = q_positions;
    }
    const float* const k = by_rows<A>(kv_tm, rows, C, kv_stride, words[0]);
    const float* const v = by_columns<A>(kv_tm + C, rows, C, kv_stride, words[1]);
    const float* const q = by_rows<A>(q_rows, wide, C, padded, words[2]);
    const float* const d_out = by_rows<A>(d_attended_cm, C, lanes, lanes, words[3]);
    const float* const d_out_tm = by_rows<A>(d_attended_tm, N, C, padded, words[4]);
    for (int head = 0; head < heads; head++) {
      const int at = head * D;
      float *score = tile_of(head), *ds = d_score, *d_bias = BiasSums::visible(a.bias, s.bias, head);
      product<A>(rows, lanes, D, columns_of(v, at, kv_stride), d_out + (size_t)at / A::DEPTH * lanes, lanes, ds, lanes);
      tile.softmax_backward(p.bias.at(mask_pattern, head), score, ds, inverse + head * lanes, shared + head * lanes,
                            weight + head * lanes, N == positions ? d_bias : nullptr,
                            a.bias.shared_key ? BiasSums::shared(a.bias, s.bias, mask_pattern, head) : nullptr);
      if (N < positions) compaction().scatter_add(ds, d_bias);
      prefetch_next(a.x, head, heads);
      prefetch_next(a.grad_out, head, heads);
      prefetch_out(head, heads);
      if (shared_query) tile.reduce_qk(d_score, ds = qk);
      float *const dq = dq_cm + (size_t)at * lanes, *const dk = dkv_tm + at, *const dv = dkv_tm + C + at;
      const float factor = scale;
      product<A>(D, wide, rows, {k + at, 1, kv_stride}, by_rows<A>(ds, rows, wide, lanes, words[5]), lanes,
                 [=, this](int c, int l, Vec v) INLINE_LAMBDA { store(dq + (size_t)c * lanes + l, v * factor); });
      const Operand ds_columns = columns_of(by_columns<A>(ds, rows, wide, lanes, words[5]), 0, lanes);
      token_sum<A>(rows, D, wide, ds_columns, q + at, padded, scale, false, dk, kv_stride);
      const Operand e_columns = columns_of(by_columns<A>(score, rows, lanes, lanes, words[5]), 0, lanes);
      token_sum<A>(rows, D, N, e_columns, d_out_tm + at, padded, 1.0f, false, dv, kv_stride);
    }
    for (int i = 0; i < wide; i++) targets[i] = dq_tm + (size_t)(shared_query ? i : rank[i]) * padded;
    scatter_transposed(dq_cm, lanes, wide, C, targets);
  }

  __attribute__((noinline)) void qkv_backward(const Sums& s) {
    if (shared_query) add_rows(dq_tm + (size_t)visible_count * padded, padded, 1, padded, 1.0f, s.b_shared);
    if (tile.shared_key)
      add_rows(dkv_tm + (size_t)visible_count * kv_stride, kv_stride, 1, kv_stride, 1.0f, s.b_shared + padded);
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
      for (int c = 0; c < C; c += LANES) {  // padding lanes of the weights are 0, hence those of d
        mean += load(d + c);
        dot += load(d + c) * load(xh + c);
      }
      const float m1 = sum(mean) / C, m2 = sum(dot) / C;
      for (int c = 0; c < C; c += LANES)
        store(dx + c, load(dx + c) + rstd1[r] * (load(d + c) - m1 - load(xh + c) * m2));
    }
  }

  __attribute__((noinline)) void run(const Sums& s) {
    Base::attend();
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

}  // namespace
}  // namespace MASKED_SWIN_ISA
}  // namespace masked_swin
