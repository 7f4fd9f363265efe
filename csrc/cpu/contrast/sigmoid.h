// The policy of losses that classify each pair separately (SigLIP). Logits are not normalised.
#pragma once
#include "cpu/contrast/sweep.h"

namespace maskco {

// Pairs (i, i + own) belong together, and have the loss log(1 + e^-z). All others have the loss log(1 + e^z). Logits
// are in units of log 2.
template <class T>
struct SigmoidPairs {
  bool has_own;
  int64_t own;
  T bias;            // added to each logit, in units of log 2
  const T* factor;   // [N rounded up]: factor of a row's weights
  T* loss;           // [N rounded up]
  T* bias_gradient;  // [N rounded up]: each row's sum of weights; null if not needed
  T* along;          // [N rounded up]: sum of weight · logit, for the scale's gradient; or null

  template <class Tile>
  MASKCO_INLINE void exclude(const Block<T>& block) const {
    for (int64_t j = 0; block.rows < block.lanes && j < block.keys; j++)
      std::fill(block.logits + j * block.stride + block.rows, block.logits + j * block.stride + block.lanes,
                -std::numeric_limits<T>::infinity());
  }

  template <class Tile>
  MASKCO_INLINE void read(const Block<T>& block) const {
    sweep_lanes<Tile, false>(block);
  }

  template <class Tile>
  MASKCO_INLINE void weigh(const Block<T>& block) const {
    sweep_lanes<Tile, true>(block);
  }

 private:
  template <class Tile, bool kWeigh>
  MASKCO_INLINE void sweep_lanes(const Block<T>& block) const {
    using Lane = typename Tile::Lane;
    using Vector = typename Lane::Vector;
    constexpr T kLn2 = T(0.69314718055994530942);
    for (int64_t l = 0; l < block.lanes; l += Lane::kCount) {
      const int64_t row = block.first_row + l, rows = std::min<int64_t>(Lane::kCount, block.rows - l);
      Vector losses{}, weights{}, products{};
      for (int64_t j = 0; j < block.keys; j++) {
        Vector& logit = Lane::at(block.logits + j * block.stride + l);
        const Vector s = logit;
        Vector sign = Vector{} + 1;                                           // 1: no pair; -1: a pair
        const int64_t lane = has_own ? block.first_key + j - own - row : -1;  // of the row that the key belongs to
        if (0 <= lane && lane < rows) sign[lane] = -1;
        const Vector z = (s + bias) * sign;
        Vector e = z > 0 ? -z : z;
        Lane::exp2(e);
        const Vector share = (z > 0 ? Vector{} + 1 : e) / (e + 1);
        Lane::log1p(e);
        losses += (z > 0 ? z * kLn2 : Vector{}) + e;
        if constexpr (kWeigh) {
          const Vector weight = share * sign * Lane::at(factor + row);
          weights += weight;
          products += s < -std::numeric_limits<T>::max() ? Vector{} : weight * s;  // (lanes without a row: 0 · -inf)
          logit = weight;
        }
      }
      Lane::at(loss + row) += losses;
      if constexpr (kWeigh) {
        if (bias_gradient) Lane::at(bias_gradient + row) += weights;
        if (along) Lane::at(along + row) += products;
      }
    }
  }
};

}  // namespace maskco
