#include <assert.h>
#include <stdio.h>
extern "C" {
__global__ void oob_read(const float* x, float* y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i <= n) y[i % n] = x[i];
}
__global__ void oob_write(const float* x, float* y, int n) {
  int i = threadIdx.x;
  y[i - 1] = x[i];
}
__global__ void oob_shared(float* y, int k) {
  __shared__ float s[64];
  s[threadIdx.x] = 1;
  __syncthreads();
  y[threadIdx.x] = s[(threadIdx.x + k)];
}
__global__ void oob_two(float* y, int k) {
  __shared__ float a[60];
  __shared__ float b[64];
  a[threadIdx.x % 60] = 1;
  b[threadIdx.x] = 2;
  __syncthreads();
  y[threadIdx.x] = a[(threadIdx.x + k)] + b[63 - threadIdx.x];
}
__global__ void oob_dyn(float* y, int n) {
  extern __shared__ float d[];
  for (int i = threadIdx.x; i < n; i += blockDim.x) d[i] = i;
  __syncthreads();
  y[threadIdx.x] = d[n - 1 - threadIdx.x];
}
__global__ void local_oob(float* y, int k) {
  float a[8];
  for (int i = 0; i < 8; i++) a[i] = y[i];
  y[threadIdx.x] = a[threadIdx.x + k];
}
__global__ void misaligned(const float* x, float4* y, int off) {
  y[threadIdx.x] = *(const float4*)(x + off + 4 * threadIdx.x);
}
__global__ void misaligned_shared(float4* y, int off) {
  __shared__ float s[256];
  for (int i = 0; i < 4; i++) s[threadIdx.x + 32 * i] = i;
  __syncwarp();
  y[threadIdx.x % 8] = *(float4*)(s + off + 4 * (threadIdx.x % 8));
}
__global__ void null_ptr(const float* x, float* y) { y[threadIdx.x] = x ? 0 : x[3]; }
__global__ void reverse_bad(float* x) {
  __shared__ float s[256];
  int t = threadIdx.x;
  s[t] = x[t];
  x[t] = s[255 - t];
}
__global__ void reverse_good(float* x) {
  __shared__ float s[256];
  int t = threadIdx.x;
  s[t] = x[t];
  __syncthreads();
  x[t] = s[255 - t];
}
__global__ void war_bad(float* x, int n) {
  __shared__ float s[256];
  int t = threadIdx.x;
  for (int k = 0; k < n; k++) {
    s[t] = x[t + k];
    __syncthreads();
    x[t] = s[255 - t]; /* missing barrier */
  }
}
__global__ void warp_exchange(float* x, int sync) {
  __shared__ float s[64];
  int t = threadIdx.x;
  s[t] = x[t];
  if (sync) __syncwarp();
  float v = s[t ^ 1];
  if (sync) __syncwarp();
  s[t] = v * 2;
  if (sync) __syncwarp();
  x[t] = s[t ^ 3];
}
__global__ void ww_bad(float* x) {
  __shared__ float s[4];
  s[threadIdx.x % 4] = threadIdx.x;
  __syncthreads();
  x[threadIdx.x] = s[threadIdx.x % 4];
}
__global__ void scan_bad(int* x) {
  __shared__ int s[128];
  int t = threadIdx.x;
  s[t] = x[t];
  __syncthreads();
  for (int o = 1; o < 128; o *= 2) {
    int v = t >= o ? s[t - o] : 0;
    s[t] += v;
    __syncthreads();
  }
  x[t] = s[t];
}
__global__ void scan_good(int* x) {
  __shared__ int s[128];
  int t = threadIdx.x;
  s[t] = x[t];
  __syncthreads();
  for (int o = 1; o < 128; o *= 2) {
    int v = t >= o ? s[t - o] : 0;
    __syncthreads();
    s[t] += v;
    __syncthreads();
  }
  x[t] = s[t];
}
__global__ void uninit(float* y) {
  __shared__ float s[128];
  if (threadIdx.x != 5) s[threadIdx.x] = 1;
  __syncthreads();
  y[threadIdx.x] = s[127 - threadIdx.x];
}
__global__ void bar_lane(int* y) {
  if (threadIdx.x % 2) {
    y[threadIdx.x] = 1;
    __syncthreads();
  } else {
    __syncthreads();
    y[threadIdx.x] = 2;
  }
}
__global__ void bar_some(int* y, int k) {
  if (threadIdx.x < k) __syncthreads();
  y[threadIdx.x] = 1;
  asm volatile("bar.sync 1, 128;");
}
__global__ void bar_warps(int* y) {
  __shared__ int s;
  if (threadIdx.x < 64) {
    s = 3;
    __syncthreads();
    y[threadIdx.x] = s;
  } else {
    y[threadIdx.x] = 2;
    asm volatile("bar.sync 0;");
    y[threadIdx.x]++;
  }
}
__global__ void early_exit(int* y, int n) {
  if (threadIdx.x >= n) return;
  __syncthreads();
  y[threadIdx.x] = 1;
}
__global__ void named(const int* x, int* y) {  // producer warp 0, consumer warp 1, named barriers 1 and 2
  __shared__ int buf[32];
  int l = threadIdx.x % 32;
  if (threadIdx.x < 32) {
    for (int k = 0; k < 4; k++) {
      if (k) asm volatile("bar.sync 2, 64;" ::: "memory");
      buf[l] = x[32 * k + l];
      asm volatile("bar.arrive 1, 64;" ::: "memory");
    }
  } else {
    for (int k = 0; k < 4; k++) {
      asm volatile("bar.sync 1, 64;" ::: "memory");
      y[32 * k + l] = buf[31 - l];
      if (k < 3) asm volatile("bar.arrive 2, 64;" ::: "memory");
    }
  }
}
__global__ void named_bad(const int* x, int* y) {  // no barrier 2
  __shared__ int buf[32];
  int l = threadIdx.x % 32;
  if (threadIdx.x < 32) {
    for (int k = 0; k < 4; k++) {
      buf[l] = x[32 * k + l];
      asm volatile("bar.arrive 1, 64;" ::: "memory");
    }
  } else {
    for (int k = 0; k < 4; k++) {
      asm volatile("bar.sync 1, 64;" ::: "memory");
      y[32 * k + l] = buf[31 - l];
    }
  }
}
__global__ void shfl_inactive(int* y) {
  int t = threadIdx.x;
  if (t < 16) y[t] = __shfl_down_sync(0xffff, t, 8, 32);
}
__global__ void two_syncwarps(int* y) {
  __shared__ int s[32];
  int t = threadIdx.x;
  if (t < 16) {
    s[t] = t;
    asm volatile("bar.warp.sync 0xffffffff;" ::: "memory");
    y[t] = s[t + 16];
  } else {
    s[t] = 2 * t;
    y[t] = 1;
    asm volatile("bar.warp.sync 0xffffffff;" ::: "memory");
    y[t] += s[t - 16];
  }
}
__global__ void shfl_mask(int* y) {
  int t = threadIdx.x;
  if (t < 20) y[t] = __shfl_xor_sync(0xffff, t, 1);
}
__global__ void shfl_missing(int* y) {
  int t = threadIdx.x;
  if (t < 16)
    y[t] = __shfl_xor_sync(~0u, t, 1);
  else {
    y[t] = 1;
    asm volatile("bar.warp.sync 0xffffffff;");
    y[t]++;
  }
}
__global__ void spin(int* y) {
  while (*(volatile int*)y == 0);
  y[1] = 1;
}
__global__ void asserts(int* y, int k) {
  assert(threadIdx.x < k && "too many");
  y[threadIdx.x] = 1;
}
__global__ void traps(int* y, int k) {
  if (threadIdx.x > k) __trap();
  y[threadIdx.x] = 1;
}
__global__ void hello(int k) {
  printf("t %d %s %.2f %lld %u%%\n", threadIdx.x, k ? "yes" : "no", 1.5 * k, (long long)-5, 7u);
}
__global__ void stride(const float* x, float* y, int s) { y[threadIdx.x] = x[threadIdx.x * s]; }
__global__ void banks(float* y, int s) {
  __shared__ float b[32 * 33];
  for (int i = threadIdx.x; i < 32 * 33; i += 32) b[i] = i;
  __syncthreads();
  float a = 0;
  for (int i = 0; i < 32; i++) a += b[threadIdx.x * s + i];
  y[threadIdx.x] = a;
}
}
__constant__ float table[4];
extern "C" __global__ void cst(float* y) { y[threadIdx.x] = table[threadIdx.x % 4]; }
