// Code that info_nce's kernels share on both paths: parameters, and sums over the block of a query.
#pragma once
#include <cstdint>

#include "cuda/common/convert.cuh"

namespace maskco {

// A float, or a tensor that is read on the device.
template <typename Acc>
struct Temperature {
  double value;
  const Acc* tensor;  // one element, or null

  __device__ Acc get() const { return tensor != nullptr ? *tensor : static_cast<Acc>(value); }
};

// Each query's own negatives.
template <typename T>
struct LocalNegatives {
  const T* rows;  // [N, M, C]
  int64_t count;  // M
  int64_t query_stride, row_stride, stride;
};

// The results of the forward pass.
template <typename Acc>
struct Results {
  Acc* loss;            // [N]
  Acc* lse;             // [N]
  Acc* positive_logit;  // [N]
  int64_t* rank;        // [N]: number of negatives with a larger logit than the positive's
  Acc* grad_query;      // [N, C] or null; sums of weight · key over the negatives until the end
  Acc* normaliser;      // [2, N]: maximum, and sum of 2^(s - max), for logits in units of log 2
  Acc* local_share;     // [N, M]: softmax; until the end the logits (in flash kernels the weights)
};

constexpr int kInfoNceThreads = 256;

// Reduces over the block. Every thread gets the result.
template <typename T, typename Op>
__device__ T block_reduce(T value, Op op) {
  constexpr int warps = kInfoNceThreads / 32;
  __shared__ T partial[warps];
  for (int offset = 16; offset > 0; offset /= 2) value = op(value, __shfl_xor_sync(0xffffffff, value, offset));
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  value = partial[0];
  for (int warp = 1; warp < warps; warp++) value = op(value, partial[warp]);
  __syncthreads();  // the next reduction overwrites `partial`
  return value;
}
template <typename T>
__device__ T block_sum(T value) {
  return block_reduce(value, [](T a, T b) { return a + b; });
}
template <typename T>
__device__ T block_max(T value) {
  return block_reduce(value, [](T a, T b) { return fmax(a, b); });  // (ignores a NaN, which will show in the sum)
}

template <typename Acc, typename A, typename B>
__device__ Acc partial_dot(const A* a, int64_t a_stride, const B* b, int64_t b_stride, int64_t channels, int thread,
                           int threads) {
  Acc sum = 0;
  for (int64_t c = thread; c < channels; c += threads)
    sum += convert<Acc>(a[c * a_stride]) * convert<Acc>(b[c * b_stride]);
  return sum;
}

}  // namespace maskco
