// InfoNCE on tensor cores, host side: the choice of features that the kernels take, and their launches. Each pass takes
// two launches. The keys' gradient takes one if the keys alone fill the GPU.
#include <cstddef>
#include <limits>
#include <utility>

#include "cuda/info_nce/combine.cuh"
#include "cuda/info_nce/flash_keys.cuh"
#include "cuda/info_nce/flash_queries.cuh"
#include "cuda/info_nce/heuristics.h"
#include "cuda/info_nce/paths.h"

namespace maskco {
namespace {

// The Flash type of a table entry for a GPU.
template <FlashGpu gpu, typename Product, int kEntry>
struct FlashOn {
  static constexpr FlashEntry kOf = kFlashTable[kEntry];
  static constexpr FlashShape kShape = flash_shape(gpu, kOf);
  using type = Flash<Product, kOf.channels, kShape.warps, kShape.row_blocks, kShape.columns, kShape.blocks_per_sm>;
  static constexpr int kBytes = flash_shared_bytes(kOf.element_size, kOf.channels, kShape);
  static_assert(sizeof(FlashQueriesShared<type>) <= kBytes && sizeof(FlashKeysShared<type>) <= kBytes);
  static_assert(kBytes <= flash_shared_limit(gpu));
};

template <class Shared>
constexpr size_t shared_bytes(bool with_ids) {
  return with_ids ? sizeof(Shared) : offsetof(Shared, column_ids);
}

// Calls f(Flash) with the table's shape for the current device, if the entry is the one for `channels`.
template <class Product, int kEntry, class F>
bool try_entry(int64_t channels, const F& f) {
  if constexpr (kFlashTable[kEntry].element_size == sizeof(typename Product::element)) {
    if (kFlashTable[kEntry].channels != channels) return false;
    if (device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) >= flash_shared_limit(FlashGpu::kLarge)) {
      f(typename FlashOn<FlashGpu::kLarge, Product, kEntry>::type{});
    } else {
      f(typename FlashOn<FlashGpu::kSmall, Product, kEntry>::type{});
    }
    return true;
  }
  return false;
}
template <class Product, class F, int... kEntries>
bool try_entries(int64_t channels, const F& f, std::integer_sequence<int, kEntries...>) {
  return (try_entry<Product, kEntries>(channels, f) || ...);
}

// Calls f(Flash) for the dtype and C. Returns false if there is no kernel.
template <class F>
bool dispatch_flash(ScalarType dtype, bool allow_tf32, int64_t channels, const F& f) {
  const auto entries = std::make_integer_sequence<int, kFlashEntries>();
  if (dtype == ScalarType::Half) return try_entries<HalfProduct<__half>>(channels, f, entries);
  if (dtype == ScalarType::BFloat16) return try_entries<HalfProduct<__nv_bfloat16>>(channels, f, entries);
  if (dtype != ScalarType::Float) return false;
  return allow_tf32 ? try_entries<Tf32Product<1>>(channels, f, entries)
                    : try_entries<Tf32Product<3>>(channels, f, entries);
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
                  " rows need more blocks than one launch can have. Pass fewer queries or keys at a time");
  return static_cast<unsigned>(blocks);
}

template <class Kernel>
void allow_shared_memory(Kernel* kernel, size_t bytes) {
  if (bytes <= 48 * 1024) return;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
             "info_nce: shared memory");
}

int splits_for(int64_t row_blocks, int64_t tiles, int blocks_per_sm) {
  return num_splits(row_blocks, tiles, blocks_per_sm, device_attribute(cudaDevAttrMultiProcessorCount));
}

}  // namespace

bool flash_takes(const Tensor& query, const Tensor* positive, const Tensor* keys) {
  const int64_t c = query.size(1);
  return query.size(0) > 0 && dispatch_flash(query.scalar_type(), true, c, [](auto) {}) && aligned_rows(query) &&
         (positive == nullptr || aligned_rows(*positive)) && (keys == nullptr || aligned_rows(*keys));
}

InfoNCEResults flash_forward(const InfoNCEForwardCall& call) {
  InfoNCEResults results(call);
  const Tensor& query = call.query;
  const int64_t n = query.size(0), c = query.size(1);
  auto new_floats = [&](torch::headeronly::IntHeaderOnlyArrayRef size) {
    return torch::stable::new_empty(query, size, ScalarType::Float);
  };
  Tensor positive_product = new_floats({n});
  const Temperature<float> temperature = temperature_of<float>(call);
  const cudaStream_t stream = current_stream(query);

  dispatch_flash(query.scalar_type(), call.allow_tf32, c, [&](auto flash) {
    using F = decltype(flash);
    using T = typename F::T;
    const auto kernel = call.need_grad ? &info_nce_flash_kernel<F, true> : &info_nce_flash_kernel<F, false>;
    const size_t bytes = shared_bytes<FlashQueriesShared<F>>(call.query_ids.has_value());
    allow_shared_memory(kernel, bytes);
    const unsigned row_blocks = grid_size(n, F::kRows);
    const int64_t tiles = ceil_div(call.queue ? call.queue->rows.size(0) : 0, F::kColumns) +
                          (call.in_batch ? ceil_div(n, F::kColumns) : 0);
    const int splits = splits_for(row_blocks, tiles, F::kBlocksPerSm);
    Tensor split_rows = new_floats({splits, n, sizeof(FlashRow) / sizeof(float)});
    Tensor split_sums = new_floats({call.need_grad ? splits : 0, n, c});
    const auto queries = flash_features<T>(query, call.query_ids);
    const auto positives = flash_features<T>(call.positive, call.query_ids);
    kernel<<<dim3(row_blocks, splits), F::kThreads, bytes, stream>>>(
        queries, positives,
        call.queue ? flash_features<T>(call.queue->rows, call.queue->ids) : FlashFeatures<T>{nullptr, 0, 0, nullptr},
        call.queue ? optional_ptr<int64_t>(call.queue->valid) : nullptr, call.in_batch, temperature,
        device_ptr<float>(positive_product), device_ptr<FlashRow>(split_rows), device_ptr<float>(split_sums));
    check_cuda(cudaGetLastError(), "info_nce: flash");

    info_nce_combine_kernel<T><<<grid_size(n, 1), kInfoNceThreads, 0, stream>>>(
        queries, positives, local_negatives_of<T>(call), device_ptr<const float>(positive_product),
        device_ptr<const FlashRow>(split_rows), device_ptr<const float>(split_sums), splits, temperature,
        kernel_results<float>(results, call.need_grad), c);
    check_cuda(cudaGetLastError(), "info_nce: combine");
  });
  return results;
}

Tensor flash_backward_keys(const InfoNCEKeysCall& call) {
  const Tensor &query = call.query, &keys = call.keys.rows;
  Tensor grad_keys = torch::stable::new_empty(keys, {keys.size(0), keys.size(1)});
  if (grad_keys.numel() == 0) return grad_keys;
  dispatch_flash(query.scalar_type(), call.allow_tf32, query.size(1), [&](auto flash) {
    using F = decltype(flash);
    using T = typename F::T;
    const auto kernel = &info_nce_flash_keys_kernel<F>;
    const size_t bytes = shared_bytes<FlashKeysShared<F>>(call.query_ids && call.keys.ids);
    allow_shared_memory(kernel, bytes);
    const unsigned row_blocks = grid_size(keys.size(0), F::kRows);
    const int splits = splits_for(row_blocks, ceil_div(query.size(0), F::kColumns), F::kBlocksPerSm);
    Tensor split_gradients =
        torch::stable::new_empty(query, {splits > 1 ? splits : 0, keys.size(0), keys.size(1)}, ScalarType::Float);
    const cudaStream_t stream = current_stream(query);
    kernel<<<dim3(row_blocks, splits), F::kThreads, bytes, stream>>>(
        flash_features<T>(keys, call.keys.ids), flash_features<T>(query, call.query_ids),
        optional_ptr<int64_t>(call.keys.valid), call.keys.own, temperature_of<float>(call),
        device_ptr<const float>(call.normaliser), device_ptr<const float>(call.grad_loss), call.grad_loss.stride(0),
        device_ptr<T>(grad_keys), splits > 1 ? device_ptr<float>(split_gradients) : nullptr);
    check_cuda(cudaGetLastError(), "info_nce: flash keys");
    if (splits == 1) return;
    const int64_t elements = grad_keys.numel();
    info_nce_sum_splits_kernel<T><<<grid_size(elements, 4 * kInfoNceThreads), kInfoNceThreads, 0, stream>>>(
        device_ptr<const float>(split_gradients), device_ptr<T>(grad_keys), splits, elements);
    check_cuda(cudaGetLastError(), "info_nce: sum splits");
  });
  return grad_keys;
}

}  // namespace maskco
