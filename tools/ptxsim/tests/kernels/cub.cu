#include <cub/block/block_histogram.cuh>
#include <cub/block/block_load.cuh>
#include <cub/block/block_merge_sort.cuh>
#include <cub/block/block_radix_sort.cuh>
#include <cub/block/block_scan.cuh>
#include <cub/block/block_store.cuh>
struct Less {
  __device__ bool operator()(float p, float q) const { return p < q; }
};
extern "C" {
__global__ void sortk(unsigned* k, int* v) {
  typedef cub::BlockRadixSort<unsigned, 128, 8, int> S;
  __shared__ typename S::TempStorage t;
  unsigned a[8];
  int b[8], o = blockIdx.x * 1024 + threadIdx.x * 8;
  for (int i = 0; i < 8; i++) {
    a[i] = k[o + i];
    b[i] = v[o + i];
  }
  S(t).Sort(a, b);
  for (int i = 0; i < 8; i++) {
    k[o + i] = a[i];
    v[o + i] = b[i];
  }
}
__global__ void scank(int* x) {
  typedef cub::BlockScan<int, 256, cub::BLOCK_SCAN_WARP_SCANS> S;
  __shared__ typename S::TempStorage t;
  int v[4];
  for (int i = 0; i < 4; i++) v[i] = x[threadIdx.x * 4 + i];
  S(t).ExclusiveSum(v, v);
  for (int i = 0; i < 4; i++) x[threadIdx.x * 4 + i] = v[i];
}
__global__ void sortf(float* k) {
  typedef cub::BlockMergeSort<float, 128, 4> S;
  __shared__ typename S::TempStorage t;
  float a[4];
  for (int i = 0; i < 4; i++) a[i] = k[threadIdx.x * 4 + i];
  S(t).Sort(a, Less());
  for (int i = 0; i < 4; i++) k[threadIdx.x * 4 + i] = a[i];
}
__global__ void hist(const unsigned char* x, int* h) {
  typedef cub::BlockHistogram<unsigned char, 128, 8, 256, cub::BLOCK_HISTO_SORT> S;
  __shared__ typename S::TempStorage t;
  __shared__ int hh[256];
  unsigned char a[8];
  for (int i = 0; i < 8; i++) a[i] = x[threadIdx.x * 8 + i];
  S(t).Histogram(a, hh);
  __syncthreads();
  for (int i = threadIdx.x; i < 256; i += 128) h[i] = hh[i];
}
__global__ void exch(float* x) {
  typedef cub::BlockLoad<float, 128, 8, cub::BLOCK_LOAD_WARP_TRANSPOSE> L;
  typedef cub::BlockStore<float, 128, 8, cub::BLOCK_STORE_TRANSPOSE> T;
  __shared__ union {
    typename L::TempStorage l;
    typename T::TempStorage s;
  } t;
  float a[8];
  L(t.l).Load(x, a);
  __syncthreads();
  for (int i = 0; i < 8; i++) a[i] = a[i] * 2 + i;
  T(t.s).Store(x, a);
}
}
