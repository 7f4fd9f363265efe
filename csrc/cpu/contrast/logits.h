// Logits of a tile of keys and a panel of queries: the first product of every contrastive pass.
#pragma once
#include <algorithm>

#include "cpu/contrast/operands.h"

namespace maskco {

// Prefetches the next tile of keys into the second-level cache, a few lines with every register tile. The hardware
// cannot: several rows are read at once, a stream each, and each ends before the prefetcher has detected it.
struct Ahead {
  const char* next;
  int64_t bytes;  // each time

  template <class Tile, int64_t kKeys = Tile::kKeys, class Operand = typename Tile::Operand>
  static MASKCO_INLINE Ahead of(const Operand* tile, int64_t tile_stride, int64_t width, int64_t queries) {
    const int64_t times = kKeys / Tile::kRows * ((queries + Tile::kColumns - 1) / Tile::kColumns);
    const bool in_one = Tile::kParts == 1 && tile_stride == width;  // no copy, no gaps
    const int64_t bytes = in_one ? kKeys * width * int64_t(sizeof(Operand)) : 0;
    return {reinterpret_cast<const char*>(tile + kKeys * tile_stride), (bytes + times - 1) / times};
  }
  MASKCO_INLINE void fetch() {
    for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(next + b, 0, 2);
    next += bytes;
  }
};

// logits [n rounded up, panel], in rows of `stride`. They are scaled here if the query is not scaled already. Then the
// logit of two rows with one part is the same bit for bit, whichever of them is the query.
template <class Tile, bool kScaled = Tile::kDepth == 1, class Operand = typename Tile::Operand>
MASKCO_INLINE void panel_logits(const Operand* tile, int64_t tile_stride, int64_t n, const Operand* query,
                                int64_t depth, typename Tile::T scale, typename Tile::T* logits, int64_t stride,
                                Ahead& ahead) {
  using T = typename Tile::T;
  using Lane = typename Tile::Lane;
  constexpr int64_t kBlock = Tile::kLongest, kPanel = Tile::kColumns;
  const int64_t part = depth / Tile::kParts;
  [[maybe_unused]] T rests[Tile::kParts == 2 ? Tile::kKeys * kPanel : 1];  // [keys, panel]
  for (int64_t j = 0; j < n; j += Tile::kRows) {
    ahead.fetch();
    const Operand* nearest = query + (depth - part) * kPanel;
    for (int64_t first = 0; first == 0 || first < part; first += kBlock)
      Tile::multiply(tile + j * tile_stride + first, tile_stride, 1, nearest + first * kPanel, kPanel,
                     logits + j * stride, stride, std::min(kBlock, part - first), first > 0);
    if constexpr (Tile::kParts == 2)
      Tile::multiply(tile + j * tile_stride, tile_stride, 1, query, kPanel, rests + j * kPanel, kPanel, depth, false);
  }
  if constexpr (!kScaled)
    for (int64_t j = 0; j < round_up(n, 2); j++)
      for (int64_t l = 0; l < kPanel; l += Lane::kCount) {
        auto& logit = Lane::at(logits + j * stride + l);
        if constexpr (Tile::kParts == 2) {
          // (the rests of an infinite sum are NaN, or infinite of either sign)
          const auto whole = logit + Lane::at(rests + j * kPanel + l);
          logit = logit - logit == 0 ? whole : logit;
        }
        logit *= scale;
      }
}

}  // namespace maskco
