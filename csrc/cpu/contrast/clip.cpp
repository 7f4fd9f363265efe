// Cross-entropy of all pairs, over each query's keys and, for CLIP, over each key's queries: one sweep for the sums of
// both directions, one more for all gradients.
#include <torch/csrc/stable/ops.h>

#include <cmath>
#include <optional>
#include <tuple>

#include "common/info_nce.h"
#include "common/library.h"
#include "cpu/contrast/schedule.h"
#include "cpu/contrast/softmax.h"

namespace maskco {
namespace {

struct ClipCall {
  Tensor query, keys;  // [N, C], [K, C]
  int64_t own;         // key i + own is query i's own
  std::optional<Tensor> query_ids, key_ids;
  double scale_number;
  std::optional<Tensor> scale_tensor;
  bool columns;      // also over each key's queries
  double smoothing;  // label_smoothing
  bool decoupled;    // the own pair is not in the sum
  std::optional<double> margin;

  void check() const {
    check_dim(query, 2, "query");
    check_floating(query, "query");
    check_features(keys, 2, query, "keys");
    check_ids(query_ids, query.size(0), query, "query_ids");
    check_ids(key_ids, keys.size(0), query, "key_ids");
    check_scalar(scale_tensor, accumulation_type(query), query, "scale_tensor");
    STD_TORCH_CHECK(0 <= own && own + query.size(0) <= keys.size(0), "own must leave a key for each query");
  }
};

template <class T>
using ClipKernels = SweepKernels<T, SoftmaxPairs<T>>;

// A softmax's largest logit and sum, in units of log 2 [2, size], and a start that holds no pair yet.
template <class T>
SoftmaxSide<T> side(const Tensor& sums, const Tensor& rank, const Tensor& totals, int64_t size) {
  SoftmaxSide<T> out{};
  out.max = data<T>(sums);
  out.sum = out.max + size;
  out.rank = data<int64_t>(rank);
  if (totals.size(1) > 0) {
    out.total = data<T>(totals);
    out.count = out.total + size;
  }
  return out;
}

template <class T>
SoftmaxPairs<T> policy_of(const ClipCall& call, const LaneIds<T>& ids) {
  SoftmaxPairs<T> policy{};
  policy.own_excluded = true;
  policy.own = call.own;
  policy.query_ids = ids.low.data();
  policy.query_ids_high = ids.high.data();
  policy.key_ids = call.query_ids ? id_pointer(call.key_ids) : nullptr;
  policy.ids_exclude = true;
  policy.has_columns = call.columns;
  return policy;
}

// -> loss [N]; parts [2, N], the cross-entropies of rows and columns; own_logit [N]; ranks [N], [K]; of rows and of
// columns the largest logit and the sum of all but the own pair's [2, N], [2, K], and the sum and number of logits for
// label smoothing; the logits, where they are few. Columns only where they are asked for, their parts only for all
// keys.
using ClipForward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class T>
ClipForward forward(const ClipCall& call, bool keep) {
  const ClipKernels<T> kernels = sweep_kernels<T, SoftmaxPairs<T>>(call.query.scalar_type());
  const PairFeatures<T> f(call.query, call.keys, kernels.panel, kernels.depth);
  const int64_t n = f.n, k = f.k, padded = f.padded, columns = call.columns ? k : 0;
  const auto integers = [&](int64_t size) {
    Tensor t = torch::stable::new_empty(call.query, {size}, ScalarType::Long);
    std::fill_n(data<int64_t>(t), size, int64_t(0));
    return t;
  };
  const bool totals = call.smoothing > 0;
  const Tensor row_sums = filled<T>(call.query, 2, padded), column_sums = filled<T>(call.query, 2, columns),
               own_logit = filled<T>(call.query, 1, padded);
  const Tensor row_rank = integers(padded), column_rank = integers(columns);
  const Tensor row_totals = filled<T>(call.query, 2, totals ? padded : 0),
               column_totals = filled<T>(call.query, 2, totals ? columns : 0);
  const Tensor logits = logits_to_keep(f, keep);

  const T scale = scalar_value<T>(call.scale_number, call.scale_tensor) * T(kLog2E);
  constexpr T none = -std::numeric_limits<T>::infinity();
  T* own = data<T>(own_logit);
  torch::stable::parallel_for(0, n, grain(f.c), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) own[i] = as_kept(f.dot(i, i + call.own) * scale);
  });
  const LaneIds<T> ids(call.query_ids, padded);
  const std::vector<T> ceiling = ceilings(call.margin, own, padded, scale);
  std::vector<T> column_own(columns, none);
  std::copy_n(own, columns ? n : 0, column_own.data() + (columns ? call.own : 0));
  SoftmaxPairs<T> policy = policy_of(call, ids);
  policy.ceiling = call.margin ? ceiling.data() : nullptr;
  policy.ceiling_sign = scale < 0 ? -1 : 1;
  policy.rows = side<T>(row_sums, row_rank, row_totals, padded);
  policy.columns = side<T>(column_sums, column_rank, column_totals, columns);
  policy.rows.own_logit = own;
  policy.columns.own_logit = column_own.data();
  for (int64_t i = 0; i < padded; i++) policy.rows.max[i] = call.decoupled ? none : own[i];
  for (int64_t j = 0; j < columns; j++) policy.columns.max[j] = call.decoupled ? none : column_own[j];
  read_pairs(f, kernels, scale, policy, logits);

  const bool both = call.columns && n == k;  // else a key's queries are not all here
  const Tensor loss = torch::stable::new_empty(call.query, {n}, scalar_type_of<T>), parts = filled<T>(call.query, 2, n);
  const T smoothing = static_cast<T>(call.smoothing);
  const auto finish = [&](const SoftmaxSide<T>& s, int64_t i, T* part) {
    T total;
    part[i] = cross_entropy(own[i], s.max[i], s.sum[i], call.decoupled, &total);
    if (!totals) return part[i];
    const T mean = (s.total[i] + own[i]) / (s.count[i] + 1);
    return part[i] + smoothing * T(kLn2) * (own[i] - mean);
  };
  T *out = data<T>(loss), *row_part = data<T>(parts), *column_part = row_part + n;
  for (int64_t i = 0; i < n; i++) {
    out[i] = finish(policy.rows, i, row_part);
    if (both) out[i] = (out[i] + finish(policy.columns, i, column_part)) / 2;
  }
  for (int64_t i = 0; i < n; i++) own[i] *= T(kLn2);
  return {loss, parts, own_logit, row_rank, column_rank, row_sums, column_sums, row_totals, column_totals, logits};
}

// What the weights of one side are made of: weight · 2^(s - shift), less share.
template <class T>
struct Weights {
  std::vector<T> shift, weight, share;

  // own_logit in units of log 2; upstream: of each loss
  Weights(const Tensor& sums, const Tensor& totals, int64_t stride, int64_t size, T smoothing, bool decoupled,
          const T* own_logit, const T* upstream, T scale)
      : shift(stride), weight(stride), share(totals.size(1) ? stride : 0) {
    const T *max = data<const T>(sums), *sum = max + stride;
    const T* count = share.empty() ? nullptr : data<const T>(totals) + stride;
    for (int64_t i = 0; i < size; i++) {
      T total;
      cross_entropy(own_logit[i], max[i], sum[i], decoupled, &total);
      shift[i] = std::isinf(max[i]) ? T(0) : max[i];
      weight[i] = total == 0 ? T(0) : scale * upstream[i] / total;
      if (count) share[i] = scale * upstream[i] * smoothing / (count[i] + 1);
    }
  }
  void give(SoftmaxSide<T>& side) const {
    side.weight_shift = shift.data();
    side.weight = weight.data();
    side.share = share.empty() ? nullptr : share.data();
  }
};

// What the forward pass gave, and each loss's upstream gradient [N], [K]. `column_own`: the logit of each key's own
// pair [K], which is not here where its query is another rank's.
struct ClipSaved {
  Tensor row_upstream, column_upstream, parts, own_logit, column_own;
  Tensor row_sums, column_sums, row_totals, column_totals, logits;

  void check(const ClipCall& call) const {
    const int64_t n = call.query.size(0), padded = round_up(n, 32), k = call.keys.size(0);
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
    check_kept(logits, {logits.size(0) == 0 ? 0 : k, padded}, call.query, "logits");
  }
};

using Gradients = std::tuple<Tensor, Tensor, Tensor>;  // for the query, the keys, the scale [1]; empty where not needed

template <class T>
Gradients backward(const ClipCall& call, const ClipSaved& saved, ScalarType dtype, bool need_query, bool need_keys,
                   bool need_scale) {
  const ClipKernels<T> kernels = sweep_kernels<T, SoftmaxPairs<T>>(call.query.scalar_type());
  const PairFeatures<T> f(call.query, call.keys, kernels.panel, kernels.depth);
  const int64_t n = f.n, k = f.k, columns = call.columns ? k : 0;
  const T smoothing = static_cast<T>(call.smoothing);
  const T natural = scalar_value<T>(call.scale_number, call.scale_tensor), scale = natural * T(kLog2E);
  const Tensor rows_up = as_contiguous<T>(saved.row_upstream), columns_up = as_contiguous<T>(saved.column_upstream);
  const T *row_up = data<const T>(rows_up), *column_up = data<const T>(columns_up);

  std::vector<T> own(f.padded), column_own(columns);
  for (int64_t i = 0; i < n; i++) own[i] = data<const T>(saved.own_logit)[i] * T(kLog2E);
  for (int64_t j = 0; j < columns; j++) column_own[j] = data<const T>(saved.column_own)[j] * T(kLog2E);
  const Weights<T> rows(saved.row_sums, saved.row_totals, f.padded, n, smoothing, call.decoupled, own.data(), row_up,
                        natural);
  const Weights<T> cols(saved.column_sums, saved.column_totals, columns, columns, smoothing, call.decoupled,
                        column_own.data(), column_up, natural);
  const LaneIds<T> ids(call.query_ids, f.padded);
  const std::vector<T> ceiling = ceilings(call.margin, own.data(), f.padded, scale);
  SoftmaxPairs<T> policy = policy_of(call, ids);
  policy.ceiling = call.margin ? ceiling.data() : nullptr;
  policy.ceiling_sign = scale < 0 ? -1 : 1;
  rows.give(policy.rows);
  cols.give(policy.columns);

  // The own pair's share of the sum less 1, which is e^-loss - 1 without a rounding of 1; and smoothing.
  const T *row_part = data<const T>(saved.parts), *column_part = row_part + n;
  const auto own_weight = [&](const Weights<T>& side, T up, T part, int64_t i) {
    const T less_one = call.decoupled ? T(side.weight[i] == 0 ? 0 : -1) : std::expm1(-part);
    return natural * up * (less_one + smoothing) - (side.share.empty() ? T(0) : side.share[i]);
  };
  std::vector<T> weight(f.padded), along(need_scale ? f.padded : 0);
  for (int64_t i = 0; i < n; i++) {
    weight[i] = own_weight(rows, row_up[i], row_part[i], i);
    if (columns) weight[i] += own_weight(cols, column_up[i + call.own], column_part[i], i + call.own);
    if (need_scale) along[i] = weight[i] * own[i];
  }
  policy.own_weight = weight.data();
  policy.along = need_scale ? along.data() : nullptr;
  const auto [grad_query, grad_keys] =
      weigh_pairs(f, kernels, scale, policy, saved.logits, dtype, need_query, need_keys);
  return {grad_query, grad_keys, scale_gradient(call.query, along, natural, need_scale)};
}

ClipForward clip_loss_fwd(const Tensor& query, const Tensor& keys, int64_t own, const std::optional<Tensor>& query_ids,
                          const std::optional<Tensor>& key_ids, double scale, const std::optional<Tensor>& scale_tensor,
                          bool columns, double smoothing, bool decoupled, std::optional<double> margin, bool keep) {
  const ClipCall call{query, keys, own, query_ids, key_ids, scale, scale_tensor, columns, smoothing, decoupled, margin};
  call.check();
  return accumulation_type(query) == ScalarType::Double ? forward<double>(call, keep) : forward<float>(call, keep);
}

Gradients clip_loss_bwd(const Tensor& row_upstream, const Tensor& column_upstream, const Tensor& query,
                        const Tensor& keys, int64_t own, const std::optional<Tensor>& query_ids,
                        const std::optional<Tensor>& key_ids, double scale, const std::optional<Tensor>& scale_tensor,
                        bool columns, double smoothing, bool decoupled, std::optional<double> margin,
                        const Tensor& parts, const Tensor& own_logit, const Tensor& column_own, const Tensor& row_sums,
                        const Tensor& column_sums, const Tensor& row_totals, const Tensor& column_totals,
                        const Tensor& logits, bool need_query, bool need_keys, bool need_scale) {
  const ClipCall call{query, keys, own, query_ids, key_ids, scale, scale_tensor, columns, smoothing, decoupled, margin};
  const ClipSaved saved{row_upstream, column_upstream, parts,      own_logit,     column_own,
                        row_sums,     column_sums,     row_totals, column_totals, logits};
  call.check();
  saved.check(call);
  const auto compute = accumulation_type(query) == ScalarType::Double ? &backward<double> : &backward<float>;
  return compute(call, saved, query.scalar_type(), need_query, need_keys, need_scale);
}

// loss [], times `factor`, with its gradients as far as they are needed; parts, own_logit, ranks and row_sums as
// forward
using ClipSum = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

ClipSum clip_loss_sum(const Tensor& query, const Tensor& keys, const std::optional<Tensor>& query_ids, double scale,
                      const std::optional<Tensor>& scale_tensor, bool columns, double smoothing, bool decoupled,
                      std::optional<double> margin, double factor, bool need_query, bool need_keys, bool need_scale,
                      bool keep) {
  const ClipCall call{query, keys, 0, query_ids, query_ids, scale, scale_tensor, columns, smoothing, decoupled, margin};
  call.check();
  check_size(keys, 0, query.size(0), "keys");
  const int64_t n = query.size(0);
  const auto run = [&](auto zero) -> ClipSum {
    using T = decltype(zero);
    const bool weigh = need_query || need_keys || need_scale;
    const auto [loss, parts, own, row_rank, column_rank, row_sums, column_sums, row_totals, column_totals, logits] =
        forward<T>(call, keep && weigh);
    const ScalarType dtype = gradient_type(query);
    Gradients gradients{torch::stable::new_empty(query, {0, query.size(1)}, dtype),
                        torch::stable::new_empty(query, {0, query.size(1)}, dtype),
                        torch::stable::new_empty(loss, {0})};
    if (weigh) {
      const Tensor upstream = torch::stable::new_empty(loss, {n});
      std::fill_n(data<T>(upstream), n, static_cast<T>(columns ? factor / 2 : factor));
      const Tensor none = torch::stable::new_empty(loss, {0});
      gradients = backward<T>(call,
                              {upstream, columns ? upstream : none, parts, own, columns ? own : none, row_sums,
                               column_sums, row_totals, column_totals, logits},
                              dtype, need_query, need_keys, need_scale);
    }
    const auto& [grad_query, grad_keys, grad_scale] = gradients;
    return {sum_of<T>(loss, factor), grad_query, grad_keys, grad_scale, parts, own, row_rank, column_rank, row_sums};
  };
  return accumulation_type(query) == ScalarType::Double ? run(double()) : run(float());
}

}  // namespace
}  // namespace maskco

MASKCO_LIBRARY_IMPL(MASKCO_NAMESPACE, CPU, m) {
  m.impl("clip_loss_fwd", TORCH_BOX(&maskco::clip_loss_fwd));
  m.impl("clip_loss_bwd", TORCH_BOX(&maskco::clip_loss_bwd));
  m.impl("clip_loss_sum", TORCH_BOX(&maskco::clip_loss_sum));
}
