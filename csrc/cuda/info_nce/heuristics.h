// How info_nce's work is split for a GPU, and how the general path cuts the keys. Host code, without torch.
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

// General path: keys of a tile. 4 MiB of float32 logits, and as much of keys, stay in the second-level cache.
inline int64_t keys_per_tile(int64_t queries, int64_t channels, int64_t keys) {
  constexpr int64_t kTileElements = 1 << 20, kLeastKeys = 128, kMostKeys = 4096;
  const int64_t row = std::max({queries, channels, int64_t(1)});
  return std::min(std::clamp(kTileElements / row, kLeastKeys, kMostKeys), keys);
}

}  // namespace maskco
