// queue_push_ in one launch: keys are normalised, cast and written behind the newest rows, ids with them, and the
// cursor moves on, all on the device.
//
// Every block needs the old cursor, and one of them overwrites it. So the blocks meet at a grid barrier: they arrive
// once they have read the cursor, write their rows, and only then wait, which by that time costs nothing. The launch is
// cooperative for that; the grid is as large as fits on the device at once, and warps stride over the rows.
// Each queue row is written by one warp at most (of B > K keys the last K are kept): the result is deterministic.
#pragma once
#include <cooperative_groups.h>

#include <cstdint>
#include <utility>

#include "convert.cuh"

namespace maskco {

constexpr int kQueuePushThreads = 256;

// max(|key|, 1e-12), as in torch.nn.functional.normalize, in every lane of the warp
template <typename Acc, typename Key>
__device__ Acc row_norm(const Key* key, int64_t channels, int64_t stride, int lane) {
  Acc sum = 0;
  for (int64_t c = lane; c < channels; c += 32) {
    const Acc x = convert<Acc>(key[c * stride]);
    sum += x * x;
  }
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffff, sum, offset);
  const Acc norm = sqrt(sum);
  return norm < Acc(1e-12) ? Acc(1e-12) : norm;  // (a NaN stays one)
}

template <typename Queue, typename Key>
__global__ void __launch_bounds__(kQueuePushThreads)
    queue_push_kernel(Queue* queue,        // [K, C], changed
                      int64_t* cursor,     // [2]: next row, valid rows; changed
                      const Key* keys,     // [B, C]
                      const int64_t* ids,  // [B] or null
                      int64_t* queue_ids,  // [K] or null, changed
                      bool normalize,
                      bool wrap,  // else keys that pass the queue's end are dropped
                      int64_t size, int64_t count, int64_t channels, int64_t queue_row_stride, int64_t queue_stride,
                      int64_t cursor_stride, int64_t key_row_stride, int64_t key_stride, int64_t id_stride,
                      int64_t queue_id_stride) {
  using Acc = accumulator_t<Key>;
  auto grid = cooperative_groups::this_grid();
  int64_t first = cursor[0] % size;
  if (first < 0) first += size;
  const int64_t valid = max(int64_t(0), cursor[cursor_stride]);
  auto cursor_was_read = grid.barrier_arrive();

  const int64_t taken = wrap ? count : min(count, size - first);
  const int64_t skipped = max(int64_t(0), taken - size);  // keys that later ones of this push overwrite
  const int64_t start = (first + skipped) % size;
  const int lane = threadIdx.x % 32;
  const int64_t warps = int64_t(gridDim.x) * (kQueuePushThreads / 32);
  for (int64_t b = skipped + (int64_t(blockIdx.x) * kQueuePushThreads + threadIdx.x) / 32; b < taken; b += warps) {
    int64_t target = start + (b - skipped);
    if (target >= size) target -= size;
    const Key* key = keys + b * key_row_stride;
    Queue* row = queue + target * queue_row_stride;
    const Acc norm = normalize ? row_norm<Acc>(key, channels, key_stride, lane) : Acc(1);
    for (int64_t c = lane; c < channels; c += 32) {
      row[c * queue_stride] = convert<Queue>(convert<Acc>(key[c * key_stride]) / norm);
    }
    if (ids != nullptr && lane == 0) queue_ids[target * queue_id_stride] = ids[b * id_stride];
  }

  grid.barrier_wait(std::move(cursor_was_read));
  if (grid.thread_rank() == 0) {
    cursor[0] = (first + taken) % size;
    cursor[cursor_stride] = min(size, min(valid, size) + taken);
  }
}

}  // namespace maskco
