// ATen calls through the dispatcher, which torch's stable C++ API lacks. Remove each one once torch/csrc/stable has it.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>

namespace maskco {

using torch::stable::Tensor;

// out = a[N, C] @ b[C, K]
inline void mm_out(const Tensor& out, const Tensor& a, const Tensor& b) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(a), torch::stable::detail::from(b),
                                    torch::stable::detail::from(out)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  (void)torch::stable::detail::to<Tensor>(stack[0]);  // (the same tensor again, owned by the caller)
}

// rows start .. start + length of a tensor, on the same memory
inline Tensor narrow(const Tensor& t, int64_t dim, int64_t start, int64_t length) {
  if (length == t.size(dim)) return t;  // (making a view takes as long as a small batch's product)
  Tensor view = t;                      // (torch's own narrow needs a non-const reference)
  return torch::stable::narrow(view, dim, start, length);
}

}  // namespace maskco
