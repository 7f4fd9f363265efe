// Host side of the losses whose logits are normalised.
#pragma once
#include "cuda/contrast/softmax.cuh"
#include "cuda/contrast/sweep.h"

namespace maskco {

// One side's partial sums, and the memory that they are in.
template <class Acc>
struct PartialBuffers {
  int64_t parts = 0, size = 0;
  std::optional<Tensor> sums, rank, totals;
  const Acc* own_logit = nullptr;

  PartialBuffers() = default;
  PartialBuffers(const Tensor& like, int64_t parts_, int64_t size_, const Acc* own_logit_, bool with_totals)
      : parts(parts_), size(size_), sums(new_tensor<Acc>(like, {2, parts, size})), own_logit(own_logit_) {
    if (own_logit != nullptr) rank = new_tensor<int>(like, {parts, size});
    if (with_totals) totals = new_tensor<Acc>(like, {2, parts, size});
  }
  PartialSums<Acc> view() const {
    if (!sums) return {};
    Acc *max = device_ptr<Acc>(*sums), *total = totals ? device_ptr<Acc>(*totals) : nullptr;
    return {max,
            max + parts * size,
            rank ? device_ptr<int>(*rank) : nullptr,
            total,
            totals ? total + parts * size : nullptr,
            own_logit,
            size};
  }
};

template <class Acc>
struct ReadSums {
  PartialBuffers<Acc> rows, columns;
};

// The sums of all rows, and with `columns` of all columns. Own logits: null where ranks are not asked for.
template <class Tile, class Acc = typename Tile::Acc>
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

// One side's weights, and the memory that they are in.
template <class Acc>
struct WeightBuffers {
  int64_t size;
  bool with_share;
  Tensor values;  // [3, size]

  WeightBuffers(const Tensor& like, int64_t size_, bool with_share_)
      : size(size_), with_share(with_share_), values(new_tensor<Acc>(like, {3, size})) {}
  NewWeights<Acc> made() const {
    Acc* shift = device_ptr<Acc>(values);
    return {shift, shift + size, with_share ? shift + 2 * size : nullptr};
  }
  SideWeights<Acc> from(int64_t first) const {
    if (size == 0) return {};
    const NewWeights<Acc> all = made();
    return {all.shift + first, all.weight + first, with_share ? all.share + first : nullptr};
  }
};

// The gradients of features and scale. `columns`: of no size where only rows are weighed. `half`: each pair's weight
// holds both directions, so that of the scale counts half.
template <class Tile, class Acc = typename Tile::Acc>
Gradients weigh_pairs(const Tensor& query, const Tensor& keys, const ScaleArgument& scale,
                      const SoftmaxPairs<Acc>& pairs, const WeightBuffers<Acc>& rows, const WeightBuffers<Acc>& columns,
                      const Acc* own_weight, const std::optional<Tensor>& unit, Needed need, ScalarType dtype,
                      bool half = false) {
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
    const double ln2 = half ? kLn2 / 2 : kLn2;  // (logits are in units of log 2, and weights times the scale)
    const bool inverse = scale.number < 0;
    total_of<double, Acc>(along, inverse ? -ln2 : ln2, inverse ? 0 : -2, scale, unit, grad_scale);
  }
  return {features.query, features.keys, grad_scale};
}

}  // namespace maskco
