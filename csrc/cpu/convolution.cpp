// The operator convolution on the CPU.
#include "tensors.h"
#include "torch_threads.h"

namespace masked_swin {
namespace {

struct Call {
  Tensor x, weight, bias;
  Convolution a{};

  Call(const Tensor& x_, const Tensor& weight_, const Tensor& bias_)
      : x(contiguous(x_, "x")), weight(contiguous(weight_, "weight")), bias(contiguous(bias_, "bias")) {
    STD_TORCH_CHECK(x.dim() == 4 && weight.dim() == 4 && weight.size(1) == x.size(3) && weight.size(2) == 3 &&
                        weight.size(3) == 3 && bias.dim() == 1 && bias.size(0) == weight.size(0),
                    "masked_swin: convolution needs x (B, H, W, I), weight (O, I, 3, 3) and bias (O)");
    a.batch = x.size(0);
    a.height = static_cast<int>(x.size(1));
    a.width = static_cast<int>(x.size(2));
    a.in = static_cast<int>(x.size(3));
    a.out = static_cast<int>(weight.size(0));
    a.x = data(x);
    a.weight = data(weight);
    a.bias = data(bias);
  }
};

Tensor convolution(Tensor x, Tensor weight, Tensor bias) {
  Call call(x, weight, bias);
  Tensor y = empty(call.x, {call.a.batch, call.a.height, call.a.width, call.a.out});
  call.a.y = data(y);
  run_forward(call.a, kernels().convolution, call.a.rows());
  return y;
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(Tensor grad_y, Tensor x, Tensor weight, Tensor bias) {
  Call call(x, weight, bias);
  const Tensor d_y = contiguous(grad_y, "grad_y");
  STD_TORCH_CHECK(d_y.numel() == call.a.rows() * call.a.width * call.a.out,
                  "masked_swin: grad_y does not fit x and weight");
  Tensor d_x = contiguous_like(call.x), d_weight = contiguous_like(call.weight), d_bias = contiguous_like(call.bias);
  call.a.grad_y = data(d_y);
  call.a.grad_x = data(d_x);
  call.a.grad_weight = data(d_weight);
  call.a.grad_bias = data(d_bias);
  run_backward(call.a, kernels().convolution, call.a.rows());
  return {d_x, d_weight, d_bias};
}

}  // namespace
}  // namespace masked_swin

STABLE_TORCH_LIBRARY_IMPL(masked_swin, CPU, m) {
  m.impl("convolution_cpu", TORCH_BOX(&masked_swin::convolution));
  m.impl("convolution_cpu_backward", TORCH_BOX(&masked_swin::convolution_backward));
}
