// The second product of the streaming pass: weighted sums of the keys for every query.
#pragma once
#include <algorithm>

#include "cpu/contrast/logits.h"

namespace maskco {

// For register tiles whose first factor may have any strides. weighted_sums_amx.h has the others.
template <class Tile, bool kStrided = Tile::kStrided>
class WeightedSums {
 public:
  using T = typename Tile::T;
  using Operand = typename Tile::Operand;

  // `width` is C rounded up to a panel. `buffer` is [keys of a tile, width].
  MASKCO_INLINE WeightedSums(int64_t c, int64_t width, Operand* buffer) : c_(c), width_(width), buffer_(buffer) {}

  // Takes a tile of n keys from key_rows.
  MASKCO_INLINE void take_keys(const Operand* tile, int64_t tile_stride, int64_t n) {
    value_stride_ = tile_stride;
    n_ = n;
    values_ = value_rows<Tile>(tile, n, c_, width_, buffer_, value_stride_);
  }

  // sums[panel, width] = sums · shrink + weights[n, panel]ᵀ keys. The weights are overwritten.
  MASKCO_INLINE void add(T* weights, const T* shrink, T* sums) {
    constexpr int64_t kPanel = Tile::kColumns, kDepth = Tile::kDepth;
    for (int64_t i = 0; i < kPanel; i++)
      if (shrink[i] != T(1))
        for (int64_t x = 0; x < width_; x++) sums[i * width_ + x] *= shrink[i];
    const Operand* factors = weight_rows<Tile>(weights, n_);
    for (int64_t x = 0; x < width_; x += kPanel)
      for (int64_t i = 0; i < kPanel; i += Tile::kRows)
        Tile::multiply(factors + i, 1, kPanel, values_ + x, value_stride_, sums + i * width_ + x, width_,
                       (n_ + kDepth - 1) / kDepth, true);
  }

  // Call once all keys were added, with a workspace of [panel, width].
  MASKCO_INLINE void finish(T*, T*) {}

 private:
  const int64_t c_, width_;
  Operand* const buffer_;
  const Operand* values_ = nullptr;
  int64_t value_stride_ = 0, n_ = 0;
};

}  // namespace maskco
