// InfoNCE on tensor cores, for a short list of C. No logits or weights of shared keys are ever in global memory.
//
// A block keeps 64 or 128 "rows" and streams "columns" past them, in tiles through shared memory. Each tile is loaded
// once and multiplied twice: S = rows · columnsᵀ, and O += weights(S) · columns. That is flash attention (Dao et al.,
// 2022) with keys = values. One loop serves both passes, and a policy says what to do with S:
// - flash_queries.cuh has queries as rows, and gives loss, rank and the queries' gradient.
// - flash_keys.cuh has keys as rows, and gives the keys' gradient.
//
// Three things differ from attention: the positive and its rank, exclusions, and a short output. Because of the short
// output, columns are cut into splits that fill the GPU, and merged afterwards (combine.cuh).
//
// Logits and maxima are in base 2 here, multiplied by log2(e): the GPU's own exponential is 2^x.
#pragma once
#include <climits>
#include <cstdint>

#include "cuda/info_nce/flash_tile.cuh"
#include "cuda/info_nce/rows.cuh"

namespace maskco {

// The number of rows from `first` on, of `count` rows, but at most `most`.
__device__ __forceinline__ int rows_from(int64_t first, int64_t count, int most) {
  return static_cast<int>(max(int64_t(0), min(count - first, int64_t(most))));
}

// Rows of features that start at 16-byte boundaries.
template <typename T>
struct FlashFeatures {
  const T* rows;       // [count, C]
  int64_t row_stride;  // in elements
  int64_t count;
  const int64_t* ids;  // [count] or null

  // The rows first .. first + some.
  __device__ __forceinline__ FlashFeatures from(int64_t first, int some) const {
    return {rows + first * row_stride, row_stride, some, ids == nullptr ? nullptr : ids + first};
  }
};

__device__ __forceinline__ int64_t valid_count(int64_t count, const int64_t* valid) {
  if (valid == nullptr || *valid >= count) return count;
  return *valid < 0 ? 0 : *valid;
}

// A block's tiles in shared memory.
template <class F>
struct FlashTiles {
  alignas(128) char rows[F::kRowTileBytes];
  char columns[kFlashStages][F::kColumnTileBytes];
};

// The condition, which is the same in all threads, as a vote. Otherwise ptxas for 10.0 and later peels the first tile
// off the loop, and then runs out of registers.
__device__ __forceinline__ bool loop_on(bool condition) { return __any_sync(0xffffffff, condition); }

// A block's running sums: the rows' largest exponents, and the sums of weights times columns relative to them.
template <class F>
struct FlashSums {
  typename F::PerRow max;
  typename F::Sums weighted = {};
};

// The main loop: the block's `row_count` rows of `features` against its part of the tiles of columns. A policy has
//   kSwapped                           whether rows are keys
//   kWeighted                          whether it needs weighted sums
//   kMostKept                          registers for the rows' operands
//   columns(tile)                      gives the tile's features, at most F::kColumns; ids only if rows have ids
//   own(tile)                          gives the tile's number among the block's own tiles. Rows and columns of one
//                                      index are no pairs there. Beyond F::kRowTiles it is not an own tile
//   fetch(tile), keep(tile, fetched)   copy a tile's other values, during the products of the previous tile
//   start(row_count)                   runs when the rows are in shared memory
//   scale(s, stage)                    turns products into exponents in base 2
//   see(s, top)                        gets exponents after exclusions; `top` has each row's largest of the lane
//   rescale(block, half, factor)       runs when a row's maximum has grown
//   weigh(s, stage)                    turns exponentials into weights
template <class F, class Policy, typename T = typename F::T>
__device__ __forceinline__ void flash_sweep(FlashTiles<F>& shared, int64_t (&column_ids)[kFlashStages][F::kColumns],
                                            const FlashFeatures<T>& features, int row_count, int tiles, Policy& policy,
                                            FlashSums<F>& sums) {
  const uint32_t row_tile = shared_address(shared.rows), column_tiles = shared_address(shared.columns);
  const auto split_begin = [&](int split) { return static_cast<int>(int64_t(tiles) * split / gridDim.y); };
  const int first_tile = split_begin(blockIdx.y), last_tile = split_begin(blockIdx.y + 1);
  const auto load_columns = [&](int tile) {
    const int stage = tile % kFlashStages, column = thread_index();
    const FlashFeatures<T> columns = policy.columns(tile);
    const int count = static_cast<int>(columns.count);
    F::template load<F::kColumns>(column_tiles + stage * F::kColumnTileBytes, columns.rows, columns.row_stride, count);
    if (columns.ids != nullptr && column < F::kColumns) {
      const bool inside = column < count;
      copy_async<8>(shared_address(&column_ids[stage][column]), columns.ids + (inside ? column : 0), inside);
    }
  };

  const auto block_rows = [&] { return features.from(int64_t(blockIdx.x) * F::kRows, row_count); };
  F::template load<F::kRows>(row_tile, block_rows().rows, features.row_stride, row_count);
  commit_copies();
  if (first_tile < last_tile) load_columns(first_tile);
  commit_copies();
  if (first_tile < last_tile) policy.keep(first_tile, policy.fetch(first_tile));
  wait_for_copies<1>();
  __syncthreads();
  policy.start(row_count);

  const typename F::template Rows<Policy::kMostKept> rows(row_tile);
  F::for_each_row([&](int block, int half) { sums.max[block][half] = -INFINITY; });
  const bool idle = F::warp_row() >= row_count;  // an idle warp only helps with the copies
  for (int tile = first_tile; loop_on(tile < last_tile); tile++) {
    wait_for_copies<0>();
    __syncthreads();  // this tile has arrived, and no thread reads the previous one, which the next copy replaces
    if (tile + 1 < last_tile) load_columns(tile + 1);
    commit_copies();
    const auto fetched = policy.fetch(tile + 1 < last_tile ? tile + 1 : tile);
    if (!idle) {
      const int stage = tile % kFlashStages;
      const uint32_t column_tile = column_tiles + stage * F::kColumnTileBytes;
      typename F::Logits s;
      F::template multiply<Policy::kSwapped>(s, rows, column_tile);
      policy.scale(s, stage);
      const FlashFeatures<T> columns = policy.columns(tile);
      const int count = static_cast<int>(columns.count);
      const unsigned own = policy.own(tile);
      if (own < F::kRowTiles || count < F::kColumns)
        F::exclude(s, count, own < F::kRowTiles ? -int(own) * F::kColumns : INT_MIN);
      if (columns.ids != nullptr) F::exclude(s, block_rows().ids, row_count, column_ids[stage]);
      typename F::PerRow top;
      F::lane_max(s, top);
      policy.see(s, top);
      F::weigh(s, top, sums.max, sums.weighted,
               [&](int block, int half, float factor) { policy.rescale(block, half, factor); });
      policy.weigh(s, stage);
      if constexpr (Policy::kWeighted) F::accumulate(sums.weighted, s, column_tile);
    }
    if (tile + 1 < last_tile) policy.keep(tile + 1, fetched);
  }
  __syncwarp();
}

}  // namespace maskco
