// queue_push_ on the CPU: one pass over the keys that normalises, casts and writes them after the newest rows.
//
// Rows are independent, and each queue row is written at most once. If B > K, the last K keys are kept. So the result
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
#include "cpu/common/instruction_set.h"
#include "cpu/common/vector.h"

namespace maskco {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr int64_t kElementsPerTask = 1 << 14;  // less is not worth a thread

// 1 / max(|key|, 1e-12), as in torch.nn.functional.normalize.
template <class Acc, class Key>
MASKCO_INLINE Acc inverse_norm(const Key* key, int64_t channels, int64_t stride) {
  Acc sum = 0;
  if (stride == 1) {
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < channels; c++) sum += static_cast<Acc>(key[c]) * static_cast<Acc>(key[c]);
  } else {
    for (int64_t c = 0; c < channels; c++) {
      const Acc x = static_cast<Acc>(key[c * stride]);
      sum += x * x;
    }
  }
  const Acc norm = std::sqrt(sum);
  return 1 / (norm < Acc(1e-12) ? Acc(1e-12) : norm);  // (a NaN stays one)
}

template <class Queue, class Key>
struct Push {
  Queue* queue;                                          // [K, C]
  const Key* keys;                                       // [B, C]
  int64_t queue_row, queue_column, key_row, key_column;  // strides
  int64_t size, channels, first;
  bool normalize;
};

template <class Queue, class Key>
MASKCO_INLINE void write_rows(const Push<Queue, Key>& push, int64_t begin, int64_t end) {
  using Acc = std::conditional_t<std::is_same_v<Key, double>, double, float>;
  for (int64_t b = begin; b < end; b++) {
    Queue* row = push.queue + (push.first + b) % push.size * push.queue_row;
    const Key* key = push.keys + b * push.key_row;
    const Acc scale = push.normalize ? inverse_norm<Acc>(key, push.channels, push.key_column) : Acc(1);
    if (push.queue_column == 1 && push.key_column == 1)  // (constant strides, so that the compiler vectorises)
      for (int64_t c = 0; c < push.channels; c++) row[c] = static_cast<Queue>(static_cast<Acc>(key[c]) * scale);
    else
      for (int64_t c = 0; c < push.channels; c++)
        row[c * push.queue_column] = static_cast<Queue>(static_cast<Acc>(key[c * push.key_column]) * scale);
  }
}

#define MASKCO_WRITE_ROWS(name, target)                                        \
  template <class Queue, class Key>                                            \
  target void name(const Push<Queue, Key>& push, int64_t begin, int64_t end) { \
    write_rows(push, begin, end);                                              \
  }
MASKCO_WRITE_ROWS(write_rows_baseline, )
#if defined(__x86_64__)
MASKCO_WRITE_ROWS(write_rows_avx2, MASKCO_AVX2)
MASKCO_WRITE_ROWS(write_rows_avx512, __attribute__((target("arch=x86-64-v4"))))
#endif

template <class Queue, class Key>
auto* write_rows_kernel() {
#if defined(__x86_64__)
  if (instruction_set() >= InstructionSet::Avx512) return &write_rows_avx512<Queue, Key>;
  if (instruction_set() == InstructionSet::Avx2) return &write_rows_avx2<Queue, Key>;
#endif
  return &write_rows_baseline<Queue, Key>;
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
      const Push<Queue, Key> push{static_cast<Queue*>(queue.data_ptr()),
                                  static_cast<const Key*>(keys.data_ptr()),
                                  queue.stride(0),
                                  queue.stride(1),
                                  keys.stride(0),
                                  keys.stride(1),
                                  size,
                                  channels,
                                  first,
                                  normalize};
      auto* write = write_rows_kernel<Queue, Key>();
      const int64_t grain = std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, channels));
      torch::stable::parallel_for(skipped, taken, grain, [&](int64_t begin, int64_t end) { write(push, begin, end); });
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
