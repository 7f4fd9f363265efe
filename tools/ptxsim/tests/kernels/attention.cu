#include <cuda_bf16.h>
#include <math.h>
#include <stdint.h>
__device__ __forceinline__ uint32_t sa(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }
__device__ __forceinline__ void ldm4(uint32_t* r, const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(sa(p)));
}
__device__ __forceinline__ void ldm4t(uint32_t* r, const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(sa(p)));
}
__device__ __forceinline__ void mma(float* c, const uint32_t* a, uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ uint32_t pack(float lo, float hi) {
  __nv_bfloat162 v = __floats2bfloat162_rn(lo, hi);
  return *(uint32_t*)&v;
}
template <int D>
__global__ void __launch_bounds__(128) attention(const __nv_bfloat16* Q, const __nv_bfloat16* K, const __nv_bfloat16* V,
                                                 __nv_bfloat16* O, int L, float scale) {
  constexpr int P = D + 8;
  extern __shared__ __align__(16) __nv_bfloat16 sm[];
  __nv_bfloat16 *sq = sm, *sk = sm + 64 * P, *sv = sk + 64 * P;
  int t = threadIdx.x, w = t / 32, l = t % 32, q0 = blockIdx.x * 64;
  size_t off = (size_t)blockIdx.y * L * D;
  Q += off;
  K += off;
  V += off;
  O += off;
  auto load = [&](__nv_bfloat16* s, const __nv_bfloat16* g, int r0) {
    for (int i = t; i < 64 * D / 8; i += 128) {
      int r = i / (D / 8), c = i % (D / 8) * 8;
      int n = r0 + r < L ? 16 : 0;
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(sa(s + r * P + c)),
                   "l"(n ? g + (size_t)(r0 + r) * D + c : g), "r"(n));
    }
    asm volatile("cp.async.commit_group;");
  };
  load(sq, Q, q0);
  load(sk, K, 0);
  float o[D / 8][4] = {}, m[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
  uint32_t q[D / 16][4];
  for (int k0 = 0; k0 < L; k0 += 64) {
    load(sv, V, k0);
    asm volatile("cp.async.wait_group 1;");
    __syncthreads();
    if (k0 == 0)
      for (int d = 0; d < D / 16; d++) ldm4(q[d], sq + (w * 16 + l % 16) * P + d * 16 + l / 16 * 8);
    float s[8][4] = {};
    for (int d = 0; d < D / 16; d++)
      for (int j = 0; j < 4; j++) {
        uint32_t b[4];
        ldm4(b, sk + (j * 16 + l / 16 * 8 + l % 8) * P + d * 16 + (l / 8 % 2) * 8);
        mma(s[2 * j], q[d], b[0], b[1]);
        mma(s[2 * j + 1], q[d], b[2], b[3]);
      }
    __syncthreads();
    if (k0 + 64 < L) load(sk, K, k0 + 64);
    float mx[2] = {m[0], m[1]};
    for (int j = 0; j < 8; j++)
      for (int e = 0; e < 4; e++) {
        s[j][e] = k0 + j * 8 + l % 4 * 2 + e % 2 < L ? s[j][e] * scale : -INFINITY;
        mx[e / 2] = fmaxf(mx[e / 2], s[j][e]);
      }
    for (int h = 0; h < 2; h++) {
      mx[h] = fmaxf(mx[h], __shfl_xor_sync(~0u, mx[h], 1));
      mx[h] = fmaxf(mx[h], __shfl_xor_sync(~0u, mx[h], 2));
      float f = exp2f(m[h] - mx[h]);
      sum[h] *= f;
      m[h] = mx[h];
      for (int d = 0; d < D / 8; d++) {
        o[d][2 * h] *= f;
        o[d][2 * h + 1] *= f;
      }
    }
    for (int j = 0; j < 8; j++)
      for (int e = 0; e < 4; e++) {
        s[j][e] = exp2f(s[j][e] - m[e / 2]);
        sum[e / 2] += s[j][e];
      }
    if (k0 + 64 < L)
      asm volatile("cp.async.wait_group 1;");
    else
      asm volatile("cp.async.wait_group 0;");
    __syncthreads();
    for (int j = 0; j < 4; j++) {
      uint32_t p[4] = {pack(s[2 * j][0], s[2 * j][1]), pack(s[2 * j][2], s[2 * j][3]),
                       pack(s[2 * j + 1][0], s[2 * j + 1][1]), pack(s[2 * j + 1][2], s[2 * j + 1][3])};
      for (int d = 0; d < D / 16; d++) {
        uint32_t b[4];
        ldm4t(b, sv + (j * 16 + l % 16) * P + d * 16 + l / 16 * 8);
        mma(o[2 * d], p, b[0], b[1]);
        mma(o[2 * d + 1], p, b[2], b[3]);
      }
    }
    __syncthreads();
  }
  for (int h = 0; h < 2; h++) {
    sum[h] += __shfl_xor_sync(~0u, sum[h], 1);
    sum[h] += __shfl_xor_sync(~0u, sum[h], 2);
    int r = q0 + w * 16 + l / 4 + 8 * h;
    if (r < L)
      for (int d = 0; d < D / 8; d++)
        *(__nv_bfloat162*)(O + (size_t)r * D + d * 8 + l % 4 * 2) =
            __floats2bfloat162_rn(o[d][2 * h] / sum[h], o[d][2 * h + 1] / sum[h]);
  }
}
template __global__ void attention<64>(const __nv_bfloat16*, const __nv_bfloat16*, const __nv_bfloat16*, __nv_bfloat16*,
                                       int, float);
template __global__ void attention<32>(const __nv_bfloat16*, const __nv_bfloat16*, const __nv_bfloat16*, __nv_bfloat16*,
                                       int, float);
