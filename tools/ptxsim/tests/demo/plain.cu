// Host functions to call with ctypes.

#include <cuda_runtime.h>

#include <vector>
__device__ int counter;
struct Args {
  const int* x;
  int* y;
  int n;
};
__global__ void add_one(Args a) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < a.n) {
    a.y[i] = a.x[i] + 1;
    atomicAdd(&counter, 1);
  }
}
static __global__ void k(int* y) { *y = 1; }  // (second.cu has one of that name too)
__global__ void __launch_bounds__(1024) big(int* y) { y[threadIdx.x] = 1; }
extern "C" int run(const int* x, int* y, int n) {
  add_one<<<(n + 31) / 32, 32>>>(Args{x, y, n});
  k<<<1, 1>>>(y);
  return cudaGetLastError();
}
extern "C" int round_trip(const int* host, int* back, int n) {
  int* d;
  cudaStream_t s;
  cudaEvent_t e;
  cudaStreamCreate(&s);
  cudaEventCreate(&e);
  if (cudaMalloc(&d, n * 4) || cudaMemcpyAsync(d, host, n * 4, cudaMemcpyHostToDevice, s)) return 1;
  add_one<<<1, n, 0, s>>>(Args{d, d, n});
  cudaEventRecord(e, s);
  cudaStreamSynchronize(s);
  if (cudaMemcpy(back, d, n * 4, cudaMemcpyDeviceToHost)) return 2;
  int c = -1;
  if (cudaMemcpyFromSymbol(&c, counter, 4)) return 3;
  cudaFree(d);
  cudaEventDestroy(e);
  cudaStreamDestroy(s);
  return c == n ? 0 : 100 + c;
}
extern "C" int best_block() {
  int g, b;
  return cudaOccupancyMaxPotentialBlockSize(&g, &b, big) ? -1 : b;
}
extern "C" int wrong_kind(const int* host, int* dev) { return cudaMemcpy(dev, host, 4, cudaMemcpyDeviceToHost); }
extern "C" void leak() {
  void* p;
  cudaMalloc(&p, 48);
}
extern "C" int peek(const int* device) { return *device; }
