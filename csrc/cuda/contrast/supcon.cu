// Supervised contrast on CUDA: each query against all keys but itself. Keys of its label are positives.
#include "common/library.h"
#include "cuda/contrast/softmax.h"

namespace maskco {
namespace {

template <class Acc>
SoftmaxPairs<Acc> pairs_of(const SupConCall& call) {
  SoftmaxPairs<Acc> pairs{};
  pairs.own_excluded = call.own.has_value();
  pairs.own = call.own.value_or(0);
  pairs.query_ids = device_ptr<const int64_t>(call.query_labels);
  pairs.key_ids = device_ptr<const int64_t>(call.key_labels);
  return pairs;
}

template <class Tile>
SupConForward forward(const SupConCall& call, int64_t kept) {
  using Acc = typename Tile::Acc;
  const Tensor& query = call.query;
  const int64_t n = query.size(0), padded = padded_rows(n);
  const ReadSums<Acc> parts =
      read_pairs<Tile, Acc>(query, call.keys, call.scale, pairs_of<Acc>(call), false, nullptr, nullptr, true);
  const Tensor loss = new_tensor<Acc>(query, {n}), lse = new_tensor<Acc>(query, {n});
  const Tensor positive_logit = new_tensor<Acc>(query, {n}), positives = new_tensor<int64_t>(query, {n});
  const Tensor sums = new_tensor<Acc>(query, {2, padded});
  launch_lines(32 * padded, query, &supcon_finish_kernel<Acc>, parts.rows.view(), static_cast<int>(parts.rows.parts),
               device_ptr<Acc>(sums), padded, device_ptr<Acc>(loss), device_ptr<Acc>(lse),
               device_ptr<Acc>(positive_logit), device_ptr<int64_t>(positives));
  return {loss, lse, positive_logit, positives, sums, no_logits<Acc>(query, call.keys.size(0), kept)};
}

// If the keys are the queries, each pair's weight holds both directions, and one product gives the whole gradient.
template <class Tile>
Gradients backward(const SupConCall& call, const Tensor& positives, const Tensor& sums,
                   const Upstream<typename Tile::Acc>& upstream, Needed need, ScalarType dtype) {
  using Acc = typename Tile::Acc;
  const Tensor& query = call.query;
  const int64_t n = query.size(0);
  const WeightBuffers<Acc> rows(query, n, true), none(query, 0, true);
  const auto unit = weight_unit<Acc>(query, upstream, n, upstream, 0, call.scale);
  launch_lines(n, query, &supcon_weights_kernel<Acc>, device_ptr<const Acc>(sums), padded_rows(n),
               device_ptr<const int64_t>(positives), n, device_scalar<Acc>(call.scale), optional_ptr<Acc>(unit),
               upstream, rows.made());
  need.keys = need.keys && !call.symmetric;
  return weigh_pairs<Tile, Acc>(query, call.keys, call.scale, pairs_of<Acc>(call), rows, call.symmetric ? rows : none,
                                nullptr, unit, need, dtype, call.symmetric);
}

template <class Tile>
SupConSum sum(const SupConCall& call, double factor, Needed need) {
  using Acc = typename Tile::Acc;
  const auto [losses, lse, positive_logit, positives, sums, logits] = forward<Tile>(call, 0);
  const Tensor loss = new_tensor<Acc>(call.query, {});
  total_of<Acc, Acc>(losses, factor, 0, call.scale, std::nullopt, loss);
  const ScalarType dtype = gradient_type(call.query);
  const Tensor none = torch::stable::new_empty(call.query, {0, call.query.size(1)}, dtype);
  Gradients gradients{none, none, new_tensor<Acc>(call.query, {0})};
  if (need.any()) gradients = backward<Tile>(call, positives, sums, uniform_upstream<Acc>(factor), need, dtype);
  const auto& [grad_query, grad_keys, grad_scale] = gradients;
  return {loss, grad_query, grad_keys, grad_scale, lse, positive_logit, positives};
}

struct CudaSupCon {
  static SupConForward forward(const SupConCall& call, int64_t kept) {
    const DeviceGuard guard(call.query);
    return dispatch_tile(call.query.scalar_type(), call.allow_tf32,
                         [&](auto tile) { return maskco::forward<decltype(tile)>(call, kept); });
  }
  static Gradients backward(const SupConCall& call, const SupConSaved& saved, Needed need) {
    const DeviceGuard guard(call.query);
    return dispatch_tile(call.query.scalar_type(), call.allow_tf32, [&](auto tile) {
      return maskco::backward<decltype(tile)>(call, saved.positives, saved.sums,
                                              upstream_of<typename decltype(tile)::Acc>(saved.grad_loss), need,
                                              call.query.scalar_type());
    });
  }
  static SupConSum sum(const SupConCall& call, double factor, Needed need, int64_t kept) {
    const DeviceGuard guard(call.query);
    check_no_logits(kept);
    return dispatch_tile(call.query.scalar_type(), call.allow_tf32,
                         [&](auto tile) { return maskco::sum<decltype(tile)>(call, factor, need); });
  }
};

}  // namespace
}  // namespace maskco

MASKCO_LIBRARY_IMPL(MASKCO_NAMESPACE, MASKCO_CUDA_KEY, m) {
  m.impl("supcon_loss_fwd", MASKCO_CUDA_BOX(&maskco::supcon_loss_fwd<maskco::CudaSupCon>));
  m.impl("supcon_loss_bwd", MASKCO_CUDA_BOX(&maskco::supcon_loss_bwd<maskco::CudaSupCon>));
  m.impl("supcon_loss_sum", MASKCO_CUDA_BOX(&maskco::supcon_loss_sum<maskco::CudaSupCon>));
}
