// queue_push_ in one launch, all on the device. It normalises and casts keys, writes them and their ids after the
// newest rows, and advances the cursor.
//
// Every block needs the old cursor, and one of them overwrites it. So the blocks use a grid barrier: they arrive once
// they have read the cursor, write their rows, and only then wait. By that time waiting costs almost nothing. The
// barrier needs a cooperative launch, with a grid that fits on the device at once. Warps stride over the rows.
//
// At most one warp writes each queue row. If B > K, the last K keys are kept. So the result is deterministic.
#pragma once
#include <cooperative_groups.h>

#include <cstdint>
#include <utility>

#include "cuda/common/convert.cuh"

namespace maskco {

constexpr int kQueuePushThreads = 256;

template <typename Key>
inline constexpr bool kByPacks = sizeof(Key) < 8;  // (float64 would spill)

// A lane keeps its part of keys up to this length in registers. Longer keys are read again once their norm is known.
constexpr int kQueuePushPacks = 4;

// The factor of a key from each lane's sum of squares: 1 / max(|key|, 1e-12), as in torch.nn.functional.normalize.
// Every lane gets it.
template <typename Acc>
__device__ __forceinline__ Acc scale_of(Acc sum) {
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffff, sum, offset);
  const Acc norm = sqrt(sum);
  return Acc(1) / (norm < Acc(1e-12) ? Acc(1e-12) : norm);  // (a NaN stays one)
}

// Copies a key into a row, in packs of up to 16 bytes. Both are contiguous, aligned, and consist of whole packs.
template <typename Acc, typename Queue, typename Key>
__device__ __forceinline__ void push_packs(Queue* row, const Key* key, int64_t channels, bool normalize, int lane) {
  constexpr int kCount = 16 / (sizeof(Queue) > sizeof(Key) ? sizeof(Queue) : sizeof(Key));
  using From = Pack<Key, kCount>;
  using To = Pack<Queue, kCount>;
  From held[kQueuePushPacks];
  const int packs = int(channels / kCount);
  Acc sum = 0;
#pragma unroll
  for (int p = 0; p < kQueuePushPacks; p++) {
    if (p * 32 + lane >= packs) continue;
    held[p] = reinterpret_cast<const From*>(key)[p * 32 + lane];
#pragma unroll
    for (int n = 0; n < kCount; n++) {
      const Acc x = convert<Acc>(held[p].value[n]);
      sum += x * x;
    }
  }
  const Acc scale = normalize ? scale_of(sum) : Acc(1);
#pragma unroll
  for (int p = 0; p < kQueuePushPacks; p++) {
    if (p * 32 + lane >= packs) continue;
    To out;
#pragma unroll
    for (int n = 0; n < kCount; n++) out.value[n] = convert<Queue>(convert<Acc>(held[p].value[n]) * scale);
    reinterpret_cast<To*>(row)[p * 32 + lane] = out;
  }
}

template <typename Acc, typename Queue, typename Key>
__device__ __forceinline__ void push_elements(Queue* row, const Key* key, int64_t channels, int64_t queue_stride,
                                              int64_t key_stride, bool normalize, int lane) {
  Acc scale = 1;
  if (normalize) {
    Acc sum = 0;
    for (int64_t c = lane; c < channels; c += 32) {
      const Acc x = convert<Acc>(key[c * key_stride]);
      sum += x * x;
    }
    scale = scale_of(sum);
  }
  for (int64_t c = lane; c < channels; c += 32) {
    row[c * queue_stride] = convert<Queue>(convert<Acc>(key[c * key_stride]) * scale);
  }
}

template <typename Queue, typename Key>
__global__ void __launch_bounds__(kQueuePushThreads)
    queue_push_kernel(Queue* queue,        // [K, C], changed
                      int64_t* cursor,     // [2]: next row, valid rows; changed
                      const Key* keys,     // [B, C]
                      const int64_t* ids,  // [B] or null
                      int64_t* queue_ids,  // [K] or null, changed
                      bool normalize,
                      bool wrap,      // else keys that pass the queue's end are dropped
                      bool by_packs,  // rows and keys are fit for push_packs
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
    if (kByPacks<Key> && by_packs) {
      push_packs<Acc>(row, key, channels, normalize, lane);
    } else {
      push_elements<Acc>(row, key, channels, queue_stride, key_stride, normalize, lane);
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
