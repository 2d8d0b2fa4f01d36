// The operator token_mask on the CPU.
#include "random_key.h"
#include "torch_threads.h"

namespace masked_swin {
namespace {

Tensor token_mask(Tensor seed, Tensor draw, Tensor sample, Tensor percent, int64_t height, int64_t width,
                  int64_t /*window_height*/, int64_t /*window_width*/, int64_t /*shift_height*/,
                  int64_t /*shift_width*/, int64_t heads, bool exact) {
  STD_TORCH_CHECK(!exact, "masked_swin: exact masks are not in this kernel");
  const RandomKeyTensors key(seed, draw, sample);
  const Tensor percents = contiguous(percent, "percent", ScalarType::Long);
  STD_TORCH_CHECK(height >= 0 && width >= 0 && heads >= 1, "masked_swin: token_mask got arguments out of range");
  STD_TORCH_CHECK(percents.dim() == 2 && (percents.size(0) == 1 || percents.size(0) == key.samples()) &&
                      (percents.size(1) == 1 || percents.size(1) == heads),
                  "masked_swin: percent must be (1 or B, 1 or heads)");
  Tensor out = empty(sample, {key.samples(), heads, height * width}, ScalarType::Bool);
  const TokenMask mask{
      .key = key.key(),
      .percent = data<int64_t>(percents),
      .sample_stride = percents.size(0) == 1 ? 0 : percents.size(1),
      .head_stride = percents.size(1) == 1 ? 0 : 1,
      .tokens = height * width,
      .heads = heads,
      .out = data<bool>(out),
  };
  run_rows(mask, kernels().token_mask, key.samples() * heads);
  return out;
}

}  // namespace
}  // namespace masked_swin

STABLE_TORCH_LIBRARY_IMPL(masked_swin, CPU, m) { m.impl("token_mask_cpu", TORCH_BOX(&masked_swin::token_mask)); }
