#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <mma.h>
#include <stdint.h>
__device__ __forceinline__ uint32_t saddr(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }
__device__ __forceinline__ void cp16(void* d, const void* s, bool ok) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(saddr(d)), "l"(s), "r"(ok ? 16 : 0));
}
__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;"); }
template <int N>
__device__ __forceinline__ void wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N));
}
__device__ __forceinline__ void ldm4(uint32_t* r, const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(saddr(p)));
}
__device__ __forceinline__ void ldm4t(uint32_t* r, const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(saddr(p)));
}
__device__ __forceinline__ void mma_bf16(float* c, const uint32_t* a, const uint32_t* b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void mma_tf32(float* c, const uint32_t* a, const uint32_t* b) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// C[M,N] = A[M,K] B[K,N], bf16, 64x64x32 tiles, 4 warps of 32x32, double buffered
#ifndef NOWAIT
#define NOWAIT 0
#endif
extern "C" __global__ void __launch_bounds__(128)
    gemm_bf16(const __nv_bfloat16* A, const __nv_bfloat16* B, float* C, int M, int N, int K) {
  __shared__ __align__(16) __nv_bfloat16 sA[2][64][40], sB[2][32][72];
  int t = threadIdx.x, w = t / 32, l = t % 32, m0 = blockIdx.y * 64, n0 = blockIdx.x * 64, wm = (w / 2) * 32,
      wn = (w % 2) * 32;
  float acc[2][4][4] = {};
  auto load = [&](int s, int k0) {
    for (int i = t; i < 64 * 4; i += 128) {
      int r = i / 4, c = i % 4 * 8;
      bool ok = m0 + r < M && k0 + c < K;
      cp16(&sA[s][r][c], ok ? A + (size_t)(m0 + r) * K + k0 + c : A, ok);
    }
    for (int i = t; i < 32 * 8; i += 128) {
      int r = i / 8, c = i % 8 * 8;
      bool ok = k0 + r < K && n0 + c < N;
      cp16(&sB[s][r][c], ok ? B + (size_t)(k0 + r) * N + n0 + c : B, ok);
    }
    commit();
  };
  load(0, 0);
  int s = 0;
  for (int k0 = 0; k0 < K; k0 += 32, s ^= 1) {
    if (k0 + 32 < K) {
      load(s ^ 1, k0 + 32);
      if (!NOWAIT) wait<1>();
    } else if (!NOWAIT)
      wait<0>();
    __syncthreads();
    for (int kk = 0; kk < 32; kk += 16) {
      uint32_t a[2][4], b[2][4];
      for (int i = 0; i < 2; i++) ldm4(a[i], &sA[s][wm + i * 16 + l % 16][kk + l / 16 * 8]);
      for (int j = 0; j < 2; j++) ldm4t(b[j], &sB[s][kk + l % 16][wn + j * 16 + l / 16 * 8]);
      for (int i = 0; i < 2; i++)
        for (int j = 0; j < 4; j++) mma_bf16(acc[i][j], a[i], &b[j / 2][j % 2 * 2]);
    }
    __syncthreads();
  }
  for (int i = 0; i < 2; i++)
    for (int j = 0; j < 4; j++)
      for (int e = 0; e < 4; e++) {
        int r = m0 + wm + i * 16 + l / 4 + e / 2 * 8, c = n0 + wn + j * 8 + l % 4 * 2 + e % 2;
        if (r < M && c < N) C[(size_t)r * N + c] = acc[i][j][e];
      }
}
// tf32: A[M,K] row-major, B given as [N,K]; 32x32x16 tiles, one warp per 16x16... 4 warps
extern "C" __global__ void __launch_bounds__(128)
    gemm_tf32(const float* A, const float* Bt, float* C, int M, int N, int K) {
  __shared__ __align__(16) float sA[2][32][20], sB[2][32][20];
  int t = threadIdx.x, w = t / 32, l = t % 32, g = l / 4, q = l % 4, m0 = blockIdx.y * 32, n0 = blockIdx.x * 32,
      wm = w / 2 * 16, wn = w % 2 * 16;
  float acc[2][4] = {};
  auto load = [&](int s, int k0) {
    int r = t / 4, c = t % 4 * 4;
    bool oa = m0 + r < M && k0 + c < K, ob = n0 + r < N && k0 + c < K;
    cp16(&sA[s][r][c], oa ? A + (size_t)(m0 + r) * K + k0 + c : A, oa);
    cp16(&sB[s][r][c], ob ? Bt + (size_t)(n0 + r) * K + k0 + c : Bt, ob);
    commit();
  };
  auto tf = [](float x) {
    uint32_t r;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x));
    return r;
  };
  load(0, 0);
  int s = 0;
  for (int k0 = 0; k0 < K; k0 += 16, s ^= 1) {
    if (k0 + 16 < K) {
      load(s ^ 1, k0 + 16);
      wait<1>();
    } else
      wait<0>();
    __syncthreads();
    for (int kk = 0; kk < 16; kk += 8) {
      uint32_t a[4] = {tf(sA[s][wm + g][kk + q]), tf(sA[s][wm + g + 8][kk + q]), tf(sA[s][wm + g][kk + q + 4]),
                       tf(sA[s][wm + g + 8][kk + q + 4])};
      for (int j = 0; j < 2; j++) {
        uint32_t b[2] = {tf(sB[s][wn + j * 8 + g][kk + q]), tf(sB[s][wn + j * 8 + g][kk + q + 4])};
        mma_tf32(acc[j], a, b);
      }
    }
    __syncthreads();
  }
  for (int j = 0; j < 2; j++)
    for (int e = 0; e < 4; e++) {
      int r = m0 + wm + g + e / 2 * 8, c = n0 + wn + j * 8 + q * 2 + e % 2;
      if (r < M && c < N) C[(size_t)r * N + c] = acc[j][e];
    }
}
using namespace nvcuda;
template <typename T, typename AccT, int M, int N, int K, bool COL>
__device__ void wm(const T* a, const T* b, AccT* c) {
  wmma::fragment<wmma::matrix_a, M, N, K, T, wmma::row_major> fa;
  wmma::fragment<wmma::accumulator, M, N, K, AccT> fc;
  wmma::load_matrix_sync(fc, c, N, wmma::mem_row_major);
  wmma::load_matrix_sync(fa, a, K);
  if constexpr (COL) {
    wmma::fragment<wmma::matrix_b, M, N, K, T, wmma::col_major> fb;
    wmma::load_matrix_sync(fb, b, K);
    wmma::mma_sync(fc, fa, fb, fc);
  } else {
    wmma::fragment<wmma::matrix_b, M, N, K, T, wmma::row_major> fb;
    wmma::load_matrix_sync(fb, b, N);
    wmma::mma_sync(fc, fa, fb, fc);
  }
  for (int i = 0; i < fc.num_elements; i++) fc.x[i] = fc.x[i] * (AccT)2.f;
  wmma::store_matrix_sync(c, fc, N, wmma::mem_row_major);
}
extern "C" __global__ void wmma_f16(const half* a, const half* b, float* c) {
  wm<half, float, 16, 16, 16, true>(a, b, c);
}
extern "C" __global__ void wmma_f16_32(const half* a, const half* b, float* c) {
  wm<half, float, 32, 8, 16, false>(a, b, c);
}
extern "C" __global__ void wmma_f16_acc(const half* a, const half* b, half* c) {
  wm<half, half, 8, 32, 16, false>(a, b, c);
}
extern "C" __global__ void wmma_bf16(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c) {
  wm<__nv_bfloat16, float, 16, 16, 16, false>(a, b, c);
}
extern "C" __global__ void wmma_bf16_8(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c) {
  wm<__nv_bfloat16, float, 8, 32, 16, true>(a, b, c);
}
extern "C" __global__ void wmma_tf32(const float* a, const float* b, float* c) {
  wmma::fragment<wmma::matrix_a, 16, 16, 8, wmma::precision::tf32, wmma::row_major> fa;
  wmma::fragment<wmma::matrix_b, 16, 16, 8, wmma::precision::tf32, wmma::col_major> fb;
  wmma::fragment<wmma::accumulator, 16, 16, 8, float> fc;
  wmma::fill_fragment(fc, 0.f);
  wmma::load_matrix_sync(fa, a, 8);
  wmma::load_matrix_sync(fb, b, 8);
  for (int i = 0; i < fa.num_elements; i++) fa.x[i] = wmma::__float_to_tf32(fa.x[i]);
  for (int i = 0; i < fb.num_elements; i++) fb.x[i] = wmma::__float_to_tf32(fb.x[i]);
  wmma::mma_sync(fc, fa, fb, fc);
  wmma::store_matrix_sync(c, fc, 16, wmma::mem_row_major);
}
// single mma instructions, loaded by the layout tables of the PTX manual
#define LD(r, c, p, ldp) (uint32_t)(p)[(r) * (ldp) + (c)]
extern "C" __global__ void mma_f16_k8(const unsigned short* a, const unsigned short* b, float* c) {
  int l = threadIdx.x, g = l / 4, t = l % 4;
  uint32_t A[2], B;
  for (int i = 0; i < 2; i++) A[i] = LD(g + 8 * i, 2 * t, a, 8) | LD(g + 8 * i, 2 * t + 1, a, 8) << 16;
  B = LD(2 * t, g, b, 8) | LD(2 * t + 1, g, b, 8) << 16;
  float d[4] = {1, 1, 1, 1};
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(A[0]), "r"(A[1]), "r"(B));
  for (int e = 0; e < 4; e++) c[(g + e / 2 * 8) * 8 + 2 * t + e % 2] = d[e];
}
extern "C" __global__ void mma_f16_f16(const unsigned short* a, const unsigned short* b, unsigned short* c) {
  int l = threadIdx.x, g = l / 4, t = l % 4;
  uint32_t A[4], B[2], d[2] = {0, 0};
  for (int i = 0; i < 4; i++) {
    int r = g + 8 * (i % 2), q = 2 * t + 8 * (i / 2);
    A[i] = LD(r, q, a, 16) | LD(r, q + 1, a, 16) << 16;
  }
  for (int i = 0; i < 2; i++) B[i] = LD(2 * t + 8 * i, g, b, 8) | LD(2 * t + 1 + 8 * i, g, b, 8) << 16;
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%0,%1}, {%2,%3,%4,%5}, {%6,%7}, {%0,%1};"
               : "+r"(d[0]), "+r"(d[1])
               : "r"(A[0]), "r"(A[1]), "r"(A[2]), "r"(A[3]), "r"(B[0]), "r"(B[1]));
  for (int e = 0; e < 4; e++) c[(g + e / 2 * 8) * 8 + 2 * t + e % 2] = (unsigned short)(d[e / 2] >> (16 * (e % 2)));
}
extern "C" __global__ void mma_s8(const signed char* a, const signed char* b, int* c) {  // m16n8k32
  int l = threadIdx.x, g = l / 4, t = l % 4;
  uint32_t A[4] = {}, B[2] = {};
  int d[4] = {5, 5, 5, 5};
  for (int i = 0; i < 16; i++) {
    int r = (i < 4 || (i >= 8 && i < 12)) ? g : g + 8, q = t * 4 + (i & 3) + (i >= 8 ? 16 : 0);
    A[i / 4] |= (uint32_t)(unsigned char)a[r * 32 + q] << (8 * (i & 3));
  }
  for (int i = 0; i < 8; i++) {
    int r = t * 4 + (i & 3) + (i >= 4 ? 16 : 0);
    B[i / 4] |= (uint32_t)(unsigned char)b[r * 8 + g] << (8 * (i & 3));
  }
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
               : "r"(A[0]), "r"(A[1]), "r"(A[2]), "r"(A[3]), "r"(B[0]), "r"(B[1]));
  for (int e = 0; e < 4; e++) c[(g + e / 2 * 8) * 8 + 2 * t + e % 2] = d[e];
}
extern "C" __global__ void mma_f64(const double* a, const double* b, double* c) {
  int l = threadIdx.x;
  double d0 = 0, d1 = 0;
  asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0,%1}, {%2}, {%3}, {%0,%1};"
               : "+d"(d0), "+d"(d1)
               : "d"(a[l]), "d"(b[l % 4 * 8 + l / 4]));
  c[l / 4 * 8 + l % 4 * 2] = d0;
  c[l / 4 * 8 + l % 4 * 2 + 1] = d1;
}
