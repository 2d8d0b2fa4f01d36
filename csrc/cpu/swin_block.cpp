// The operator swin_block on the CPU.
#include "mask_patterns.h"
#include "tensors.h"
#include "torch_threads.h"

namespace masked_swin {
namespace {

struct Call {
  Tensor x;
  std::vector<Tensor> weights;
  MaybeTensor mask_token, keep, drop_path_scale;
  std::optional<MaskPatterns> patterns;
  SwinBlock a{};

  Call(const Tensor& x_, const std::vector<Tensor>& weights_, const MaybeTensor& mask_token_, const MaybeTensor& keep_,
       const MaybeTensor& drop_path_scale_, int64_t window_height, int64_t window_width, int64_t shift_height,
       int64_t shift_width, int64_t mode, ScalarType dtype)
      : x(contiguous(x_, "x")),
        mask_token(contiguous(mask_token_, "mask_token")),
        keep(contiguous(keep_, "keep", ScalarType::Bool)),
        drop_path_scale(contiguous(drop_path_scale_, "drop_path_scale")) {
    STD_TORCH_CHECK(x.dim() == 4 && weights_.size() == BlockWeights<Tensor>::COUNT,
                    "masked_swin: swin_block needs x (B, H, W, C) and 13 weights");
    for (const Tensor& weight : weights_) weights.push_back(contiguous(weight, "a weight"));
    const auto w = BlockWeights<Tensor>::make([&](int i) { return weights[i]; });
    STD_TORCH_CHECK(w.position_bias_table.dim() == 2, "masked_swin: swin_block needs a bias table (entries, heads)");
    a.batch = x.size(0);
    a.height = static_cast<int>(x.size(1));
    a.width = static_cast<int>(x.size(2));
    a.channels = static_cast<int>(x.size(3));
    a.hidden = static_cast<int>(w.fc1_bias.numel());
    a.window_height = static_cast<int>(window_height);
    a.window_width = static_cast<int>(window_width);
    a.shift_height = static_cast<int>(shift_height);
    a.shift_width = static_cast<int>(shift_width);
    a.mode = static_cast<MaskMode>(mode);
    a.bias.heads = static_cast<int>(w.position_bias_table.size(1));
    a.bias.queries = a.bias.keys = a.tokens();
    a.bias.bias = data(w.position_bias_table);
    a.bias.table_height = a.window_height;
    a.bias.table_width = a.window_width;
    a.bias.shared_key = keep && a.mode < MaskMode::drop;
    a.bias.penalty = keep && !a.bias.shared_key ? EXCLUDED : SHIFT_PENALTY;
    a.bias.pattern_count = 1;
    a.head_dim = a.channels / std::max(a.bias.heads, 1);
    a.bf16 = dtype == ScalarType::BFloat16 && a.channels % 2 == 0 && a.hidden % 2 == 0 && a.head_dim % 2 == 0;
    a.weights = BlockWeights<const float*>::make([&](int i) { return data(weights[i]); });
    a.mask_token = data(mask_token);
    a.keep = data<bool>(keep);
    a.drop_path_scale = data(drop_path_scale);
    a.x = data(x);
    check(w);
    if (a.shift_height || a.shift_width) {
      patterns.emplace(a);
      patterns->describe(a.bias);
    }
  }

  void check(const BlockWeights<Tensor>& w) const {
    const int64_t C = a.channels, M = a.hidden;
    const int64_t table = (2 * a.window_height - 1) * (2 * a.window_width - 1) * a.bias.heads;
    const bool windows = a.tokens() > 0 && a.height % a.window_height == 0 && a.width % a.window_width == 0 &&
                         a.shift_height >= 0 && a.shift_height < a.window_height && a.shift_width >= 0 &&
                         a.shift_width < a.window_width;
    const bool attention = a.bias.heads * a.head_dim == C && w.norm1_weight.numel() == C && w.norm1_bias.numel() == C &&
                           w.qkv_weight.numel() == 3 * C * C && w.qkv_bias.numel() == 3 * C &&
                           w.position_bias_table.numel() == table && w.proj_weight.numel() == C * C &&
                           w.proj_bias.numel() == C;
    const bool mlp = w.norm2_weight.numel() == C && w.norm2_bias.numel() == C && w.fc1_weight.numel() == M * C &&
                     w.fc1_bias.numel() == M && w.fc2_weight.numel() == C * M && w.fc2_bias.numel() == C;
    const bool masks = (!keep || keep->numel() == a.batch * a.height * a.width) && a.mode >= MaskMode::zero &&
                       a.mode <= MaskMode::visible && (!mask_token || mask_token->numel() == C) &&
                       mask_token.has_value() == (a.mode == MaskMode::token) &&
                       (!drop_path_scale || drop_path_scale->numel() == 2 * a.batch);
    STD_TORCH_CHECK(windows && attention && mlp && masks,
                    "masked_swin: swin_block got weights, masks or windows that do not fit x");
  }
};

Tensor swin_block(Tensor x, std::vector<Tensor> weights, MaybeTensor mask_token, MaybeTensor keep,
                  MaybeTensor drop_path_scale, int64_t window_height, int64_t window_width, int64_t shift_height,
                  int64_t shift_width, int64_t mode, ScalarType dtype) {
  Call call(x, weights, mask_token, keep, drop_path_scale, window_height, window_width, shift_height, shift_width, mode,
            dtype);
  Tensor out = contiguous_like(call.x);
  call.a.out = data(out);
  run_forward(call.a, kernels().swin_block, call.a.windows());
  return out;
}

// The gradients of x, the weights and, if there is one, the mask token.
std::vector<Tensor> swin_block_backward(Tensor grad_out, Tensor x, std::vector<Tensor> weights, MaybeTensor mask_token,
                                        MaybeTensor keep, MaybeTensor drop_path_scale, int64_t window_height,
                                        int64_t window_width, int64_t shift_height, int64_t shift_width, int64_t mode,
                                        ScalarType dtype) {
  Call call(x, weights, mask_token, keep, drop_path_scale, window_height, window_width, shift_height, shift_width, mode,
            dtype);
  const Tensor d_out = contiguous(grad_out, "grad_out");
  STD_TORCH_CHECK(d_out.numel() == call.x.numel(), "masked_swin: grad_out does not fit x");
  std::vector<Tensor> grads{contiguous_like(call.x)};
  call.a.out = data(grads.back());
  call.a.grad_out = data(d_out);
  auto gradient_of = [&](const Tensor& weight) { return data(grads.emplace_back(contiguous_like(weight))); };
  call.a.grads = BlockWeights<float*>::make([&](int i) { return gradient_of(call.weights[i]); });
  if (mask_token) call.a.grad_mask_token = gradient_of(*call.mask_token);
  run_backward(call.a, kernels().swin_block, call.a.windows());
  return grads;
}

}  // namespace
}  // namespace masked_swin

STABLE_TORCH_LIBRARY_IMPL(masked_swin, CPU, m) {
  m.impl("swin_block_cpu", TORCH_BOX(&masked_swin::swin_block));
  m.impl("swin_block_cpu_backward", TORCH_BOX(&masked_swin::swin_block_backward));
}
