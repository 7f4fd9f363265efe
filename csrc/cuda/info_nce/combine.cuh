// The last step of the flash kernels: it merges the results of their splits, in a fixed order.
#pragma once
#include <cstdint>
#include <type_traits>

#include "cuda/info_nce/flash_queries.cuh"
#include "cuda/info_nce/rows.cuh"

namespace maskco {

// Forward: merges each query's splits, local negatives and positive into its loss, log-sum-exp, rank and gradient. One
// block for each query.
template <typename T>
__global__ void __launch_bounds__(kInfoNceThreads)
    info_nce_combine_kernel(FlashFeatures<T> query, FlashFeatures<T> positive, LocalNegatives<T> local_negatives,
                            const float* positive_product,  // [N]: query · positive
                            const FlashRow* split_rows,     // [S, N]
                            const float* split_sums,        // [S, N, C]
                            int num_splits, Temperature<float> temperature, Results<float> results, int64_t channels) {
  __shared__ float split_scale[kMaxSplits];
  __shared__ float4 partial[kInfoNceThreads];
  const int64_t i = blockIdx.x, n = gridDim.x;
  const float tau = temperature.get(), scale = kLog2E / tau, positive_base2 = __fmul_rn(positive_product[i], scale);
  const int64_t num_local = local_negatives.count;
  const T* local = local_negatives.rows + i * local_negatives.query_stride;
  float* weights = results.local_share + i * num_local;

  // First the maximum and rank over all parts. Everything else is relative to that maximum (base 2, as in the flash
  // kernel).
  float max = positive_base2;
  int64_t above = 0;
  const int lane = threadIdx.x % 32;
  for (int64_t m = threadIdx.x / 32; m < num_local; m += kInfoNceThreads / 32) {
    float s = partial_dot<float>(query.rows + i * query.row_stride, 1, local + m * local_negatives.row_stride,
                                 local_negatives.stride, channels, lane, 32);
    for (int offset = 16; offset > 0; offset /= 2) s += __shfl_xor_sync(0xffffffff, s, offset);
    s *= scale;
    max = fmaxf(max, s);
    if (lane == 0) {
      weights[m] = s;
      above += s > positive_base2;
    }
  }
  for (int split = threadIdx.x; split < num_splits; split += kInfoNceThreads) {
    const FlashRow row = split_rows[split * n + i].load();
    max = fmaxf(max, row.max);
    above += row.rank;
  }
  max = block_max(max);
  above = block_sum(above);
  const float shift = isinf(max) ? 0.0f : max;
  float sum = 0;
  for (int64_t m = threadIdx.x; m < num_local; m += kInfoNceThreads) {
    weights[m] = exp2f(weights[m] - shift);
    sum += weights[m];
  }
  for (int split = threadIdx.x; split < num_splits; split += kInfoNceThreads) {
    const FlashRow row = split_rows[split * n + i].load();
    const float factor = row.sum == 0 ? 0.0f : exp2f((isinf(row.max) ? 0.0f : row.max) - shift);
    split_scale[split] = factor;
    sum += row.sum == 0 ? 0.0f : row.sum * factor;
  }
  sum = block_sum(sum);

  const float own = exp2f(positive_base2 - shift), total = own + sum;
  if (threadIdx.x == 0) {
    const float log_total = own == 1 ? log1pf(sum) : logf(total);
    results.loss[i] = log_total + (shift - positive_base2) * kLn2;
    results.lse[i] = log_total + shift * kLn2;
    results.positive_logit[i] = positive_product[i] / tau;
    results.rank[i] = above;
    results.normaliser[i] = max;
    results.normaliser[n + i] = total;
  }
  const float inverse = 1 / total;
  for (int64_t m = threadIdx.x; m < num_local; m += kInfoNceThreads) weights[m] *= inverse;
  if (results.grad_query == nullptr) return;

  // Each team of threads adds up some of the splits, with four channels for each thread. Then the teams' sums are
  // added.
  const int team_size = channels / 4, teams = kInfoNceThreads / team_size;
  const int team = threadIdx.x / team_size, member = threadIdx.x % team_size;
  float4 mine = make_float4(0, 0, 0, 0);
#pragma unroll 8  // so that loads do not wait for each other
  for (int split = team; split < (team < teams ? num_splits : 0); split += teams) {
    const float factor = split_scale[split];
    float4 w = make_float4(0, 0, 0, 0);  // (splits without keys or without weight are not read)
    if (factor != 0) w = reinterpret_cast<const float4*>(split_sums + (split * n + i) * channels)[member];
    mine.x += w.x * factor, mine.y += w.y * factor, mine.z += w.z * factor, mine.w += w.w * factor;
  }
  partial[threadIdx.x] = mine;
  __syncthreads();
  for (int c = threadIdx.x; c < channels; c += kInfoNceThreads) {
    float key_sum = 0;
    for (int t = 0; t < teams; t++) key_sum += reinterpret_cast<const float*>(&partial[t * team_size])[c];
    key_sum *= inverse;
    for (int64_t m = 0; m < num_local; m++)
      key_sum += weights[m] * convert<float>(local[m * local_negatives.row_stride + c * local_negatives.stride]);
    // sum_j p_j k_j - k_+, as 1 - p_+ = sum / total
    const float key = convert<float>(positive.rows[i * positive.row_stride + c]);
    results.grad_query[i * channels + c] = (key_sum - sum * inverse * key) / tau;
  }
}

// The keys' gradient: the sum of the splits.
template <typename T>
__global__ void __launch_bounds__(kInfoNceThreads)
    info_nce_sum_splits_kernel(const float* split_gradients,  // [S, E], E a multiple of 4
                               T* grad_keys,                  // [E]
                               int num_splits, int64_t elements) {
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kInfoNceThreads + threadIdx.x) * 4;
  if (first >= elements) return;
  float4 sum = make_float4(0, 0, 0, 0);
  for (int split = 0; split < num_splits; split++) {
    const float4 part = *reinterpret_cast<const float4*>(split_gradients + split * elements + first);
    sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
  }
  alignas(16) T out[4] = {convert<T>(sum.x), convert<T>(sum.y), convert<T>(sum.z), convert<T>(sum.w)};
  using Words = std::conditional_t<sizeof(T) == 2, uint2, uint4>;
  *reinterpret_cast<Words*>(grad_keys + first) = *reinterpret_cast<const Words*>(out);
}

}  // namespace maskco
