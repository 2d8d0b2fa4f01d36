// Helpers between torch's stable tensors and the structs of problem.h. Schemas, shape functions and gradients of the
// operators are in kernels/ops.py. C++ checks shapes again wherever memory is at stake.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>
#include <vector>

#include "problem.h"

namespace masked_swin {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

inline Tensor contiguous(const Tensor& t, const char* name, ScalarType type = ScalarType::Float) {
  STD_TORCH_CHECK(t.is_cpu() && t.scalar_type() == type, "masked_swin: ", name, " has the wrong device or dtype");
  return torch::stable::contiguous(t);
}
inline MaybeTensor contiguous(const MaybeTensor& t, const char* name, ScalarType type = ScalarType::Float) {
  return t ? MaybeTensor(contiguous(*t, name, type)) : t;
}

template <class T = float>
T* data(const Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}
template <class T = float>
T* data(const MaybeTensor& t) {
  return t ? data<T>(*t) : nullptr;
}

// A new tensor of the dtype of `like`, if there is no other.
inline Tensor empty(const Tensor& like, std::vector<int64_t> sizes, std::optional<ScalarType> type = std::nullopt) {
  return torch::stable::new_empty(like, sizes, type);
}
inline Tensor contiguous_like(const Tensor& t) {
  return empty(t, std::vector<int64_t>(t.sizes().begin(), t.sizes().end()));
}

}  // namespace masked_swin
