// InfoNCE on CUDA, general path, host side: streams the keys in tiles, two ATen products and one kernel a tile.
//
// What stays between tiles is O(N C); the workspace is a tile of logits [N, T] and, where keys must be converted or end
// at a `valid` that only the device knows, a tile of keys [T, C]. Nothing waits for the device. The products are in
// float32 (float64) whatever the dtype, or in TF32 where torch.set_float32_matmul_precision allows it.
#include <limits>

#include "common/aten.h"
#include "common/dispatch.h"
#include "cuda/info_nce/general.cuh"
#include "cuda/info_nce/heuristics.h"
#include "cuda/info_nce/paths.h"

namespace maskco {
namespace {

template <class T>
constexpr ScalarType scalar_type_of = std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float;

dim3 one_block_each(int64_t rows) {
  STD_TORCH_CHECK(rows <= std::numeric_limits<int32_t>::max(), "info_nce: more than 2^31 - 1 queries");
  return dim3(static_cast<unsigned>(rows));
}

template <class T>
Matrix<T> matrix(const Tensor& t) {
  return {device_ptr<const T>(t), t.stride(0), t.stride(1)};
}

// One call's queries [N, C] in Acc, in which all of its sums run.
template <class T, class Acc>
Tensor wide_query(const InfoNCECall& call) {
  return std::is_same_v<T, Acc> ? call.query : torch::stable::to(call.query, scalar_type_of<Acc>);
}

template <class To, class From>
void copy_rows(const Tensor& from, Tensor& to, const std::optional<Tensor>& valid, int64_t first_row,
               cudaStream_t stream) {
  if (from.numel() == 0) return;
  info_nce_copy_rows_kernel<To, From><<<one_block_each(from.size(0)), kInfoNceThreads, 0, stream>>>(
      matrix<From>(from), device_ptr<To>(to), optional_ptr<int64_t>(valid), first_row, from.size(1), to.stride(0));
  check_cuda(cudaGetLastError(), "info_nce: copy rows");
}

// Calls body(first key, keys [T, C] and their logits [N, T], both in Acc, exclusions) tile by tile.
template <class T, class Acc, class Body>
void for_each_tile(const Tensor& query, const std::optional<Tensor>& query_ids, const InfoNCEKeys& keys,
                   cudaStream_t stream, const Body& body) {
  const int64_t n = query.size(0), c = query.size(1), num_keys = keys.rows.size(0);
  if (n == 0 || num_keys == 0) return;
  const int64_t size = keys_per_tile(n, c, num_keys);
  Tensor workspace = torch::stable::new_empty(query, {n * size});
  const bool copied = !std::is_same_v<T, Acc> || keys.valid;
  Tensor converted = torch::stable::new_empty(query, {copied ? size : 0, c});
  for (int64_t first = 0; first < num_keys; first += size) {
    const int64_t width = std::min(size, num_keys - first);
    Tensor tile = narrow(keys.rows, 0, first, width);
    if (copied) {
      Tensor copy = narrow(converted, 0, 0, width);
      copy_rows<Acc, T>(tile, copy, keys.valid, first, stream);
      tile = copy;
    }
    Tensor logits = torch::stable::view(narrow(workspace, 0, 0, n * width), {n, width});
    mm_out(logits, query, torch::stable::transpose(tile, 0, 1));
    body(first, tile, logits,
         Exclusions{optional_ptr<int64_t>(query_ids), optional_ptr<int64_t>(keys.ids),
                    optional_ptr<int64_t>(keys.valid), keys.own, first});
  }
}

template <class T>
InfoNCEResults forward(const InfoNCEForwardCall& call) {
  using Acc = accumulator_t<T>;
  InfoNCEResults results(call);
  const Tensor query = wide_query<T, Acc>(call);
  const int64_t n = query.size(0), c = query.size(1), num_local = call.num_local();
  if (n == 0) return results;

  const cudaStream_t stream = current_stream(query);
  const Temperature<Acc> temperature = temperature_of<Acc>(call);
  Tensor row_max = torch::stable::new_empty(query, {n}), row_sum = torch::stable::new_empty(query, {n});
  Tensor local_weights = torch::stable::new_empty(query, {n, num_local});
  Tensor product = torch::stable::new_empty(query, {call.need_grad ? n : 0, c});
  const auto running = [&] { return RunningSums<Acc>{device_ptr<Acc>(row_max), device_ptr<Acc>(row_sum)}; };
  const auto outputs = [&] { return kernel_results<Acc>(results, call.need_grad); };
  const Acc* pending = nullptr;  // the product that is not in the key sums yet

  info_nce_start_kernel<T><<<one_block_each(n), kInfoNceThreads, 0, stream>>>(
      matrix<Acc>(query), matrix<T>(call.positive), local_negatives_of<T>(call), temperature,
      device_ptr<Acc>(local_weights), running(), outputs(), c);
  check_cuda(cudaGetLastError(), "info_nce: start");

  auto stream_over = [&](const InfoNCEKeys& keys) {
    for_each_tile<T, Acc>(query, call.query_ids, keys, stream,
                          [&](int64_t, const Tensor& tile, const Tensor& logits, const Exclusions& excluded) {
                            info_nce_absorb_kernel<Acc><<<one_block_each(n), kInfoNceThreads, 0, stream>>>(
                                device_ptr<Acc>(logits), temperature, excluded, pending, running(), outputs(),
                                logits.size(1), c);
                            check_cuda(cudaGetLastError(), "info_nce: absorb");
                            if (!call.need_grad) return;
                            mm_out(product, logits, tile);
                            pending = device_ptr<const Acc>(product);
                          });
  };
  if (call.queue) stream_over(*call.queue);
  if (call.in_batch) stream_over(call.batch());

  info_nce_finish_kernel<T><<<one_block_each(n), kInfoNceThreads, 0, stream>>>(
      matrix<T>(call.positive), pending, temperature, running(), outputs(), c, num_local);
  check_cuda(cudaGetLastError(), "info_nce: finish");
  return results;
}

template <class T>
Tensor backward_keys(const InfoNCEKeysCall& call) {
  using Acc = accumulator_t<T>;
  const Tensor query = wide_query<T, Acc>(call);
  const Tensor& keys = call.keys.rows;
  const int64_t n = query.size(0), c = query.size(1);
  if (n == 0) return torch::stable::new_zeros(keys, {keys.size(0), c});
  Tensor grad_keys = torch::stable::new_empty(keys, {keys.size(0), c});
  const cudaStream_t stream = current_stream(query);
  for_each_tile<T, Acc>(query, call.query_ids, call.keys, stream,
                        [&](int64_t first, const Tensor& tile, const Tensor& logits, const Exclusions& excluded) {
                          const int64_t width = logits.size(1);
                          info_nce_shares_kernel<Acc><<<one_block_each(n), kInfoNceThreads, 0, stream>>>(
                              device_ptr<Acc>(logits), temperature_of<Acc>(call), excluded,
                              device_ptr<const Acc>(call.normaliser), device_ptr<const Acc>(call.grad_loss), width,
                              call.grad_loss.stride(0));
                          check_cuda(cudaGetLastError(), "info_nce: shares");
                          const Tensor shares = torch::stable::transpose(logits, 0, 1);
                          Tensor rows = narrow(grad_keys, 0, first, width);
                          if (std::is_same_v<T, Acc> && !call.keys.valid) {
                            mm_out(rows, shares, query);
                          } else {  // (the tile's copy of the keys has been used, and is as large as their gradient)
                            Tensor wide = tile;
                            mm_out(wide, shares, query);
                            copy_rows<T, Acc>(wide, rows, call.keys.valid, first, stream);
                          }
                        });
  return grad_keys;
}

}  // namespace

InfoNCEResults general_forward(const InfoNCEForwardCall& call) {
  return dispatch_floating<__half, __nv_bfloat16>(
      call.query.scalar_type(), [&](auto tag) { return forward<typename decltype(tag)::type>(call); });
}
Tensor general_backward_keys(const InfoNCEKeysCall& call) {
  return dispatch_floating<__half, __nv_bfloat16>(
      call.query.scalar_type(), [&](auto tag) { return backward_keys<typename decltype(tag)::type>(call); });
}

}  // namespace maskco
