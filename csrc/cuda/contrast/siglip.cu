// The sigmoid loss of all pairs on CUDA. Nothing is normalised, so one sweep gives losses and weights.
#include "common/library.h"
#include "cuda/contrast/sigmoid.cuh"
#include "cuda/contrast/sweep.h"

namespace maskco {
namespace {

// The losses [N], or [0] if not needed, and the gradients of their sum weighted by `upstream`.
template <class Tile>
SigLipSum compute(const SigLipCall& call, const Upstream<typename Tile::Acc>& upstream, bool want_losses, Needed need,
                  ScalarType dtype) {
  using T = typename Tile::T;
  using Acc = typename Tile::Acc;
  const Tensor &query = call.query, &keys = call.keys;
  const int64_t n = query.size(0), k = keys.size(0);
  const bool stored = need.query || need.keys;
  const Slabs<Tile> slabs(n, k, stored);
  const auto unit = need.any() ? weight_unit<Acc>(query, upstream, n, upstream, 0, call.scale) : std::nullopt;
  const Tensor along = new_tensor<double>(query, {need.scale ? slabs.blocks() : 0});
  const Tensor sums = new_tensor<double>(query, {need.bias ? slabs.blocks() : 0});
  const Tensor losses =
      want_losses ? torch::stable::new_zeros(query, {n}, scalar_type_of<Acc>) : new_tensor<Acc>(query, {0});
  const SigmoidPairs<Acc> pairs{call.own.has_value(), call.own.value_or(0), device_scalar<Acc>(call.bias)};
  constexpr size_t kBytes = sizeof(SigmoidShared<Tile>);
  const auto kernel = &contrast_sigmoid_kernel<Tile>;
  allow_shared_memory(kernel, kBytes);
  const PairGradients features = gradients_of<Tile>(query, keys, need, dtype, unit, [&](const Slab<T>& slab) {
    const int64_t parts = slab.cut.grid.y;
    const Tensor row_parts = new_tensor<Acc>(query, {want_losses ? parts : 0, slab.count});
    SigmoidPairs<Acc> part = pairs;
    part.own += slab.first;
    Upstream<Acc> of_slab = upstream;
    if (of_slab.rows != nullptr) of_slab.rows += slab.first;
    kernel<<<slab.cut.grid, Tile::kThreads, kBytes, current_stream(query)>>>(
        pair_rows<T>(narrow(query, 0, slab.first, slab.count)), pair_rows<T>(keys), part,
        device_scalar<Acc>(call.scale), slab.cut.size, of_slab, optional_ptr<Acc>(unit),
        want_losses ? device_ptr<Acc>(row_parts) : nullptr, slab.count, slab.weights, slab.width,
        need.scale ? device_ptr<double>(along) + slab.block : nullptr,
        need.bias ? device_ptr<double>(sums) + slab.block : nullptr);
    check_cuda(cudaGetLastError(), "contrast: sigmoid");
    if (want_losses)
      launch_lines(32 * slab.count, query, &contrast_rows_kernel<Acc>, device_ptr<const Acc>(row_parts),
                   static_cast<int>(parts), device_ptr<Acc>(losses) + slab.first, slab.count);
  });
  const Tensor grad_scale = new_tensor<Acc>(query, {need.scale ? 1 : 0});
  const Tensor grad_bias = new_tensor<Acc>(query, {need.bias ? 1 : 0});
  const bool inverse = call.scale.number < 0;  // (logits are in units of log 2, and weights contain the scale)
  if (need.scale) total_of<double, Acc>(along, inverse ? -kLn2 : kLn2, inverse ? 0 : -2, call.scale, unit, grad_scale);
  if (need.bias) total_of<double, Acc>(sums, 1, -1, call.scale, unit, grad_bias);
  return {losses, features.query, features.keys, grad_scale, grad_bias};
}

struct CudaSigLip {
  static Tensor forward(const SigLipCall& call) {
    const DeviceGuard guard(call.query);
    return dispatch_tile(call.query.scalar_type(), call.allow_tf32, [&](auto tile) {
      using Tile = decltype(tile);
      const auto upstream = uniform_upstream<typename Tile::Acc>(1);
      return std::get<0>(compute<Tile>(call, upstream, true, {}, call.query.scalar_type()));
    });
  }
  static SigLipGradients backward(const SigLipCall& call, const Tensor& grad_loss, Needed need) {
    const DeviceGuard guard(call.query);
    return dispatch_tile(call.query.scalar_type(), call.allow_tf32, [&](auto tile) -> SigLipGradients {
      using Tile = decltype(tile);
      const auto upstream = upstream_of<typename Tile::Acc>(grad_loss);
      const auto [losses, grad_query, grad_keys, grad_scale, grad_bias] =
          compute<Tile>(call, upstream, false, need, call.query.scalar_type());
      return {grad_query, grad_keys, grad_scale, grad_bias};
    });
  }
  static SigLipSum sum(const SigLipCall& call, double factor, Needed need) {
    const DeviceGuard guard(call.query);
    return dispatch_tile(call.query.scalar_type(), call.allow_tf32, [&](auto tile) {
      using Tile = decltype(tile);
      using Acc = typename Tile::Acc;
      SigLipSum result = compute<Tile>(call, uniform_upstream<Acc>(factor), true, need, gradient_type(call.query));
      const Tensor loss = new_tensor<Acc>(call.query, {});
      total_of<Acc, Acc>(std::get<0>(result), factor, 0, call.scale, std::nullopt, loss);
      std::get<0>(result) = loss;
      return result;
    });
  }
};

}  // namespace
}  // namespace maskco

MASKCO_LIBRARY_IMPL(MASKCO_NAMESPACE, MASKCO_CUDA_KEY, m) {
  m.impl("siglip_loss_fwd", MASKCO_CUDA_BOX(&maskco::siglip_loss_fwd<maskco::CudaSigLip>));
  m.impl("siglip_loss_bwd", MASKCO_CUDA_BOX(&maskco::siglip_loss_bwd<maskco::CudaSigLip>));
  m.impl("siglip_loss_sum", MASKCO_CUDA_BOX(&maskco::siglip_loss_sum<maskco::CudaSigLip>));
}
