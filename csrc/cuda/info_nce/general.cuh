// InfoNCE for calls that the flash kernels do not take: the steps around the sweeps over queue and batch
// (cuda/contrast). Logits and maxima are in base 2, as there and in the flash kernels.
#pragma once
#include "cuda/contrast/finish.cuh"
#include "cuda/info_nce/rows.cuh"

namespace maskco {

// Each query's logits with its own negatives. One warp for each logit.
template <typename T, typename Acc>
__global__ void __launch_bounds__(kLineThreads)
    info_nce_local_kernel(PairRows<T> query, LocalNegatives<T> local, DeviceScalar<Acc> natural_scale,
                          Acc* logits) {  // [N, M]
  const int64_t entry = line_index() / 32, i = entry / local.count, m = entry % local.count;
  if (i >= query.count) return;
  const Acc scale = natural_scale.get() * Acc(kLog2E);
  Acc sum = partial_dot<Acc>(query.rows + i * query.row_stride, query.stride,
                             local.rows + i * local.query_stride + m * local.row_stride, local.stride, query.channels,
                             threadIdx.x % 32, 32);
  sum = warp_reduce(sum, Plus());
  if (threadIdx.x % 32 == 0) logits[entry] = times(sum, scale);
}

// Merges a query's sums over queue, batch and local negatives into loss, log-sum-exp and rank, and prepares its
// weights. One warp for each query.
template <typename Acc>
__global__ void __launch_bounds__(kLineThreads)
    info_nce_finish_kernel(PartialSums<Acc> queue, int queue_parts, PartialSums<Acc> batch, int batch_parts,
                           SoftmaxPairs<Acc> pairs,  // for the margin and own logits
                           int64_t n, int64_t num_local, bool decoupled, DeviceScalar<Acc> natural_scale,
                           const Acc* unit,  // one element, or null: 1
                           Results<Acc> results, NewWeights<Acc> made,
                           Acc* own_weight) {  // [N]: of the positive, in its query's gradient
  const int64_t i = line_index() / 32;
  if (i >= n) return;
  const int lane = threadIdx.x % 32;
  const Acc natural = natural_scale.get(), scale = natural * Acc(kLog2E), none = -Acc(INFINITY);
  const Acc own = in_base2(pairs.own_logit[i]);
  Acc* local = results.local_share + i * num_local;  // still the logits

  Acc max = decoupled ? none : own;
  for (int part = lane; part < queue_parts; part += 32) max = Larger()(max, queue.max[part * n + i]);
  for (int part = lane; part < batch_parts; part += 32) max = Larger()(max, batch.max[part * n + i]);
  for (int64_t m = lane; m < num_local; m += 32) {
    if (pairs.too_similar(local[m], own, scale)) local[m] = none;
    max = Larger()(max, local[m]);
  }
  max = warp_reduce(max, Larger());
  const Acc shift = shift_of(max);

  Acc sum = 0;
  int64_t above = 0;
  const auto add = [&](const PartialSums<Acc>& parts, int num) {
    for (int part = lane; part < num; part += 32) {
      const int64_t entry = part * n + i;
      const Acc part_sum = parts.sum[entry];
      sum += part_sum == 0 ? Acc(0) : part_sum * exp2(shift_of(parts.max[entry]) - shift);
      above += parts.rank[entry];
    }
  };
  add(queue, queue_parts);
  add(batch, batch_parts);
  for (int64_t m = lane; m < num_local; m += 32) {
    above += local[m] > own;
    local[m] = exp2(local[m] - shift);
    sum += local[m];
  }
  sum = warp_reduce(sum, Plus());
  above = warp_reduce(above, Plus());

  Acc total;
  const Acc loss = cross_entropy(own, max, sum, decoupled, &total);
  const Acc share = total == 0 ? Acc(0) : 1 / total;
  for (int64_t m = lane; m < num_local; m += 32) local[m] *= share;
  if (lane != 0) return;
  results.loss[i] = loss;
  results.lse[i] = max * Acc(kLn2) + (isinf(max) && !isnan(sum) ? Acc(0) : log(total));
  results.positive_logit[i] = pairs.own_logit[i];
  results.rank[i] = above;
  results.normaliser[i] = max;
  results.normaliser[n + i] = total;
  made.shift[i] = shift;
  made.weight[i] = weight_of(unit != nullptr ? natural / *unit : natural, max, total);
  own_weight[i] = -natural * sum * share;  // (minus the whole plus its own share: 1 - p_+ = sum / total)
}

// The gradient of each query: the weighted sums over queue and batch, plus local negatives and positive. One block for
// each query.
template <typename T, typename Acc>
__global__ void __launch_bounds__(kInfoNceThreads)
    info_nce_gradient_kernel(PairRows<T> positive, LocalNegatives<T> local, DeviceScalar<Acc> natural_scale,
                             const Acc* queue_sums,   // [N, C], or null
                             const Acc* batch_sums,   // [N, C], or null
                             const Acc* local_share,  // [N, M]
                             const Acc* own_weight,   // [N]
                             Acc* grad_query) {       // [N, C]
  const int64_t i = blockIdx.x;
  const Acc natural = natural_scale.get();
  for (int64_t c = threadIdx.x; c < positive.channels; c += kInfoNceThreads) {
    const int64_t entry = i * positive.channels + c;
    Acc sum = own_weight[i] * convert<Acc>(positive.rows[i * positive.row_stride + c * positive.stride]);
    if (queue_sums != nullptr) sum += queue_sums[entry];
    if (batch_sums != nullptr) sum += batch_sums[entry];
    for (int64_t m = 0; m < local.count; m++)
      sum += natural * local_share[i * local.count + m] *
             convert<Acc>(local.rows[i * local.query_stride + m * local.row_stride + c * local.stride]);
    grad_query[entry] = sum;
  }
}

// Prepares the weights of the keys' gradient. One thread for each query.
template <typename Acc>
__global__ void __launch_bounds__(kLineThreads) info_nce_weights_kernel(const Acc* normaliser,  // [2, N]
                                                                        const Acc* grad_loss,   // [N]
                                                                        int64_t n, DeviceScalar<Acc> scale,
                                                                        const Acc* unit,  // one element, or null: 1
                                                                        NewWeights<Acc> made) {
  const int64_t i = line_index();
  if (i >= n) return;
  const Acc factor = unit != nullptr ? scale.get() / *unit : scale.get();
  made.shift[i] = shift_of(normaliser[i]);
  made.weight[i] = weight_of(factor * grad_loss[i], normaliser[i], normaliser[n + i]);
}

// Copies rows. Rows from `valid` on may hold anything and become zero, since 0 · NaN is not 0. It also works in place.
template <typename T>
__global__ void __launch_bounds__(kInfoNceThreads) info_nce_copy_rows_kernel(PairRows<T> from,  // [R, C]
                                                                             T* to,             // [R, C]
                                                                             const int64_t* valid) {
  const int64_t r = blockIdx.x;
  for (int64_t c = threadIdx.x; c < from.channels; c += kInfoNceThreads)
    to[r * from.channels + c] = r < *valid ? from.rows[r * from.row_stride + c * from.stride] : convert<T>(0.0f);
}

}  // namespace maskco
