// Supervised contrast (Khosla et al., 2020): each query against all keys but itself; those of its label are positives.
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

struct SupConCall {
  Tensor query, keys, query_labels, key_labels;  // [N, C], [K, C], [N], [K]
  std::optional<int64_t> own;                    // key i + own is query i itself, and no key of it
  double scale_number;
  std::optional<Tensor> scale_tensor;

  void check() const {
    check_dim(query, 2, "query");
    check_floating(query, "query");
    check_features(keys, 2, query, "keys");
    check_ids(query_labels, query.size(0), query, "query_labels");
    check_ids(key_labels, keys.size(0), query, "key_labels");
    check_scalar(scale_tensor, accumulation_type(query), query, "scale_tensor");
  }
};

template <class T>
SoftmaxPairs<T> policy_of(const SupConCall& call, const LaneIds<T>& labels) {
  SoftmaxPairs<T> policy{};
  policy.own_excluded = call.own.has_value();
  policy.own = call.own.value_or(0);
  policy.query_ids = labels.low.data();
  policy.query_ids_high = labels.high.data();
  policy.key_ids = id_pointer(call.key_labels);
  return policy;
}

// -> loss, lse, mean logit and number of positives [N]; the largest logit and the sum of all [2, N rounded up]; the
// logits, where they are few
using SupConForward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class T>
SupConForward forward(const SupConCall& call, int64_t kept) {
  const auto kernels = sweep_kernels<T, SoftmaxPairs<T>>(call.query.scalar_type());
  const PairFeatures<T> f(call.query, call.keys, kernels.panel, kernels.depth);
  const int64_t n = f.n, padded = f.padded;
  const Tensor sums = filled<T>(call.query, 2, padded), totals = filled<T>(call.query, 2, padded);
  const Tensor logits = logits_to_keep<T>(f, kept);
  const LaneIds<T> labels(call.query_labels, padded);
  SoftmaxPairs<T> policy = policy_of(call, labels);
  T *max = data<T>(sums), *sum = max + padded, *total = data<T>(totals), *count = total + padded;
  std::fill_n(max, padded, -std::numeric_limits<T>::infinity());
  policy.rows.max = max;
  policy.rows.sum = sum;
  policy.rows.total = total;
  policy.rows.count = count;
  read_pairs(f, kernels, scalar_value<T>(call.scale_number, call.scale_tensor) * T(kLog2E), policy, logits);

  const auto rows = [&](ScalarType dtype) { return torch::stable::new_empty(call.query, {n}, dtype); };
  const Tensor loss = rows(scalar_type_of<T>), lse = rows(scalar_type_of<T>), positive = rows(scalar_type_of<T>);
  const Tensor positives = rows(ScalarType::Long);
  for (int64_t i = 0; i < n; i++) {
    const T ln2 = T(kLn2), mean = count[i] > 0 ? total[i] / count[i] : T(0);
    data<T>(lse)[i] = max[i] * ln2 + (std::isinf(max[i]) && !std::isnan(sum[i]) ? T(0) : std::log(sum[i]));
    data<T>(loss)[i] = count[i] > 0 ? (max[i] - mean) * ln2 + std::log(sum[i]) : T(0);
    data<T>(positive)[i] = mean * ln2;
    data<int64_t>(positives)[i] = static_cast<int64_t>(count[i]);
  }
  return {loss, lse, positive, positives, sums, logits};
}

using SupConGradients = std::tuple<Tensor, Tensor, Tensor>;  // for the query, the keys, the scale [1]

// `symmetric`: the keys are the queries, and so the logits are symmetric bit for bit. Each pair's weight holds both
// directions then, and one product gives the whole gradient, in grad_query.
template <class T>
SupConGradients backward(const SupConCall& call, const Tensor& grad_loss, const Tensor& positives, const Tensor& sums,
                         const Tensor& logits, ScalarType dtype, bool symmetric, bool need_query, bool need_keys,
                         bool need_scale) {
  const auto kernels = sweep_kernels<T, SoftmaxPairs<T>>(call.query.scalar_type());
  const PairFeatures<T> f(call.query, call.keys, kernels.panel, kernels.depth);
  const Tensor upstream = as_contiguous<T>(grad_loss);
  const T natural = scalar_value<T>(call.scale_number, call.scale_tensor);
  const T *max = data<const T>(sums), *sum = max + f.padded, *up = data<const T>(upstream);
  std::vector<T> shift(f.padded), weight(f.padded), share(f.padded), none(f.padded), along(need_scale ? f.padded : 0);
  for (int64_t i = 0; i < f.n; i++) {
    const int64_t count = data<const int64_t>(positives)[i];
    shift[i] = std::isinf(max[i]) ? T(0) : max[i];
    if (count == 0) continue;
    weight[i] = natural * up[i] / sum[i];
    share[i] = natural * up[i] / count;
  }
  const LaneIds<T> labels(call.query_labels, f.padded);
  SoftmaxPairs<T> policy = policy_of(call, labels);
  policy.rows.weight_shift = shift.data();
  policy.rows.weight = weight.data();
  policy.rows.share = share.data();
  policy.own_weight = none.data();
  policy.along = need_scale ? along.data() : nullptr;
  if (symmetric) {
    policy.has_columns = true;
    policy.columns = policy.rows;
  }
  GradientSum<T> grad_query(need_query, f, f.n, dtype), grad_keys(need_keys && !symmetric, f, f.k, dtype);
  weigh_pairs(f, kernels, natural * T(kLog2E), policy, logits, grad_query, grad_keys);
  const double total = total_of(along) * (symmetric ? 0.5 : 1);  // (both directions of each pair)
  return {grad_query.result(), grad_keys.result(),
          scale_gradient(call.query, total, natural, call.scale_number, need_scale)};
}

SupConForward supcon_loss_fwd(const Tensor& query, const Tensor& keys, const Tensor& query_labels,
                              const Tensor& key_labels, std::optional<int64_t> own, double scale,
                              const std::optional<Tensor>& scale_tensor, bool /* symmetric: autograd's */,
                              int64_t kept) {
  const SupConCall call{query, keys, query_labels, key_labels, own, scale, scale_tensor};
  call.check();
  return accumulation_type(query) == ScalarType::Double ? forward<double>(call, kept) : forward<float>(call, kept);
}

SupConGradients supcon_loss_bwd(const Tensor& grad_loss, const Tensor& query, const Tensor& keys,
                                const Tensor& query_labels, const Tensor& key_labels, std::optional<int64_t> own,
                                double scale, const std::optional<Tensor>& scale_tensor, const Tensor& positives,
                                const Tensor& sums, const Tensor& logits, bool symmetric, bool need_query,
                                bool need_keys, bool need_scale) {
  const SupConCall call{query, keys, query_labels, key_labels, own, scale, scale_tensor};
  call.check();
  const int64_t padded = round_up(query.size(0), 32);
  check_rows(grad_loss, query, "grad_loss");
  check_ids(positives, query.size(0), query, "positives");
  check_kept(sums, {2, padded}, query, "sums");
  check_kept(logits, {keys.size(0), logits.size(1)}, query, "logits");
  if (symmetric) check_size(keys, 0, query.size(0), "keys");
  const auto compute = accumulation_type(query) == ScalarType::Double ? &backward<double> : &backward<float>;
  return compute(call, grad_loss, positives, sums, logits, query.scalar_type(), symmetric, need_query, need_keys,
                 need_scale);
}

// loss [], times `factor`, with its gradients as far as they are needed; lse, positive_logit, positives as forward
using SupConSum = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

SupConSum supcon_loss_sum(const Tensor& query, const Tensor& keys, const Tensor& query_labels, const Tensor& key_labels,
                          std::optional<int64_t> own, double scale, const std::optional<Tensor>& scale_tensor,
                          bool symmetric, double factor, bool need_query, bool need_keys, bool need_scale,
                          int64_t kept) {
  const SupConCall call{query, keys, query_labels, key_labels, own, scale, scale_tensor};
  call.check();
  if (symmetric) check_size(keys, 0, query.size(0), "keys");
  const auto run = [&](auto zero) -> SupConSum {
    using T = decltype(zero);
    const bool weigh = need_query || need_keys || need_scale;
    const auto [loss, lse, positive, positives, sums, logits] = forward<T>(call, weigh ? kept : 0);
    const ScalarType dtype = gradient_type(query);
    SupConGradients gradients{torch::stable::new_empty(query, {0, query.size(1)}, dtype),
                              torch::stable::new_empty(query, {0, query.size(1)}, dtype),
                              torch::stable::new_empty(loss, {0})};
    if (weigh) {
      const Tensor upstream = torch::stable::new_empty(loss, {query.size(0)});
      std::fill_n(data<T>(upstream), query.size(0), static_cast<T>(factor));
      gradients =
          backward<T>(call, upstream, positives, sums, logits, dtype, symmetric, need_query, need_keys, need_scale);
    }
    const auto& [grad_query, grad_keys, grad_scale] = gradients;
    return {sum_of<T>(loss, factor), grad_query, grad_keys, grad_scale, lse, positive, positives};
  };
  return accumulation_type(query) == ScalarType::Double ? run(double()) : run(float());
}

}  // namespace
}  // namespace maskco

MASKCO_LIBRARY_IMPL(MASKCO_NAMESPACE, CPU, m) {
  m.impl("supcon_loss_fwd", TORCH_BOX(&maskco::supcon_loss_fwd));
  m.impl("supcon_loss_bwd", TORCH_BOX(&maskco::supcon_loss_bwd));
  m.impl("supcon_loss_sum", TORCH_BOX(&maskco::supcon_loss_sum));
}
