// What differs between the CUDA build and the sim build of an extension: a file like this one is all.
#pragma once
#include <cuda_runtime.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <string>

#ifdef PTXSIM
#include <ptxsim_host.h>
#define DEMO_NS demo_sim
#define DEMO_KEY CPU
#define DEMO_BOX PTXSIM_BOX
using ptxsim::device_ptr;
inline bool on_device(const torch::stable::Tensor& t) { return t.is_cpu(); }
inline cudaStream_t current_stream(const torch::stable::Tensor&) { return nullptr; }
#else
#define DEMO_NS demo
#define DEMO_KEY CUDA
#define DEMO_BOX TORCH_BOX
template <class T>
T* device_ptr(const torch::stable::Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}
inline bool on_device(const torch::stable::Tensor& t) { return t.is_cuda(); }
inline cudaStream_t current_stream(const torch::stable::Tensor& t) {
  void* s = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &s));
  return static_cast<cudaStream_t>(s);
}
#endif

// (the macros of torch paste their arguments, so expand ours first)
#define DEMO_LIBRARY(ns, m) STABLE_TORCH_LIBRARY(ns, m)
#define DEMO_LIBRARY_IMPL(ns, key, m) STABLE_TORCH_LIBRARY_IMPL(ns, key, m)

inline void check(cudaError_t e, const char* what) {
  STD_TORCH_CHECK(e == cudaSuccess, what, ": ", cudaGetErrorString(e));
}
inline int ceil_div(int64_t a, int64_t b) { return int((a + b - 1) / b); }
