// The operator swin_block on the CPU.
#include "dispatch.h"
#include "kinds.h"
#include "tensors.h"

namespace masked_swin {
namespace {

// The order of SwinBlockWeights in kernels/swin_block.py.
constexpr int WEIGHTS = 13;

BlockWeights weights_of(const std::vector<Tensor>& t, const MaybeTensor& mask_token) {
  return {data(t[0]), data(t[1]), data(t[2]), data(t[3]),  data(t[4]),  data(t[5]),  data(t[6]),
          data(t[7]), data(t[8]), data(t[9]), data(t[10]), data(t[11]), data(t[12]), data(mask_token)};
}

struct Call {
  Tensor x;
  std::vector<Tensor> weights;
  MaybeTensor mask_token, keep, drop_path_scale;
  std::optional<Kinds> kinds;
  SwinBlock a{};

  Call(const Tensor& x_, const std::vector<Tensor>& weights_, const MaybeTensor& mask_token_, const MaybeTensor& keep_,
       const MaybeTensor& drop_path_scale_, int64_t window_height, int64_t window_width, int64_t shift_height,
       int64_t shift_width, int64_t mode, bool bf16)
      : x(contiguous(x_, "x")),
        mask_token(contiguous(mask_token_, "mask_token")),
        keep(contiguous(keep_, "keep", ScalarType::Bool)),
        drop_path_scale(contiguous(drop_path_scale_, "drop_path_scale")) {
    STD_TORCH_CHECK(x.dim() == 4 && weights_.size() == WEIGHTS && weights_[4].dim() == 2,
                    "masked_swin: swin_block needs x (B, H, W, C) and 13 weights");
    for (const Tensor& t : weights_) weights.push_back(contiguous(t, "a weight"));
    a.batch = x.size(0);
    a.height = static_cast<int>(x.size(1));
    a.width = static_cast<int>(x.size(2));
    a.channels = static_cast<int>(x.size(3));
    a.hidden = static_cast<int>(weights[9].size(0));
    a.window_height = static_cast<int>(window_height);
    a.window_width = static_cast<int>(window_width);
    a.shift_height = static_cast<int>(shift_height);
    a.shift_width = static_cast<int>(shift_width);
    a.mode = static_cast<MaskMode>(mode);
    a.bias.heads = static_cast<int>(weights[4].size(1));
    a.bias.queries = a.bias.keys = a.tokens();
    a.bias.bias = data(weights[4]);
    a.bias.table_height = a.window_height;
    a.bias.table_width = a.window_width;
    a.bias.masked = keep && a.mode < MaskMode::drop;
    a.bias.penalty = keep && !a.bias.masked ? EXCLUDED : -100.0f;
    a.bias.kinds = 1;
    a.head_dim = a.channels / std::max(a.bias.heads, 1);
    a.bf16 = bf16 && a.channels % 2 == 0 && a.hidden % 2 == 0 && a.head_dim % 2 == 0;
    a.weights = weights_of(weights, mask_token);
    a.keep = data<bool>(keep);
    a.drop_path_scale = data(drop_path_scale);
    a.x = data(x);
    check();
    if (a.shift_height || a.shift_width) {
      kinds.emplace(a);
      kinds->describe(a.bias);
    }
  }

  void check() const {
    const int64_t C = a.channels, M = a.hidden, N = a.tokens();
    const int64_t table = (2 * a.window_height - 1) * (2 * a.window_width - 1) * a.bias.heads;
    const int64_t expected[WEIGHTS] = {C, C, 3 * C * C, 3 * C, table, C * C, C, C, C, M * C, M, C * M, C};
    bool fits = N > 0 && a.height % a.window_height == 0 && a.width % a.window_width == 0 &&
                a.bias.heads * a.head_dim == C && a.shift_height >= 0 && a.shift_height < a.window_height &&
                a.shift_width >= 0 && a.shift_width < a.window_width;
    for (int i = 0; i < WEIGHTS; i++) fits = fits && weights[i].numel() == expected[i];
    fits = fits && (!keep || keep->numel() == a.batch * a.height * a.width) &&
           (!drop_path_scale || drop_path_scale->numel() == 2 * a.batch) && (!mask_token || mask_token->numel() == C) &&
           mask_token.has_value() == (a.mode == MaskMode::token) && a.mode >= MaskMode::zero &&
           a.mode <= MaskMode::visible;
    STD_TORCH_CHECK(fits, "masked_swin: swin_block got weights, masks or windows that do not fit x");
  }
};

Tensor swin_block(Tensor x, std::vector<Tensor> weights, MaybeTensor mask_token, MaybeTensor keep,
                  MaybeTensor drop_path_scale, int64_t window_height, int64_t window_width, int64_t shift_height,
                  int64_t shift_width, int64_t mode, bool bf16) {
  Call call(x, weights, mask_token, keep, drop_path_scale, window_height, window_width, shift_height, shift_width, mode,
            bf16);
  Tensor out = contiguous_like(call.x);
  call.a.out = data(out);
  run_forward(call.a, kernels().swin_block, call.a.windows());
  return out;
}

// The gradients of x, the weights and, if there is one, the mask token.
std::vector<Tensor> swin_block_backward(Tensor grad_out, Tensor x, std::vector<Tensor> weights, MaybeTensor mask_token,
                                        MaybeTensor keep, MaybeTensor drop_path_scale, int64_t window_height,
                                        int64_t window_width, int64_t shift_height, int64_t shift_width, int64_t mode,
                                        bool bf16) {
  Call call(x, weights, mask_token, keep, drop_path_scale, window_height, window_width, shift_height, shift_width, mode,
            bf16);
  const Tensor d_out = contiguous(grad_out, "grad_out");
  STD_TORCH_CHECK(d_out.numel() == call.x.numel(), "masked_swin: grad_out does not fit x");
  std::vector<Tensor> grads{contiguous_like(call.x)};
  std::vector<Tensor> weight_grads;
  for (const Tensor& t : call.weights) weight_grads.push_back(contiguous_like(t));
  const MaybeTensor d_token = mask_token ? MaybeTensor(contiguous_like(*mask_token)) : std::nullopt;
  call.a.out = data(grads[0]);
  call.a.grad_out = data(d_out);
  call.a.grads = weights_of(weight_grads, d_token);
  run_backward(call.a, kernels().swin_block, call.a.windows());
  grads.insert(grads.end(), weight_grads.begin(), weight_grads.end());
  if (d_token) grads.push_back(*d_token);
  return grads;
}

}  // namespace
}  // namespace masked_swin

STABLE_TORCH_LIBRARY_IMPL(masked_swin, CPU, m) {
  m.impl("swin_block_cpu", TORCH_BOX(&masked_swin::swin_block));
  m.impl("swin_block_cpu_backward", TORCH_BOX(&masked_swin::swin_block_backward));
}
