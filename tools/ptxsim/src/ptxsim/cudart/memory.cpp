// Allocation, copies, variables.
#include <cstdlib>
#include <cstring>

#include "state.h"

using namespace ptxsim_cudart;

static cudaError_t copy(const char* who, void* dst, const void* src, size_t n, cudaMemcpyKind k) {
  Lock lock(g_lock);
  if (!n) return cudaSuccess;
  bool d = k == cudaMemcpyHostToDevice || k == cudaMemcpyDeviceToDevice ||
           (k == cudaMemcpyDefault && is_device_address(dst));
  bool s = k == cudaMemcpyDeviceToHost || k == cudaMemcpyDeviceToDevice ||
           (k == cudaMemcpyDefault && is_device_address(src));
  if ((!d && is_device_address(dst)) || (!s && is_device_address(src)))
    return fail(cudaErrorInvalidValue, std::string(who) + ": a device address where the copy kind says host");
  if (d && !(dst = host_memory(who, dst, n, true))) return t_last_error;
  if (s && !(src = host_memory(who, src, n, false))) return t_last_error;
  memmove(dst, src, n);
  return cudaSuccess;
}

extern "C" {

cudaError_t cudaMalloc(void** p, size_t n) {
  Lock lock(g_lock);
  if (!n) {
    *p = nullptr;
    return cudaSuccess;
  }
  void* host = nullptr;
  if (posix_memalign(&host, 512, n)) return set_error(cudaErrorMemoryAllocation);
  memset(host, 0xff, n);
  *p = (void*)place(host, n, SimAllocation::ALLOCATED, 0);
  return cudaSuccess;  // 0xff: NaN, -1
}
cudaError_t cudaFree(void* p) {
  Lock lock(g_lock);
  if (!p) return cudaSuccess;
  auto it = buffers().find((u64)p);
  if (it == buffers().end() || !(it->second.a.flags & SimAllocation::ALLOCATED))
    return fail(cudaErrorInvalidValue, "cudaFree of " + hex((u64)p) + ", which is no allocation (freed twice?)");
  free(it->second.a.host);
  buffers().erase(it);
  return cudaSuccess;
}
cudaError_t cudaMallocAsync(void** p, size_t n, cudaStream_t) { return cudaMalloc(p, n); }
cudaError_t cudaFreeAsync(void* p, cudaStream_t) { return cudaFree(p); }
cudaError_t cudaHostAlloc(void** p, size_t n, unsigned) {  // pinned: one address for host and device
  Lock lock(g_lock);
  if (posix_memalign(p, 4096, n ? n : 1)) return set_error(cudaErrorMemoryAllocation);
  buffers()[(u64)*p] = {{(u64)*p, n, (uint8_t*)*p, SimAllocation::ALLOCATED}, 0};
  return cudaSuccess;
}
cudaError_t cudaMallocHost(void** p, size_t n) { return cudaHostAlloc(p, n, 0); }
cudaError_t cudaMallocManaged(void** p, size_t n, unsigned) { return cudaHostAlloc(p, n, 0); }
cudaError_t cudaFreeHost(void* p) { return cudaFree(p); }
cudaError_t cudaMemcpy(void* d, const void* s, size_t n, cudaMemcpyKind k) { return copy("cudaMemcpy", d, s, n, k); }
cudaError_t cudaMemcpyAsync(void* d, const void* s, size_t n, cudaMemcpyKind k, cudaStream_t) {
  return copy("cudaMemcpyAsync", d, s, n, k);
}
cudaError_t cudaMemcpy2DAsync(void* d, size_t dp, const void* s, size_t sp, size_t w, size_t h, cudaMemcpyKind k,
                              cudaStream_t) {
  for (size_t r = 0; r < h; r++)
    if (cudaError_t e = copy("cudaMemcpy2D", (char*)d + r * dp, (const char*)s + r * sp, w, k)) return e;
  return cudaSuccess;
}
cudaError_t cudaMemcpy2D(void* d, size_t dp, const void* s, size_t sp, size_t w, size_t h, cudaMemcpyKind k) {
  return cudaMemcpy2DAsync(d, dp, s, sp, w, h, k, 0);
}
cudaError_t cudaMemset(void* p, int v, size_t n) {
  Lock lock(g_lock);
  if (!n) return cudaSuccess;
  uint8_t* h = host_memory("cudaMemset", p, n, true);
  if (!h) return t_last_error;
  memset(h, v, n);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* p, int v, size_t n, cudaStream_t) { return cudaMemset(p, v, n); }
static cudaError_t symbol(const void* sym, u64* a, u64* n) {
  Variable v;
  {
    Lock lock(g_lock);
    auto it = variables().find(sym);
    if (it == variables().end()) return set_error(cudaErrorInvalidSymbol);
    v = it->second;
  }
  return set_error(g_hooks.symbol ? (cudaError_t)g_hooks.symbol(v.module, v.name.c_str(), a, n)
                                  : cudaErrorInvalidSymbol);
}
cudaError_t cudaGetSymbolAddress(void** p, const void* sym) {
  u64 a, n;
  cudaError_t e = symbol(sym, &a, &n);
  if (!e) *p = (void*)a;
  return e;
}
cudaError_t cudaGetSymbolSize(size_t* s, const void* sym) {
  u64 a, n;
  cudaError_t e = symbol(sym, &a, &n);
  if (!e) *s = n;
  return e;
}
cudaError_t cudaMemcpyToSymbolAsync(const void* sym, const void* src, size_t n, size_t off, cudaMemcpyKind k,
                                    cudaStream_t) {
  u64 a, size;
  cudaError_t e = symbol(sym, &a, &size);
  if (e) return e;
  Lock lock(g_lock);
  if (off + n > size) return fail(cudaErrorInvalidValue, "cudaMemcpyToSymbol beyond the end of the variable");
  if (k == cudaMemcpyDeviceToDevice && !(src = host_memory("cudaMemcpyToSymbol", src, n, false))) return t_last_error;
  memcpy(find_buffer(a)->a.host + off, src, n);
  return cudaSuccess;
}
cudaError_t cudaMemcpyToSymbol(const void* sym, const void* src, size_t n, size_t off, cudaMemcpyKind k) {
  return cudaMemcpyToSymbolAsync(sym, src, n, off, k, 0);
}
cudaError_t cudaMemcpyFromSymbolAsync(void* dst, const void* sym, size_t n, size_t off, cudaMemcpyKind k,
                                      cudaStream_t) {
  u64 a, size;
  cudaError_t e = symbol(sym, &a, &size);
  return e ? e : copy("cudaMemcpyFromSymbol", dst, (void*)(a + off), n, k);
}
cudaError_t cudaMemcpyFromSymbol(void* dst, const void* sym, size_t n, size_t off, cudaMemcpyKind k) {
  return cudaMemcpyFromSymbolAsync(dst, sym, n, off, k, 0);
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* a, const void* p) {
  Lock lock(g_lock);
  memset(a, 0, sizeof *a);
  const Buffer* b = find_buffer((u64)p);
  if (!b) {
    a->device = -2;
    a->hostPointer = (void*)p;
    return cudaSuccess;
  }
  bool host = (u64)b->a.host == b->a.base;
  a->type = host ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
  a->devicePointer = (void*)p;
  a->hostPointer = host ? (void*)p : nullptr;
  return cudaSuccess;
}

}  // extern "C"
