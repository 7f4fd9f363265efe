#pragma once
#include <cuda_bf16.h>

#include <cstdint>

// a block per row; the row is kept in shared memory
template <int BLOCK>
__device__ float block_reduce(float v, float* red, bool max) {
  for (int o = 16; o; o >>= 1) {
    float u = __shfl_xor_sync(~0u, v, o);
    v = max ? fmaxf(v, u) : v + u;
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) red[threadIdx.x / 32] = v;
  __syncthreads();
  v = red[0];
  for (int w = 1; w < BLOCK / 32; w++) v = max ? fmaxf(v, red[w]) : v + red[w];
  return v;
}
template <typename T, int BLOCK>
__global__ void __launch_bounds__(BLOCK) softmax_rows(const T* x, T* y, int n) {
  extern __shared__ float row[];
  float* red = row + n;
  x += int64_t(blockIdx.x) * n, y += int64_t(blockIdx.x) * n;
  float m = -INFINITY, s = 0;
  for (int i = threadIdx.x; i < n; i += BLOCK) m = fmaxf(m, row[i] = float(x[i]));
  m = block_reduce<BLOCK>(m, red, true);
  for (int i = threadIdx.x; i < n; i += BLOCK) s += row[i] = expf(row[i] - m);
  s = block_reduce<BLOCK>(s, red, false);
  for (int i = threadIdx.x; i < n; i += BLOCK) y[i] = T(row[i] / s);
}
template <int BLOCK>
__global__ void __launch_bounds__(BLOCK) softmax_rows_backward(const float* g, const float* y, float* dx, int n) {
  __shared__ float red[BLOCK / 32];
  g += int64_t(blockIdx.x) * n, y += int64_t(blockIdx.x) * n, dx += int64_t(blockIdx.x) * n;
  float s = 0;
  for (int i = threadIdx.x; i < n; i += BLOCK) s += g[i] * y[i];
  s = block_reduce<BLOCK>(s, red, false);
  for (int i = threadIdx.x; i < n; i += BLOCK) dx[i] = y[i] * (g[i] - s);
}

__global__ void partial_sums(const float* x, float* part, int64_t n) {
  __shared__ float red[8];
  float s = 0;
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < n; i += int64_t(gridDim.x) * blockDim.x)
    s += x[i];
  s = block_reduce<256>(s, red, false);
  if (threadIdx.x == 0) part[blockIdx.x] = s;
}
__global__ void final_sum(const float* part, float* out, int n) {
  __shared__ float red[8];
  float s = 0;
  for (int i = threadIdx.x; i < n; i += 256) s += part[i];
  s = block_reduce<256>(s, red, false);
  if (threadIdx.x == 0) *out = s;
}

// c (m, n) = a (m, k) b (n, k)^T: 8 warps make a tile of 128 x 64, each 16 rows of it
const int BM = 128, BN = 64, BK = 128, LD = BK + 8;
const int MATMUL_SHARED = (BM + BN) * LD * 2;
__device__ __forceinline__ uint32_t pair(const __nv_bfloat16* p) { return *reinterpret_cast<const uint32_t*>(p); }
__global__ void __launch_bounds__(256)
    matmul(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c, int m, int n, int k) {
  extern __shared__ __align__(16) __nv_bfloat16 sm[];
  __nv_bfloat16 *A = sm, *B = sm + BM * LD;
  int m0 = blockIdx.y * BM, n0 = blockIdx.x * BN, w = threadIdx.x / 32, l = threadIdx.x % 32, g = l / 4, t = l % 4;
  float d[BN / 8][4] = {};
  for (int k0 = 0; k0 < k; k0 += BK) {
    for (int i = threadIdx.x; i < (BM + BN) * BK; i += 256) {
      int r = i / BK, q = i % BK, gr = r < BM ? m0 + r : n0 + r - BM;
      bool in = k0 + q < k && gr < (r < BM ? m : n);
      sm[r * LD + q] = in ? (r < BM ? a : b)[int64_t(gr) * k + k0 + q] : __nv_bfloat16(0.f);
    }
    __syncthreads();
    for (int q = 0; q < BK; q += 16) {
      const __nv_bfloat16* p = A + (16 * w + g) * LD + q + 2 * t;
      uint32_t x[4] = {pair(p), pair(p + 8 * LD), pair(p + 8), pair(p + 8 * LD + 8)};
      for (int j = 0; j < BN / 8; j++) {
        const __nv_bfloat16* r = B + (8 * j + g) * LD + q + 2 * t;
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])
            : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(pair(r)), "r"(pair(r + 8)));
      }
    }
    __syncthreads();
  }
  for (int j = 0; j < BN / 8; j++)
    for (int e = 0; e < 4; e++) {
      int r = m0 + 16 * w + g + e / 2 * 8, q = n0 + 8 * j + 2 * t + e % 2;
      if (r < m && q < n) c[int64_t(r) * n + q] = d[j][e];
    }
}

__constant__ float bias[1];
__global__ void axpb(const float* x, float* y, float a, int64_t n) {
  int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (i < n) y[i] = a * x[i] + bias[0];
}
