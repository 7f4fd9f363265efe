// queue_push_ on the CPU: one pass over the keys that normalises, casts and writes them behind the newest rows.
//
// Rows are independent, and each queue row is written at most once (of B > K keys the last K are kept), so the result
// does not depend on the number of threads.
#include "common/queue.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "common/checks.h"
#include "common/dispatch.h"
#include "common/library.h"

namespace maskco {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr int64_t kElementsPerTask = 1 << 14;  // less is not worth a thread

// max(|key|, 1e-12), as in torch.nn.functional.normalize. Eight sums side by side, so that they fill a vector register.
template <class Acc, class Key>
Acc row_norm(const Key* key, int64_t channels, int64_t stride) {
  constexpr int64_t lanes = 8;
  Acc sums[lanes] = {};
  int64_t c = 0;
  if (stride == 1) {
    for (; c + lanes <= channels; c += lanes) {
      for (int64_t lane = 0; lane < lanes; lane++) {
        const Acc x = static_cast<Acc>(key[c + lane]);
        sums[lane] += x * x;
      }
    }
  }
  for (; c < channels; c++) {
    const Acc x = static_cast<Acc>(key[c * stride]);
    sums[c % lanes] += x * x;
  }
  Acc sum = 0;
  for (Acc lane : sums) sum += lane;
  const Acc norm = std::sqrt(sum);
  return norm < Acc(1e-12) ? Acc(1e-12) : norm;  // (a NaN stays one)
}

template <class Queue, class Key>
void write_row(Queue* row, int64_t row_stride, const Key* key, int64_t key_stride, int64_t channels, bool normalize) {
  using Acc = std::conditional_t<std::is_same_v<Key, double>, double, float>;
  const Acc norm = normalize ? row_norm<Acc>(key, channels, key_stride) : Acc(1);
  if (row_stride == 1 && key_stride == 1) {  // (constant strides, so that the compiler vectorises)
    for (int64_t c = 0; c < channels; c++) row[c] = static_cast<Queue>(static_cast<Acc>(key[c]) / norm);
  } else {
    for (int64_t c = 0; c < channels; c++) {
      row[c * row_stride] = static_cast<Queue>(static_cast<Acc>(key[c * key_stride]) / norm);
    }
  }
}

void queue_push_(const Tensor& queue, const Tensor& cursor, const Tensor& pushed, bool normalize,
                 const std::optional<Tensor>& ids, const std::optional<Tensor>& queue_ids, bool wrap) {
  check_queue_push(queue, cursor, pushed, ids, queue_ids);
  const Tensor keys = apart_from(pushed, queue);
  const int64_t size = queue.size(0), channels = queue.size(1), count = keys.size(0);
  if (size == 0 || count == 0) return;

  auto* next = static_cast<int64_t*>(cursor.data_ptr());
  int64_t& valid = next[cursor.stride(0)];
  const int64_t first = *next;
  STD_TORCH_CHECK(0 <= first && first < size && 0 <= valid && valid <= size,
                  "cursor must hold (next row, valid rows) of ", "a queue with ", size, " rows, got (", first, ", ",
                  valid, ")");
  const int64_t taken = wrap ? count : std::min(count, size - first);
  const int64_t skipped = std::max<int64_t>(0, taken - size);  // keys that later ones of this push overwrite

  dispatch_floating<Half, BFloat16>(queue.scalar_type(), [&](auto queue_tag) {
    dispatch_floating<Half, BFloat16>(keys.scalar_type(), [&](auto key_tag) {
      using Queue = typename decltype(queue_tag)::type;
      using Key = typename decltype(key_tag)::type;
      auto* queue_data = static_cast<Queue*>(queue.data_ptr());         // [K, C]
      const auto* key_data = static_cast<const Key*>(keys.data_ptr());  // [B, C]
      const int64_t queue_stride[2] = {queue.stride(0), queue.stride(1)},
                    key_stride[2] = {keys.stride(0), keys.stride(1)};
      const int64_t grain = std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, channels));
      torch::stable::parallel_for(skipped, taken, grain, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; b++) {
          write_row(queue_data + (first + b) % size * queue_stride[0], queue_stride[1], key_data + b * key_stride[0],
                    key_stride[1], channels, normalize);
        }
      });
    });
  });
  if (ids) {
    const Tensor new_ids = apart_from(*ids, *queue_ids);
    const auto* from = static_cast<const int64_t*>(new_ids.data_ptr());
    auto* to = static_cast<int64_t*>(queue_ids->data_ptr());
    for (int64_t b = skipped; b < taken; b++) {
      to[(first + b) % size * queue_ids->stride(0)] = from[b * new_ids.stride(0)];
    }
  }
  *next = (first + taken) % size;
  valid = std::min(size, valid + taken);
}

}  // namespace
}  // namespace maskco

MASKCO_LIBRARY_IMPL(MASKCO_NAMESPACE, CPU, m) { m.impl("queue_push_", TORCH_BOX(&maskco::queue_push_)); }
