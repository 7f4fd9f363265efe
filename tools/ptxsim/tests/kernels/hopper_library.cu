#include <cooperative_groups.h>

#include <cuda/barrier>
#include <cuda/pipeline>
extern "C" __global__ void libbar(const float* x, float* y, int n) {
  __shared__ cuda::barrier<cuda::thread_scope_block> bar;
  __shared__ float s[128];
  int t = threadIdx.x;
  if (t == 0) init(&bar, blockDim.x);
  __syncthreads();
  for (int k = 0; k < n; k++) {
    s[t] = x[128 * k + t];
    bar.arrive_and_wait();
    y[128 * k + t] = s[127 - t];
    bar.arrive_and_wait();
  }
}
