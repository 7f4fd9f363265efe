// Cross-entropy of all pairs on CUDA, over each query's keys and, for CLIP, over each key's queries.
#include "common/library.h"
#include "cuda/contrast/softmax.h"

namespace maskco {
namespace {

template <class Acc>
SoftmaxPairs<Acc> pairs_of(const ClipCall& call, const Acc* own_logit) {
  SoftmaxPairs<Acc> pairs{};
  pairs.own_excluded = true;
  pairs.own = call.own;
  pairs.query_ids = optional_ptr<int64_t>(call.query_ids);
  pairs.key_ids = call.query_ids ? optional_ptr<int64_t>(call.key_ids) : nullptr;
  pairs.ids_exclude = true;
  pairs.with_margin = call.margin.has_value();
  pairs.margin = call.margin.value_or(0);
  pairs.own_logit = own_logit;
  return pairs;
}

// [2, size], or empty if not needed
template <class Acc>
Acc* sums_ptr(const Tensor& t) {
  return t.numel() > 0 ? device_ptr<Acc>(t) : nullptr;
}

template <class Tile>
ClipForward forward(const ClipCall& call, int64_t kept) {
  using T = typename Tile::T;
  using Acc = typename Tile::Acc;
  const Tensor& query = call.query;
  const int64_t n = query.size(0), k = call.keys.size(0), padded = padded_rows(n);
  const int64_t columns = call.columns ? k : 0, totals = call.smoothing > 0 ? 1 : 0;
  const Tensor own_logit = new_tensor<Acc>(query, {1, padded}), column_own = new_tensor<Acc>(query, {columns});
  const int64_t lines = std::max(padded, columns);
  launch_lines(32 * lines, query, &contrast_own_kernel<T, Acc>, pair_rows<T>(query), pair_rows<T>(call.keys), call.own,
               device_scalar<Acc>(call.scale), device_ptr<Acc>(own_logit), padded,
               columns > 0 ? device_ptr<Acc>(column_own) : nullptr, lines);
  const auto pairs = pairs_of<Acc>(call, device_ptr<const Acc>(own_logit));
  const ReadSums<Acc> sums =
      read_pairs<Tile, Acc>(query, call.keys, call.scale, pairs, call.columns, device_ptr<const Acc>(own_logit),
                            call.columns ? device_ptr<const Acc>(column_own) : nullptr, totals > 0);

  const Tensor loss = new_tensor<Acc>(query, {n}), parts = new_tensor<Acc>(query, {2, n});
  const Tensor row_rank = new_tensor<int64_t>(query, {padded}), column_rank = new_tensor<int64_t>(query, {columns});
  const Tensor row_sums = new_tensor<Acc>(query, {2, padded}), column_sums = new_tensor<Acc>(query, {2, columns});
  const Tensor row_totals = new_tensor<Acc>(query, {2, totals * padded});
  const Tensor column_totals = new_tensor<Acc>(query, {2, totals * columns});
  const ClipSide<Acc> of_rows{device_ptr<Acc>(row_sums), device_ptr<int64_t>(row_rank), sums_ptr<Acc>(row_totals),
                              device_ptr<Acc>(own_logit), padded};
  const ClipSide<Acc> of_columns{device_ptr<Acc>(column_sums), device_ptr<int64_t>(column_rank),
                                 sums_ptr<Acc>(column_totals), device_ptr<Acc>(column_own), columns};
  launch_lines(32 * lines, query, &clip_finish_kernel<Acc>, sums.rows.view(), static_cast<int>(sums.rows.parts),
               sums.columns.view(), static_cast<int>(sums.columns.parts), of_rows, of_columns, call.columns && n == k,
               call.decoupled, call.smoothing, n, device_ptr<Acc>(loss), device_ptr<Acc>(parts));
  return {loss,     parts,       own_logit,  row_rank,      column_rank,
          row_sums, column_sums, row_totals, column_totals, no_logits<Acc>(query, k, kept)};
}

template <class Tile>
Gradients backward(const ClipCall& call, const ClipSaved& saved, const Upstream<typename Tile::Acc>& row_upstream,
                   const Upstream<typename Tile::Acc>& column_upstream, Needed need, ScalarType dtype) {
  using Acc = typename Tile::Acc;
  const Tensor& query = call.query;
  const int64_t n = query.size(0), columns = call.columns ? call.keys.size(0) : 0;
  const bool shares = call.smoothing > 0;
  const WeightBuffers<Acc> row_weights(query, n, shares), column_weights(query, columns, shares);
  const Tensor own_weight = new_tensor<Acc>(query, {n});
  const auto unit = weight_unit<Acc>(query, row_upstream, n, column_upstream, columns, call.scale);
  const ClipSide<Acc> rows{device_ptr<Acc>(saved.row_sums), nullptr, sums_ptr<Acc>(saved.row_totals),
                           device_ptr<Acc>(saved.own_logit), padded_rows(n)};
  const ClipSide<Acc> of_columns{device_ptr<Acc>(saved.column_sums), nullptr, sums_ptr<Acc>(saved.column_totals),
                                 device_ptr<Acc>(saved.column_own), columns};
  launch_lines(std::max(n, columns), query, &clip_weights_kernel<Acc>, rows, of_columns, n, call.own, call.decoupled,
               call.smoothing, device_scalar<Acc>(call.scale), optional_ptr<Acc>(unit),
               device_ptr<const Acc>(saved.parts), row_upstream, column_upstream, row_weights.made(),
               column_weights.made(), device_ptr<Acc>(own_weight));
  return weigh_pairs<Tile, Acc>(query, call.keys, call.scale,
                                pairs_of<Acc>(call, device_ptr<const Acc>(saved.own_logit)), row_weights,
                                column_weights, device_ptr<const Acc>(own_weight), unit, need, dtype);
}

template <class Tile>
ClipSum sum(const ClipCall& call, double factor, Needed need, bool stats) {
  using Acc = typename Tile::Acc;
  const Tensor& query = call.query;
  const int64_t n = query.size(0);
  const auto [losses, parts, own_logit, row_rank, column_rank, row_sums, column_sums, row_totals, column_totals,
              logits] = forward<Tile>(call, 0);
  const Tensor loss = new_tensor<Acc>(query, {});
  total_of<Acc, Acc>(losses, factor, 0, call.scale, std::nullopt, loss);
  const ScalarType dtype = gradient_type(query);
  const Tensor none = torch::stable::new_empty(query, {0, query.size(1)}, dtype);
  Gradients gradients{none, none, new_tensor<Acc>(query, {0})};
  if (need.any()) {
    const Tensor column_own = call.columns ? torch::stable::view(narrow(own_logit, 1, 0, n), {n}) : losses;
    const ClipSaved saved{losses,   losses,      parts,      own_logit,     column_own,
                          row_sums, column_sums, row_totals, column_totals, logits};
    const auto upstream = uniform_upstream<Acc>(call.columns ? factor / 2 : factor);
    gradients = backward<Tile>(call, saved, upstream, upstream, need, dtype);
  }
  const Tensor statistics = new_tensor<Acc>(query, {stats ? 5 : 0, n});
  const Tensor ranks = new_tensor<int64_t>(query, {stats ? 2 : 0, n});
  if (stats) {
    const auto copy = [&](const Tensor& to, int64_t row, const Tensor& from, int64_t from_row, bool there) {
      Tensor out = torch::stable::view(narrow(to, 0, row, 1), {n});
      if (there) {
        torch::stable::copy_(out, torch::stable::view(narrow(narrow(from, 0, from_row, 1), 1, 0, n), {n}));
      } else {
        torch::stable::zero_(out);
      }
    };
    const auto as_row = [](const Tensor& t) { return torch::stable::view(t, {1, t.size(0)}); };
    copy(statistics, 0, own_logit, 0, true);
    copy(statistics, 1, row_sums, 0, true);
    copy(statistics, 2, row_sums, 1, true);
    copy(statistics, 3, column_sums, 0, call.columns);
    copy(statistics, 4, column_sums, 1, call.columns);
    copy(ranks, 0, as_row(row_rank), 0, true);
    copy(ranks, 1, as_row(column_rank), 0, call.columns);
  }
  const auto& [grad_query, grad_keys, grad_scale] = gradients;
  return {loss, grad_query, grad_keys, grad_scale, statistics, ranks};
}

struct CudaClip {
  static ClipForward forward(const ClipCall& call, int64_t kept) {
    const DeviceGuard guard(call.query);
    return dispatch_tile(call.query.scalar_type(), call.allow_tf32,
                         [&](auto tile) { return maskco::forward<decltype(tile)>(call, kept); });
  }
  static Gradients backward(const ClipCall& call, const ClipSaved& saved, Needed need) {
    const DeviceGuard guard(call.query);
    return dispatch_tile(call.query.scalar_type(), call.allow_tf32, [&](auto tile) {
      using Acc = typename decltype(tile)::Acc;
      return maskco::backward<decltype(tile)>(call, saved, upstream_of<Acc>(saved.row_upstream),
                                              upstream_of<Acc>(saved.column_upstream), need, call.query.scalar_type());
    });
  }
  static ClipSum sum(const ClipCall& call, double factor, Needed need, int64_t kept, bool stats) {
    const DeviceGuard guard(call.query);
    check_no_logits(kept);
    return dispatch_tile(call.query.scalar_type(), call.allow_tf32,
                         [&](auto tile) { return maskco::sum<decltype(tile)>(call, factor, need, stats); });
  }
};

}  // namespace
}  // namespace maskco

MASKCO_LIBRARY_IMPL(MASKCO_NAMESPACE, MASKCO_CUDA_KEY, m) {
  m.impl("clip_loss_fwd", MASKCO_CUDA_BOX(&maskco::clip_loss_fwd<maskco::CudaClip>));
  m.impl("clip_loss_bwd", MASKCO_CUDA_BOX(&maskco::clip_loss_bwd<maskco::CudaClip>));
  m.impl("clip_loss_sum", MASKCO_CUDA_BOX(&maskco::clip_loss_sum<maskco::CudaClip>));
}
