// The operator normal on the CPU.
#include "dispatch.h"
#include "tensors.h"

namespace masked_swin {
namespace {

Tensor normal(Tensor seed, Tensor draw, Tensor sample, int64_t channels, int64_t pixels) {
  const Tensor samples = contiguous(sample, "sample", ScalarType::Long);
  STD_TORCH_CHECK(seed.numel() == 1 && draw.numel() == 1 && samples.dim() == 1 && channels >= 0 && pixels >= 0,
                  "masked_swin: normal got arguments out of range");
  Tensor out =
      torch::stable::new_empty(sample, std::vector<int64_t>{sample.size(0), channels, pixels}, ScalarType::Float);
  Normal n{};
  n.seed = static_cast<uint64_t>(*data<int64_t>(contiguous(seed, "seed", ScalarType::Long)));
  n.draw = static_cast<uint32_t>(*data<int64_t>(contiguous(draw, "draw", ScalarType::Long)));
  n.sample = data<int64_t>(samples);
  n.channels = channels;
  n.pixels = pixels;
  n.out = data(out);
  torch::stable::parallel_for(0, sample.size(0), 1,
                              [&](int64_t first, int64_t last) { kernels().normal(n, first, last); });
  return out;
}

}  // namespace
}  // namespace masked_swin

STABLE_TORCH_LIBRARY_IMPL(masked_swin, CPU, m) { m.impl("normal_cpu", TORCH_BOX(&masked_swin::normal)); }
