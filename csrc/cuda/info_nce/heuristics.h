// How the flash kernels' work is split for a GPU. Host code, without torch.
#pragma once
#include <algorithm>
#include <cstdint>

#include "cuda/info_nce/shapes.h"

namespace maskco {

// Flash kernels: parts that the columns are cut into, so that one wave of blocks fills the GPU. Each must be worth its
// start and merge.
inline int num_splits(int64_t row_blocks, int64_t tiles, int blocks_per_sm, int sms) {
  constexpr int64_t kLeastTiles = 4;
  const int64_t slots = int64_t(blocks_per_sm) * sms;
  return static_cast<int>(std::clamp<int64_t>(std::min(slots / row_blocks, tiles / kLeastTiles), 1, kMaxSplits));
}

}  // namespace maskco
