// queue_push_ on CUDA, host side. It takes one cooperative launch and no synchronisation, and CUDA graphs can capture
// it.
#include <algorithm>

#include "common/dispatch.h"
#include "common/queue.h"
#include "cuda/common/host.h"
#include "cuda/queue/queue.cuh"

namespace maskco {
namespace {

// The number of blocks: as many as the rows need, but at most as many as the device runs at once.
template <class Kernel>
int64_t resident_blocks(Kernel* kernel, const Tensor& on, int64_t rows) {
  int processors = 0, per_processor = 0;
  check_cuda(
      cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, std::max(0, int(on.get_device_index()))),
      "queue_push_");
  check_cuda(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_processor, kernel, kQueuePushThreads, 0),
             "queue_push_");
  return std::min<int64_t>(ceil_div(rows, kQueuePushThreads / 32), int64_t(processors) * per_processor);
}

// Whether rows at `address` can be read or written in packs of `pack` bytes, and fit into a warp's registers.
bool in_packs(const Tensor& rows, const void* address, int64_t pack) {
  const int64_t row = rows.size(1) * rows.element_size(), stride = rows.stride(0) * rows.element_size();
  return rows.stride(1) == 1 && row % pack == 0 && (rows.size(0) == 1 || stride % pack == 0) &&
         reinterpret_cast<uintptr_t>(address) % pack == 0 && row <= 32 * kQueuePushPacks * pack;
}

void queue_push_(const Tensor& queue, const Tensor& cursor, const Tensor& pushed, bool normalize,
                 const std::optional<Tensor>& pushed_ids, const std::optional<Tensor>& queue_ids, bool wrap) {
  check_queue_push(queue, cursor, pushed, pushed_ids, queue_ids);
  check_on_device(cursor, queue, "cursor");
  check_on_device(pushed, queue, "keys");
  if (pushed_ids) {
    check_on_device(*pushed_ids, queue, "ids");
    check_on_device(*queue_ids, queue, "queue_ids");
  }
  int64_t size = queue.size(0), channels = queue.size(1), count = pushed.size(0);
  if (size == 0 || count == 0) return;

  DeviceGuard guard(queue);
  const Tensor keys = apart_from(pushed, queue);
  std::optional<Tensor> ids;
  if (pushed_ids) ids = apart_from(*pushed_ids, *queue_ids);

  dispatch_floating<__half, __nv_bfloat16>(queue.scalar_type(), [&](auto queue_tag) {
    dispatch_floating<__half, __nv_bfloat16>(keys.scalar_type(), [&](auto key_tag) {
      using Queue = typename decltype(queue_tag)::type;
      using Key = typename decltype(key_tag)::type;
      auto* kernel = &queue_push_kernel<Queue, Key>;
      auto* queue_rows = device_ptr<Queue>(queue);
      auto* cursor_rows = device_ptr<int64_t>(cursor);
      const auto* key_rows = device_ptr<const Key>(keys);
      const int64_t* new_ids = ids ? device_ptr<const int64_t>(*ids) : nullptr;
      int64_t* old_ids = ids ? device_ptr<int64_t>(*queue_ids) : nullptr;
      int64_t queue_row_stride = queue.stride(0), queue_stride = queue.stride(1), cursor_stride = cursor.stride(0);
      int64_t key_row_stride = keys.stride(0), key_stride = keys.stride(1);
      int64_t id_stride = ids ? ids->stride(0) : 0, queue_id_stride = ids ? queue_ids->stride(0) : 0;
      constexpr int64_t kCount = 16 / std::max(sizeof(Queue), sizeof(Key));
      bool by_packs = kByPacks<Key> && in_packs(queue, queue_rows, kCount * sizeof(Queue)) &&
                      in_packs(keys, key_rows, kCount * sizeof(Key));
      void* arguments[] = {&queue_rows,   &cursor_rows,   &key_rows,       &new_ids,    &old_ids,   &normalize,
                           &wrap,         &by_packs,      &size,           &count,      &channels,  &queue_row_stride,
                           &queue_stride, &cursor_stride, &key_row_stride, &key_stride, &id_stride, &queue_id_stride};
      const int64_t blocks = resident_blocks(kernel, queue, std::min(count, size));
      check_cuda(cudaLaunchCooperativeKernel(kernel, dim3(blocks), dim3(kQueuePushThreads), arguments, 0,
                                             current_stream(queue)),
                 "queue_push_");
    });
  });
}

}  // namespace
}  // namespace maskco

MASKCO_LIBRARY_IMPL(MASKCO_NAMESPACE, MASKCO_CUDA_KEY, m) {
  m.impl("queue_push_", MASKCO_CUDA_BOX(&maskco::queue_push_));
}
