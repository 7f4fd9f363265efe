// Errors, devices and their properties.
#include <cstdio>
#include <cstring>

#include "errors.h"
#include "state.h"

using namespace ptxsim_cudart;

static thread_local std::string t_text;  // what cudaGetErrorString returned last

extern "C" {

cudaError_t cudaGetLastError() {
  auto e = t_last_error;
  t_last_error = cudaSuccess;
  return e;
}
cudaError_t cudaPeekAtLastError() { return t_last_error; }
const char* cudaGetErrorName(cudaError_t c) { return error_text(c).name; }
const char* cudaGetErrorString(cudaError_t c) {
  t_text = error_text(c).text;
  if (c != cudaSuccess && !t_detail.empty()) t_text += " [ptxsim: " + t_detail + "]";
  return t_text.c_str();
}
cudaError_t cudaGetDeviceCount(int* n) {
  *n = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* d) {
  *d = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int d) { return set_error(d ? cudaErrorInvalidDevice : cudaSuccess); }
cudaError_t cudaDriverGetVersion(int* v) {
  *v = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* v) {
  *v = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* v, cudaDeviceAttr a, int d) {
  if (d) return set_error(cudaErrorInvalidDevice);
  switch ((int)a) {
    case cudaDevAttrMaxThreadsPerBlock:
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY:
      *v = 1024;
      break;
    case cudaDevAttrMaxBlockDimZ:
      *v = 64;
      break;
    case cudaDevAttrMaxGridDimX:
      *v = 0x7fffffff;
      break;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ:
      *v = 65535;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *v = 48 << 10;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *v = g_device.shared_block;
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *v = g_device.shared_sm;
      break;
    case cudaDevAttrReservedSharedMemoryPerBlock:
      *v = 1024;
      break;
    case cudaDevAttrTotalConstantMemory:
      *v = 64 << 10;
      break;
    case cudaDevAttrWarpSize:
      *v = 32;
      break;
    case cudaDevAttrMaxRegistersPerBlock:
      *v = 65536;
      break;
    case cudaDevAttrMaxRegistersPerMultiprocessor:
      *v = g_device.regs_sm;
      break;
    case cudaDevAttrMultiProcessorCount:
      *v = g_device.sms;
      break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *v = g_device.threads_sm;
      break;
    case cudaDevAttrMaxBlocksPerMultiprocessor:
      *v = g_device.blocks_sm;
      break;
    case cudaDevAttrL2CacheSize:
      *v = g_device.l2;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *v = g_device.major;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *v = g_device.minor;
      break;
    case cudaDevAttrCooperativeLaunch:
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrMemoryPoolsSupported:
      *v = 1;
      break;
    case cudaDevAttrClockRate:
      *v = 1410000;
      break;
    case cudaDevAttrMemoryClockRate:
      *v = 1215000;
      break;
    case cudaDevAttrGlobalMemoryBusWidth:
      *v = 5120;
      break;
    case cudaDevAttrClusterLaunch:
      *v = g_device.major >= 9;
      break;
    default:
      *v = 0;
      return fail(cudaErrorNotSupported,
                  "cudaDeviceGetAttribute: attribute " + std::to_string((int)a) + " is not simulated");
  }
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int d) {
  if (d) return set_error(cudaErrorInvalidDevice);
  memset(p, 0, sizeof *p);
  snprintf(p->name, sizeof p->name, "ptxsim sm_%d%d", g_device.major, g_device.minor);
  p->major = g_device.major;
  p->minor = g_device.minor;
  p->multiProcessorCount = g_device.sms;
  p->warpSize = 32;
  p->totalGlobalMem = 80ull << 30;
  p->sharedMemPerBlock = 48 << 10;
  p->sharedMemPerBlockOptin = g_device.shared_block;
  p->sharedMemPerMultiprocessor = g_device.shared_sm;
  p->reservedSharedMemPerBlock = 1024;
  p->regsPerBlock = 65536;
  p->regsPerMultiprocessor = g_device.regs_sm;
  p->totalConstMem = 64 << 10;
  p->maxThreadsPerBlock = 1024;
  p->maxThreadsPerMultiProcessor = g_device.threads_sm;
  p->maxBlocksPerMultiProcessor = g_device.blocks_sm;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->l2CacheSize = g_device.l2;
  p->memoryBusWidth = 5120;
  p->maxGridSize[0] = 0x7fffffff;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->unifiedAddressing = p->cooperativeLaunch = 1;
  p->clusterLaunch = g_device.major >= 9;
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() { return t_last_error; }
cudaError_t cudaDeviceGetStreamPriorityRange(int* lo, int* hi) {
  *lo = 0;
  *hi = -5;
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* f, size_t* t) {
  *t = 80ull << 30;
  *f = 72ull << 30;
  return cudaSuccess;
}

}  // extern "C"
