// What info_nce's host functions check before they compute, on any device.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

#include "checks.h"

namespace maskco {

// loss, lse, positive_logit, rank, grad_query, normaliser, local_share: as in the schema
using InfoNCEForward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

inline void check_info_nce_query(const Tensor& query) {
  check_dim(query, 2, "query");
  check_floating(query, "query");
}
inline void check_same_device(const Tensor& t, const Tensor& query, const char* name) {
  STD_TORCH_CHECK(t.device() == query.device(), name, " must be on the same device as query");
}
inline void check_features(const Tensor& t, int64_t dim, const Tensor& query, const char* name) {
  check_dim(t, dim, name);
  check_size(t, dim - 1, query.size(1), name);
  check_dtype(t, query.scalar_type(), name);
  check_same_device(t, query, name);
}
inline void check_ids(const std::optional<Tensor>& ids, int64_t size, const Tensor& query, const char* name) {
  if (!ids) return;
  check_dim(*ids, 1, name);
  check_size(*ids, 0, size, name);
  check_dtype(*ids, ScalarType::Long, name);
  check_same_device(*ids, query, name);
  STD_TORCH_CHECK(ids->is_contiguous(), name, " must be contiguous");
}
inline void check_scalar(const std::optional<Tensor>& t, ScalarType dtype, const Tensor& query, const char* name) {
  if (!t) return;
  STD_TORCH_CHECK(t->numel() == 1, name, " must have one element");
  check_dtype(*t, dtype, name);
  check_same_device(*t, query, name);
}
// one number per query, in the type that sums run in
inline void check_rows(const Tensor& t, const Tensor& query, const char* name) {
  check_dim(t, 1, name);
  check_size(t, 0, query.size(0), name);
  check_dtype(t, accumulation_type(query), name);
  check_same_device(t, query, name);
}

inline void check_info_nce_fwd(const Tensor& query, const Tensor& positive, const std::optional<Tensor>& queue,
                               const std::optional<Tensor>& local_negatives, const std::optional<Tensor>& query_ids,
                               const std::optional<Tensor>& queue_ids, const std::optional<Tensor>& valid,
                               const std::optional<Tensor>& temperature_tensor) {
  check_info_nce_query(query);
  check_features(positive, 2, query, "positive");
  check_size(positive, 0, query.size(0), "positive");
  if (queue) check_features(*queue, 2, query, "queue");
  if (local_negatives) {
    check_features(*local_negatives, 3, query, "local_negatives");
    check_size(*local_negatives, 0, query.size(0), "local_negatives");
  }
  check_ids(query_ids, query.size(0), query, "query_ids");
  check_ids(queue_ids, queue ? queue->size(0) : 0, query, "queue_ids");
  check_scalar(valid, ScalarType::Long, query, "valid");
  check_scalar(temperature_tensor, accumulation_type(query), query, "temperature_tensor");
}

inline void check_info_nce_bwd_keys(const Tensor& grad_loss, const Tensor& normaliser, const Tensor& query,
                                    const Tensor& keys, bool in_batch, const std::optional<Tensor>& query_ids,
                                    const std::optional<Tensor>& key_ids, const std::optional<Tensor>& valid,
                                    const std::optional<Tensor>& temperature_tensor) {
  check_info_nce_query(query);
  check_rows(grad_loss, query, "grad_loss");
  check_dim(normaliser, 2, "normaliser");
  check_size(normaliser, 0, 2, "normaliser");
  check_size(normaliser, 1, query.size(0), "normaliser");
  check_dtype(normaliser, accumulation_type(query), "normaliser");
  check_same_device(normaliser, query, "normaliser");
  STD_TORCH_CHECK(normaliser.is_contiguous(), "normaliser must be contiguous");
  check_features(keys, 2, query, "keys");
  if (in_batch) check_size(keys, 0, query.size(0), "keys");
  check_ids(query_ids, query.size(0), query, "query_ids");
  check_ids(key_ids, keys.size(0), query, "key_ids");
  check_scalar(valid, ScalarType::Long, query, "valid");
  check_scalar(temperature_tensor, accumulation_type(query), query, "temperature_tensor");
}

}  // namespace maskco
