// InfoNCE on CUDA: the choice between the flash kernels (flash.cu) and the general path, and the host side of
// the latter: streams the keys in tiles, two ATen products and one kernel a tile.
//
// What stays between tiles is O(N C); the workspace is a tile of logits [N, T] and, where keys must be converted or end
// at a `valid` that only the device knows, a tile of keys [T, C]. Nothing waits for the device. The products are in
// float32 (float64) whatever the dtype, or in TF32 where torch.set_float32_matmul_precision allows it.
#include <algorithm>
#include <limits>
#include <tuple>

#include "common/aten.h"
#include "common/dispatch.h"
#include "common/info_nce.h"
#include "cuda/common/host.h"
#include "cuda/info_nce/general.cuh"
#include "cuda/info_nce/paths.h"

namespace maskco {
namespace {

// 4 MiB of float32 logits, and as much of keys, which stay in the second-level cache
constexpr int64_t kTileElements = 1 << 20;
constexpr int64_t kLeastKeys = 128, kMostKeys = 4096;  // of one tile

template <class T>
constexpr ScalarType scalar_type_of = std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float;

dim3 one_block_each(int64_t rows) {
  STD_TORCH_CHECK(rows <= std::numeric_limits<int32_t>::max(), "info_nce: more than 2^31 - 1 queries");
  return dim3(static_cast<unsigned>(rows));
}

// Keys that all queries share.
struct Keys {
  Tensor rows;                       // [K, C], any strides
  std::optional<Tensor> ids, valid;  // [K]; one int64: how many rows hold keys
  bool in_batch;                     // key i is query i's positive
};

// One call's fixed parts.
template <class Acc>
struct Call {
  Tensor query;  // [N, C] in Acc
  std::optional<Tensor> query_ids;
  Temperature<Acc> temperature;
  cudaStream_t stream;
};

template <class To, class From>
void copy_rows(const Tensor& from, Tensor& to, const std::optional<Tensor>& valid, int64_t first_row,
               cudaStream_t stream) {
  if (from.numel() == 0) return;
  info_nce_copy_rows_kernel<To, From><<<one_block_each(from.size(0)), kInfoNceThreads, 0, stream>>>(
      device_ptr<const From>(from), device_ptr<To>(to), optional_ptr<int64_t>(valid), first_row, from.size(1),
      from.stride(0), from.stride(1), to.stride(0));
  check_cuda(cudaGetLastError(), "info_nce: copy rows");
}

// Calls body(first key, keys [T, C] and their logits [N, T], both in Acc, exclusions) tile by tile.
template <class T, class Acc, class Body>
void for_each_tile(const Call<Acc>& call, const Keys& keys, const Body& body) {
  const int64_t n = call.query.size(0), c = call.query.size(1), num_keys = keys.rows.size(0);
  if (n == 0 || num_keys == 0) return;
  const int64_t most = std::clamp(kTileElements / std::max(n, std::max<int64_t>(c, 1)), kLeastKeys, kMostKeys);
  const int64_t size = std::min(most, num_keys);
  Tensor workspace = torch::stable::new_empty(call.query, {n * size});
  const bool copied = !std::is_same_v<T, Acc> || keys.valid;
  Tensor converted = torch::stable::new_empty(call.query, {copied ? size : 0, c});
  for (int64_t first = 0; first < num_keys; first += size) {
    const int64_t width = std::min(size, num_keys - first);
    Tensor tile = narrow(keys.rows, 0, first, width);
    if (copied) {
      Tensor copy = narrow(converted, 0, 0, width);
      copy_rows<Acc, T>(tile, copy, keys.valid, first, call.stream);
      tile = copy;
    }
    Tensor logits = torch::stable::view(narrow(workspace, 0, 0, n * width), {n, width});
    mm_out(logits, call.query, torch::stable::transpose(tile, 0, 1));
    body(first, tile, logits,
         Exclusions{optional_ptr<int64_t>(call.query_ids), optional_ptr<int64_t>(keys.ids),
                    optional_ptr<int64_t>(keys.valid), keys.in_batch, first});
  }
}

template <class T>
InfoNCEForward forward(const Tensor& query_in, const Tensor& positive, const std::optional<Tensor>& queue,
                       const std::optional<Tensor>& local_negatives, bool in_batch,
                       const std::optional<Tensor>& query_ids, const std::optional<Tensor>& queue_ids,
                       const std::optional<Tensor>& valid, double temperature,
                       const std::optional<Tensor>& temperature_tensor, bool need_grad) {
  using Acc = accumulator_t<T>;
  const Tensor query = std::is_same_v<T, Acc> ? query_in : torch::stable::to(query_in, scalar_type_of<Acc>);
  const int64_t n = query.size(0), c = query.size(1), num_local = local_negatives ? local_negatives->size(1) : 0;
  Tensor loss = torch::stable::new_empty(query, {n}), lse = torch::stable::new_empty(query, {n});
  Tensor positive_logit = torch::stable::new_empty(query, {n});
  Tensor rank = torch::stable::new_empty(query, {n}, ScalarType::Long);
  Tensor grad_query = torch::stable::new_empty(query, {need_grad ? n : 0, c});  // until the end: the key sums
  Tensor normaliser = torch::stable::new_empty(query, {2, n});
  Tensor local_share = torch::stable::new_empty(query, {n, num_local});  // until the end: the logits
  if (n == 0) return {loss, lse, positive_logit, rank, grad_query, normaliser, local_share};

  const Call<Acc> call{query, query_ids, {temperature, optional_ptr<Acc>(temperature_tensor)}, current_stream(query)};
  Tensor row_max = torch::stable::new_empty(query, {n}), row_sum = torch::stable::new_empty(query, {n});
  Tensor local_weights = torch::stable::new_empty(query, {n, num_local});
  Tensor product = torch::stable::new_empty(query, {need_grad ? n : 0, c});
  Acc* key_sums = need_grad ? device_ptr<Acc>(grad_query) : nullptr;
  const Acc* pending = nullptr;  // the product that is not in the key sums yet

  info_nce_start_kernel<T><<<one_block_each(n), kInfoNceThreads, 0, call.stream>>>(
      device_ptr<const Acc>(query), device_ptr<const T>(positive), optional_ptr<T>(local_negatives), call.temperature,
      device_ptr<Acc>(local_weights), device_ptr<Acc>(local_share), device_ptr<Acc>(positive_logit),
      device_ptr<Acc>(row_max), device_ptr<Acc>(row_sum), device_ptr<int64_t>(rank), key_sums, c, num_local,
      query.stride(0), query.stride(1), positive.stride(0), positive.stride(1),
      num_local ? local_negatives->stride(0) : 0, num_local ? local_negatives->stride(1) : 0,
      num_local ? local_negatives->stride(2) : 0);
  check_cuda(cudaGetLastError(), "info_nce: start");

  auto stream_over = [&](const Keys& keys) {
    for_each_tile<T>(call, keys, [&](int64_t, const Tensor& tile, const Tensor& logits, const Exclusions& excluded) {
      info_nce_absorb_kernel<Acc><<<one_block_each(n), kInfoNceThreads, 0, call.stream>>>(
          device_ptr<Acc>(logits), call.temperature, excluded, device_ptr<const Acc>(positive_logit), pending,
          device_ptr<Acc>(row_max), device_ptr<Acc>(row_sum), device_ptr<int64_t>(rank), key_sums, logits.size(1), c);
      check_cuda(cudaGetLastError(), "info_nce: absorb");
      if (!need_grad) return;
      mm_out(product, logits, tile);
      pending = device_ptr<const Acc>(product);
    });
  };
  if (queue) stream_over({*queue, queue_ids, valid, false});
  if (in_batch) stream_over({positive, query_ids, std::nullopt, true});

  info_nce_finish_kernel<T><<<one_block_each(n), kInfoNceThreads, 0, call.stream>>>(
      device_ptr<const Acc>(positive_logit), device_ptr<const Acc>(row_max), device_ptr<const Acc>(row_sum),
      device_ptr<const T>(positive), pending, call.temperature, device_ptr<Acc>(local_share),
      device_ptr<Acc>(normaliser), device_ptr<Acc>(loss), device_ptr<Acc>(lse), key_sums, c, num_local,
      positive.stride(0), positive.stride(1));
  check_cuda(cudaGetLastError(), "info_nce: finish");
  return {loss, lse, positive_logit, rank, grad_query, normaliser, local_share};
}

template <class T>
Tensor backward_keys(const Tensor& grad_loss, const Tensor& normaliser, const Tensor& query_in, const Tensor& keys,
                     bool in_batch, const std::optional<Tensor>& query_ids, const std::optional<Tensor>& key_ids,
                     const std::optional<Tensor>& valid, double temperature,
                     const std::optional<Tensor>& temperature_tensor) {
  using Acc = accumulator_t<T>;
  const Tensor query = std::is_same_v<T, Acc> ? query_in : torch::stable::to(query_in, scalar_type_of<Acc>);
  const int64_t n = query.size(0), c = query.size(1);
  if (n == 0) return torch::stable::new_zeros(keys, {keys.size(0), c});
  Tensor grad_keys = torch::stable::new_empty(keys, {keys.size(0), c});
  const Call<Acc> call{query, query_ids, {temperature, optional_ptr<Acc>(temperature_tensor)}, current_stream(query)};
  for_each_tile<T>(call, {keys, key_ids, valid, in_batch},
                   [&](int64_t first, const Tensor& tile, const Tensor& logits, const Exclusions& excluded) {
                     const int64_t width = logits.size(1);
                     info_nce_shares_kernel<Acc><<<one_block_each(n), kInfoNceThreads, 0, call.stream>>>(
                         device_ptr<Acc>(logits), call.temperature, excluded, device_ptr<const Acc>(normaliser),
                         device_ptr<const Acc>(grad_loss), width, grad_loss.stride(0));
                     check_cuda(cudaGetLastError(), "info_nce: shares");
                     const Tensor shares = torch::stable::transpose(logits, 0, 1);
                     Tensor rows = narrow(grad_keys, 0, first, width);
                     if (std::is_same_v<T, Acc> && !valid) {
                       mm_out(rows, shares, query);
                     } else {  // (the tile's copy of the keys has been used, and is as large as their gradient)
                       Tensor wide = tile;
                       mm_out(wide, shares, query);
                       copy_rows<T, Acc>(wide, rows, valid, first, call.stream);
                     }
                   });
  return grad_keys;
}

InfoNCEForward info_nce_fwd(
    const Tensor& query,                           // [N, C], any strides, like all features
    const Tensor& positive,                        // [N, C]
    const std::optional<Tensor>& queue,            // [K, C]
    const std::optional<Tensor>& local_negatives,  // [N, M, C]
    bool in_batch,
    const std::optional<Tensor>& query_ids,  // [N] int64
    const std::optional<Tensor>& queue_ids,  // [K] int64
    const std::optional<Tensor>& valid,      // one int64
    double temperature,
    const std::optional<Tensor>&
        temperature_tensor,  // one float32 (float64 with float64 queries); replaces temperature
    bool need_grad,
    bool allow_tf32) {  // the flash kernels' products of float32; ATen's follow torch's own setting
  check_on_device(query, query, "query");
  check_info_nce_fwd(query, positive, queue, local_negatives, query_ids, queue_ids, valid, temperature_tensor);
  DeviceGuard guard(query);
  if ((queue || in_batch) && flash_takes(query, &positive, queue ? &*queue : nullptr)) {
    return flash_forward(query, positive, queue, local_negatives, in_batch, query_ids, queue_ids, valid, temperature,
                         temperature_tensor, need_grad, allow_tf32);
  }
  return dispatch_floating<__half, __nv_bfloat16>(query.scalar_type(), [&](auto tag) {
    return forward<typename decltype(tag)::type>(query, positive, queue, local_negatives, in_batch, query_ids,
                                                 queue_ids, valid, temperature, temperature_tensor, need_grad);
  });
}

Tensor info_nce_bwd_keys(const Tensor& grad_loss,   // [N]
                         const Tensor& normaliser,  // [2, N], of info_nce_fwd
                         const Tensor& query,       // [N, C]
                         const Tensor& keys,        // [K, C]: the queue, or with in_batch the positives
                         bool in_batch,
                         const std::optional<Tensor>& query_ids,  // [N] int64
                         const std::optional<Tensor>& key_ids,    // [K] int64
                         const std::optional<Tensor>& valid,      // one int64
                         double temperature, const std::optional<Tensor>& temperature_tensor,
                         bool aligned,  // as all shared features were for info_nce_fwd: then its kernels are taken
                         bool allow_tf32) {
  check_on_device(query, query, "query");
  check_info_nce_bwd_keys(grad_loss, normaliser, query, keys, in_batch, query_ids, key_ids, valid, temperature_tensor);
  DeviceGuard guard(query);
  if (aligned && flash_takes(query, nullptr, &keys)) {
    return flash_backward_keys(grad_loss, normaliser, query, keys, in_batch, query_ids, key_ids, valid, temperature,
                               temperature_tensor, allow_tf32);
  }
  return dispatch_floating<__half, __nv_bfloat16>(query.scalar_type(), [&](auto tag) {
    return backward_keys<typename decltype(tag)::type>(grad_loss, normaliser, query, keys, in_batch, query_ids, key_ids,
                                                       valid, temperature, temperature_tensor);
  });
}

}  // namespace
}  // namespace maskco

MASKCO_LIBRARY_IMPL(MASKCO_NAMESPACE, MASKCO_CUDA_KEY, m) {
  m.impl("info_nce_fwd", MASKCO_CUDA_BOX(&maskco::info_nce_fwd));
  m.impl("info_nce_bwd_keys", MASKCO_CUDA_BOX(&maskco::info_nce_bwd_keys));
}
