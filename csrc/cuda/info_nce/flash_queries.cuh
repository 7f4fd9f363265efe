// The forward pass, with queries as rows. For each query it gives the sums of the softmax, the rank, and the weighted
// sum of keys for its gradient.
#pragma once
#include "cuda/info_nce/flash.cuh"

namespace maskco {

// The result of one split of the keys for one query.
struct alignas(16) FlashRow {
  float max;     // of the negatives' logits, in base 2
  float sum;     // of 2^(s - max) over the negatives
  int64_t rank;  // negatives with a larger logit than the positive's

  // Loads in one access of 16 bytes.
  __device__ FlashRow load() const {
    const float4 bits = *reinterpret_cast<const float4*>(this);
    return reinterpret_cast<const FlashRow&>(bits);
  }
  __device__ void store(const FlashRow& row) {
    *reinterpret_cast<float4*>(this) = reinterpret_cast<const float4&>(row);
  }
};

// The ids come last, so that a block without ids takes less memory.
template <class F>
struct FlashQueriesShared {
  FlashTiles<F> tiles;
  float row_positive[F::kRows];
  int64_t column_ids[kFlashStages][F::kColumns];
};

// Keys are those of the queue, and then with `in_batch` the positives.
template <class F, bool kGradient, typename T = typename F::T>
struct FlashQueries {
  static constexpr bool kSwapped = false, kWeighted = kGradient;
  static constexpr int kMostKept = kGradient ? 32 : 64;

  FlashQueriesShared<F>& shared;
  FlashFeatures<T> positive, queue;  // ids: null if queries have none
  int queue_tiles, last_columns;     // of the queue, and in the last of its tiles
  int64_t first_row;
  float logit_scale;
  float* positive_product;  // [N]
  typename F::PerRow sum = {};
  int rank[F::kRowBlocks][2] = {};

  __device__ __forceinline__ FlashFeatures<T> columns(int tile) const {
    const int64_t first = int64_t(tile >= queue_tiles ? tile - queue_tiles : tile) * F::kColumns;
    if (tile >= queue_tiles) return positive.from(first, rows_from(first, positive.count, F::kColumns));
    return queue.from(first, tile == queue_tiles - 1 ? last_columns : F::kColumns);
  }
  __device__ __forceinline__ unsigned own(int tile) const {
    return tile - queue_tiles - int(blockIdx.x) * F::kRowTiles;
  }
  struct Nothing {};
  __device__ __forceinline__ Nothing fetch(int) const { return {}; }
  __device__ __forceinline__ void keep(int, Nothing) const {}

  __device__ __forceinline__ void start(int row_count) const {
    for (int i = threadIdx.x % 32 / 8; i < F::kWarpRows; i += 4) {  // eight lanes for each row
      const int row = F::warp_row() + i;
      const bool inside = row < row_count;
      const T* own = positive.rows + (first_row + row) * positive.row_stride;
      float product = inside ? F::template dot<8>(shared.tiles.rows, row, own) : 0;
      for (int offset = 4; offset > 0; offset /= 2) product += __shfl_xor_sync(0xffffffff, product, offset);
      if (threadIdx.x % 8 == 0) {
        shared.row_positive[row] = __fmul_rn(product, logit_scale);
        if (blockIdx.y == 0 && inside) positive_product[first_row + row] = product;
      }
    }
    __syncwarp();
  }
  __device__ __forceinline__ void scale(typename F::Logits& s, int) const {
    // (never part of a fused multiply-add, since the keys' pass must get the same logit)
    F::for_each_logit([&](int block, int j, int i) { s[block][j][i] = __fmul_rn(s[block][j][i], logit_scale); });
  }
  __device__ __forceinline__ void see(const typename F::Logits& s, const typename F::PerRow& top) {
    bool above = false;
    F::for_each_row([&](int block, int half) { above |= top[block][half] > shared.row_positive[F::row(block, half)]; });
    if (!__any_sync(0xffffffff, above)) return;  // the usual case in trained models
    F::for_each_row([&](int block, int half) {
      const float positive_logit = shared.row_positive[F::row(block, half)];  // (registers are scarce)
#pragma unroll
      for (int j = 0; j < F::kColumnBlocks; j++) {
        rank[block][half] += s[block][j][2 * half] > positive_logit;
        rank[block][half] += s[block][j][2 * half + 1] > positive_logit;
      }
    });
  }
  __device__ __forceinline__ void rescale(int block, int half, float factor) { sum[block][half] *= factor; }
  __device__ __forceinline__ void weigh(const typename F::Logits& s, int) {
    F::for_each_logit([&](int block, int j, int i) { sum[block][i / 2] += s[block][j][i]; });
  }
};

// Block (x, y) takes kRows queries from x · kRows on, and the y-th of gridDim.y equal parts of the tiles of all keys.
template <typename F, bool kGradient, typename T = typename F::T>
__global__ void __launch_bounds__(F::kThreads, F::kBlocksPerSm)
    info_nce_flash_kernel(FlashFeatures<T> query, FlashFeatures<T> positive, FlashFeatures<T> queue,
                          const int64_t* valid,  // one element, or null
                          bool in_batch, Temperature<float> temperature,
                          float* positive_product,  // [N]: query · positive
                          FlashRow* split_rows,     // [S, N], S = gridDim.y
                          float* split_sums) {      // [S, N, C]: of 2^(s - max) · key
  extern __shared__ __align__(128) char memory[];
  auto& shared = *reinterpret_cast<FlashQueriesShared<F>*>(memory);
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * F::kRows;
  const int row_count = rows_from(first_row, query.count, F::kRows);
  const int64_t queue_count = valid_count(queue.count, valid);
  positive.ids = query.ids;
  if (query.ids == nullptr) queue.ids = nullptr;
  const int queue_tiles = F::tiles(queue_count), tiles = queue_tiles + (in_batch ? F::tiles(positive.count) : 0);
  FlashQueries<F, kGradient> policy{shared,
                                    positive,
                                    queue,
                                    queue_tiles,
                                    F::last_columns(queue_count),
                                    first_row,
                                    kLog2E / temperature.get(),
                                    positive_product};
  FlashSums<F> sums;
  flash_sweep<F>(shared.tiles, shared.column_ids, query, row_count, tiles, policy, sums);

  F::for_each_row([&](int block, int half) {
    float row_sum = policy.sum[block][half];
    int row_rank = policy.rank[block][half];
    for (int offset = 1; offset < 4; offset *= 2) {
      row_sum += __shfl_xor_sync(0xffffffff, row_sum, offset);
      row_rank += __shfl_xor_sync(0xffffffff, row_rank, offset);
    }
    const int row = F::row(block, half);
    if (row >= row_count) return;
    const int64_t entry = blockIdx.y * query.count + first_row + row;
    if (threadIdx.x % 4 == 0) split_rows[entry].store({sums.max[block][half], row_sum, row_rank});
    if constexpr (kGradient) {
      float* out = split_sums + entry * F::kChannels;
#pragma unroll
      for (int channels = 0; channels < F::kChannelBlocks; channels++) {
        const auto& w = sums.weighted[block][channels];
        *reinterpret_cast<float2*>(out + F::column(channels, 0)) = make_float2(w[2 * half], w[2 * half + 1]);
      }
    }
  });
}

}  // namespace maskco
