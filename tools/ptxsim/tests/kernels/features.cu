#include <cooperative_groups.h>
#include <cooperative_groups/memcpy_async.h>
#include <cooperative_groups/reduce.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_pipeline.h>
namespace cg = cooperative_groups;
extern "C" {
__global__ void coop(float* x, float* tmp, int n, int steps) {  // Jacobi steps with a grid-wide barrier
  cg::grid_group g = cg::this_grid();
  for (int s = 0; s < steps; s++) {
    float *a = s & 1 ? tmp : x, *b = s & 1 ? x : tmp;
    for (int i = g.thread_rank(); i < n; i += g.size()) b[i] = 0.5f * (a[(i + n - 1) % n] + a[(i + 1) % n]);
    g.sync();
  }
}
__global__ void lookback(volatile int* flags, int* order) {  // block b waits for block b + 1: only with resident blocks
  if (threadIdx.x == 0) {
    if (blockIdx.x + 1 < gridDim.x)
      while (!flags[blockIdx.x + 1]);
    order[blockIdx.x] = 1;
    __threadfence();
    flags[blockIdx.x] = 1;
  }
}
__global__ void tiles(const int* x, int* out) {
  auto t8 = cg::tiled_partition<8>(cg::this_thread_block());
  auto t16 = cg::tiled_partition<16>(cg::this_thread_block());
  int i = threadIdx.x;
  int s = cg::reduce(t8, x[i], cg::plus<int>());
  int m = cg::reduce(t16, x[i], cg::greater<int>());
  int r = t8.shfl(x[i], 3) + t16.shfl_xor(x[i], 5) + t8.shfl_down(x[i], 2);
  out[i] = s * 1000 + m + r;
  if (x[i] & 1) {
    auto c = cg::coalesced_threads();
    out[256 + i] = c.thread_rank() + 100 * c.size();
  } else
    out[256 + i] = -1;
}
__global__ void votes(const int* x, unsigned* out) {
  int i = threadIdx.x, v = x[i];
  out[i] = __ballot_sync(~0u, v > 0);
  out[256 + i] = __all_sync(~0u, v > -100) * 2 + __any_sync(~0u, v == 7);
  out[512 + i] = __match_any_sync(~0u, v & 3);
  out[768 + i] = __reduce_add_sync(~0u, v);
  out[1024 + i] = __reduce_max_sync(~0u, v);
  int p;
  out[1280 + i] = (__match_all_sync(~0u, v, &p) >> 1) + p;
  out[1536 + i] =
      __syncthreads_count(v > 0) + 1000 * __syncthreads_and(v > -1000) + 2000 * __syncthreads_or(v == 12345);
  if (v & 1)
    out[1792 + i] = __activemask();
  else
    out[1792 + i] = 0;
}
__global__ void atomics(const float* x, float* f, double* d, unsigned* u, int* s, unsigned long long* q, __half2* h,
                        __nv_bfloat162* b, unsigned short* c) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  float v = x[i];
  atomicAdd(f, v);
  atomicAdd(d, (double)v);
  atomicAdd(u, 1u);
  atomicMax(u + 1, (unsigned)i);
  atomicInc(u + 2, 9);
  atomicOr(u + 3, 1u << (i & 31));
  atomicExch(u + 4, 77u);
  atomicMin(s, (int)v);
  atomicMax(s + 1, (int)v);
  atomicSub(s + 2, 2);
  atomicAdd(q, 1ull << 33);
  atomicMax(q + 1, (unsigned long long)i << 20);
  atomicAdd(h, __floats2half2_rn(1.f, 2.f));
  atomicAdd(b, __floats2bfloat162_rn(0.5f, -0.5f));
  int* mf = (int*)(f + 1);
  int o = *mf, a;
  do {
    a = o;
    if (__int_as_float(a) >= v) break;
    o = atomicCAS(mf, a, __float_as_int(v));
  } while (o != a);  // float max
  unsigned short oc = *c, ac;
  do {
    ac = oc;
    oc = atomicCAS(c, ac, (unsigned short)(ac + 1));
  } while (oc != ac);
}
__global__ void pipe(const float* x, float* y, int n) {
  __shared__ __align__(16) float buf[2][256];
  int t = threadIdx.x;
  __pipeline_memcpy_async(&buf[0][4 * t], x + 4 * t, 16);
  __pipeline_commit();
  for (int k = 0; k < n; k++) {
    if (k + 1 < n) {
      __pipeline_memcpy_async(&buf[(k + 1) & 1][4 * t], x + 256 * (k + 1) + 4 * t, 16);
      __pipeline_commit();
      __pipeline_wait_prior(1);
    } else
      __pipeline_wait_prior(0);
    __syncthreads();
    for (int j = t; j < 256; j += 64) y[256 * k + j] = buf[k & 1][255 - j];
    __syncthreads();
  }
}
__global__ void cgcopy(const int* x, int* y, int n) {
  extern __shared__ int s[];
  auto b = cg::this_thread_block();
  cg::memcpy_async(b, s, x + blockIdx.x * n, sizeof(int) * n);
  cg::wait(b);
  for (int i = threadIdx.x; i < n; i += blockDim.x) y[blockIdx.x * n + i] = s[n - 1 - i];
}
struct Big {
  int a[40];
  float* p;
};
__global__ void param_index(const __grid_constant__ Big b, int k) { b.p[threadIdx.x] = b.a[(threadIdx.x + k) % 40]; }
__global__ void launch_dims(int* o) {
  int b = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  int t = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  o[b * blockDim.x * blockDim.y * blockDim.z + t] = b * 10000 + t * 10 + (t == 0 ? 0 : 1);
}
__global__ void __launch_bounds__(64) bounded(int* o) { o[threadIdx.x] = 1; }
__global__ void generic_ptr(float* y, int k) {
  __shared__ float s[32];
  float l[4] = {1, 2, 3, 4};
  s[threadIdx.x] = threadIdx.x;
  __syncthreads();
  float* p = k == 0 ? s + (threadIdx.x ^ 1) : k == 1 ? l + (threadIdx.x & 3) : y + threadIdx.x;
  *p += 10;
  __syncthreads();
  y[32 + threadIdx.x] = *p;
}
__global__ void last_block(const float* x, float* part, unsigned* count, float* out, int n) {
  __shared__ bool last;
  __shared__ float s[64];
  float v = 0;
  for (int i = blockIdx.x * 64 + threadIdx.x; i < n; i += gridDim.x * 64) v += x[i];
  s[threadIdx.x] = v;
  __syncthreads();
  for (int o = 32; o; o >>= 1) {
    if (threadIdx.x < o) s[threadIdx.x] += s[threadIdx.x + o];
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    part[blockIdx.x] = s[0];
    __threadfence();
    last = atomicInc(count, gridDim.x - 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (last && threadIdx.x == 0) {
    float t = 0;
    for (int b = 0; b < gridDim.x; b++) t += ((volatile float*)part)[b];
    *out = t;
  }
}
}
extern "C" __global__ void lane_lock(int* lock,
                                     int* sum) {  // lanes of one warp wait for each other: needs independent progress
  bool done = false;
  while (!done) {
    if (atomicCAS(lock, 0, 1) == 0) {
      *(volatile int*)sum += 1;
      __threadfence();
      atomicExch(lock, 0);
      done = true;
    }
  }
}
extern "C" __global__ void lane_flag(volatile int* f, int* o) {
  if (threadIdx.x == 7) {
    for (int i = 0; i < 100; i++) o[7] += i;
    f[0] = 1;
  } else {
    while (f[0] == 0);
    o[threadIdx.x] = 1;
  }
}
extern "C" __global__ void vectors(const uchar4* a, const char2* b, const short4* c, const double2* d,
                                   const longlong2* e, const bool* f, const uint2* g, const __half2* h, double* o) {
  int i = threadIdx.x;
  o[i] = a[i].x + 2 * a[i].y + 3 * a[i].z + 4 * a[i].w + b[i].x * b[i].y + c[i].x - c[i].w + d[i].x * d[i].y +
         (double)(e[i].x - e[i].y) + (f[i] ? 1000 : 0) + g[i].x / 3 + g[i].y % 7 + __low2float(h[i]) -
         __high2float(h[i]);
}
extern "C" __global__ void vstore(uchar4* a, short2* b, double2* d, longlong4_16a* e, bool* f) {
  int i = threadIdx.x;
  a[i] = make_uchar4(i, i + 1, i + 2, 255 - i);
  b[i] = make_short2(-i, i * 300);
  d[i] = make_double2(i * 0.5, -i);
  longlong4_16a v;
  v.x = i;
  v.y = -i;
  v.z = 1ll << i;
  v.w = 7;
  e[i] = v;
  f[i] = i & 1;
}
__device__ float acc_dev[2];
__device__ int calls = 5;
extern "C" __global__ void globals() {
  atomicAdd(&acc_dev[threadIdx.x & 1], 1.f);
  if (threadIdx.x == 0) calls++;
}
