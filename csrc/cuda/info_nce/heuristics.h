// How the flash kernels' work is split for a GPU. This is host code without torch.
#pragma once
#include <algorithm>
#include <cstdint>

#include "cuda/info_nce/shapes.h"

namespace maskco {

// The number of parts to cut the columns into: the fewest that take at most 5% longer than the best. The estimated time
// is the number of waves of blocks, times the time of a block: its tiles, its start, and its results to merge.
inline int num_splits(int64_t row_blocks, int64_t tiles, int blocks_per_sm, int sms) {
  constexpr int64_t kLeastTiles = 4, kStartAndMerge = 3 /* in tiles */, kMostWaves = 4;
  const auto ceil_div = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const int64_t slots = int64_t(blocks_per_sm) * sms;
  const int64_t most = std::min({ceil_div(kMostWaves * slots, row_blocks), tiles / kLeastTiles, int64_t(kMaxSplits)});
  const auto time = [&](int64_t splits) {
    return ceil_div(row_blocks * splits, slots) * (ceil_div(tiles, splits) + kStartAndMerge);
  };
  int64_t least = time(1), splits = 1;
  for (int64_t s = 2; s <= most; s++) least = std::min(least, time(s));
  while (100 * time(splits) > 105 * least) splits++;
  return static_cast<int>(splits);
}

}  // namespace maskco
