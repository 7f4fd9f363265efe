// Supervised contrast (Khosla et al., 2020): each query against all keys but itself. Keys of its label are positives.
#include <torch/csrc/stable/ops.h>

#include <cmath>
#include <optional>
#include <tuple>

#include "common/library.h"
#include "common/pair_losses.h"
#include "cpu/contrast/schedule.h"
#include "cpu/contrast/softmax.h"

namespace maskco {
namespace {

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

template <class T>
SupConForward forward_rows(const SupConCall& call, int64_t kept) {
  const auto kernels = sweep_kernels<T, SoftmaxPairs<T>>(call.query.scalar_type());
  const PairFeatures<T> f(call.query, call.keys, kernels.panel, kernels.depth);
  const int64_t n = f.n, padded = f.padded;
  const Tensor sums = filled<T>(call.query, 2, padded), totals = filled<T>(call.query, 2, padded);
  const Tensor logits = logits_to_keep(f, kernels.panel, kept);
  const LaneIds<T> labels(call.query_labels, padded);
  SoftmaxPairs<T> policy = policy_of(call, labels);
  T *max = data<T>(sums), *sum = max + padded, *total = data<T>(totals), *count = total + padded;
  std::fill_n(max, padded, -std::numeric_limits<T>::infinity());
  policy.rows.max = max;
  policy.rows.sum = sum;
  policy.rows.total = total;
  policy.rows.count = count;
  read_pairs(f, kernels, scalar_value<T>(call.scale) * T(kLog2E), policy, logits);

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

// With `symmetric` the keys are the queries, so the logits are symmetric bit for bit. Each pair's weight then holds
// both directions, and one product gives the whole gradient, in grad_query.
template <class T>
Gradients backward_rows(const SupConCall& call, const SupConSaved& saved, ScalarType dtype, Needed need) {
  const auto kernels = sweep_kernels<T, SoftmaxPairs<T>>(call.query.scalar_type());
  const PairFeatures<T> f(call.query, call.keys, kernels.panel, kernels.depth);
  const Tensor upstream = as_contiguous<T>(saved.grad_loss);
  const T natural = scalar_value<T>(call.scale);
  const T *max = data<const T>(saved.sums), *sum = max + f.padded, *up = data<const T>(upstream);
  std::vector<T> shift(f.padded), weight(f.padded), share(f.padded), none(f.padded), along(need.scale ? f.padded : 0);
  for (int64_t i = 0; i < f.n; i++) {
    const int64_t count = data<const int64_t>(saved.positives)[i];
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
  policy.along = need.scale ? along.data() : nullptr;
  if (call.symmetric) {
    policy.has_columns = true;
    policy.columns = policy.rows;
  }
  GradientSum<T> grad_query(need.query, f, f.n, dtype), grad_keys(need.keys && !call.symmetric, f, f.k, dtype);
  weigh_pairs(f, kernels, natural * T(kLog2E), policy, saved.logits, grad_query, grad_keys);
  const double total = total_of(along) * (call.symmetric ? 0.5 : 1);  // (both directions of each pair)
  return {grad_query.result(), grad_keys.result(),
          scale_gradient(call.query, total, natural, call.scale.number, need.scale)};
}

template <class T>
SupConSum sum_rows(const SupConCall& call, double factor, Needed need, int64_t kept) {
  const auto [loss, lse, positive, positives, sums, logits] = forward_rows<T>(call, need.any() ? kept : 0);
  const ScalarType dtype = gradient_type(call.query);
  Gradients gradients{torch::stable::new_empty(call.query, {0, call.query.size(1)}, dtype),
                      torch::stable::new_empty(call.query, {0, call.query.size(1)}, dtype),
                      torch::stable::new_empty(loss, {0})};
  if (need.any()) {
    const Tensor upstream = torch::stable::new_empty(loss, {call.query.size(0)});
    std::fill_n(data<T>(upstream), call.query.size(0), static_cast<T>(factor));
    gradients = backward_rows<T>(call, {upstream, positives, sums, logits}, dtype, need);
  }
  const auto& [grad_query, grad_keys, grad_scale] = gradients;
  return {sum_of<T>(loss, factor), grad_query, grad_keys, grad_scale, lse, positive, positives};
}

struct CpuSupCon {
  static bool in_double(const SupConCall& call) { return accumulation_type(call.query) == ScalarType::Double; }

  static SupConForward forward(const SupConCall& call, int64_t kept) {
    return in_double(call) ? forward_rows<double>(call, kept) : forward_rows<float>(call, kept);
  }
  static Gradients backward(const SupConCall& call, const SupConSaved& saved, Needed need) {
    const ScalarType dtype = call.query.scalar_type();
    return in_double(call) ? backward_rows<double>(call, saved, dtype, need)
                           : backward_rows<float>(call, saved, dtype, need);
  }
  static SupConSum sum(const SupConCall& call, double factor, Needed need, int64_t kept) {
    return in_double(call) ? sum_rows<double>(call, factor, need, kept) : sum_rows<float>(call, factor, need, kept);
  }
};

}  // namespace
}  // namespace maskco

MASKCO_LIBRARY_IMPL(MASKCO_NAMESPACE, CPU, m) {
  m.impl("supcon_loss_fwd", TORCH_BOX(&maskco::supcon_loss_fwd<maskco::CpuSupCon>));
  m.impl("supcon_loss_bwd", TORCH_BOX(&maskco::supcon_loss_bwd<maskco::CpuSupCon>));
  m.impl("supcon_loss_sum", TORCH_BOX(&maskco::supcon_loss_sum<maskco::CpuSupCon>));
}
