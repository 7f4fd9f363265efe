// InfoNCE on tensor cores, host side: which features the kernels take, how the work is split, two launches each way
// (one for the keys' gradient where the keys alone fill the GPU).
#include <algorithm>
#include <limits>

#include "cuda/info_nce/combine.cuh"
#include "cuda/info_nce/flash.cuh"
#include "cuda/info_nce/paths.h"

namespace maskco {
namespace {

// f(Flash) as the table has it for the current device
template <class Product, int kChannels, class F>
void dispatch_gpu(const F& f) {
  if (device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) >= flash_shared_limit(FlashGpu::kLarge)) {
    f(typename FlashOn<FlashGpu::kLarge, Product, kChannels>::type{});
  } else {
    f(typename FlashOn<FlashGpu::kSmall, Product, kChannels>::type{});
  }
}

// f(Flash) for the dtype and C; false for what there is no kernel for
template <class Product, class F>
bool dispatch_channels(int64_t channels, const F& f) {
  switch (channels) {
    case 32:
      return dispatch_gpu<Product, 32>(f), true;
    case 64:
      return dispatch_gpu<Product, 64>(f), true;
    case 96:
      return dispatch_gpu<Product, 96>(f), true;
    case 128:
      return dispatch_gpu<Product, 128>(f), true;
    case 192:
      return dispatch_gpu<Product, 192>(f), true;
    case 256:
      return dispatch_gpu<Product, 256>(f), true;
    default:
      return false;
  }
}
template <class F>
bool dispatch_flash(ScalarType dtype, bool allow_tf32, int64_t channels, const F& f) {
  if (dtype == ScalarType::Half) return dispatch_channels<HalfProduct<__half>>(channels, f);
  if (dtype == ScalarType::BFloat16) return dispatch_channels<HalfProduct<__nv_bfloat16>>(channels, f);
  if (dtype != ScalarType::Float) return false;
  return allow_tf32 ? dispatch_channels<Tf32Product<1>>(channels, f) : dispatch_channels<Tf32Product<3>>(channels, f);
}

bool aligned_rows(const Tensor& t) {
  return t.stride(1) == 1 && t.stride(0) * t.element_size() % 16 == 0 &&
         reinterpret_cast<uintptr_t>(t.data_ptr()) % 16 == 0;
}

template <class T>
FlashFeatures<T> flash_features(const Tensor& t, const std::optional<Tensor>& ids) {
  return {device_ptr<const T>(t), t.stride(0), t.size(0), optional_ptr<int64_t>(ids)};
}

unsigned grid_size(int64_t rows, int64_t block_rows) {
  const int64_t blocks = ceil_div(rows, block_rows);
  STD_TORCH_CHECK(blocks <= std::numeric_limits<int32_t>::max(), "info_nce: ", rows,
                  " rows are more than a grid takes");
  return static_cast<unsigned>(blocks);
}

template <class Kernel>
void allow_shared_memory(Kernel* kernel, size_t bytes) {
  if (bytes <= 48 * 1024) return;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
             "info_nce: shared memory");
}

// Parts that the columns are cut into, so that one wave of blocks fills the GPU; each must be worth its start and
// merge.
int num_splits(int64_t row_blocks, int64_t tiles, int blocks_per_sm) {
  constexpr int64_t kLeastTiles = 4;
  const int64_t slots = int64_t(blocks_per_sm) * device_attribute(cudaDevAttrMultiProcessorCount);
  return static_cast<int>(std::clamp<int64_t>(std::min(slots / row_blocks, tiles / kLeastTiles), 1, kMaxSplits));
}

}  // namespace

bool flash_takes(const Tensor& query, const Tensor* positive, const Tensor* keys) {
  const int64_t c = query.size(1);
  return query.size(0) > 0 && dispatch_flash(query.scalar_type(), true, c, [](auto) {}) && aligned_rows(query) &&
         (positive == nullptr || aligned_rows(*positive)) && (keys == nullptr || aligned_rows(*keys));
}

InfoNCEForward flash_forward(const Tensor& query, const Tensor& positive, const std::optional<Tensor>& queue,
                             const std::optional<Tensor>& local_negatives, bool in_batch,
                             const std::optional<Tensor>& query_ids, const std::optional<Tensor>& queue_ids,
                             const std::optional<Tensor>& valid, double temperature,
                             const std::optional<Tensor>& temperature_tensor, bool need_grad, bool allow_tf32) {
  const int64_t n = query.size(0), c = query.size(1), num_local = local_negatives ? local_negatives->size(1) : 0;
  auto new_floats = [&](torch::headeronly::IntHeaderOnlyArrayRef size) {
    return torch::stable::new_empty(query, size, ScalarType::Float);
  };
  Tensor loss = new_floats({n}), lse = new_floats({n}), positive_logit = new_floats({n});
  Tensor rank = torch::stable::new_empty(query, {n}, ScalarType::Long);
  Tensor grad_query = new_floats({need_grad ? n : 0, c});
  Tensor normaliser = new_floats({2, n}), local_share = new_floats({n, num_local});
  Tensor positive_product = new_floats({n});
  const Temperature<float> tau{temperature, optional_ptr<float>(temperature_tensor)};
  const cudaStream_t stream = current_stream(query);

  dispatch_flash(query.scalar_type(), allow_tf32, c, [&](auto flash) {
    using F = decltype(flash);
    using T = typename F::T;
    const auto kernel = need_grad ? &info_nce_flash_kernel<F, true> : &info_nce_flash_kernel<F, false>;
    const size_t shared_bytes = flash_shared_bytes<FlashForwardShared<F>>(query_ids.has_value());
    allow_shared_memory(kernel, shared_bytes);
    const unsigned row_blocks = grid_size(n, F::kRows);
    const int64_t tiles = ceil_div(queue ? queue->size(0) : 0, F::kColumns) + (in_batch ? ceil_div(n, F::kColumns) : 0);
    const int num = num_splits(row_blocks, tiles, F::kBlocksPerSm);
    Tensor split_rows = new_floats({num, n, sizeof(FlashRow) / sizeof(float)});
    Tensor split_sums = new_floats({need_grad ? num : 0, n, c});
    kernel<<<dim3(row_blocks, num), F::kThreads, shared_bytes, stream>>>(
        flash_features<T>(query, query_ids), flash_features<T>(positive, query_ids),
        queue ? flash_features<T>(*queue, queue_ids) : FlashFeatures<T>{nullptr, 0, 0, nullptr},
        optional_ptr<int64_t>(valid), in_batch, tau, device_ptr<float>(positive_product),
        device_ptr<FlashRow>(split_rows), device_ptr<float>(split_sums));
    check_cuda(cudaGetLastError(), "info_nce: flash");

    info_nce_combine_kernel<T><<<grid_size(n, 1), kInfoNceThreads, 0, stream>>>(
        device_ptr<const T>(query), device_ptr<const T>(positive), optional_ptr<T>(local_negatives),
        device_ptr<const float>(positive_product), device_ptr<const FlashRow>(split_rows),
        device_ptr<const float>(split_sums), num, tau, device_ptr<float>(local_share), device_ptr<float>(normaliser),
        device_ptr<float>(loss), device_ptr<float>(lse), device_ptr<float>(positive_logit), device_ptr<int64_t>(rank),
        need_grad ? device_ptr<float>(grad_query) : nullptr, c, num_local, query.stride(0), positive.stride(0),
        num_local ? local_negatives->stride(0) : 0, num_local ? local_negatives->stride(1) : 0,
        num_local ? local_negatives->stride(2) : 0);
    check_cuda(cudaGetLastError(), "info_nce: combine");
  });
  return {loss, lse, positive_logit, rank, grad_query, normaliser, local_share};
}

Tensor flash_backward_keys(const Tensor& grad_loss, const Tensor& normaliser, const Tensor& query, const Tensor& keys,
                           bool in_batch, const std::optional<Tensor>& query_ids, const std::optional<Tensor>& key_ids,
                           const std::optional<Tensor>& valid, double temperature,
                           const std::optional<Tensor>& temperature_tensor, bool allow_tf32) {
  Tensor grad_keys = torch::stable::new_empty(keys, {keys.size(0), keys.size(1)});
  if (grad_keys.numel() == 0) return grad_keys;
  dispatch_flash(query.scalar_type(), allow_tf32, query.size(1), [&](auto flash) {
    using F = decltype(flash);
    using T = typename F::T;
    const auto kernel = &info_nce_flash_keys_kernel<F>;
    const size_t shared_bytes = flash_shared_bytes<FlashKeysShared<F>>(query_ids && key_ids);
    allow_shared_memory(kernel, shared_bytes);
    const unsigned row_blocks = grid_size(keys.size(0), F::kRows);
    const int num = num_splits(row_blocks, ceil_div(query.size(0), F::kColumns), F::kBlocksPerSm);
    Tensor split_gradients =
        torch::stable::new_empty(query, {num > 1 ? num : 0, keys.size(0), keys.size(1)}, ScalarType::Float);
    const cudaStream_t stream = current_stream(query);
    kernel<<<dim3(row_blocks, num), F::kThreads, shared_bytes, stream>>>(
        flash_features<T>(keys, key_ids), flash_features<T>(query, query_ids), optional_ptr<int64_t>(valid), in_batch,
        Temperature<float>{temperature, optional_ptr<float>(temperature_tensor)}, device_ptr<const float>(normaliser),
        device_ptr<const float>(grad_loss), grad_loss.stride(0), device_ptr<T>(grad_keys),
        num > 1 ? device_ptr<float>(split_gradients) : nullptr);
    check_cuda(cudaGetLastError(), "info_nce: flash keys");
    if (num == 1) return;
    const int64_t elements = grad_keys.numel();
    info_nce_sum_splits_kernel<T><<<grid_size(elements, 4 * kInfoNceThreads), kInfoNceThreads, 0, stream>>>(
        device_ptr<const float>(split_gradients), device_ptr<T>(grad_keys), num, elements);
    check_cuda(cudaGetLastError(), "info_nce: sum splits");
  });
  return grad_keys;
}

}  // namespace maskco
