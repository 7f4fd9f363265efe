// The weights times the keys for AMX, whose first factor must lie along the depth. The depth is the keys, and neither
// factor lies along it.
//
// The weights of a panel of queries are already rows with pairs of keys, as the second factor needs them. So the
// product is transposed: sums[C, queries] += keys[C, n] weights[n, queries]. The keys of a tile are transposed once for
// all queries of a block, which is a small part of the work for any C. Transposing the weights instead would cost about
// as much for every C queries. Also, sums in panels are rescaled lane by lane.
#pragma once
#include <algorithm>

#include "cpu/info_nce/weighted_sums.h"

namespace maskco {

#ifdef MASKCO_AMX

using TileRow = Lanes<int32_t, 64>;

// Transposes 16 rows of 16. Each round interleaves the first rows with the last ones.
MASKCO_INLINE void transpose(TileRow::Vector (&rows)[16]) {
  const TileRow::Mask first{0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
  const TileRow::Mask last{8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  TileRow::Vector other[16];
#pragma GCC unroll 2
  for (int round = 0; round < 2; round++) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
      other[2 * i] = __builtin_shuffle(rows[i], rows[i + 8], first);
      other[2 * i + 1] = __builtin_shuffle(rows[i], rows[i + 8], last);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
      rows[2 * i] = __builtin_shuffle(other[i], other[i + 8], first);
      rows[2 * i + 1] = __builtin_shuffle(other[i], other[i + 8], last);
    }
  }
}

template <class Tile>
class WeightedSums<Tile, false> {
 public:
  MASKCO_INLINE WeightedSums(int64_t c, int64_t width, int32_t* buffer) : c_(c), width_(width), buffer_(buffer) {}

  // (Padding of channels up to `width`, and of keys up to a multiple of 32, is zeros. The tile is then a copy.)
  MASKCO_INLINE void take_keys(const int32_t* tile, int64_t row_stride, int64_t n) {
    typedef int16_t Halves __attribute__((vector_size(64), aligned(2), may_alias));
    const Halves low{0,  2,  4,  6,  8,  10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30,
                     32, 34, 36, 38, 40, 42, 44, 46, 48, 50, 52, 54, 56, 58, 60, 62};
    const int64_t depth = row_operands<Tile>(c_) / Tile::kParts;
    n_ = n;
    pairs_ = (n + 1) / 2;
    for (int p = 0; p < Tile::kParts; p++)
      for (int64_t j = 0; j < n; j += 2 * kSide)
        for (int64_t x = 0; x < width_ / 2; x += kSide) {
          TileRow::Vector keys[2][kSide];
          for (int64_t h = 0; h < 2; h++) {
            const int32_t* from = tile + (j + h * kSide) * row_stride + p * depth + x;
            if (x + kSide <= depth)
              for (int64_t i = 0; i < kSide; i++) keys[h][i] = TileRow::at(from + i * row_stride);
            else
              for (int64_t i = 0; i < kSide; i++)
                for (int64_t l = 0; l < kSide; l++) keys[h][i][l] = x + l < depth ? from[i * row_stride + l] : 0;
            transpose(keys[h]);
          }
          int32_t* to = buffer_ + 2 * x * kStride + p * pairs_ + j / 2;
          for (int64_t i = 0; i < kSide; i++) {  // two channels of 32 keys
            const auto first = (Halves)keys[0][i], second = (Halves)keys[1][i];
            TileRow::at(to + 2 * i * kStride) = (TileRow::Vector)__builtin_shuffle(first, second, low);
            TileRow::at(to + (2 * i + 1) * kStride) = (TileRow::Vector)__builtin_shuffle(first, second, low + 1);
          }
        }
  }

  // sums are [width, panel] here. For weights in parts, as many rows after them are overwritten too.
  MASKCO_INLINE void add(float* weights, const float* shrink, float* sums) {
    bool smaller = false;
    for (int64_t l = 0; l < kPanel; l++) smaller |= shrink[l] != 1;
    for (int64_t x = 0; smaller && x < width_; x++)
      for (int64_t l = 0; l < kPanel; l += Lane::kCount) Lane::at(sums + x * kPanel + l) *= Lane::at(shrink + l);
    if constexpr (Tile::kParts == 1) {
      multiply(weight_rows<Tile>(weights, n_), pairs_, sums);
    } else {
      auto* split = reinterpret_cast<int32_t*>(weights) + Tile::kKeys * kPanel;
      split_weights(weights, split);
      multiply(split, 2 * pairs_, sums);
      multiply(split + pairs_ * kPanel, pairs_, sums);
    }
  }

  MASKCO_INLINE void finish(float* sums, float* workspace) {
    std::copy_n(sums, width_ * kPanel, workspace);
    for (int64_t x = 0; x < width_; x += kSide)
      for (int64_t l = 0; l < kPanel; l += kSide) {
        TileRow::Vector rows[kSide];
        for (int64_t i = 0; i < kSide; i++)
          rows[i] = TileRow::at(reinterpret_cast<const int32_t*>(workspace) + (x + i) * kPanel + l);
        transpose(rows);
        for (int64_t i = 0; i < kSide; i++)
          TileRow::at(reinterpret_cast<int32_t*>(sums) + (l + i) * width_ + x) = rows[i];
      }
  }

 private:
  using Lane = typename Tile::Lane;
  static constexpr int64_t kPanel = Tile::kColumns, kSide = 16, kStride = Tile::kParts * Tile::kKeys / 2;

  MASKCO_INLINE void multiply(const int32_t* weights, int64_t depth, float* sums) {
    for (int64_t x = 0; x < width_; x += Tile::kRows)
      Tile::multiply(buffer_ + x * kStride, kStride, 1, weights, kPanel, sums + x * kPanel, kPanel, depth, true);
  }

  // weights [n, panel] -> [rest, nearest] of pairs of keys, [2 * pairs, panel].
  MASKCO_INLINE void split_weights(const float* weights, int32_t* out) {
    const auto* bits = reinterpret_cast<const int32_t*>(weights);
    for (int64_t j = 0; j < pairs_; j++)
      for (int64_t l = 0; l < kPanel; l += Lane::kCount) {
        TileRow::Vector nearest[2], rest[2];
        for (int64_t h = 0; h < 2; h++) {
          const TileRow::Vector weight = TileRow::at(bits + (2 * j + h) * kPanel + l);
          nearest[h] = (weight + 0x8000) & -0x10000;
          const auto left = (typename Lane::Vector)weight - (typename Lane::Vector)nearest[h];
          rest[h] = (TileRow::Vector)left + 0x8000;
        }
        TileRow::at(out + j * kPanel + l) = ((rest[0] >> 16) & 0xffff) | (rest[1] & -0x10000);
        TileRow::at(out + (pairs_ + j) * kPanel + l) = ((nearest[0] >> 16) & 0xffff) | nearest[1];
      }
  }

  const int64_t c_, width_;
  int32_t* const buffer_;  // [width, kStride]: pairs of keys, in parts [nearest, rest] without a gap
  int64_t n_ = 0, pairs_ = 0;
};

#endif

}  // namespace maskco
