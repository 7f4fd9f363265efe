// Cross-entropy of all pairs, over each query's keys and, for CLIP, over each key's queries. One sweep computes the
// sums of both directions, and a second one all gradients.
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
using ClipKernels = SweepKernels<T, SoftmaxPairs<T>>;

// One side's softmax, [N rounded up] or [K] each, or empty. It has the largest logit and the sum of all logits but the
// own pair's, in units of log 2. It also has the number of logits that are larger than the own one, and the sum and
// number of logits for label smoothing.
template <class T>
struct ClipSide {
  std::vector<T> own_logit, max, sum, total, count;
  std::vector<int64_t> rank;

  void start(int64_t size, bool totals, bool decoupled) {
    sum.resize(size);
    rank.resize(size);
    total.resize(totals ? size : 0);
    count.resize(total.size());
    max = own_logit;
    if (decoupled) std::fill(max.begin(), max.end(), -std::numeric_limits<T>::infinity());
  }
  SoftmaxSide<T> side() {
    SoftmaxSide<T> out{};
    out.own_logit = own_logit.data();
    out.max = max.data();
    out.sum = sum.data();
    out.rank = rank.data();
    out.total = total.empty() ? nullptr : total.data();
    out.count = count.data();
    return out;
  }
};

// State that the passes share. Parts are the cross-entropies of rows and columns.
template <class T>
struct ClipState {
  ClipSide<T> rows, columns;
  std::vector<T> loss, row_part, column_part;  // [N]; the last is empty unless all queries of each key are here
};

template <class T>
SoftmaxPairs<T> policy_of(const ClipCall& call, const LaneIds<T>& ids, const std::vector<T>& ceiling, T scale) {
  SoftmaxPairs<T> policy{};
  policy.own_excluded = true;
  policy.own = call.own;
  policy.query_ids = ids.low.data();
  policy.query_ids_high = ids.high.data();
  policy.key_ids = call.query_ids ? id_pointer(call.key_ids) : nullptr;
  policy.ids_exclude = true;
  policy.ceiling = ceiling.empty() ? nullptr : ceiling.data();
  policy.ceiling_sign = scale < 0 ? -1 : 1;
  policy.has_columns = call.columns;
  return policy;
}

template <class T>
ClipState<T> forward(const ClipCall& call, const ClipKernels<T>& kernels, const PairFeatures<T>& f,
                     const Tensor& logits) {
  const T scale = scalar_value<T>(call.scale) * T(kLog2E);
  const T smoothing = static_cast<T>(call.smoothing);
  ClipState<T> state;
  std::vector<T>& own = state.rows.own_logit;
  own.resize(f.padded);
  torch::stable::parallel_for(0, f.n, grain(f.c), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) own[i] = as_kept(f.dot(i, i + call.own) * scale);
  });
  if (call.columns) {
    state.columns.own_logit.assign(f.k, -std::numeric_limits<T>::infinity());
    std::copy_n(own.data(), f.n, state.columns.own_logit.data() + call.own);
  }
  state.rows.start(f.padded, smoothing > 0, call.decoupled);
  state.columns.start(call.columns ? f.k : 0, smoothing > 0, call.decoupled);
  const LaneIds<T> ids(call.query_ids, f.padded);
  const std::vector<T> ceiling = ceilings(call.margin, own.data(), f.padded, scale);
  SoftmaxPairs<T> policy = policy_of(call, ids, ceiling, scale);
  policy.rows = state.rows.side();
  policy.columns = state.columns.side();
  read_pairs(f, kernels, scale, policy, logits);

  const bool both = call.columns && f.n == f.k;  // else some queries of a key are on other ranks
  state.loss.resize(f.n);
  state.row_part.resize(f.n);
  state.column_part.resize(both ? f.n : 0);
  const auto finish = [&](const ClipSide<T>& side, int64_t i, T& part) {
    T total;
    part = cross_entropy(own[i], side.max[i], side.sum[i], call.decoupled, &total);
    if (side.total.empty()) return part;
    const T mean = (side.total[i] + own[i]) / (side.count[i] + 1);
    return part + smoothing * T(kLn2) * (own[i] - mean);
  };
  for (int64_t i = 0; i < f.n; i++) {
    state.loss[i] = finish(state.rows, i, state.row_part[i]);
    if (both) state.loss[i] = (state.loss[i] + finish(state.columns, i, state.column_part[i])) / 2;
  }
  return state;
}

// Factors of one side's weights: weight · 2^(s - shift) - share.
template <class T>
struct Weights {
  std::vector<T> shift, weight, share;

  // upstream(i) is the upstream gradient of loss i.
  template <class F>
  Weights(const ClipSide<T>& side, int64_t size, T smoothing, bool decoupled, T scale, const F& upstream)
      : shift(side.max.size()), weight(shift.size()), share(side.count.size()) {
    for (int64_t i = 0; i < size; i++) {
      T total;
      cross_entropy(side.own_logit[i], side.max[i], side.sum[i], decoupled, &total);
      shift[i] = std::isinf(side.max[i]) ? T(0) : side.max[i];
      weight[i] = total == 0 ? T(0) : scale * upstream(i) / total;
      if (!share.empty()) share[i] = scale * upstream(i) * smoothing / (side.count[i] + 1);
    }
  }
  void give(SoftmaxSide<T>& side) const {
    side.weight_shift = shift.data();
    side.weight = weight.data();
    side.share = share.empty() ? nullptr : share.data();
  }
};

// Adds to both gradients. Returns the sum of weights times logits, from which the scale's gradient follows.
// row_upstream(i) and column_upstream(j) are dL/d(cross-entropy) of query i and key j.
template <class T, class Rows, class Columns>
double backward(const ClipCall& call, const ClipKernels<T>& kernels, const PairFeatures<T>& f,
                const ClipState<T>& state, const Tensor& logits, Needed need, const Rows& row_upstream,
                const Columns& column_upstream, GradientSum<T>& grad_query, GradientSum<T>& grad_keys) {
  const T smoothing = static_cast<T>(call.smoothing);
  const T natural = scalar_value<T>(call.scale), scale = natural * T(kLog2E);
  const Weights<T> rows(state.rows, f.n, smoothing, call.decoupled, natural, row_upstream);
  const Weights<T> columns(state.columns, call.columns ? f.k : 0, smoothing, call.decoupled, natural, column_upstream);
  const LaneIds<T> ids(call.query_ids, f.padded);
  const std::vector<T>& own = state.rows.own_logit;
  const std::vector<T> ceiling = ceilings(call.margin, own.data(), f.padded, scale);
  SoftmaxPairs<T> policy = policy_of(call, ids, ceiling, scale);
  rows.give(policy.rows);
  columns.give(policy.columns);

  // The own pair's softmax less 1, which is e^-loss - 1 without cancellation, plus smoothing.
  const auto own_weight = [&](const Weights<T>& side, T upstream, T part, int64_t i) {
    const T less_one = call.decoupled ? T(side.weight[i] == 0 ? 0 : -1) : std::expm1(-part);
    return natural * upstream * (less_one + smoothing) - (side.share.empty() ? T(0) : side.share[i]);
  };
  std::vector<T> weight(f.padded), along(need.scale ? f.padded : 0);
  for (int64_t i = 0; i < f.n; i++) {
    const int64_t j = i + call.own;
    weight[i] = own_weight(rows, row_upstream(i), state.row_part[i], i);
    if (call.columns) weight[i] += own_weight(columns, column_upstream(j), state.column_part[i], j);
    if (need.scale) along[i] = weight[i] * own[i];
  }
  policy.own_weight = weight.data();
  policy.along = need.scale ? along.data() : nullptr;
  weigh_pairs(f, kernels, scale, policy, logits, grad_query, grad_keys);
  return total_of(along);
}

// ---- as tensors: one loss for each query, and what the backward pass wants back

// [rows of `size`], concatenated. Logits are converted to natural units.
template <class T>
Tensor rows_of(const Tensor& like, std::initializer_list<const std::vector<T>*> rows, int64_t size, T factor = 1) {
  const Tensor out = torch::stable::new_empty(like, {static_cast<int64_t>(rows.size()), size}, scalar_type_of<T>);
  T* to = data<T>(out);
  for (const auto* row : rows) {
    for (int64_t i = 0; i < size; i++) to[i] = i < static_cast<int64_t>(row->size()) ? (*row)[i] * factor : T(0);
    to += size;
  }
  return out;
}

inline Tensor integers_of(const Tensor& like, const std::vector<int64_t>& values) {
  const Tensor out = torch::stable::new_empty(like, {static_cast<int64_t>(values.size())}, ScalarType::Long);
  std::copy(values.begin(), values.end(), data<int64_t>(out));
  return out;
}

template <class T>
ClipForward forward_rows(const ClipCall& call, int64_t kept) {
  const ClipKernels<T> kernels = sweep_kernels<T, SoftmaxPairs<T>>(call.query.scalar_type());
  const PairFeatures<T> f(call.query, call.keys, kernels.panel, kernels.depth);
  const Tensor logits = logits_to_keep(f, kernels.panel, kept);
  const ClipState<T> state = forward(call, kernels, f, logits);
  const auto& [rows, columns] = std::tie(state.rows, state.columns);
  const auto size = [](const std::vector<T>& v) { return static_cast<int64_t>(v.size()); };
  return {torch::stable::view(rows_of<T>(call.query, {&state.loss}, f.n), {f.n}),
          rows_of<T>(call.query, {&state.row_part, &state.column_part}, f.n),
          rows_of<T>(call.query, {&rows.own_logit}, f.padded, T(kLn2)),
          integers_of(call.query, rows.rank),
          integers_of(call.query, columns.rank),
          rows_of<T>(call.query, {&rows.max, &rows.sum}, f.padded),
          rows_of<T>(call.query, {&columns.max, &columns.sum}, size(columns.max)),
          rows_of<T>(call.query, {&rows.total, &rows.count}, size(rows.total)),
          rows_of<T>(call.query, {&columns.total, &columns.count}, size(columns.total)),
          logits};
}

template <class T>
Gradients backward_rows(const ClipCall& call, const ClipSaved& saved, Needed need) {
  const ClipKernels<T> kernels = sweep_kernels<T, SoftmaxPairs<T>>(call.query.scalar_type());
  const PairFeatures<T> f(call.query, call.keys, kernels.panel, kernels.depth);
  const auto side = [](const Tensor& own, const Tensor& sums, const Tensor& totals) {
    const auto row = [](const Tensor& t, int64_t i, T factor) {
      const int64_t size = t.size(t.dim() - 1);
      std::vector<T> out(data<const T>(t) + i * size, data<const T>(t) + (i + 1) * size);
      for (T& value : out) value *= factor;
      return out;
    };
    return ClipSide<T>{row(own, 0, T(kLog2E)), row(sums, 0, 1),   row(sums, 1, 1),
                       row(totals, 0, 1),      row(totals, 1, 1), {}};
  };
  const T* parts = data<const T>(saved.parts);
  const ClipState<T> state{side(saved.own_logit, saved.row_sums, saved.row_totals),
                           side(saved.column_own, saved.column_sums, saved.column_totals),
                           {},
                           {parts, parts + f.n},
                           {parts + f.n, parts + 2 * f.n}};
  const Tensor rows = as_contiguous<T>(saved.row_upstream);
  const ScalarType dtype = call.query.scalar_type();
  GradientSum<T> grad_query(need.query, f, f.n, dtype), grad_keys(need.keys, f, f.k, dtype);
  const double along = backward(
      call, kernels, f, state, saved.logits, need, [&](int64_t i) { return data<const T>(rows)[i]; },
      [&](int64_t j) { return data<const T>(saved.column_upstream)[j]; }, grad_query, grad_keys);
  const T scale = scalar_value<T>(call.scale);
  return {grad_query.result(), grad_keys.result(),
          scale_gradient(call.query, along, scale, call.scale.number, need.scale)};
}

// ---- their sum with its gradients

template <class T>
ClipSum sum_rows(const ClipCall& call, T factor, Needed need, int64_t kept, bool stats) {
  const ClipKernels<T> kernels = sweep_kernels<T, SoftmaxPairs<T>>(call.query.scalar_type());
  const PairFeatures<T> f(call.query, call.keys, kernels.panel, kernels.depth);
  const bool weigh = need.any();
  const int64_t slice = weigh && !call.columns && kept < f.padded ? slice_rows(f) : 0;
  const int64_t rows = slice > 0 ? slice : std::max<int64_t>(f.n, 1);
  const int64_t rows_to_keep = slice > 0 ? slice : weigh ? kept : 0;
  const Tensor logits = logits_to_keep(f.slice(0, std::min(rows, f.n)), kernels.panel, rows_to_keep);
  const ScalarType dtype = gradient_type(call.query);
  GradientSum<T> grad_query(need.query, f, f.n, dtype), grad_keys(need.keys, f, f.k, dtype);
  const auto empty = [&](int64_t size, ScalarType type) {
    return torch::stable::new_empty(call.query, {size, f.n}, type);
  };
  const Tensor statistics = empty(stats ? 5 : 0, scalar_type_of<T>), ranks = empty(stats ? 2 : 0, ScalarType::Long);
  const T upstream = call.columns ? factor / 2 : factor;
  const auto same = [&](int64_t) { return upstream; };
  double total = 0, along = 0;
  for (int64_t first = 0; first < f.n; first += rows) {
    const int64_t count = std::min(rows, f.n - first);
    const ClipCall part = call.slice(first, count);
    const PairFeatures<T> features = f.slice(first, count);
    const ClipState<T> state = forward(part, kernels, features, logits);
    if (weigh) along += backward(part, kernels, features, state, logits, need, same, same, grad_query, grad_keys);
    total += total_of(state.loss);
    if (!stats) continue;
    const auto put = [&](const Tensor& to, int64_t row, const auto& values, T factor = 1) {
      using Value = typename std::decay_t<decltype(values)>::value_type;
      Value* out = data<Value>(to) + row * f.n + first;
      for (int64_t i = 0; i < count; i++) out[i] = values.empty() ? Value(0) : values[i] * Value(factor);
    };
    put(statistics, 0, state.rows.own_logit, T(kLn2));
    put(statistics, 1, state.rows.max);
    put(statistics, 2, state.rows.sum);
    put(statistics, 3, state.columns.max);
    put(statistics, 4, state.columns.sum);
    put(ranks, 0, state.rows.rank);
    put(ranks, 1, state.columns.rank);
  }
  const Tensor loss = torch::stable::new_empty(call.query, {}, scalar_type_of<T>);
  *data<T>(loss) = static_cast<T>(total * factor);
  const T scale = scalar_value<T>(call.scale);
  const Tensor grad_scale = scale_gradient(call.query, along, scale, call.scale.number, need.scale);
  return {loss, grad_query.result(), grad_keys.result(), grad_scale, statistics, ranks};
}

struct CpuClip {
  static bool in_double(const ClipCall& call) { return accumulation_type(call.query) == ScalarType::Double; }

  static ClipForward forward(const ClipCall& call, int64_t kept) {
    return in_double(call) ? forward_rows<double>(call, kept) : forward_rows<float>(call, kept);
  }
  static Gradients backward(const ClipCall& call, const ClipSaved& saved, Needed need) {
    return in_double(call) ? backward_rows<double>(call, saved, need) : backward_rows<float>(call, saved, need);
  }
  static ClipSum sum(const ClipCall& call, double factor, Needed need, int64_t kept, bool stats) {
    return in_double(call) ? sum_rows<double>(call, factor, need, kept, stats)
                           : sum_rows<float>(call, static_cast<float>(factor), need, kept, stats);
  }
};

}  // namespace
}  // namespace maskco

MASKCO_LIBRARY_IMPL(MASKCO_NAMESPACE, CPU, m) {
  m.impl("clip_loss_fwd", TORCH_BOX(&maskco::clip_loss_fwd<maskco::CpuClip>));
  m.impl("clip_loss_bwd", TORCH_BOX(&maskco::clip_loss_bwd<maskco::CpuClip>));
  m.impl("clip_loss_sum", TORCH_BOX(&maskco::clip_loss_sum<maskco::CpuClip>));
}
