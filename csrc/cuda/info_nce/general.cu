// InfoNCE on CUDA, general path, host side. One sweep over queue and batch computes the sums, a second one the weights,
// and cuBLAS multiplies weights and keys. It takes any C, dtype and strides. Nothing waits for the device.
#include <limits>

#include "common/aten.h"
#include "cuda/contrast/softmax.h"
#include "cuda/info_nce/general.cuh"
#include "cuda/info_nce/paths.h"

namespace maskco {
namespace {

unsigned one_block_each(int64_t rows) {
  STD_TORCH_CHECK(rows <= std::numeric_limits<int32_t>::max(), "info_nce: ", rows,
                  " rows need more blocks than one launch can have. Pass fewer at a time");
  return static_cast<unsigned>(rows);
}

ScaleArgument scale_of(const InfoNCECall& call) {
  return {call.temperature_tensor ? -1 : 1 / call.temperature, call.temperature_tensor};
}

// Which keys are negatives of which query.
template <class Acc>
SoftmaxPairs<Acc> pairs_of(const InfoNCECall& call, const InfoNCEKeys& keys, const Acc* own_logit) {
  SoftmaxPairs<Acc> pairs{};
  pairs.own_excluded = keys.own;
  pairs.query_ids = optional_ptr<int64_t>(call.query_ids);
  pairs.key_ids = call.query_ids ? optional_ptr<int64_t>(keys.ids) : nullptr;
  pairs.ids_exclude = true;
  pairs.valid = optional_ptr<int64_t>(keys.valid);
  pairs.with_margin = call.margin.has_value();
  pairs.margin = call.margin.value_or(0);
  pairs.own_logit = own_logit;
  return pairs;
}

// Copies the rows that hold keys. The others become zeros.
template <class T>
void copy_rows(const Tensor& from, const Tensor& valid, const Tensor& to) {
  if (from.numel() == 0) return;
  info_nce_copy_rows_kernel<T><<<one_block_each(from.size(0)), kInfoNceThreads, 0, current_stream(from)>>>(
      pair_rows<T>(from), device_ptr<T>(to), device_ptr<const int64_t>(valid));
  check_cuda(cudaGetLastError(), "info_nce: copy rows");
}

template <class Tile>
InfoNCEResults forward(const InfoNCEForwardCall& call) {
  using T = typename Tile::T;
  using Acc = typename Tile::Acc;
  InfoNCEResults results(call);
  const Tensor &query = call.query, &positive = call.positive;
  const int64_t n = query.size(0), c = query.size(1), num_local = call.num_local();
  if (n == 0) return results;
  const ScaleArgument scale = scale_of(call);
  const DeviceScalar<Acc> device_scale = device_scalar<Acc>(scale);
  const Tensor own_logit = new_tensor<Acc>(query, {n});
  const Acc* own = device_ptr<const Acc>(own_logit);
  launch_lines(32 * n, query, &contrast_own_kernel<T, Acc>, pair_rows<T>(query), pair_rows<T>(positive), 0,
               device_scale, device_ptr<Acc>(own_logit), n, nullptr, n);
  const LocalNegatives<T> local = local_negatives_of<T>(call);
  launch_lines(32 * n * num_local, query, &info_nce_local_kernel<T, Acc>, pair_rows<T>(query), local, device_scale,
               device_ptr<Acc>(results.local_share));
  const auto read = [&](const InfoNCEKeys& keys) {
    return read_pairs<Tile, Acc>(query, keys.rows, scale, pairs_of(call, keys, own), false, own, nullptr, false).rows;
  };
  const PartialBuffers<Acc> of_queue = call.queue ? read(*call.queue) : PartialBuffers<Acc>();
  const PartialBuffers<Acc> of_batch = call.in_batch ? read(call.batch()) : PartialBuffers<Acc>();

  const WeightBuffers<Acc> weights(query, n, false), no_weights(query, 0, false);
  const Tensor own_weight = new_tensor<Acc>(query, {n});
  const auto one = uniform_upstream<Acc>(1);
  const auto unit = call.need_grad ? weight_unit<Acc>(query, one, 1, one, 0, scale) : std::nullopt;
  launch_lines(32 * n, query, &info_nce_finish_kernel<Acc>, of_queue.view(), static_cast<int>(of_queue.parts),
               of_batch.view(), static_cast<int>(of_batch.parts), pairs_of(call, call.batch(), own), n, num_local,
               call.decoupled, device_scale, optional_ptr<Acc>(unit), kernel_results<Acc>(results, call.need_grad),
               weights.made(), device_ptr<Acc>(own_weight));
  if (!call.need_grad || c == 0) return results;

  const auto weighed_sum = [&](const InfoNCEKeys& keys) {
    Tensor rows = keys.rows;
    if (keys.valid) {
      rows = torch::stable::new_empty(query, {rows.size(0), c});
      copy_rows<T>(keys.rows, *keys.valid, rows);
    }
    const Needed need{true, false, false};
    return std::get<0>(weigh_pairs<Tile, Acc>(query, rows, scale, pairs_of(call, keys, own), weights, no_weights,
                                              nullptr, unit, need, scalar_type_of<Acc>));
  };
  std::optional<Tensor> queue_sums, batch_sums;
  if (call.queue) queue_sums = weighed_sum(*call.queue);
  if (call.in_batch) batch_sums = weighed_sum(call.batch());
  info_nce_gradient_kernel<T, Acc><<<one_block_each(n), kInfoNceThreads, 0, current_stream(query)>>>(
      pair_rows<T>(positive), local, device_scale, optional_ptr<Acc>(queue_sums), optional_ptr<Acc>(batch_sums),
      device_ptr<const Acc>(results.local_share), device_ptr<const Acc>(own_weight),
      device_ptr<Acc>(results.grad_query));
  check_cuda(cudaGetLastError(), "info_nce: gradient");
  return results;
}

template <class Tile>
Tensor backward_keys(const InfoNCEKeysCall& call) {
  using T = typename Tile::T;
  using Acc = typename Tile::Acc;
  const Tensor &query = call.query, &keys = call.keys.rows;
  const int64_t n = query.size(0);
  const ScaleArgument scale = scale_of(call);
  const Tensor grad_loss = torch::stable::contiguous(call.grad_loss);
  const auto upstream = upstream_of<Acc>(grad_loss);
  const auto unit = weight_unit<Acc>(query, upstream, n, upstream, 0, scale);
  const WeightBuffers<Acc> weights(query, n, false), no_weights(query, 0, false);
  launch_lines(n, query, &info_nce_weights_kernel<Acc>, device_ptr<const Acc>(call.normaliser),
               device_ptr<const Acc>(grad_loss), n, device_scalar<Acc>(scale), optional_ptr<Acc>(unit), weights.made());
  const auto pairs = pairs_of(call, call.keys, optional_ptr<Acc>(call.positive_logit));
  const Needed need{false, true, false};
  const Tensor grad_keys = std::get<1>(
      weigh_pairs<Tile, Acc>(query, keys, scale, pairs, weights, no_weights, nullptr, unit, need, query.scalar_type()));
  if (call.keys.valid) copy_rows<T>(grad_keys, *call.keys.valid, grad_keys);  // (a NaN query gives 0 · NaN)
  return grad_keys;
}

}  // namespace

InfoNCEResults general_forward(const InfoNCEForwardCall& call) {
  return dispatch_tile(call.query.scalar_type(), call.allow_tf32,
                       [&](auto tile) { return forward<decltype(tile)>(call); });
}
Tensor general_backward_keys(const InfoNCEKeysCall& call) {
  return dispatch_tile(call.query.scalar_type(), call.allow_tf32,
                       [&](auto tile) { return backward_keys<decltype(tile)>(call); });
}

}  // namespace maskco
