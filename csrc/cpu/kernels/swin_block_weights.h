// The weights of a Swin block: folded and packed before the windows. Their gradients: made of the windows' sums after.
#pragma once
#include "gelu.h"
#include "swin_block_window.h"

namespace masked_swin {
namespace MASKED_SWIN_ISA {
namespace {

typedef SwinBlock Problem;

constexpr int PACK = ACCUMULATORS / VECTORS;  // rows of a packed weight, multiplied together
// Hidden units of the MLP that are worked on together. Their two tiles then stay near the first-level cache: 27 % fewer
// misses there in the forward, 19 % fewer in a second level of 512 KB in the backward (cachegrind, C=60). Fewer units
// make more passes over the sums: 30 were no better.
constexpr int HIDDEN = 60;
static_assert(HIDDEN % PACK == 0 && HIDDEN % 2 == 0, "whole blocks of the packed weights, whole pairs in bf16");
int pack_up(int n) { return (n + PACK - 1) / PACK * PACK; }

// Sizes and addresses of what all windows read: bias tiles, folded and packed weights.
struct Prepared {
  int C, M, padded, kv_padded;
  PreparedBias bias;
  float *wq, *wkv, *bq, *bkv, *shared_q, *shared_kv, *wp, *w1, *b1, *w2, *gelu;  // forward
  float *wp_back, *w2_back, *w1_back, *wq_back, *wkv_back;                       // backward
  size_t size;

  Prepared(const Problem& a, const float* memory)
      : C(a.channels), M(a.hidden), padded(round_up(C + 1)), kv_padded(round_up(2 * C)), bias{a.bias, memory} {
    float* next = const_cast<float*>(memory) + (PreparedBias::size(a.bias) + 15) / 16 * 16;
    auto take = [&](size_t count, auto&... buffers) { ((buffers = next, next += (count + 15) / 16 * 16), ...); };
    take((size_t)C * padded, wq);
    take((size_t)C * kv_padded, wkv);
    take(padded, bq, shared_q);
    take(kv_padded, bkv, shared_kv);
    take((size_t)pack_up(C) * C, wp);
    take((size_t)pack_up(M) * C, w1);
    take(M, b1);
    take((size_t)pack_up(C) * M, w2);
    take(Gelu::SIZE, gelu);
    if (a.grad_out) {
      take((size_t)pack_up(C) * C, wp_back);
      take((size_t)pack_up(M) * C, w2_back);
      take((size_t)pack_up(C) * M, w1_back);
      take((size_t)C * padded, wq_back);
      take((size_t)2 * C * padded, wkv_back);
    }
    size = next - memory;
  }
};

// Interleaves the weights of PACK rows, in words along the sum.
template <class A, class F>
void pack(float* to, int rows, int depth, F&& weight) {
  const auto value = [&](int row, int k) { return row < rows && k < depth ? weight(row, k) : 0.0f; };
  for (int first = 0; first < rows; first += PACK)
    for (int k = 0; k < depth; k += A::DEPTH)
      for (int i = 0; i < PACK; i++) *to++ = A::word([&](int part) { return value(first + i, k + part); });
}

enum PrepareJob { PREPARE_QKV, PREPARE_PROJ, PREPARE_FC1, PREPARE_FC2, PREPARE_JOBS };

template <class A>
void prepare_qkv(const Problem& a, const Prepared& p) {
  const BlockWeights<const float*>& w = a.weights;
  const int C = p.C;
  // Padding columns are 0.
  memset(p.wq, 0, (char*)p.wp - (char*)p.wq);
  if (a.grad_out) {
    memset(p.wq_back, 0, sizeof(float) * C * p.padded);
    memset(p.wkv_back, 0, sizeof(float) * 2 * C * p.padded);
  }
  for (int n = 0; n < 3 * C; n++) {
    const bool q = n < C;
    const int at = q ? n : n - C, stride = q ? p.padded : p.kv_padded;
    float *forward = q ? p.wq : p.wkv, *back = q ? p.wq_back : p.wkv_back;
    float bias = w.qkv_bias[n], shared = w.qkv_bias[n];  // `shared`: of the masked tokens
    for (int c = 0; c < C; c++) {
      const float weight = w.qkv_weight[(size_t)n * C + c];
      bias += weight * w.norm1_bias[c];
      if (a.mode == MaskMode::token) shared += weight * a.mask_token[c];
      forward[(size_t)c * stride + at] = weight * w.norm1_weight[c];
      if (a.grad_out) back[(size_t)at * p.padded + c] = weight * w.norm1_weight[c];
    }
    (q ? p.bq : p.bkv)[at] = bias;
    (q ? p.shared_q : p.shared_kv)[at] = shared;
  }
  by_rows<A>(p.wq, C, p.padded, p.padded, p.wq);
  by_rows<A>(p.wkv, C, p.kv_padded, p.kv_padded, p.wkv);
  if (!a.grad_out) return;
  by_rows<A>(p.wq_back, C, p.padded, p.padded, p.wq_back);
  by_rows<A>(p.wkv_back, 2 * C, p.padded, p.padded, p.wkv_back);
}

template <class A>
void prepare_job(const Problem& a, const Prepared& p, int job) {
  const BlockWeights<const float*>& w = a.weights;
  const int C = p.C, M = p.M;
  const bool backward = a.grad_out != nullptr;
  if (job == PREPARE_QKV) prepare_qkv<A>(a, p);
  if (job == PREPARE_PROJ) {
    pack<A>(p.wp, C, C, [&](int n, int k) { return w.proj_weight[n * C + k]; });
    if (backward) pack<A>(p.wp_back, C, C, [&](int k, int n) { return w.proj_weight[n * C + k]; });
  }
  if (job == PREPARE_FC1) {
    auto folded = [&](int m, int c) { return w.fc1_weight[(size_t)m * C + c] * w.norm2_weight[c]; };
    pack<A>(p.w1, M, C, folded);
    if (backward) pack<A>(p.w1_back, C, M, [&](int c, int m) { return folded(m, c); });
    for (int m = 0; m < M; m++) {
      float bias = w.fc1_bias[m];
      for (int c = 0; c < C; c++) bias += w.fc1_weight[(size_t)m * C + c] * w.norm2_bias[c];
      p.b1[m] = bias;
    }
  }
  if (job == PREPARE_FC2) {
    Gelu::fill(p.gelu);
    if (!backward) pack<A>(p.w2, C, M, [&](int c, int m) { return w.fc2_weight[(size_t)c * M + m]; });
    if (backward) pack<A>(p.w2_back, M, C, [&](int m, int c) { return w.fc2_weight[(size_t)c * M + m]; });
  }
}

// Sums of one chunk: gradients of the folded weights, [output][input], where input C is the constant 1 and gives the
// gradient of the bias. Those of fc2 and proj are [input][output].
struct Sums {
  float *bias, *qkv, *proj, *fc1, *fc2, *b_shared, *b_proj, *b_fc2;
  size_t size;

  Sums(const Problem& a, float* memory) {
    const size_t C = a.channels, M = a.hidden, padded = round_up(a.channels + 1);
    float* next = memory;
    auto take = [&](size_t count, auto&... buffers) { ((buffers = next, next += (count + 15) / 16 * 16), ...); };
    take(BiasSums::size(a.bias), bias);
    take(3 * C * padded, qkv);
    take(C * padded, proj);
    take(M * padded, fc1, fc2);
    take(padded + round_up(2 * C), b_shared);
    take(padded, b_proj, b_fc2);
    size = next - memory;
  }
};

// Makes one row of the gradients of W, b, g and beta from that of W' = W diag(g) and b' = b + W beta: R = dW', r = db'.
void unfold_row(int C, const float* R, float r, const float* w, const float* g, const float* beta, float* dw, float* dg,
                float* dbeta) {
  for (int c = 0; c < C; c++) {
    dw[c] = R[c] * g[c] + r * beta[c];
    dg[c] += w[c] * R[c];
    dbeta[c] += w[c] * r;
  }
}

enum FinishJob { FINISH_QKV, FINISH_PROJ, FINISH_MLP, FINISH_JOBS };  // then one for the bias of each head

void finish_qkv(const Problem& a, const Sums& s) {
  const BlockWeights<const float*>& w = a.weights;
  const BlockWeights<float*>& g = a.grads;
  const int C = a.channels, padded = round_up(C + 1);
  float* const added_to[] = {g.norm1_weight, g.norm1_bias, a.grad_mask_token};
  for (float* grad : added_to)
    if (grad) memset(grad, 0, sizeof(float) * C);
  for (int n = 0; n < 3 * C; n++) {
    const int at = n < C ? n : padded + n - C;
    const float *weight = w.qkv_weight + (size_t)n * C, r = s.qkv[(size_t)n * padded + C], shared = s.b_shared[at];
    float* dw = g.qkv_weight + (size_t)n * C;
    unfold_row(C, s.qkv + (size_t)n * padded, r, weight, w.norm1_weight, w.norm1_bias, dw, g.norm1_weight,
               g.norm1_bias);
    g.qkv_bias[n] = r + shared;
    for (int c = 0; a.grad_mask_token && c < C; c++) {
      dw[c] += shared * a.mask_token[c];
      a.grad_mask_token[c] += shared * weight[c];
    }
  }
}

void finish_mlp(const Problem& a, const Sums& s) {
  const BlockWeights<const float*>& w = a.weights;
  const BlockWeights<float*>& g = a.grads;
  const int C = a.channels, M = a.hidden, padded = round_up(C + 1);
  memset(g.norm2_weight, 0, sizeof(float) * C);
  memset(g.norm2_bias, 0, sizeof(float) * C);
  for (int m = 0; m < M; m++) {
    const float r = s.fc1[(size_t)m * padded + C];
    g.fc1_bias[m] = r;
    unfold_row(C, s.fc1 + (size_t)m * padded, r, w.fc1_weight + (size_t)m * C, w.norm2_weight, w.norm2_bias,
               g.fc1_weight + (size_t)m * C, g.norm2_weight, g.norm2_bias);
    for (int n = 0; n < C; n++) g.fc2_weight[(size_t)n * M + m] = s.fc2[(size_t)m * padded + n];
  }
  memcpy(g.fc2_bias, s.b_fc2, sizeof(float) * C);
}

int finish_jobs(const Problem& a) { return FINISH_JOBS + a.bias.heads; }

void finish(const Problem& a, const float* prepared, float* total, int job) {
  const Sums s(a, total);
  const BlockWeights<float*>& g = a.grads;
  const int C = a.channels;
  if (job == FINISH_QKV) finish_qkv(a, s);
  if (job == FINISH_MLP) finish_mlp(a, s);
  if (job == FINISH_PROJ) {
    for (int n = 0; n < C; n++)
      for (int k = 0; k < C; k++) g.proj_weight[(size_t)n * C + k] = s.proj[(size_t)k * round_up(C + 1) + n];
    memcpy(g.proj_bias, s.b_proj, sizeof(float) * C);
  }
  if (job < FINISH_JOBS) return;
  const int head = job - FINISH_JOBS;
  const int entries = (2 * a.window_height - 1) * (2 * a.window_width - 1);
  for (int i = 0; i < entries; i++) g.position_bias_table[(size_t)i * a.bias.heads + head] = 0.0f;
  BiasSums::finish({a.bias, prepared}, s.bias, g.position_bias_table, head);
}

}  // namespace
}  // namespace MASKED_SWIN_ISA
}  // namespace masked_swin
