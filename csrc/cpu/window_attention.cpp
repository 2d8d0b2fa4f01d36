// The operator window_attention on the CPU.
#include "mask_patterns.h"
#include "tensors.h"
#include "torch_threads.h"

namespace masked_swin {
namespace {

// The tensor with adjacent (heads, head_dim) and one stride between tokens, copied if it has another layout.
// A dimension of size 1 may have any stride, even in a contiguous tensor.
Tensor with_token_rows(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.is_cpu() && t.scalar_type() == ScalarType::Float && (t.dim() == 3 || t.dim() == 4),
                  "masked_swin: ", name, " must be float32 on the CPU with 3 or 4 dimensions");
  const int64_t n = t.dim(), heads = t.size(n - 2), head_dim = t.size(n - 1);
  const bool dense = (head_dim == 1 || t.stride(n - 1) == 1) && (heads == 1 || t.stride(n - 2) == head_dim);
  const bool even = n == 3 || t.size(0) == 1 || t.size(1) == 1 || t.stride(0) == t.stride(1) * t.size(1);
  return dense && even ? t : torch::stable::contiguous(t);
}

TokenRows rows_of(const Tensor& t) {
  const int64_t n = t.dim(), row = t.size(n - 2) * t.size(n - 1);
  // Tokens follow each other along the windows where each window holds a single token.
  const int64_t along = n == 4 && t.size(1) == 1 ? 0 : n - 3;
  return {data(t), t.size(along) == 1 ? row : t.stride(along), n == 3};
}

// Keeps contiguous copies alive as long as the pointers into them.
struct Call {
  Tensor q, k, v, bias;
  MaybeTensor shared_qkv, offsets, position, regions, window_mask;
  std::optional<MaskPatterns> patterns;
  WindowAttention a{};

  Call(const Tensor& q_, const Tensor& k_, const Tensor& v_, const Tensor& bias_, const MaybeTensor& shared_qkv_,
       const MaybeTensor& offsets_, const MaybeTensor& position_, const MaybeTensor& regions_,
       const MaybeTensor& window_mask_, double scale)
      : q(with_token_rows(q_, "q")),
        k(with_token_rows(k_, "k")),
        v(with_token_rows(v_, "v")),
        bias(contiguous(bias_, "bias")),
        shared_qkv(contiguous(shared_qkv_, "shared_qkv")),
        offsets(contiguous(offsets_, "offsets", ScalarType::Int)),
        position(contiguous(position_, "position", ScalarType::Int)),
        regions(contiguous(regions_, "regions", ScalarType::Int)),
        window_mask(contiguous(window_mask_, "window_mask")) {
    STD_TORCH_CHECK(bias.dim() == 3 && (!offsets || (offsets->dim() == 1 && offsets->size(0) > 0)) &&
                        (!position || position->dim() == 1) && (!window_mask || window_mask->dim() == 3),
                    "masked_swin: bias, offsets, position or window_mask has the wrong number of dimensions");
    a.windows = offsets ? offsets->size(0) - 1 : q.size(0);
    a.head_dim = static_cast<int>(q.size(q.dim() - 1));
    a.scale = static_cast<float>(scale);
    a.q = rows_of(q);
    a.k = rows_of(k);
    a.v = rows_of(v);
    a.shared_qkv = data(shared_qkv);
    a.offsets = data<int32_t>(offsets);
    a.position = data<int32_t>(position);
    a.window_mask = data(window_mask);
    a.mask_windows = window_mask ? window_mask->size(0) : 0;
    a.bias.heads = static_cast<int>(bias.size(0));
    a.bias.queries = static_cast<int>(bias.size(1));
    a.bias.keys = static_cast<int>(bias.size(2));
    a.bias.bias = data(bias);
    a.bias.shared_key = shared_qkv.has_value();
    a.bias.exponentials = a.bias.shared_key;
    a.bias.penalty = shared_qkv || !a.k.compact ? SHIFT_PENALTY : EXCLUDED;
    a.bias.pattern_count = 1;
    check();
    if (regions) {
      patterns.emplace(data<int32_t>(regions), regions->size(0), a.bias.keys);
      patterns->describe(a.bias);
    }
  }

  // Every index that a kernel follows stays inside its tensor.
  void check() const {
    auto check_list = [this](const Tensor& t, int tokens) {
      const int64_t n = t.dim();
      STD_TORCH_CHECK(t.size(n - 2) == a.bias.heads && t.size(n - 1) == a.head_dim,
                      "masked_swin: q, k, v need (windows, tokens, heads, head_dim) or (tokens, heads, head_dim)");
      const bool fits = n == 4 ? t.size(0) == a.windows && t.size(1) == tokens
                               : offsets && position && a.bias.queries == a.bias.keys &&
                                     a.offsets[a.windows] <= std::min(t.size(0), position->size(0));
      STD_TORCH_CHECK(fits, "masked_swin: bias, offsets or position do not fit q, k, v");
    };
    check_list(q, a.bias.queries);
    check_list(k, a.bias.keys);
    check_list(v, a.bias.keys);
    STD_TORCH_CHECK(a.head_dim <= MAX_HEAD_DIM, "masked_swin: head_dim is ", a.head_dim, ", at most ", MAX_HEAD_DIM,
                    " fit");
    STD_TORCH_CHECK(a.k.compact == a.v.compact && (a.k.compact || !a.q.compact) && (a.k.compact || !shared_qkv),
                    "masked_swin: k and v must both be compact, if q is or if shared_qkv is given");
    STD_TORCH_CHECK(!shared_qkv || shared_qkv->numel() == 3 * a.bias.heads * a.head_dim,
                    "masked_swin: shared_qkv does not fit q");
    STD_TORCH_CHECK(!regions || (regions->dim() == 2 && regions->size(1) == a.bias.keys && regions->size(0) > 0 &&
                                 a.bias.queries == a.bias.keys),
                    "masked_swin: regions must be (windows, tokens)");
    STD_TORCH_CHECK(!window_mask || window_mask->numel() == a.mask_windows * a.bias.queries * a.bias.keys,
                    "masked_swin: window_mask does not fit bias");
    if (!offsets) return;
    bool valid = a.offsets[0] == 0;
    for (int64_t w = 0; w < a.windows; w++) {
      const int32_t count = a.offsets[w + 1] - a.offsets[w];
      valid = valid && count >= 0 && count <= a.bias.keys;
    }
    for (int64_t w = 0; valid && w < a.windows; w++)
      for (int32_t i = a.offsets[w]; valid && i < a.offsets[w + 1]; i++)
        valid = a.position[i] < a.bias.keys && a.position[i] > (i > a.offsets[w] ? a.position[i - 1] : -1);
    STD_TORCH_CHECK(valid, "masked_swin: offsets must rise by at most a window, positions rise inside it");
  }
};

// Fills what follows the last visible token with 0.
void clear_unused(const Tensor& t, const WindowAttention& a) {
  if (t.dim() != 3) return;
  const int64_t row = t.size(1) * t.size(2);
  std::fill(data(t) + a.offsets[a.windows] * row, data(t) + t.size(0) * row, 0.0f);
}

Tensor window_attention(Tensor q, Tensor k, Tensor v, Tensor bias, MaybeTensor shared_qkv, MaybeTensor offsets,
                        MaybeTensor position, MaybeTensor regions, MaybeTensor window_mask, double scale) {
  Call call(q, k, v, bias, shared_qkv, offsets, position, regions, window_mask, scale);
  WindowAttention& a = call.a;
  Tensor out = a.compact_out() ? empty(q, {q.size(0), a.bias.heads, a.head_dim})
                               : empty(q, {a.windows, a.bias.queries, a.bias.heads, a.head_dim});
  clear_unused(out, a);
  a.out = rows_of(out);
  run_forward(a, kernels().window_attention, a.windows);
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> window_attention_backward(
    Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor bias, MaybeTensor shared_qkv, MaybeTensor offsets,
    MaybeTensor position, MaybeTensor regions, MaybeTensor window_mask, double scale) {
  Call call(q, k, v, bias, shared_qkv, offsets, position, regions, window_mask, scale);
  WindowAttention& a = call.a;
  const Tensor d_out = with_token_rows(grad_out, "grad_out");
  STD_TORCH_CHECK(
      d_out.dim() == (a.compact_out() ? 3 : 4) &&
          d_out.numel() == (a.compact_out() ? q.numel() : a.windows * a.bias.queries * a.bias.heads * a.head_dim),
      "masked_swin: grad_out does not fit the output");
  Tensor dq = contiguous_like(q), dk = contiguous_like(k), dv = contiguous_like(v), d_bias = contiguous_like(bias);
  Tensor d_shared_qkv = shared_qkv ? contiguous_like(*call.shared_qkv) : empty(q, {0});
  for (const Tensor* t : {&dq, &dk, &dv}) clear_unused(*t, a);
  a.grad_out = rows_of(d_out);
  a.grad_q = rows_of(dq);
  a.grad_k = rows_of(dk);
  a.grad_v = rows_of(dv);
  a.grad_bias = data(d_bias);
  a.grad_shared_qkv = data(d_shared_qkv);
  run_backward(a, kernels().window_attention, a.windows);
  return {dq, dk, dv, d_bias, d_shared_qkv};
}

}  // namespace
}  // namespace masked_swin

STABLE_TORCH_LIBRARY_IMPL(masked_swin, CPU, m) {
  m.impl("window_attention_cpu", TORCH_BOX(&masked_swin::window_attention));
  m.impl("window_attention_cpu_backward", TORCH_BOX(&masked_swin::window_attention_backward));
}
