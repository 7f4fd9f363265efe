// Arguments, results and checks of the host functions of the losses over all pairs, the same on all devices. In C++ the
// ops' argument lists are written out only in schema.cpp and here.
//
// Each op is a template over a struct that computes it, with static functions forward, backward and sum.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <optional>
#include <tuple>

#include "common/aten.h"
#include "common/info_nce.h"

namespace maskco {

// Number of rows in values that a forward pass keeps for the backward pass. The CPU's kernels pad them.
constexpr int64_t padded_rows(int64_t n) { return (n + 31) / 32 * 32; }

// Checks that the backward pass gets a result of the forward pass unchanged, in the dtype of sums.
inline void check_kept(const Tensor& t, std::initializer_list<int64_t> sizes, const Tensor& features,
                       const char* name) {
  check_dim(t, static_cast<int64_t>(sizes.size()), name);
  int64_t d = 0;
  for (int64_t size : sizes) check_size(t, d++, size, name);
  check_dtype(t, accumulation_type(features), name);
  check_same_device(t, features, name);
  STD_TORCH_CHECK(t.is_contiguous(), name, " is not contiguous. Pass what the forward op returned");
}

// Dtype of gradients that are computed before their upstream gradient is known. float16 could overflow or underflow.
inline ScalarType gradient_type(const Tensor& features) {
  const ScalarType dtype = features.scalar_type();
  return dtype == ScalarType::Half ? ScalarType::Float : dtype;
}

// A scale: a number, or a tensor raised to the power `number`, which is 1, or -1 for a temperature.
struct ScaleArgument {
  double number;
  std::optional<Tensor> tensor;  // one element, in the dtype of sums
};

struct Needed {
  bool query, keys, scale, bias = false;

  bool any() const { return query || keys || scale || bias; }
};

// Gradients of the query, the keys and the scale [1]. Those that are not needed are empty.
using Gradients = std::tuple<Tensor, Tensor, Tensor>;

// ---- clip_loss ----

struct ClipCall {
  Tensor query, keys;  // [N, C], [K, C]
  int64_t own;         // key i + own is query i's own
  std::optional<Tensor> query_ids, key_ids;
  ScaleArgument scale;
  bool columns;      // whether to sum over each key's queries too
  double smoothing;  // label_smoothing
  bool decoupled;    // whether to leave the own pair out of the sum
  std::optional<double> margin;
  bool allow_tf32;  // for float32 products of CUDA's kernels (ATen's follow torch's own setting)

  ClipCall slice(int64_t first, int64_t count) const {
    ClipCall part = *this;
    part.query = narrow(query, 0, first, count);
    part.own = own + first;
    if (query_ids) part.query_ids = narrow(*query_ids, 0, first, count);
    return part;
  }

  void check() const {
    check_dim(query, 2, "query");
    check_floating(query, "query");
    check_features(keys, 2, query, "keys");
    check_ids(query_ids, query.size(0), query, "query_ids");
    check_ids(key_ids, keys.size(0), query, "key_ids");
    check_scalar(scale.tensor, accumulation_type(query), query, "scale_tensor");
    STD_TORCH_CHECK(0 <= own && own + query.size(0) <= keys.size(0), "own must lie between 0 and ",
                    keys.size(0) - query.size(0), ", so that each query has a key, got ", own);
  }
};

// loss [N], parts [2, N], own_logit [1, N rounded up], row_rank [N rounded up], column_rank [K], row_sums [2, N rounded
// up], column_sums [2, K], row_totals, column_totals, logits
using ClipForward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Values saved for the backward pass, and the upstream gradients of rows [N] and columns [K]. `column_own` has the
// logit of each key's own pair [K]. The forward pass on this rank does not know it if its query is on another rank.
struct ClipSaved {
  Tensor row_upstream, column_upstream, parts, own_logit, column_own;
  Tensor row_sums, column_sums, row_totals, column_totals, logits;

  void check(const ClipCall& call) const {
    const int64_t n = call.query.size(0), padded = padded_rows(n), k = call.keys.size(0);
    const int64_t columns = call.columns ? k : 0, totals = call.smoothing > 0 ? 1 : 0;
    check_rows(row_upstream, call.query, "row_upstream");
    check_kept(column_upstream, {columns}, call.query, "column_upstream");
    check_kept(parts, {2, n}, call.query, "parts");
    check_kept(own_logit, {1, padded}, call.query, "own_logit");
    check_kept(column_own, {columns}, call.query, "column_own");
    check_kept(row_sums, {2, padded}, call.query, "row_sums");
    check_kept(column_sums, {2, columns}, call.query, "column_sums");
    check_kept(row_totals, {2, totals * padded}, call.query, "row_totals");
    check_kept(column_totals, {2, totals * columns}, call.query, "column_totals");
    check_kept(logits, {k, logits.size(1)}, call.query, "logits");
  }
};

// The loss [] times `factor`, and the gradients that are needed. With `stats` also statistics [5, N]: own_logit, the
// largest logit and the sum of each row, and those of each column. Then the ranks of rows and columns [2, N].
using ClipSum = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class Device>
ClipForward clip_loss_fwd(const Tensor& query, const Tensor& keys, int64_t own, const std::optional<Tensor>& query_ids,
                          const std::optional<Tensor>& key_ids, double scale, const std::optional<Tensor>& scale_tensor,
                          bool columns, double smoothing, bool decoupled, std::optional<double> margin, int64_t kept,
                          bool allow_tf32) {
  const ClipCall call{query,   keys,      own,       query_ids, key_ids,   {scale, scale_tensor},
                      columns, smoothing, decoupled, margin,    allow_tf32};
  call.check();
  return Device::forward(call, kept);
}

template <class Device>
Gradients clip_loss_bwd(const Tensor& row_upstream, const Tensor& column_upstream, const Tensor& query,
                        const Tensor& keys, int64_t own, const std::optional<Tensor>& query_ids,
                        const std::optional<Tensor>& key_ids, double scale, const std::optional<Tensor>& scale_tensor,
                        bool columns, double smoothing, bool decoupled, std::optional<double> margin,
                        const Tensor& parts, const Tensor& own_logit, const Tensor& column_own, const Tensor& row_sums,
                        const Tensor& column_sums, const Tensor& row_totals, const Tensor& column_totals,
                        const Tensor& logits, bool need_query, bool need_keys, bool need_scale, bool allow_tf32) {
  const ClipCall call{query,   keys,      own,       query_ids, key_ids,   {scale, scale_tensor},
                      columns, smoothing, decoupled, margin,    allow_tf32};
  const ClipSaved saved{row_upstream, column_upstream, parts,      own_logit,     column_own,
                        row_sums,     column_sums,     row_totals, column_totals, logits};
  call.check();
  saved.check(call);
  return Device::backward(call, saved, {need_query, need_keys, need_scale});
}

template <class Device>
ClipSum clip_loss_sum(const Tensor& query, const Tensor& keys, const std::optional<Tensor>& ids, double scale,
                      const std::optional<Tensor>& scale_tensor, bool columns, double smoothing, bool decoupled,
                      std::optional<double> margin, double factor, bool need_query, bool need_keys, bool need_scale,
                      int64_t kept, bool stats, bool allow_tf32) {
  const ClipCall call{query,   keys,      0,         ids,    ids,       {scale, scale_tensor},
                      columns, smoothing, decoupled, margin, allow_tf32};
  call.check();
  check_size(keys, 0, query.size(0), "keys");
  return Device::sum(call, factor, {need_query, need_keys, need_scale}, kept, stats);
}

// ---- supcon_loss ----

struct SupConCall {
  Tensor query, keys, query_labels, key_labels;  // [N, C], [K, C], [N], [K]
  std::optional<int64_t> own;                    // key i + own is query i itself, which it is not contrasted with
  ScaleArgument scale;
  bool symmetric;   // the keys are the queries, and get one gradient for both roles
  bool allow_tf32;  // as in ClipCall

  void check() const {
    check_dim(query, 2, "query");
    check_floating(query, "query");
    check_features(keys, 2, query, "keys");
    check_ids(query_labels, query.size(0), query, "query_labels");
    check_ids(key_labels, keys.size(0), query, "key_labels");
    check_scalar(scale.tensor, accumulation_type(query), query, "scale_tensor");
    if (symmetric) check_size(keys, 0, query.size(0), "keys");
  }
};

// loss, lse, mean logit and number of positives [N], the largest logit and the sum of each row [2, N rounded up], and
// the kept logits
using SupConForward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

struct SupConSaved {
  Tensor grad_loss, positives, sums, logits;
};

// The loss [] times `factor`, the gradients that are needed, and lse, positive_logit and positives as in forward.
using SupConSum = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class Device>
SupConForward supcon_loss_fwd(const Tensor& query, const Tensor& keys, const Tensor& query_labels,
                              const Tensor& key_labels, std::optional<int64_t> own, double scale,
                              const std::optional<Tensor>& scale_tensor, bool symmetric, int64_t kept,
                              bool allow_tf32) {
  const SupConCall call{query, keys, query_labels, key_labels, own, {scale, scale_tensor}, symmetric, allow_tf32};
  call.check();
  return Device::forward(call, kept);
}

template <class Device>
Gradients supcon_loss_bwd(const Tensor& grad_loss, const Tensor& query, const Tensor& keys, const Tensor& query_labels,
                          const Tensor& key_labels, std::optional<int64_t> own, double scale,
                          const std::optional<Tensor>& scale_tensor, const Tensor& positives, const Tensor& sums,
                          const Tensor& logits, bool symmetric, bool need_query, bool need_keys, bool need_scale,
                          bool allow_tf32) {
  const SupConCall call{query, keys, query_labels, key_labels, own, {scale, scale_tensor}, symmetric, allow_tf32};
  call.check();
  check_rows(grad_loss, query, "grad_loss");
  check_ids(positives, query.size(0), query, "positives");
  check_kept(sums, {2, padded_rows(query.size(0))}, query, "sums");
  check_kept(logits, {keys.size(0), logits.size(1)}, query, "logits");
  return Device::backward(call, {grad_loss, positives, sums, logits}, {need_query, need_keys, need_scale});
}

template <class Device>
SupConSum supcon_loss_sum(const Tensor& query, const Tensor& keys, const Tensor& query_labels, const Tensor& key_labels,
                          std::optional<int64_t> own, double scale, const std::optional<Tensor>& scale_tensor,
                          bool symmetric, double factor, bool need_query, bool need_keys, bool need_scale, int64_t kept,
                          bool allow_tf32) {
  const SupConCall call{query, keys, query_labels, key_labels, own, {scale, scale_tensor}, symmetric, allow_tf32};
  call.check();
  return Device::sum(call, factor, {need_query, need_keys, need_scale}, kept);
}

// ---- siglip_loss ----

struct SigLipCall {
  Tensor query, keys;          // [N, C], [K, C]
  std::optional<int64_t> own;  // key i + own is query i's own
  ScaleArgument scale, bias;   // the bias has the power 1
  bool allow_tf32;             // as in ClipCall

  void check() const {
    check_dim(query, 2, "query");
    check_floating(query, "query");
    check_features(keys, 2, query, "keys");
    check_scalar(scale.tensor, accumulation_type(query), query, "scale_tensor");
    check_scalar(bias.tensor, accumulation_type(query), query, "bias_tensor");
  }
};

// Gradients of the query, the keys, the scale [1] and the bias [1]. Those that are not needed are empty.
using SigLipGradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;
// The loss [] and these gradients.
using SigLipSum = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class Device>
Tensor siglip_loss_fwd(const Tensor& query, const Tensor& keys, std::optional<int64_t> own, double scale,
                       const std::optional<Tensor>& scale_tensor, double bias, const std::optional<Tensor>& bias_tensor,
                       bool allow_tf32) {
  const SigLipCall call{query, keys, own, {scale, scale_tensor}, {bias, bias_tensor}, allow_tf32};
  call.check();
  return Device::forward(call);
}

template <class Device>
SigLipGradients siglip_loss_bwd(const Tensor& grad_loss, const Tensor& query, const Tensor& keys,
                                std::optional<int64_t> own, double scale, const std::optional<Tensor>& scale_tensor,
                                double bias, const std::optional<Tensor>& bias_tensor, bool need_query, bool need_keys,
                                bool need_scale, bool need_bias, bool allow_tf32) {
  const SigLipCall call{query, keys, own, {scale, scale_tensor}, {bias, bias_tensor}, allow_tf32};
  call.check();
  check_rows(grad_loss, query, "grad_loss");
  return Device::backward(call, grad_loss, {need_query, need_keys, need_scale, need_bias});
}

template <class Device>
SigLipSum siglip_loss_sum(const Tensor& query, const Tensor& keys, std::optional<int64_t> own, double scale,
                          const std::optional<Tensor>& scale_tensor, double bias,
                          const std::optional<Tensor>& bias_tensor, double factor, bool need_query, bool need_keys,
                          bool need_scale, bool need_bias, bool allow_tf32) {
  const SigLipCall call{query, keys, own, {scale, scale_tensor}, {bias, bias_tensor}, allow_tf32};
  call.check();
  return Device::sum(call, factor, {need_query, need_keys, need_scale, need_bias});
}

}  // namespace maskco
