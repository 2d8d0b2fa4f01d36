// The operator token_mask on the CPU.
#include "dispatch.h"
#include "tensors.h"

namespace masked_swin {
namespace {

Tensor token_mask(Tensor seed, Tensor draw, Tensor sample, int64_t tokens, int64_t heads, int64_t low, int64_t high,
                  bool ratio_per_sample) {
  const Tensor samples = contiguous(sample, "sample", ScalarType::Long);
  STD_TORCH_CHECK(seed.numel() == 1 && draw.numel() == 1 && samples.dim() == 1 && tokens >= 0 && heads >= 1 &&
                      0 <= low && low <= high && high <= 100,
                  "masked_swin: token_mask got arguments out of range");
  Tensor out = torch::stable::new_empty(sample, std::vector<int64_t>{sample.size(0), heads, tokens}, ScalarType::Bool);
  TokenMask m{};
  m.seed = static_cast<uint64_t>(*data<int64_t>(contiguous(seed, "seed", ScalarType::Long)));
  m.draw = static_cast<uint32_t>(*data<int64_t>(contiguous(draw, "draw", ScalarType::Long)));
  m.sample = data<int64_t>(samples);
  m.tokens = tokens;
  m.heads = heads;
  m.low = static_cast<uint32_t>(low);
  m.high = static_cast<uint32_t>(high);
  m.ratio_per_sample = ratio_per_sample;
  m.out = data<bool>(out);
  torch::stable::parallel_for(0, sample.size(0) * heads, 1,
                              [&](int64_t first, int64_t last) { kernels().token_mask(m, first, last); });
  return out;
}

}  // namespace
}  // namespace masked_swin

STABLE_TORCH_LIBRARY_IMPL(masked_swin, CPU, m) { m.impl("token_mask_cpu", TORCH_BOX(&masked_swin::token_mask)); }
