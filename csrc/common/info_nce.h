// Arguments, results and checks of info_nce's host functions, the same on all devices. In C++ the ops' argument lists
// are written out only in schema.cpp and at the end of this file.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

#include "common/checks.h"

namespace maskco {

// Keys that all queries share: the queue, or the positives of the batch.
struct InfoNCEKeys {
  Tensor rows;                  // [K, C]
  std::optional<Tensor> ids;    // [K] int64: a key with the query's id is not its negative
  std::optional<Tensor> valid;  // one int64: how many rows hold keys
  bool own;                     // key i is query i's own positive, and not its negative
};

// Arguments of both passes. Features have one dtype and any strides.
struct InfoNCECall {
  Tensor query;                     // [N, C]
  std::optional<Tensor> query_ids;  // [N] int64
  double temperature;
  std::optional<Tensor> temperature_tensor;  // one element in the dtype of sums, replaces temperature
  bool allow_tf32;               // for float32 products of flash or AMX kernels (ATen's follow torch's own setting)
  std::optional<double> margin;  // keys more similar than the positive by more than this are not negatives
};

struct InfoNCEForwardCall : InfoNCECall {
  Tensor positive;                        // [N, C]
  std::optional<InfoNCEKeys> queue;       // [K, C]
  std::optional<Tensor> local_negatives;  // [N, M, C]
  bool in_batch;
  bool need_grad;
  bool decoupled;  // the positive is not in the sum

  int64_t num_local() const { return local_negatives ? local_negatives->size(1) : 0; }
  InfoNCEKeys batch() const { return {positive, query_ids, std::nullopt, true}; }
};

// Arguments for the gradient of the keys.
struct InfoNCEKeysCall : InfoNCECall {
  Tensor grad_loss;   // [N]
  Tensor normaliser;  // [2, N], of the forward pass
  InfoNCEKeys keys;
  bool aligned;                          // as in the forward pass, to choose the same kernels
  std::optional<Tensor> positive_logit;  // [N], for the margin
};

// Results of the forward pass, in the dtype of sums. They start uninitialised.
struct InfoNCEResults {
  Tensor loss, lse, positive_logit;  // [N]
  Tensor rank;                       // [N] int64
  Tensor grad_query;                 // [N, C], or [0, C] where it is not needed
  Tensor normaliser;                 // [2, N]
  Tensor local_share;                // [N, M]

  explicit InfoNCEResults(const InfoNCEForwardCall& call)
      : InfoNCEResults(call, call.query.size(0), call.query.size(1)) {}

 private:
  InfoNCEResults(const InfoNCEForwardCall& call, int64_t n, int64_t c)
      : loss(empty(call, {n})),
        lse(empty(call, {n})),
        positive_logit(empty(call, {n})),
        rank(torch::stable::new_empty(call.query, {n}, ScalarType::Long)),
        grad_query(empty(call, {call.need_grad ? n : 0, c})),
        normaliser(empty(call, {2, n})),
        local_share(empty(call, {n, call.num_local()})) {}
  static Tensor empty(const InfoNCECall& call, torch::headeronly::IntHeaderOnlyArrayRef size) {
    return torch::stable::new_empty(call.query, size, accumulation_type(call.query));
  }
};

// ---- checks ----

inline void check_same_device(const Tensor& t, const Tensor& query, const char* name) {
  STD_TORCH_CHECK(t.device() == query.device(), name, " is on another device than query. Move it there");
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
  STD_TORCH_CHECK(ids->is_contiguous(), name, " is not contiguous. Pass ", name, ".contiguous()");
}
inline void check_scalar(const std::optional<Tensor>& t, ScalarType dtype, const Tensor& query, const char* name) {
  if (!t) return;
  STD_TORCH_CHECK(t->numel() == 1, name, " must have one element, got ", t->numel());
  check_dtype(*t, dtype, name);
  check_same_device(*t, query, name);
}
// One number for each query, in the dtype of sums.
inline void check_rows(const Tensor& t, const Tensor& query, const char* name) {
  check_dim(t, 1, name);
  check_size(t, 0, query.size(0), name);
  check_dtype(t, accumulation_type(query), name);
  check_same_device(t, query, name);
}
inline void check_query(const InfoNCECall& call) {
  check_dim(call.query, 2, "query");
  check_floating(call.query, "query");
  check_ids(call.query_ids, call.query.size(0), call.query, "query_ids");
  check_scalar(call.temperature_tensor, accumulation_type(call.query), call.query, "temperature_tensor");
}
inline void check_keys(const InfoNCEKeys& keys, const Tensor& query, const char* name, const char* ids_name) {
  check_features(keys.rows, 2, query, name);
  if (keys.own) check_size(keys.rows, 0, query.size(0), name);
  check_ids(keys.ids, keys.rows.size(0), query, ids_name);
  check_scalar(keys.valid, ScalarType::Long, query, "valid");
}
inline void check(const InfoNCEForwardCall& call) {
  check_query(call);
  check_features(call.positive, 2, call.query, "positive");
  check_size(call.positive, 0, call.query.size(0), "positive");
  if (call.queue) check_keys(*call.queue, call.query, "queue", "queue_ids");
  if (!call.local_negatives) return;
  check_features(*call.local_negatives, 3, call.query, "local_negatives");
  check_size(*call.local_negatives, 0, call.query.size(0), "local_negatives");
}
inline void check(const InfoNCEKeysCall& call) {
  check_query(call);
  check_rows(call.grad_loss, call.query, "grad_loss");
  check_dim(call.normaliser, 2, "normaliser");
  check_size(call.normaliser, 0, 2, "normaliser");
  check_size(call.normaliser, 1, call.query.size(0), "normaliser");
  check_dtype(call.normaliser, accumulation_type(call.query), "normaliser");
  check_same_device(call.normaliser, call.query, "normaliser");
  STD_TORCH_CHECK(call.normaliser.is_contiguous(),
                  "normaliser is not contiguous. Pass the one that info_nce_fwd returned");
  check_keys(call.keys, call.query, "keys", "key_ids");
}

// ---- the ops, given what computes them ----

template <InfoNCEResults (*compute)(const InfoNCEForwardCall&)>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> info_nce_fwd(
    const Tensor& query, const Tensor& positive, const std::optional<Tensor>& queue,
    const std::optional<Tensor>& local_negatives, bool in_batch, const std::optional<Tensor>& query_ids,
    const std::optional<Tensor>& queue_ids, const std::optional<Tensor>& valid, double temperature,
    const std::optional<Tensor>& temperature_tensor, bool need_grad, bool allow_tf32, bool decoupled,
    std::optional<double> margin) {
  InfoNCEForwardCall call{{query, query_ids, temperature, temperature_tensor, allow_tf32, margin},
                          positive,
                          std::nullopt,
                          local_negatives,
                          in_batch,
                          need_grad,
                          decoupled};
  STD_TORCH_CHECK(queue || !(queue_ids || valid),
                  "queue_ids and valid describe a queue, and none was given. Give a queue, or leave them out");
  if (queue) call.queue = InfoNCEKeys{*queue, queue_ids, valid, false};
  check(call);
  const InfoNCEResults r = compute(call);
  return {r.loss, r.lse, r.positive_logit, r.rank, r.grad_query, r.normaliser, r.local_share};
}

template <Tensor (*compute)(const InfoNCEKeysCall&)>
Tensor info_nce_bwd_keys(const Tensor& grad_loss, const Tensor& normaliser, const Tensor& query, const Tensor& keys,
                         bool in_batch, const std::optional<Tensor>& query_ids, const std::optional<Tensor>& key_ids,
                         const std::optional<Tensor>& valid, double temperature,
                         const std::optional<Tensor>& temperature_tensor, bool aligned, bool allow_tf32,
                         std::optional<double> margin, const std::optional<Tensor>& positive_logit) {
  const InfoNCEKeysCall call{{query, query_ids, temperature, temperature_tensor, allow_tf32, margin},
                             grad_loss,
                             normaliser,
                             {keys, key_ids, valid, in_batch},
                             aligned,
                             positive_logit};
  STD_TORCH_CHECK(!margin || positive_logit,
                  "margin is given without positive_logit. Pass the one that info_nce_fwd returned");
  if (positive_logit) check_rows(*positive_logit, query, "positive_logit");
  check(call);
  return compute(call);
}

}  // namespace maskco
