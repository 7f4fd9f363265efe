// The pass for the keys' gradient, with keys as rows. It computes the logits again. The gradient of key j is
// sum_i grad_i / temperature · softmax_ij · q_i.
#pragma once
#include "cuda/info_nce/flash.cuh"

namespace maskco {

// A query's softmax and upstream gradient, which turn its logits s into weights sign · 2^(s - max + log_factor). It
// takes eight bytes, since two blocks just fit on an SM of 100 KiB. The sign is the last bit of log_factor.
struct FlashShare {
  float max;         // of the forward pass
  float log_factor;  // log2 of |grad_loss| / (|temperature| · sum of 2^(s - max))

  __device__ __forceinline__ static FlashShare of(float max, float weight, float sum) {
    const float log_factor = log2f(fabsf(weight)) - log2f(sum);
    if (log_factor == -INFINITY) return {max, log_factor};  // weights are 0; another last bit would make it NaN
    return {max, __uint_as_float((__float_as_uint(log_factor) & ~1u) | (weight < 0))};
  }
  __device__ __forceinline__ float with_sign(float weight) const {
    return __uint_as_float(__float_as_uint(weight) ^ __float_as_uint(log_factor) << 31);
  }
};

template <class F>
struct FlashKeysShared {
  FlashTiles<F> tiles;
  FlashShare column_share[kFlashStages][F::kColumns];
  int64_t column_ids[kFlashStages][F::kColumns];
};

// Upstream gradient and softmax are one exponential. So a running maximum keeps the weights in the range of 16 bits
// here too. The logits have the same bits as in the forward pass, so none exceeds its maximum, however large they are.
template <class F, typename T = typename F::T>
struct FlashKeys {
  static constexpr bool kSwapped = true, kWeighted = true;
  static constexpr int kMostKept = 32;

  FlashKeysShared<F>& shared;
  FlashFeatures<T> query;  // ids: null if keys have none
  bool in_batch;
  float temperature, logit_scale;
  const float* normaliser;  // [2, N]
  const float* grad_loss;   // [N]
  int64_t grad_stride;

  __device__ __forceinline__ FlashFeatures<T> columns(int tile) const {
    const int64_t first = int64_t(tile) * F::kColumns;
    return query.from(first, rows_from(first, query.count, F::kColumns));
  }
  __device__ __forceinline__ unsigned own(int tile) const {
    return in_batch ? tile - int(blockIdx.x) * F::kRowTiles : F::kRowTiles;
  }
  __device__ __forceinline__ FlashShare fetch(int tile) const {
    const int64_t i = int64_t(tile) * F::kColumns + threadIdx.x;
    if (threadIdx.x >= F::kColumns || i >= query.count) return {0, -INFINITY};
    return FlashShare::of(normaliser[i], grad_loss[i * grad_stride] / temperature, normaliser[query.count + i]);
  }
  __device__ __forceinline__ void keep(int tile, const FlashShare& share) const {
    if (threadIdx.x < F::kColumns) shared.column_share[tile % kFlashStages][threadIdx.x] = share;
  }
  __device__ __forceinline__ void start(int) const {}
  __device__ __forceinline__ void scale(typename F::Logits& s, int stage) const {
    F::for_each_logit([&](int block, int j, int i) {
      const FlashShare& share = shared.column_share[stage][F::column(j, i)];
      const float behind = __fmul_rn(s[block][j][i], logit_scale) - share.max;
      s[block][j][i] =
          (behind > 0 ? 0 : behind) + share.log_factor;  // (above 0 only if a GPU rounds a · b unlike b · a)
    });
  }
  __device__ __forceinline__ void see(const typename F::Logits&, const typename F::PerRow&) const {}
  __device__ __forceinline__ void rescale(int, int, float) const {}
  __device__ __forceinline__ void weigh(typename F::Logits& s, int stage) const {
    F::for_each_logit([&](int block, int j, int i) {
      s[block][j][i] = shared.column_share[stage][F::column(j, i)].with_sign(s[block][j][i]);
    });
  }
};

// Block (x, y) takes kRows keys from x · kRows on, and the y-th of gridDim.y equal parts of the queries.
template <typename F, typename T = typename F::T>
__global__ void __launch_bounds__(F::kThreads, F::kBlocksPerSm)
    info_nce_flash_keys_kernel(FlashFeatures<T> keys, FlashFeatures<T> query,
                               const int64_t* valid,  // one element, or null
                               bool in_batch, Temperature<float> temperature,
                               const float* normaliser,  // [2, N]: maximum, and sum of 2^(s - max)
                               const float* grad_loss,   // [N]
                               int64_t grad_stride,
                               T* grad_keys,              // [K, C], or
                               float* split_gradients) {  // [S, K, C] to be summed, for S = gridDim.y > 1
  extern __shared__ __align__(128) char memory[];
  auto& shared = *reinterpret_cast<FlashKeysShared<F>*>(memory);
  const float tau = temperature.get();
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * F::kRows;
  const int row_count = rows_from(first_row, valid_count(keys.count, valid), F::kRows);
  if (keys.ids == nullptr) query.ids = nullptr;
  FlashKeys<F> policy{shared, query, in_batch, tau, kLog2E / tau, normaliser, grad_loss, grad_stride};
  FlashSums<F> sums;
  flash_sweep<F>(shared.tiles, shared.column_ids, keys, row_count, row_count > 0 ? F::tiles(query.count) : 0, policy,
                 sums);

  // Writes directly, or through the warp's own part of the tile of rows, so that whole chunks are written.
  F::for_each_row([&](int block, int half) {
    const int row = F::row(block, half);
    const float factor = exp2_approximate(F::shift(sums.max[block][half]));
#pragma unroll
    for (int channels = 0; channels < F::kChannelBlocks; channels++) {
      const auto& w = sums.weighted[block][channels];
      float2 pair = make_float2(w[2 * half] * factor, w[2 * half + 1] * factor);
      if (row >= row_count) pair = make_float2(0, 0);
      const int channel = F::column(channels, 0);
      if (split_gradients == nullptr) {
        const int bytes = channel * sizeof(T);
        T* to = reinterpret_cast<T*>(shared.tiles.rows + F::offset(row, bytes / 16) + bytes % 16);
        to[0] = convert<T>(pair.x);
        to[1] = convert<T>(pair.y);
      } else if (first_row + row < keys.count) {
        float* to = split_gradients + (blockIdx.y * keys.count + first_row + row) * F::kChannels + channel;
        *reinterpret_cast<float2*>(to) = pair;
      }
    }
  });
  if (split_gradients != nullptr) return;
  __syncwarp();
  for (int i = threadIdx.x % 32; i < F::kWarpRows * F::kChunks; i += 32) {
    const int row = F::warp_row() + i / F::kChunks, chunk = i % F::kChunks;
    if (first_row + row >= keys.count) break;
    *reinterpret_cast<uint4*>(grad_keys + (first_row + row) * F::kChannels + chunk * (16 / sizeof(T))) =
        *reinterpret_cast<const uint4*>(shared.tiles.rows + F::offset(row, chunk));
  }
}

}  // namespace maskco
