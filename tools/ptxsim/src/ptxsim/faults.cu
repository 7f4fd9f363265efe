// Kernels with planted faults, and good ones, for python -m ptxsim.compare. The main function is for a real GPU:
// faults KERNEL GRID BLOCK N runs one kernel with N floats of input and of output.
#include <cstdio>
#include <cstdlib>
#include <cstring>

extern "C" {

// ---- good
__global__ void copy(const float* x, float* y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = x[i];
}
__global__ void reverse(const float* x, float* y, int n) {
  __shared__ float s[128];
  s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = s[n - 1 - threadIdx.x];
}
__global__ void block_sum(const float* x, float* y, int n) {
  __shared__ float partial[32];
  float v = x[threadIdx.x];
  for (int k = 16; k; k >>= 1) v += __shfl_xor_sync(~0u, v, k);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = v;
  __syncthreads();
  if (threadIdx.x == 0)
    for (int k = 1; k < n / 32; k++) v += partial[k];
  if (threadIdx.x == 0) y[0] = v;
}
__global__ void atomic_sum(const float* x, float* y, int n) {
  __shared__ float total;
  if (threadIdx.x == 0) total = 0;
  __syncthreads();
  atomicAdd(&total, x[threadIdx.x]);
  __syncthreads();
  if (threadIdx.x == 0) y[0] = total;
}

// ---- faults
__global__ void read_out_of_bounds(const float* x, float* y, int n) {  // one element too many
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i <= n) y[i % n] = x[i];
}
__global__ void write_out_of_bounds(const float* x, float* y, int n) { y[n - threadIdx.x] = x[threadIdx.x]; }
__global__ void shared_out_of_bounds(const float* x, float* y, int n) {
  __shared__ float s[128];
  s[threadIdx.x + (x[0] >= 0)] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x];
}
__global__ void misaligned(const float* x, float* y, int n) {
  float2 v = *(const float2*)(x + threadIdx.x);  // odd elements are not multiples of 8 bytes
  y[threadIdx.x] = v.x + v.y;
}
__global__ void missing_barrier(const float* x, float* y, int n) {
  __shared__ float s[128];
  s[threadIdx.x] = x[threadIdx.x];
  y[threadIdx.x] = s[n - 1 - threadIdx.x];
}
__global__ void missing_second_barrier(const float* x, float* y, int n) {  // the next round overwrites what is read
  __shared__ float s[128];
  float sum = 0;
  for (int k = 0; k < 2; k++) {
    s[threadIdx.x] = x[threadIdx.x] + k;
    __syncthreads();
    sum += s[n - 1 - threadIdx.x];
  }
  y[threadIdx.x] = sum;
}
__global__ void unordered_writes(const float* x, float* y, int n) {  // no atomicAdd
  __shared__ float total;
  if (threadIdx.x == 0) total = 0;
  __syncthreads();
  total += x[threadIdx.x];
  __syncthreads();
  if (threadIdx.x == 0) y[0] = total;
}
__global__ void uninitialised_shared(const float* x, float* y, int n) {
  __shared__ float s[128];
  if (threadIdx.x < n / 2) s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x];
}
__global__ void uninitialised_global(const float* x, float* y, int n) {  // y was never written
  y[threadIdx.x] += x[threadIdx.x];
}
__global__ void divergent_barrier(const float* x, float* y, int n) {  // a part of a warp
  if (threadIdx.x < 16) __syncthreads();
  y[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  if (threadIdx.x == 0) y[0] = y[n - 1];
}
__global__ void wrong_mask(const float* x, float* y, int n) {  // lane 16 is not in its own mask
  if (threadIdx.x <= 16) __syncwarp(0xffff);
  y[threadIdx.x] = x[threadIdx.x];
}

}  // extern "C"

#ifndef PTXSIM
using Kernel = void (*)(const float*, float*, int);
static const struct {
  const char* name;
  Kernel kernel;
} KERNELS[] = {
#define KERNEL(name) {#name, name}
    KERNEL(copy),
    KERNEL(reverse),
    KERNEL(block_sum),
    KERNEL(atomic_sum),
    KERNEL(read_out_of_bounds),
    KERNEL(write_out_of_bounds),
    KERNEL(shared_out_of_bounds),
    KERNEL(misaligned),
    KERNEL(missing_barrier),
    KERNEL(missing_second_barrier),
    KERNEL(unordered_writes),
    KERNEL(uninitialised_shared),
    KERNEL(uninitialised_global),
    KERNEL(divergent_barrier),
    KERNEL(wrong_mask),
};

int main(int argc, char** argv) {
  if (argc != 5) return fprintf(stderr, "usage: faults KERNEL GRID BLOCK N\n"), 2;
  int grid = atoi(argv[2]), block = atoi(argv[3]), n = atoi(argv[4]);
  for (const auto& k : KERNELS)
    if (!strcmp(k.name, argv[1])) {
      float *x, *y, *zeros = (float*)calloc(n, sizeof(float));
      if (cudaMalloc(&x, n * sizeof(float)) || cudaMalloc(&y, n * sizeof(float))) return 3;
      cudaMemcpy(x, zeros, n * sizeof(float), cudaMemcpyHostToDevice);
      k.kernel<<<grid, block>>>(x, y, n);
      cudaDeviceSynchronize();  // (its error is what the sanitizer reports)
      return 0;
    }
  return fprintf(stderr, "no kernel %s\n", argv[1]), 2;
}
#endif
