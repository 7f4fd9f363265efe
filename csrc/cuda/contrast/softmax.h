// Host side of the losses with normalised logits. The sweeps themselves are compiled once, in softmax.cu.
#pragma once
#include "cuda/contrast/softmax.cuh"
#include "cuda/contrast/sweep.h"

namespace maskco {

// One side's partial sums, and their memory.
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

// The sums of all rows, and with `columns` of all columns. Own logits are null if ranks are not needed.
template <class Tile, class Acc>
ReadSums<Acc> read_pairs(const Tensor& query, const Tensor& keys, const ScaleArgument& scale,
                         const SoftmaxPairs<Acc>& pairs, bool columns, const Acc* row_own, const Acc* column_own,
                         bool totals);

// One side's weights, and their memory.
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

// The gradients of features and scale. `columns` has size 0 if only rows are weighed. With `half`, each pair's weight
// holds both directions, so it counts half for the scale.
template <class Tile, class Acc>
Gradients weigh_pairs(const Tensor& query, const Tensor& keys, const ScaleArgument& scale,
                      const SoftmaxPairs<Acc>& pairs, const WeightBuffers<Acc>& rows, const WeightBuffers<Acc>& columns,
                      const Acc* own_weight, const std::optional<Tensor>& unit, Needed need, ScalarType dtype,
                      bool half = false);

}  // namespace maskco
