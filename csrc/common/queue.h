// Checks of queue_push_ before it writes, the same on all devices, and the copy that keys inside the queue need.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "checks.h"

namespace maskco {

// Whether the memory ranges overlap. (Interleaved views may overlap and share no element.)
inline bool shares_memory(const Tensor& a, const Tensor& b) {
  auto begin = [](const Tensor& t) { return static_cast<const char*>(t.data_ptr()); };
  auto end = [&](const Tensor& t) {
    int64_t last = 0;
    for (int64_t d = 0; d < t.dim(); d++) last += (t.size(d) - 1) * t.stride(d);
    return begin(t) + (last + 1) * t.element_size();
  };
  return a.numel() && b.numel() && begin(a) < end(b) && begin(b) < end(a);
}

// A copy if it shares memory with `written`: rows are written in any order, and must not change what is read.
inline Tensor apart_from(const Tensor& t, const Tensor& written) {
  return shares_memory(t, written) ? torch::stable::clone(t) : t;
}

inline void check_queue_push(const Tensor& queue, const Tensor& cursor, const Tensor& keys,
                             const std::optional<Tensor>& ids, const std::optional<Tensor>& queue_ids) {
  check_dim(queue, 2, "queue");
  check_floating(queue, "queue");
  for (int64_t d = 0; d < 2; d++) {
    STD_TORCH_CHECK(queue.stride(d) != 0 || queue.size(d) < 2,
                    "queue must not be expanded, its rows share memory. Pass queue.clone()");
  }
  check_dim(cursor, 1, "cursor");
  check_size(cursor, 0, 2, "cursor");
  check_dtype(cursor, ScalarType::Long, "cursor");
  check_dim(keys, 2, "keys");
  check_size(keys, 1, queue.size(1), "keys");
  check_floating(keys, "keys");
  STD_TORCH_CHECK(ids.has_value() == queue_ids.has_value(),
                  "ids and queue_ids go together, and one is missing. Give both or neither");
  STD_TORCH_CHECK(cursor.stride(0) != 0,
                  "cursor must not be expanded, its two numbers share memory. Pass cursor.clone()");
  if (ids) {
    STD_TORCH_CHECK(queue_ids->dim() == 1 && (queue_ids->stride(0) != 0 || queue_ids->size(0) < 2),
                    "queue_ids must have one dimension and rows of its own memory. Pass queue_ids.flatten().clone()");
    check_dim(*ids, 1, "ids");
    check_size(*ids, 0, keys.size(0), "ids");
    check_dtype(*ids, ScalarType::Long, "ids");
    check_dim(*queue_ids, 1, "queue_ids");
    check_size(*queue_ids, 0, queue.size(0), "queue_ids");
    check_dtype(*queue_ids, ScalarType::Long, "queue_ids");
  }
}

}  // namespace maskco
