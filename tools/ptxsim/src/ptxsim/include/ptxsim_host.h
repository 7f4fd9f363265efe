// For the sim build of an extension (-DPTXSIM): what its host code needs beside the CUDA runtime API.
// Device addresses are made up (far from every host address): host code that follows one crashes, as it would with a
// GPU.
#pragma once
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

extern "C" {
// The device address of host memory [host, host + nbytes), which kernels then use in place, with these exact bounds.
// It holds until the scope (below) ends in which it was first registered, or until ptxsim_forget().
void* ptxsim_register_buffer(const void* host, size_t nbytes, int writable);
void ptxsim_forget(void);
void ptxsim_scope_begin(void);
void ptxsim_scope_end(void);
const char* ptxsim_unchecked(
    void);  // an error of this thread that no cudaGetLastError etc. has fetched, or null; fetches it
}

namespace ptxsim {
struct Scope {  // the duration of one op call
  Scope() { ptxsim_scope_begin(); }
  ~Scope() { ptxsim_scope_end(); }
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;
};
}  // namespace ptxsim

#if __has_include(<torch/csrc/stable/tensor.h>)
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
namespace ptxsim {
// device_ptr<const float>(t) may only be read, device_ptr<float>(t) written too
template <class T>
T* device_ptr(const torch::stable::Tensor& t) {
  if (t.numel() == 0) return nullptr;
  size_t last = 0;
  for (int64_t d = 0; d < t.dim(); d++) last += size_t(t.size(d) - 1) * size_t(t.stride(d));
  return static_cast<T*>(ptxsim_register_buffer(t.data_ptr(), (last + 1) * t.element_size(), !std::is_const_v<T>));
}
// around TORCH_BOX(fn): buffers are registered for the call; an error that fn did not check becomes an exception
template <auto Boxed>
void boxed(StableIValue* stack, uint64_t nargs, uint64_t nouts) {
  Scope scope;
  Boxed(stack, nargs, nouts);
  if (const char* e = ptxsim_unchecked())
    throw std::runtime_error(std::string("the op did not check for this error: ") + e);
}
}  // namespace ptxsim
#define PTXSIM_BOX(fn) (&ptxsim::boxed<&TORCH_BOX(fn)>)
#endif
