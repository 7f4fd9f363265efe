// From a tensor's dtype to the C++ type of its elements. The caller names the half types: torch's own on the CPU,
// __half and __nv_bfloat16 in CUDA code.
#pragma once
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

namespace maskco {

template <class T>
struct TypeTag {
  using type = T;
};

// Calls f(TypeTag<T>) for the dtype's T.
template <class Half, class BFloat16, class F>
auto dispatch_floating(torch::headeronly::ScalarType dtype, F&& f) {
  using torch::headeronly::ScalarType;
  switch (dtype) {
    case ScalarType::Float:
      return f(TypeTag<float>{});
    case ScalarType::Double:
      return f(TypeTag<double>{});
    case ScalarType::Half:
      return f(TypeTag<Half>{});
    case ScalarType::BFloat16:
      return f(TypeTag<BFloat16>{});
    default:
      STD_TORCH_CHECK(false, "expected a float32, float64, float16 or bfloat16 tensor, got ",
                      torch::headeronly::toString(dtype));
  }
}

}  // namespace maskco
