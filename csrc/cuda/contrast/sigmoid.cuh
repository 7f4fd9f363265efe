// The loss that classifies each pair separately (SigLIP). Nothing is normalised, so one sweep gives losses and weights.
#pragma once
#include "cuda/contrast/tile.cuh"

namespace maskco {

template <typename Acc>
struct SigmoidPairs {
  bool has_own;
  int64_t own;             // pair (i, i + own) belongs together, all others do not
  DeviceScalar<Acc> bias;  // added to each logit
};

template <typename Tile>
struct SigmoidShared {
  alignas(128) char stages[Tile::kStages * Tile::kStageBytes];
  typename Tile::Acc parts[Tile::kWarpsAcross][Tile::kRows];
};

// Pairs that belong together have the loss log(1 + e^-z), all others log(1 + e^z). Weights are upstream · scale · d
// loss / d z / unit.
template <typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocksPerSm)
    contrast_sigmoid_kernel(PairRows<typename Tile::T> query, PairRows<typename Tile::T> keys,
                            SigmoidPairs<typename Tile::Acc> pairs, DeviceScalar<typename Tile::Acc> natural_scale,
                            Rectangle size, Upstream<typename Tile::Acc> upstream,
                            const typename Tile::Acc* unit,            // one element, or null: 1
                            typename Tile::Acc* losses, int64_t rows,  // [P, rows], or null; P = gridDim.y
                            typename Tile::T* weights, int64_t width,  // [N, width], or null
                            double* along,                             // [blocks]: sums of weight · logit, or null
                            double* total) {                           // [blocks]: sums of weights, or null
  using Acc = typename Tile::Acc;
  extern __shared__ __align__(128) char memory[];
  auto& shared = *reinterpret_cast<SigmoidShared<Tile>*>(memory);
  const Acc natural = natural_scale.get(), scale = natural * static_cast<Acc>(kLog2E);
  const Acc bias = pairs.bias.get() * static_cast<Acc>(kLog2E), ln2 = static_cast<Acc>(kLn2);
  const Acc factor = unit != nullptr ? natural / *unit : natural;
  const bool weigh = weights != nullptr || along != nullptr || total != nullptr;
  double products = 0, sums = 0;

  Tile::sweep(shared.stages, query, keys, size, [&](int64_t first_row, int64_t first_column, auto& s) {
    Acc product = 0, sum = 0;
    typename Tile::PerRow row_losses = {};
    Tile::for_each_row([&](int block, int half) {
      const int64_t row = first_row + Tile::row(block, half);
      if (row >= query.count) return;
      const Acc of_row = weigh ? factor * upstream.get(row) : Acc(0);
#pragma unroll
      for (int j = 0; j < Tile::kColumnBlocks; j += 2) {
        Acc four[4];
        const int64_t first = first_column + Tile::column(j, 0);
#pragma unroll
        for (int i = 0; i < 4; i++) {
          four[i] = 0;
          if (first + i >= keys.count) continue;
          const Acc logit = times(s[block][j + i / 2][2 * half + i % 2], scale);
          const bool together = pairs.has_own && first + i == row + pairs.own;
          const Acc sign = together ? -1 : 1, z = (logit + bias) * sign;
          const Acc e = exp2_of(z > 0 ? -z : z);
          row_losses[block][half] += (z > 0 ? z * ln2 : Acc(0)) + log1p(e);
          const Acc w = (z > 0 ? Acc(1) : e) / (e + 1) * sign * of_row;
          sum += w;
          product += w * logit;
          four[i] = w;
        }
        if (weights != nullptr) Tile::store(weights + row * width, first, width, four);
      }
    });
    products += product;
    sums += sum;
    if (losses == nullptr) return;
    Tile::reduce_rows(row_losses, shared.parts, Plus());
    __syncthreads();
    const int64_t row = first_row + threadIdx.x;
    if (threadIdx.x < Tile::kRows && row < rows) {
      const bool first = first_column == int64_t(blockIdx.y) * size.columns * Tile::kColumns;
      Acc& loss = losses[blockIdx.y * rows + row];
      Acc tile_loss = 0;
      for (int warp = 0; warp < Tile::kWarpsAcross; warp++) tile_loss += shared.parts[warp][threadIdx.x];
      loss = (first ? Acc(0) : loss) + tile_loss;
    }
  });
  const int64_t entry = int64_t(blockIdx.y) * gridDim.x + blockIdx.x;
  if (along != nullptr) {
    const double all = block_total<Tile::kThreads>(products);
    if (threadIdx.x == 0) along[entry] = all;
  }
  if (total != nullptr) {
    const double all = block_total<Tile::kThreads>(sums);
    if (threadIdx.x == 0) total[entry] = all;
  }
}

}  // namespace maskco
