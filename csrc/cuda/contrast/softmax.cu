// Launches the sweeps of losses with normalised logits. Their kernels are compiled in this file only.
#include "cuda/contrast/softmax.h"

namespace maskco {

template <class Tile, class Acc>
ReadSums<Acc> read_pairs(const Tensor& query, const Tensor& keys, const ScaleArgument& scale,
                         const SoftmaxPairs<Acc>& pairs, bool columns, const Acc* row_own, const Acc* column_own,
                         bool totals) {
  using T = typename Tile::T;
  const int64_t n = query.size(0), k = keys.size(0);
  const SweepCut cut = sweep_cut<Tile>(n, k);
  ReadSums<Acc> sums;
  sums.rows = PartialBuffers<Acc>(query, cut.grid.y, n, row_own, totals);
  if (columns) sums.columns = PartialBuffers<Acc>(query, cut.grid.x, k, column_own, totals);
  if (cut.blocks() == 0) return sums;
  const auto kernel = &contrast_read_kernel<Tile>;
  allow_shared_memory(kernel, sizeof(ReadShared<Tile>));
  kernel<<<cut.grid, Tile::kThreads, sizeof(ReadShared<Tile>), current_stream(query)>>>(
      pair_rows<T>(query), pair_rows<T>(keys), pairs, device_scalar<Acc>(scale), cut.size, columns, sums.rows.view(),
      sums.columns.view());
  check_cuda(cudaGetLastError(), "contrast: read");
  return sums;
}

template <class Tile, class Acc>
Gradients weigh_pairs(const Tensor& query, const Tensor& keys, const ScaleArgument& scale,
                      const SoftmaxPairs<Acc>& pairs, const WeightBuffers<Acc>& rows, const WeightBuffers<Acc>& columns,
                      const Acc* own_weight, const std::optional<Tensor>& unit, Needed need, ScalarType dtype,
                      bool half) {
  using T = typename Tile::T;
  const Tensor along = new_tensor<double>(
      query, {need.scale ? Slabs<Tile>(query.size(0), keys.size(0), need.query || need.keys).blocks() : 0});
  constexpr size_t kBytes = Tile::kStages * Tile::kStageBytes;
  const auto kernel = &contrast_weigh_kernel<Tile>;
  allow_shared_memory(kernel, kBytes);
  const PairGradients features = gradients_of<Tile>(query, keys, need, dtype, unit, [&](const Slab<T>& slab) {
    SoftmaxPairs<Acc> part = pairs;
    part.own += slab.first;
    if (part.query_ids != nullptr) part.query_ids += slab.first;
    if (part.own_logit != nullptr) part.own_logit += slab.first;
    kernel<<<slab.cut.grid, Tile::kThreads, kBytes, current_stream(query)>>>(
        pair_rows<T>(narrow(query, 0, slab.first, slab.count)), pair_rows<T>(keys), part, device_scalar<Acc>(scale),
        slab.cut.size, rows.from(slab.first), columns.from(0),
        own_weight != nullptr ? own_weight + slab.first : nullptr, slab.weights, slab.width,
        need.scale ? device_ptr<double>(along) + slab.block : nullptr);
    check_cuda(cudaGetLastError(), "contrast: weigh");
  });
  const Tensor grad_scale = new_tensor<Acc>(query, {need.scale ? 1 : 0});
  if (need.scale) {
    const double ln2 = half ? kLn2 / 2 : kLn2;  // (logits are in units of log 2, and weights contain the scale)
    const bool inverse = scale.number < 0;
    total_of<double, Acc>(along, inverse ? -ln2 : ln2, inverse ? 0 : -2, scale, unit, grad_scale);
  }
  return {features.query, features.keys, grad_scale};
}

#define MASKCO_SWEEPS(Tile, Acc)                                                                                    \
  template ReadSums<Acc> read_pairs<Tile, Acc>(const Tensor& query, const Tensor& keys, const ScaleArgument& scale, \
                                               const SoftmaxPairs<Acc>& pairs, bool columns, const Acc* row_own,    \
                                               const Acc* column_own, bool totals);                                 \
  template Gradients weigh_pairs<Tile, Acc>(                                                                        \
      const Tensor& query, const Tensor& keys, const ScaleArgument& scale, const SoftmaxPairs<Acc>& pairs,          \
      const WeightBuffers<Acc>& rows, const WeightBuffers<Acc>& columns, const Acc* own_weight,                     \
      const std::optional<Tensor>& unit, Needed need, ScalarType dtype, bool half);
MASKCO_SWEEPS(Float16Tile, float)
MASKCO_SWEEPS(BFloat16Tile, float)
MASKCO_SWEEPS(Float32Tile, float)
MASKCO_SWEEPS(Tf32Tile, float)
MASKCO_SWEEPS(Float64Tile, double)
#undef MASKCO_SWEEPS

}  // namespace maskco
