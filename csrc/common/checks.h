// Checks of every host function. Python has already checked shapes and types, with full messages. These checks guard
// direct callers of torch.ops.maskco.*.
#pragma once
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>

namespace maskco {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check_dim(const Tensor& t, int64_t dim, const char* name) {
  STD_TORCH_CHECK(t.dim() == dim, name, " must have ", dim, " dimensions, got ", t.dim());
}
inline void check_size(const Tensor& t, int64_t d, int64_t size, const char* name) {
  STD_TORCH_CHECK(t.size(d) == size, name, " must have size ", size, " in dimension ", d, ", got ", t.size(d));
}
inline void check_dtype(const Tensor& t, ScalarType dtype, const char* name) {
  STD_TORCH_CHECK(t.scalar_type() == dtype, name, " must be of dtype ", torch::headeronly::toString(dtype), ", got ",
                  torch::headeronly::toString(t.scalar_type()));
}
inline bool is_floating(const Tensor& t) {
  auto s = t.scalar_type();
  return s == ScalarType::Float || s == ScalarType::Double || s == ScalarType::Half || s == ScalarType::BFloat16;
}
inline void check_floating(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(is_floating(t), name, " must be float32, float64, float16 or bfloat16, got ",
                  torch::headeronly::toString(t.scalar_type()));
}
// The dtype of sums: float64 for float64, else float32.
inline ScalarType accumulation_type(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

}  // namespace maskco
