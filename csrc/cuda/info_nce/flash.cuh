// InfoNCE on tensor cores, for C of a small list: logits, weights and weighted sums without any of them in memory.
//
// A block keeps 64 or 128 "rows" and streams "columns" past them, in tiles through shared memory: queries and keys in
// the forward pass, keys and queries in the pass for the keys' own gradient. Each tile is loaded once and multiplied
// twice: S = rows · columnsᵀ, and O += weights(S) · columns. That is flash attention (Dao et al., 2022) with keys =
// values. What differs: the positive and the rank, exclusions, and a short output, so that one query block's keys are
// cut into splits that fill the GPU, and merged by info_nce_combine_kernel.
//
// Logits and maxima are in base 2 here, multiplied by log2(e): the GPU's own exponential is 2^x.
#pragma once
#include <climits>
#include <cstddef>
#include <cstdint>

#include "cuda/common/products.cuh"
#include "cuda/info_nce/flash_tile.cuh"
#include "cuda/info_nce/rows.cuh"

namespace maskco {

// Rows of features that start at 16-byte boundaries.
template <typename T>
struct FlashFeatures {
  const T* rows;       // [count, C]
  int64_t row_stride;  // in elements
  int64_t count;
  const int64_t* ids;  // [count] or null
};

__device__ __forceinline__ int64_t valid_count(int64_t count, const int64_t* valid) {
  if (valid == nullptr || *valid >= count) return count;
  return *valid < 0 ? 0 : *valid;
}

// The first tile of this block's split, or of the one `after` it.
__device__ __forceinline__ int split_begin(int tiles, int after) {
  return static_cast<int64_t>(tiles) * (blockIdx.y + after) / gridDim.y;
}

// `condition`, the same in all threads, as a vote: ptxas for 10.0 and later then does not peel the first tile off the
// loop, for which registers do not suffice.
__device__ __forceinline__ bool loop_on(bool condition) { return __any_sync(0xffffffff, condition); }

// What one split of the keys makes of one query.
struct alignas(16) FlashRow {
  float max;     // of the negatives' logits, in base 2
  float sum;     // of 2^(s - max) over the negatives
  int64_t rank;  // negatives with a larger logit than the positive's

  // in one access of 16 bytes
  __device__ FlashRow load() const {
    const float4 bits = *reinterpret_cast<const float4*>(this);
    return reinterpret_cast<const FlashRow&>(bits);
  }
  __device__ void store(const FlashRow& row) {
    *reinterpret_cast<float4*>(this) = reinterpret_cast<const float4&>(row);
  }
};

// The ids come last: without them a block takes less.
template <class F>
struct FlashForwardShared {
  alignas(128) char rows[F::kRowTileBytes];
  char columns[kFlashStages][F::kColumnTileBytes];
  float row_positive[F::kRows];
  int64_t column_ids[kFlashStages][F::kColumns];
};

// Block (x, y): kRows queries from x · kRows on, and the y-th of gridDim.y equal parts of the tiles of all keys, which
// are those of the queue and then, with `in_batch`, the positives.
template <typename F, bool kGradient, typename T = typename F::T>
__global__ void __launch_bounds__(F::kThreads, F::kBlocksPerSm)
    info_nce_flash_kernel(FlashFeatures<T> query, FlashFeatures<T> positive, FlashFeatures<T> queue,
                          const int64_t* valid,  // one element, or null
                          bool in_batch, Temperature<float> temperature,
                          float* positive_product,  // [N]: query · positive
                          FlashRow* split_rows,     // [S, N], S = gridDim.y
                          float* split_sums) {      // [S, N, C]: of 2^(s - max) · key
  extern __shared__ __align__(128) char memory[];
  auto& shared = *reinterpret_cast<FlashForwardShared<F>*>(memory);
  const uint32_t row_tile = shared_address(shared.rows), column_tiles = shared_address(shared.columns);
  const float scale = kLog2E / temperature.get();
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * F::kRows;
  const int row_count = min(query.count - first_row, int64_t(F::kRows));
  const int64_t queue_count = valid_count(queue.count, valid);
  const int queue_tiles = F::tiles(queue_count), tiles = queue_tiles + (in_batch ? F::tiles(positive.count) : 0);
  const int last_columns = F::last_columns(queue_count);
  const int first_tile = split_begin(tiles, 0), last_tile = split_begin(tiles, 1);

  struct Keys {  // of a tile
    const T* rows;
    int64_t row_stride;
    const int64_t* ids;  // or null
    int count;
  };
  auto keys_of = [&](int tile) {
    const bool own = tile >= queue_tiles;
    const int64_t first = int64_t(own ? tile - queue_tiles : tile) * F::kColumns;
    const int64_t stride = own ? positive.row_stride : queue.row_stride;
    const int count = tile == queue_tiles - 1 ? last_columns
                      : tile == tiles - 1     ? F::last_columns(positive.count)
                                              : F::kColumns;
    const int64_t* ids = query.ids == nullptr ? nullptr : own ? query.ids : queue.ids;
    return Keys{(own ? positive.rows : queue.rows) + first * stride, stride, ids == nullptr ? nullptr : ids + first,
                count};
  };
  auto load_keys = [&](int tile) {
    const int stage = tile % kFlashStages;
    const Keys keys = keys_of(tile);
    F::template load<F::kColumns>(column_tiles + stage * F::kColumnTileBytes, keys.rows, keys.row_stride, keys.count);
    const int column = thread_index();
    if (keys.ids != nullptr && column < F::kColumns) {
      const bool inside = column < keys.count;
      copy_async<8>(shared_address(&shared.column_ids[stage][column]), keys.ids + (inside ? column : 0), inside);
    }
  };

  F::template load<F::kRows>(row_tile, query.rows + first_row * query.row_stride, query.row_stride, row_count);
  commit_copies();
  if (first_tile < last_tile) load_keys(first_tile);
  commit_copies();
  wait_for_copies<1>();
  __syncthreads();

  for (int i = threadIdx.x % 32 / 8; i < F::kWarpRows; i += 4) {  // eight lanes a row
    const int row = F::warp_row() + i;
    const bool inside = row < row_count;
    float product =
        inside ? F::template dot<8>(shared.rows, row, positive.rows + (first_row + row) * positive.row_stride) : 0;
    for (int offset = 4; offset > 0; offset /= 2) product += __shfl_xor_sync(0xffffffff, product, offset);
    if (threadIdx.x % 8 == 0) {
      shared.row_positive[row] = __fmul_rn(product, scale);
      if (blockIdx.y == 0 && inside) positive_product[first_row + row] = product;
    }
  }
  __syncwarp();

  const typename F::template Rows<kGradient ? 32 : 64> rows(row_tile);
  typename F::PerRow max, sum = {};
  int rank[F::kRowBlocks][2] = {};
  typename F::Sums weighted = {};  // (without gradient it stays zero, and takes no registers)
  F::for_each_row([&](int block, int half) { max[block][half] = -INFINITY; });

  const bool idle = F::warp_row() >= row_count;  // a warp that only helps with the copies
  for (int tile = first_tile; loop_on(tile < last_tile); tile++) {
    wait_for_copies<0>();
    __syncthreads();  // this tile is there, and nobody reads the one before, which the next one replaces
    if (tile + 1 < last_tile) load_keys(tile + 1);
    commit_copies();
    if (idle) continue;
    const int stage = tile % kFlashStages;
    const uint32_t column_tile = column_tiles + stage * F::kColumnTileBytes;

    typename F::Logits s;
    F::template multiply<false>(s, rows, column_tile);
    // (never part of a fused multiply-add: the keys' pass must see the same logit)
    F::for_each_logit([&](int block, int j, int i) { s[block][j][i] = __fmul_rn(s[block][j][i], scale); });
    const Keys keys = keys_of(tile);
    const unsigned own = tile - queue_tiles - int(blockIdx.x) * F::kRowTiles;  // which of the tiles of the block's own
    if (own < F::kRowTiles || keys.count < F::kColumns)
      F::exclude(s, keys.count, own < F::kRowTiles ? -int(own) * F::kColumns : INT_MIN);
    if (keys.ids != nullptr) F::exclude(s, query.ids + first_row, row_count, shared.column_ids[stage]);
    typename F::PerRow top;
    F::lane_max(s, top);
    bool above = false;
    F::for_each_row([&](int block, int half) { above |= top[block][half] > shared.row_positive[F::row(block, half)]; });
    if (__any_sync(0xffffffff, above)) {  // in trained models seldom
      F::for_each_row([&](int block, int half) {
        const float positive_logit = shared.row_positive[F::row(block, half)];  // (registers are scarce)
#pragma unroll
        for (int j = 0; j < F::kColumnBlocks; j++) {
          rank[block][half] += s[block][j][2 * half] > positive_logit;
          rank[block][half] += s[block][j][2 * half + 1] > positive_logit;
        }
      });
    }
    F::weigh(s, top, max, weighted, [&](int block, int half, float shrink) { sum[block][half] *= shrink; });
    F::for_each_logit([&](int block, int j, int i) { sum[block][i / 2] += s[block][j][i]; });
    if constexpr (kGradient) F::accumulate(weighted, s, column_tile);
  }

  F::for_each_row([&](int block, int half) {
    float row_sum = sum[block][half];
    int row_rank = rank[block][half];
    for (int offset = 1; offset < 4; offset *= 2) {
      row_sum += __shfl_xor_sync(0xffffffff, row_sum, offset);
      row_rank += __shfl_xor_sync(0xffffffff, row_rank, offset);
    }
    const int row = F::row(block, half);
    if (row >= row_count) return;
    const int64_t entry = blockIdx.y * query.count + first_row + row;
    if (threadIdx.x % 4 == 0) split_rows[entry].store({max[block][half], row_sum, row_rank});
    if constexpr (kGradient) {
      float* out = split_sums + entry * F::kChannels;
#pragma unroll
      for (int channels = 0; channels < F::kChannelBlocks; channels++) {
        const auto& w = weighted[block][channels];
        *reinterpret_cast<float2*>(out + F::column(channels, 0)) = make_float2(w[2 * half], w[2 * half + 1]);
      }
    }
  });
}

// What a query's softmax and upstream gradient make of its logits s: weights sign · 2^(s - max + log_factor). In eight
// bytes, since two blocks just fit on an SM of 100 KiB: the sign is the last bit of log_factor.
struct FlashShare {
  float max;         // of the forward pass
  float log_factor;  // log2 of |grad_loss| / (|temperature| · sum of 2^(s - max))

  __device__ __forceinline__ static FlashShare of(float max, float weight, float sum) {
    const float log_factor = log2f(fabsf(weight)) - log2f(sum);
    if (log_factor == -INFINITY) return {max, log_factor};  // weights are 0; with another last bit it would be NaN
    return {max, __uint_as_float((__float_as_uint(log_factor) & ~1u) | (weight < 0))};
  }
  __device__ __forceinline__ float with_sign(float weight) const {
    return __uint_as_float(__float_as_uint(weight) ^ __float_as_uint(log_factor) << 31);
  }
};

template <class F>
struct FlashKeysShared {
  alignas(128) char rows[F::kRowTileBytes];
  char columns[kFlashStages][F::kColumnTileBytes];
  FlashShare column_share[kFlashStages][F::kColumns];
  int64_t column_ids[kFlashStages][F::kColumns];
};
template <class Shared>
constexpr int shared_bytes(bool with_ids) {
  return with_ids ? sizeof(Shared) : offsetof(Shared, column_ids);
}

// The recompute pass for the keys' own gradient, with queries and keys in changed places: for key j
// sum_i grad_i / temperature · softmax_ij · q_i. Upstream gradients and softmax are one exponential, so that a running
// maximum keeps the weights in the range of 16 bits here as well. The logits have the forward pass's bits, so that none
// exceeds its maximum, however large they are. Block (x, y): kRows keys from x · kRows on and the y-th of gridDim.y
// equal parts of the queries.
template <typename F, typename T = typename F::T>
__global__ void __launch_bounds__(F::kThreads, F::kBlocksPerSm)
    info_nce_flash_keys_kernel(FlashFeatures<T> keys, FlashFeatures<T> query,
                               const int64_t* valid,  // one element, or null
                               bool in_batch, Temperature<float> temperature,
                               const float* normaliser,  // [2, N]: maximum, and sum of 2^(s - max)
                               const float* grad_loss,   // [N]
                               int64_t grad_stride,
                               T* grad_keys,              // [K, C], or
                               float* split_gradients) {  // [S, K, C] for S = gridDim.y > 1, which are to be summed
  extern __shared__ __align__(128) char memory[];
  auto& shared = *reinterpret_cast<FlashKeysShared<F>*>(memory);
  const uint32_t row_tile = shared_address(shared.rows), column_tiles = shared_address(shared.columns);
  const float tau = temperature.get(), scale = kLog2E / tau;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * F::kRows, count = valid_count(keys.count, valid);
  const bool with_ids = keys.ids != nullptr && query.ids != nullptr;
  const int tiles = first_row < count ? F::tiles(query.count) : 0;
  const int first_tile = split_begin(tiles, 0), last_tile = split_begin(tiles, 1);

  auto columns_of = [&](int tile) {
    return tile == F::tiles(query.count) - 1 ? F::last_columns(query.count) : F::kColumns;
  };
  auto share_of = [&](int tile) {
    const int64_t i = int64_t(tile) * F::kColumns + threadIdx.x;
    if (tile >= last_tile || threadIdx.x >= F::kColumns || i >= query.count) return FlashShare{0, -INFINITY};
    return FlashShare::of(normaliser[i], grad_loss[i * grad_stride] / tau, normaliser[query.count + i]);
  };
  auto store_share = [&](int tile, const FlashShare& share) {
    if (threadIdx.x < F::kColumns) shared.column_share[tile % kFlashStages][threadIdx.x] = share;
  };
  auto load_queries = [&](int tile) {
    const int stage = tile % kFlashStages, count = columns_of(tile);
    const int64_t first = int64_t(tile) * F::kColumns;
    F::template load<F::kColumns>(column_tiles + stage * F::kColumnTileBytes, query.rows + first * query.row_stride,
                                  query.row_stride, count);
    if (with_ids && threadIdx.x < F::kColumns) {
      const bool inside = threadIdx.x < count;
      copy_async<8>(shared_address(&shared.column_ids[stage][threadIdx.x]),
                    query.ids + (inside ? first + threadIdx.x : 0), inside);
    }
  };

  const int row_count = static_cast<int>(max(int64_t(0), min(int64_t(F::kRows), count - first_row)));
  F::template load<F::kRows>(row_tile, keys.rows + first_row * keys.row_stride, keys.row_stride, row_count);
  commit_copies();
  if (first_tile < last_tile) load_queries(first_tile);
  commit_copies();
  store_share(first_tile, share_of(first_tile));
  wait_for_copies<1>();
  __syncthreads();

  const typename F::template Rows<32> rows(row_tile);
  typename F::PerRow max;
  typename F::Sums gradient = {};
  F::for_each_row([&](int block, int half) { max[block][half] = -INFINITY; });

  for (int tile = first_tile; loop_on(tile < last_tile); tile++) {
    wait_for_copies<0>();
    __syncthreads();
    if (tile + 1 < last_tile) load_queries(tile + 1);
    commit_copies();
    const FlashShare next_share = share_of(tile + 1);  // on its way during the products
    const int stage = tile % kFlashStages;
    const uint32_t column_tile = column_tiles + stage * F::kColumnTileBytes;

    typename F::Logits s;
    F::template multiply<true>(s, rows, column_tile);
    F::for_each_logit([&](int block, int j, int i) {
      const FlashShare& share = shared.column_share[stage][F::column(j, i)];
      const float behind = __fmul_rn(s[block][j][i], scale) - share.max;
      s[block][j][i] =
          (behind > 0 ? 0 : behind) + share.log_factor;  // (above 0 only if a GPU rounds a · b unlike b · a)
    });
    const int columns = columns_of(tile);
    const unsigned own = tile - int(blockIdx.x) * F::kRowTiles;
    const bool is_own = in_batch && own < F::kRowTiles;
    if (is_own || columns < F::kColumns) F::exclude(s, columns, is_own ? -int(own) * F::kColumns : INT_MIN);
    if (with_ids) F::exclude(s, keys.ids + first_row, row_count, shared.column_ids[stage]);
    typename F::PerRow top;
    F::lane_max(s, top);
    F::weigh(s, top, max, gradient, [](int, int, float) {});
    F::for_each_logit([&](int block, int j, int i) {
      s[block][j][i] = shared.column_share[stage][F::column(j, i)].with_sign(s[block][j][i]);
    });
    F::accumulate(gradient, s, column_tile);
    store_share(tile + 1, next_share);
  }

  // Directly, or through the warp's own part of the tile of rows, so that whole chunks are written.
  __syncwarp();
  F::for_each_row([&](int block, int half) {
    const int row = F::row(block, half);
    const float factor = exp2_approximate(F::shift(max[block][half]));
#pragma unroll
    for (int channels = 0; channels < F::kChannelBlocks; channels++) {
      float2 sums =
          make_float2(gradient[block][channels][2 * half] * factor, gradient[block][channels][2 * half + 1] * factor);
      if (first_row + row >= count) sums = make_float2(0, 0);
      const int channel = F::column(channels, 0);
      if (split_gradients == nullptr) {
        const int bytes = channel * sizeof(T);
        T* to = reinterpret_cast<T*>(shared.rows + F::offset(row, bytes / 16) + bytes % 16);
        to[0] = convert<T>(sums.x);
        to[1] = convert<T>(sums.y);
      } else if (first_row + row < keys.count) {
        float* to = split_gradients + (blockIdx.y * keys.count + first_row + row) * F::kChannels + channel;
        *reinterpret_cast<float2*>(to) = sums;
      }
    }
  });
  if (split_gradients != nullptr) return;
  __syncwarp();
  for (int i = threadIdx.x % 32; i < F::kWarpRows * F::kChunks; i += 32) {
    const int row = F::warp_row() + i / F::kChunks, chunk = i % F::kChunks;
    if (first_row + row >= keys.count) break;
    *reinterpret_cast<uint4*>(grad_keys + (first_row + row) * F::kChannels + chunk * (16 / sizeof(T))) =
        *reinterpret_cast<const uint4*>(shared.rows + F::offset(row, chunk));
  }
}

// Flash as the table has its entry for a GPU.
template <FlashGpu gpu, typename Product, int kEntry>
struct FlashOn {
  static constexpr FlashEntry kOf = kFlashTable[kEntry];
  static constexpr FlashShape kShape = flash_shape(gpu, kOf);
  using type = Flash<Product, kOf.channels, kShape.warps, kShape.row_blocks, kShape.columns, kShape.blocks_per_sm>;
  static constexpr int kBytes = flash_shared_bytes(kOf.element_size, kOf.channels, kShape);
  static_assert(sizeof(FlashForwardShared<type>) <= kBytes && sizeof(FlashKeysShared<type>) <= kBytes);
  static_assert(kBytes <= flash_shared_limit(gpu));
};

}  // namespace maskco
