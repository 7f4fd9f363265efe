// Launches and attributes of kernels. A launch goes to runtime.py, which runs the PTX in the simulator.
#include <cstring>

#include "state.h"

using namespace ptxsim_cudart;

extern "C" {

static cudaError_t launch(const void* f, dim3 g, dim3 b, void** args, size_t shared, cudaStream_t s, int coop,
                          dim3 c = dim3(1, 1, 1)) {
  Function fn;
  {
    Lock lock(g_lock);
    auto it = functions().find(f);
    if (it == functions().end())
      return fail(cudaErrorInvalidDeviceFunction, "launch of a function that is no registered kernel");
    fn = it->second;
  }
  if (!g_hooks.launch) return fail(cudaErrorNoKernelImageForDevice, "ptxsim.runtime is not loaded");
  SimLaunch L = {fn.name.c_str(), fn.module, {g.x, g.y, g.z}, {b.x, b.y, b.z}, {c.x, c.y, c.z},
                 fn.max_dynamic,  coop,      shared,          (u64)s,          args};
  int e = g_hooks.launch(&L);
  if (e) t_last_error = (cudaError_t)e;  // (the hook sets the detail)
  return (cudaError_t)e;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t k, dim3 g, dim3 b, void** args, size_t shared, cudaStream_t s) {
  return launch((const void*)k, g, b, args, shared, s, 0);
}
cudaError_t cudaLaunchKernel(const void* f, dim3 g, dim3 b, void** args, size_t shared, cudaStream_t s) {
  return launch(f, g, b, args, shared, s, 0);
}
cudaError_t cudaLaunchCooperativeKernel(const void* f, dim3 g, dim3 b, void** args, size_t shared, cudaStream_t s) {
  return launch(f, g, b, args, shared, s, 1);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* c, const void* f, void** args) {
  int coop = 0;
  dim3 cl(1, 1, 1);
  for (unsigned i = 0; i < c->numAttrs; i++) {
    auto& a = c->attrs[i];
    if (a.id == cudaLaunchAttributeCooperative) coop = a.val.cooperative;
    if (a.id == cudaLaunchAttributeClusterDimension)
      cl = dim3(a.val.clusterDim.x, a.val.clusterDim.y, a.val.clusterDim.z);
  }
  return launch(f, c->gridDim, c->blockDim, args, c->dynamicSmemBytes, c->stream, coop, cl);
}
static cudaError_t query(const void* f, int block, size_t shared, SimFunction* out) {
  Function fn;
  {
    Lock lock(g_lock);
    auto it = functions().find(f);
    if (it == functions().end()) return set_error(cudaErrorInvalidDeviceFunction);
    fn = it->second;
  }
  return set_error(g_hooks.function ? (cudaError_t)g_hooks.function(fn.module, fn.name.c_str(), block, shared, out)
                                    : cudaErrorNoKernelImageForDevice);
}
cudaError_t cudaFuncSetAttribute(const void* f, cudaFuncAttribute a, int v) {
  SimFunction q;
  cudaError_t e = query(f, -1, 0, &q);
  if (e) return e;
  if (a == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    if (v < 0 || v + q.static_shared > g_device.shared_block)
      return set_error(cudaErrorInvalidValue, std::to_string(v) + " dynamic + " + std::to_string(q.static_shared) +
                                                  " static bytes of shared memory; a block can have " +
                                                  std::to_string(g_device.shared_block));
    Lock lock(g_lock);
    functions()[f].max_dynamic = v;
  }
  return cudaSuccess;
}
cudaError_t cudaFuncSetCacheConfig(const void*, cudaFuncCache) { return cudaSuccess; }
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* a, const void* f) {
  SimFunction q;
  cudaError_t e = query(f, 0, 0, &q);
  if (e) return e;
  memset(a, 0, sizeof *a);
  int dyn;
  {
    Lock lock(g_lock);
    dyn = functions()[f].max_dynamic;
  }
  a->sharedSizeBytes = q.static_shared;
  a->constSizeBytes = q.constant;
  a->localSizeBytes = q.local;
  a->maxThreadsPerBlock = q.max_threads;
  a->numRegs = q.regs;
  a->ptxVersion = q.ptx;
  a->binaryVersion = g_device.major * 10 + g_device.minor;
  a->maxDynamicSharedSizeBytes = dyn >= 0 ? dyn : (48 << 10) - q.static_shared;
  a->preferredShmemCarveout = -1;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n, const void* f, int block, size_t shared,
                                                                   unsigned) {
  SimFunction q;
  cudaError_t e = query(f, block, shared, &q);
  if (!e) *n = q.active;
  return e;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* n, const void* f, int block, size_t shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(n, f, block, shared, 0);
}

}  // extern "C"
