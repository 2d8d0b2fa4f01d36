// The operator normal on the CPU.
#include "random_key.h"
#include "torch_threads.h"

namespace masked_swin {
namespace {

Tensor normal(Tensor seed, Tensor draw, Tensor sample, int64_t channels, int64_t pixels) {
  const RandomKeyTensors key(seed, draw, sample);
  STD_TORCH_CHECK(channels >= 0 && pixels >= 0, "masked_swin: normal got arguments out of range");
  Tensor out = empty(sample, {key.samples(), channels, pixels}, ScalarType::Float);
  const Normal normal{.key = key.key(), .channels = channels, .pixels = pixels, .out = data(out)};
  run_rows(normal, kernels().normal, key.samples());
  return out;
}

}  // namespace
}  // namespace masked_swin

STABLE_TORCH_LIBRARY_IMPL(masked_swin, CPU, m) { m.impl("normal_cpu", TORCH_BOX(&masked_swin::normal)); }
