#include <cuda_bf16.h>
#include <math.h>
extern "C" __global__ void saxpy(int n, float a, const float* x, float* y) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = a * x[i] + y[i];
}
extern "C" __global__ void saxpy4(int n4, float a, const float4* __restrict__ x, float4* y) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n4; i += gridDim.x * blockDim.x) {
    float4 u = x[i], v = y[i];
    v.x += a * u.x;
    v.y += a * u.y;
    v.z += a * u.z;
    v.w += a * u.w;
    y[i] = v;
  }
}
__device__ float warp_sum(float v) {
  for (int o = 16; o; o >>= 1) v += __shfl_down_sync(~0u, v, o);
  return v;
}
extern "C" __global__ void block_sum(const float* x, int n, float* out) {
  __shared__ float part[32];
  float v = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) v += x[i];
  v = warp_sum(v);
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
  __syncthreads();
  if (threadIdx.x < 32) {
    v = threadIdx.x < blockDim.x / 32 ? part[threadIdx.x] : 0.f;
    v = warp_sum(v);
    if (threadIdx.x == 0) atomicAdd(out, v);
  }
}
extern "C" __global__ void softmax_rows(const __nv_bfloat16* x, float* y, int cols) {
  extern __shared__ float buf[];
  __shared__ float red[32];
  const __nv_bfloat16* r = x + (size_t)blockIdx.x * cols;
  float m = -INFINITY;
  for (int c = threadIdx.x; c < cols; c += blockDim.x) {
    float v = __bfloat162float(r[c]);
    buf[c] = v;
    m = fmaxf(m, v);
  }
  for (int o = 16; o; o >>= 1) m = fmaxf(m, __shfl_xor_sync(~0u, m, o));
  if ((threadIdx.x & 31) == 0) red[threadIdx.x >> 5] = m;
  __syncthreads();
  m = red[0];
  for (int k = 1; k < blockDim.x / 32; k++) m = fmaxf(m, red[k]);
  __syncthreads();
  float s = 0;
  for (int c = threadIdx.x; c < cols; c += blockDim.x) {
    float e = __expf(buf[c] - m);
    buf[c] = e;
    s += e;
  }
  for (int o = 16; o; o >>= 1) s += __shfl_xor_sync(~0u, s, o);
  if ((threadIdx.x & 31) == 0) red[threadIdx.x >> 5] = s;
  __syncthreads();
  s = 0;
  for (int k = 0; k < blockDim.x / 32; k++) s += red[k];
  for (int c = threadIdx.x; c < cols; c += blockDim.x) y[(size_t)blockIdx.x * cols + c] = buf[c] / s;
}
template <int T>
__global__ void matmul(const float* a, const float* b, float* c, int M, int N, int K) {
  __shared__ float A[T][T], B[T][T + 1];
  int r = blockIdx.y * T + threadIdx.y, q = blockIdx.x * T + threadIdx.x;
  float acc = 0;
  for (int k = 0; k < K; k += T) {
    A[threadIdx.y][threadIdx.x] = r < M && k + threadIdx.x < K ? a[r * K + k + threadIdx.x] : 0.f;
    B[threadIdx.y][threadIdx.x] = q < N && k + threadIdx.y < K ? b[(k + threadIdx.y) * N + q] : 0.f;
    __syncthreads();
#pragma unroll
    for (int j = 0; j < T; j++) acc += A[threadIdx.y][j] * B[j][threadIdx.x];
    __syncthreads();
  }
  if (r < M && q < N) c[r * N + q] = acc;
}
template __global__ void matmul<16>(const float*, const float*, float*, int, int, int);
template __global__ void matmul<8>(const float*, const float*, float*, int, int, int);
extern "C" __global__ void histogram(const unsigned char* x, int n, unsigned* h) {
  __shared__ unsigned s[256];
  for (int i = threadIdx.x; i < 256; i += blockDim.x) s[i] = 0;
  __syncthreads();
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) atomicAdd(&s[x[i]], 1u);
  __syncthreads();
  for (int i = threadIdx.x; i < 256; i += blockDim.x)
    if (s[i]) atomicAdd(&h[i], s[i]);
}
struct RoiArgs {
  const float* feat;
  const float* rois;
  float* out;
  int C, H, W, P, S;
  float scale;
};
extern "C" __global__ void roi_align(RoiArgs a, int total) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= total) return;
  int pw = i % a.P, ph = i / a.P % a.P, c = i / (a.P * a.P) % a.C, n = i / (a.P * a.P * a.C);
  const float* r = a.rois + n * 5;
  int b = (int)r[0];
  float x0 = r[1] * a.scale - 0.5f, y0 = r[2] * a.scale - 0.5f, bw = (r[3] - r[1]) * a.scale / a.P,
        bh = (r[4] - r[2]) * a.scale / a.P;
  const float* f = a.feat + (size_t)(b * a.C + c) * a.H * a.W;
  float acc = 0;
  for (int iy = 0; iy < a.S; iy++)
    for (int ix = 0; ix < a.S; ix++) {
      float y = y0 + ph * bh + (iy + 0.5f) * bh / a.S, x = x0 + pw * bw + (ix + 0.5f) * bw / a.S;
      if (y < -1.f || y > a.H || x < -1.f || x > a.W) continue;
      y = fmaxf(y, 0.f);
      x = fmaxf(x, 0.f);
      int yl = (int)y, xl = (int)x, yh, xh;
      if (yl >= a.H - 1) {
        yh = yl = a.H - 1;
        y = (float)yl;
      } else
        yh = yl + 1;
      if (xl >= a.W - 1) {
        xh = xl = a.W - 1;
        x = (float)xl;
      } else
        xh = xl + 1;
      float ly = y - yl, lx = x - xl, hy = 1.f - ly, hx = 1.f - lx;
      acc += hy * hx * f[yl * a.W + xl] + hy * lx * f[yl * a.W + xh] + ly * hx * f[yh * a.W + xl] +
             ly * lx * f[yh * a.W + xh];
    }
  a.out[i] = acc / (a.S * a.S);
}
template <typename T, int K>
__global__ void collatz(const T* x, int* steps, T* best, int n) {  // divergent loops
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  T v = x[i], b = v;
  int s = 0;
  while (v != 1 && s < K) {
    if (v & 1) {
      v = 3 * v + 1;
      if (v > b) b = v;
    } else {
      do {
        v >>= 1;
        s++;
      } while (!(v & 1));
      s--;
    }
    s++;
  }
  steps[i] = s;
  best[i] = b;
}
template __global__ void collatz<unsigned, 1000>(const unsigned*, int*, unsigned*, int);
template __global__ void collatz<unsigned long long, 50>(const unsigned long long*, int*, unsigned long long*, int);
