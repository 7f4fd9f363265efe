// All differences between the CUDA build and the simulated build: namespace, dispatch key, device addresses, stream. In
// the simulated build, ops take CPU tensors and launches run compiled PTX on the CPU. Host code accesses tensors'
// memory only through these functions.
#pragma once
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "common/aten.h"
#include "common/checks.h"
#include "common/library.h"

#ifdef PTXSIM
#include <ptxsim_host.h>
#define MASKCO_CUDA_KEY CPU
#define MASKCO_CUDA_BOX PTXSIM_BOX
#else
#define MASKCO_CUDA_KEY CUDA
#define MASKCO_CUDA_BOX TORCH_BOX
#endif

namespace maskco {

#ifdef PTXSIM
using ptxsim::device_ptr;  // with const T, kernels may only read
inline bool on_device(const Tensor& t) { return t.is_cpu(); }
inline cudaStream_t current_stream(const Tensor&) { return nullptr; }
struct DeviceGuard {
  explicit DeviceGuard(const Tensor&) {}
};
// (ATen multiplies 16-bit types into float32 on CUDA only)
inline void wide_mm_out(const Tensor& out, const Tensor& a, const Tensor& b) {
  const ScalarType dtype = out.scalar_type();
  mm_out(out, torch::stable::to(a, dtype), torch::stable::to(b, dtype));
}
#else
template <class T>
T* device_ptr(const Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}
inline bool on_device(const Tensor& t) { return t.is_cuda(); }
inline cudaStream_t current_stream(const Tensor& t) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}
struct DeviceGuard : torch::stable::accelerator::DeviceGuard {
  explicit DeviceGuard(const Tensor& t) : torch::stable::accelerator::DeviceGuard(t.get_device_index()) {}
};
// out = a[N, C] @ b[C, K], in the dtype of sums
inline void wide_mm_out(const Tensor& out, const Tensor& a, const Tensor& b) {
  if (out.scalar_type() == a.scalar_type()) return mm_out(out, a, b);
  std::array<StableIValue, 4> stack{torch::stable::detail::from(a), torch::stable::detail::from(b),
                                    torch::stable::detail::from(out.scalar_type()), torch::stable::detail::from(out)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "dtype_out", stack.data(), TORCH_ABI_VERSION));
  (void)torch::stable::detail::to<Tensor>(stack[0]);  // (the same tensor again, owned by the caller)
}
#endif

inline void check_cuda(cudaError_t error, const char* what) {
  STD_TORCH_CHECK(error == cudaSuccess, "CUDA failed in \"", what, "\": ", cudaGetErrorString(error),
                  ". Run again with CUDA_LAUNCH_BLOCKING=1 to find the call that failed");
}
inline void check_on_device(const Tensor& t, const Tensor& like, const char* name) {
  STD_TORCH_CHECK(on_device(t) && t.get_device_index() == like.get_device_index(), name,
                  " is not on the CUDA device of the first argument. Move it there");
}
// An attribute of the current device. The call is cheap, since the driver keeps these.
inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check_cuda(cudaGetDevice(&device), "current device");
  check_cuda(cudaDeviceGetAttribute(&value, attribute, device), "device attribute");
  return value;
}
template <class T>
const T* optional_ptr(const std::optional<Tensor>& t) {
  return t ? device_ptr<const T>(*t) : nullptr;
}
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace maskco
