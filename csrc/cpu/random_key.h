// The tensors (seed, draw, sample) of an operator, from which all its random numbers follow.
#pragma once
#include "tensors.h"

namespace masked_swin {

struct RandomKeyTensors {
  Tensor seed, draw, sample;

  RandomKeyTensors(const Tensor& seed_, const Tensor& draw_, const Tensor& sample_)
      : seed(contiguous(seed_, "seed", ScalarType::Long)),
        draw(contiguous(draw_, "draw", ScalarType::Long)),
        sample(contiguous(sample_, "sample", ScalarType::Long)) {
    STD_TORCH_CHECK(seed.numel() == 1 && draw.numel() == 1 && sample.dim() == 1,
                    "masked_swin: seed and draw need one element, sample one dimension");
  }

  int64_t samples() const { return sample.size(0); }
  RandomKey key() const { return {data<int64_t>(seed), data<int64_t>(draw), data<int64_t>(sample)}; }
};

}  // namespace masked_swin
