// Region pooling, forward: pooled[i, j] = Σ_k w(i, k) x[k, j]. A block takes tiles of one image's map through shared
// memory, double-buffered, and holds the sums of up to kRegions regions in registers. So each element of the map is
// read once for each chunk of regions. Lanes lie along j, and the warps of a block take different pixels. Their sums
// are added in shared memory in a fixed order, so results are the same bit for bit.
//
// Label maps (`label_pool_kernel`) need no product. A warp adds up runs of equal labels, and adds each run's sum to its
// label's sum in shared memory.
#pragma once
#include "cuda/region_pool/weights.cuh"

namespace maskco {

// The least number of blocks for each SM. (Sums in float64 take twice the registers.)
template <typename T>
inline constexpr int kResident = sizeof(T) == 8 ? 1 : 2;

// The work of a block of pool_kernel, and the layout of its shared memory in bytes. The host makes it.
struct PoolPlan {
  Tiling tiling;
  int32_t tiles_j, tiles_k;                 // of an image
  int32_t j_per_block;                      // tiles of j that a block takes one after the other
  bool weights_stay;                        // whether they share the weights of all pixels of the image
  int32_t weights_stride;                   // pixels of a row of weights
  int32_t weights_at, sums_at, scratch_at;  // after two tiles of the map
};

// acc += w · x for this warp's steps of a tile.
template <bool kStrict, typename S, typename T>
__device__ __forceinline__ void accumulate(const Tiling& t, const S* tile, const T* w, int w_stride, int count,
                                           int count_k, int count_j, T (&acc)[kRegions][kLaneChannels]) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll 1
  for (int k = warp * kStep<S>; k < count_k && count_j > 0; k += kTileWarps * kStep<S>) {
    T x[kLaneChannels][kStep<S>];
#pragma unroll
    for (int c = 0; c < kLaneChannels; c++) {
      read_step<T>(t, tile, k, min(lane * t.lane_j + c * t.next_j, count_j - 1), count_k, x[c]);
    }
#pragma unroll
    for (int r = 0; r < kRegions; r++) {
      if (r / 4 * 4 >= count) break;
      T v[kStep<S>];
#pragma unroll
      for (int i = 0; i < kStep<S>; i += 16 / sizeof(T)) {
        const auto pack = *reinterpret_cast<const Pack<T, 16 / sizeof(T)>*>(w + r * w_stride + k + i);
#pragma unroll
        for (int n = 0; n < 16 / int(sizeof(T)); n++) v[i + n] = pack.value[n];
      }
#pragma unroll
      for (int i = 0; i < kStep<S>; i++) {
        if (kStrict && is_left_out(v[i])) continue;
#pragma unroll
        for (int c = 0; c < kLaneChannels; c++) acc[r][c] += v[i] * x[c][i];
      }
    }
  }
}

constexpr int kSumsStride = kTileJ + 16;  // a lane's second channel is 48 after its first, without bank conflicts

// Adds up the warps' sums. Thread t gets channel t % kTileJ of regions t / kTileJ + 4 g.
template <typename T>
__device__ __forceinline__ void sum_over_warps(const Tiling& t, const T (&acc)[kRegions][kLaneChannels], int count,
                                               T* sums, T (&total)[kRegions / 4]) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int j = threadIdx.x % kTileJ, c = t.next_j == 1 ? j % 2 : j / 32;
  const int mine = threadIdx.x / kTileJ * kSumsStride + (t.next_j == 1 ? j / 2 : j % 32) + 48 * c;
#pragma unroll
  for (int g = 0; g < kRegions / 4; g++) {
    total[g] = T(0);
    if (4 * g >= count) break;
    __syncthreads();
#pragma unroll
    for (int r = 0; r < 4; r++) {
#pragma unroll
      for (int c = 0; c < kLaneChannels; c++) sums[(warp * 4 + r) * kSumsStride + lane + 48 * c] = acc[4 * g + r][c];
    }
    __syncthreads();
#pragma unroll
    for (int other = 0; other < kTileWarps; other++) total[g] += sums[other * 4 * kSumsStride + mine];
  }
}

template <typename T, typename S, typename Weights>
__global__ void __launch_bounds__(kTileThreads, kResident<T>)
    pool_kernel(Weights weights, PoolPlan plan, Map map,
                const S* x,      // [B][k, j]
                const T* shift,  // [regions] or null, subtracted
                bool mean,       // divide by the areas (0 where that is 0)
                T* area_out,     // [regions]: Σ_k w, if Weights have areas
                S* pooled)       // [regions, J]
{
  static_assert(kTileThreads == 4 * kTileJ);
  extern __shared__ __align__(16) unsigned char memory[];
  const Tiling& t = plan.tiling;
  const int tile_size = (plan.weights_at / 2) / sizeof(S);
  S* tiles = reinterpret_cast<S*>(memory);
  T* staged = reinterpret_cast<T*>(memory + plan.weights_at);
  T* sums = reinterpret_cast<T*>(memory + plan.sums_at);
  T* scratch = reinterpret_cast<T*>(memory + plan.scratch_at);
  __shared__ int64_t rows[kRegions];
  __shared__ T area[kRegions];
  __shared__ int32_t extent[2];

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int32_t groups = (plan.tiles_j + plan.j_per_block - 1) / plan.j_per_block;
  // (in shared memory, otherwise they would always take registers)
  __shared__ Regions regions;
  __shared__ const S* image;
  __shared__ int32_t b, first_j, last_j, first_k, last_k;
  if (threadIdx.x == 0) {
    b = blockIdx.x / groups;
    regions = weights.regions(b);
    image = x + b * map.image_stride;
    first_j = blockIdx.x % groups * plan.j_per_block;
    last_j = min(first_j + plan.j_per_block, plan.tiles_j);
  }
  __syncthreads();

  for (int32_t chunk = 0; chunk < regions.count; chunk += kRegions) {
    const int count = min(kRegions, regions.count - chunk);
    __syncthreads();
    if (threadIdx.x < count) rows[threadIdx.x] = weights.row(regions.first + chunk + threadIdx.x);
    __syncthreads();
    if (b >= map.images) {  // boxes whose image index is out of range
      for (int r = 0; r < count; r++) {
        for (int64_t j = int64_t(first_j) * t.tile_j + threadIdx.x; j < min(int64_t(last_j) * t.tile_j, map.j.size);
             j += kTileThreads) {
          pooled[rows[r] * map.j.size + j] = convert<S>(T(not_a_number()));
        }
      }
      continue;
    }
    int64_t from = 0, to = map.k.size;
    weights.prepare(rows, count, scratch, extent, &from, &to);
    if (Weights::kHasArea && threadIdx.x < count) area[threadIdx.x] = T(0);  // (for no pixels)
    if (threadIdx.x == 0) {
      first_k = int32_t(from / t.tile_k);
      last_k = int32_t((to + t.tile_k - 1) / t.tile_k);
    }
    __syncthreads();
    if (plan.weights_stay) {
      stage_weights<S>(weights, b, rows, scratch, count, 0, int(map.k.size), staged, plan.weights_stride);
    }

    const auto pixels = [&](int32_t tile) {
      return int(min(int64_t(t.tile_k), map.k.size - int64_t(tile) * t.tile_k));
    };
    const auto channels = [&](int32_t tile) {
      return int(min(int64_t(t.tile_j), map.j.size - int64_t(tile) * t.tile_j));
    };
    const auto fetch = [&](int32_t tile_j, int32_t tile_k, int buffer) {
      fetch_tile(map, t, image, int64_t(tile_k) * t.tile_k, int64_t(tile_j) * t.tile_j, pixels(tile_k),
                 channels(tile_j), tiles + buffer * tile_size);
      commit_copies();
    };
    const auto stage = [&](int32_t tile_k, int buffer) {  // the weights of a tile, unless they stay
      T* at = staged + (plan.weights_stay ? tile_k * t.tile_k : int64_t(buffer) * kRegions * plan.weights_stride);
      if (!plan.weights_stay) {
        stage_weights<S>(weights, b, rows, scratch, count, int64_t(tile_k) * t.tile_k, pixels(tile_k), at,
                         plan.weights_stride);
      }
      return at;
    };

    int buffer = 0;
    if (first_k < last_k) fetch(first_j, first_k, buffer);
    for (int32_t tile_j = first_j; tile_j < last_j; tile_j++) {
      T acc[kRegions][kLaneChannels] = {}, total[kRegions / 4];
      for (int32_t tile_k = first_k; tile_k < last_k; tile_k++) {
        const T* w = stage(tile_k, buffer);
        wait_for_copies<0>();
        __syncthreads();
        const bool ends = tile_k + 1 == last_k;
        if (!ends || tile_j + 1 < last_j) fetch(tile_j + ends, ends ? first_k : tile_k + 1, buffer ^ 1);
        const int count_k = pixels(tile_k);
        if (Weights::kHasArea && tile_j == first_j) {
          for (int r = warp; r < count; r += kTileWarps) {
            T sum = 0;
            for (int k = lane; k < count_k; k += 32) sum += w[r * plan.weights_stride + k];
            sum = warp_sum(sum);
            if (lane == 0) area[r] += sum;
          }
        }
        accumulate<false>(t, tiles + buffer * tile_size, w, plan.weights_stride, count, count_k, channels(tile_j), acc);
        buffer ^= 1;
      }
      sum_over_warps(t, acc, count, sums, total);
      bool finite = true;
#pragma unroll
      for (int g = 0; g < kRegions / 4; g++) finite = finite && is_finite(total[g]);
      if (__syncthreads_or(!finite)) {  // does it come from pixels that are left out? (`buffer ^ 1` is free now)
#pragma unroll
        for (int r = 0; r < kRegions; r++) {
#pragma unroll
          for (int c = 0; c < kLaneChannels; c++) acc[r][c] = T(0);
        }
        for (int32_t tile_k = first_k; tile_k < last_k; tile_k++) {
          fetch(tile_j, tile_k, buffer ^ 1);
          const T* w = stage(tile_k, buffer ^ 1);
          wait_for_copies<0>();
          __syncthreads();
          accumulate<true>(t, tiles + (buffer ^ 1) * tile_size, w, plan.weights_stride, count, pixels(tile_k),
                           channels(tile_j), acc);
          __syncthreads();
        }
        sum_over_warps(t, acc, count, sums, total);
      }
      const int64_t j = int64_t(tile_j) * t.tile_j + threadIdx.x % kTileJ;
#pragma unroll
      for (int g = 0; g < kRegions / 4; g++) {
        const int r = 4 * g + threadIdx.x / kTileJ;
        if (r >= count) continue;
        if (Weights::kHasArea && tile_j == 0 && threadIdx.x % kTileJ == 0) area_out[rows[r]] = area[r];
        if (threadIdx.x % kTileJ >= channels(tile_j)) continue;
        T sum = total[g];
        if (Weights::kHasArea && mean) sum = area[r] == T(0) ? T(0) : sum / area[r];
        if (shift) sum -= shift[rows[r]];
        pooled[rows[r] * map.j.size + j] = convert<S>(sum);
      }
    }
  }
}

// ---- label maps ----

struct Labels {
  const void* data;  // [B, H, W]
  int32_t bytes;     // of a label
  bool is_unsigned;
  int64_t image_stride;
  Axis pixels;
  int64_t count;  // R
  // The label if it is in [0, count), else -1.
  __device__ int64_t operator()(int64_t b, int64_t k) const {
    const int64_t at = b * image_stride + pixels.offset(k);
    const int64_t label = bytes == 8    ? static_cast<const int64_t*>(data)[at]
                          : bytes == 4  ? static_cast<const int32_t*>(data)[at]
                          : bytes == 2  ? static_cast<const int16_t*>(data)[at]
                          : is_unsigned ? static_cast<const uint8_t*>(data)[at]
                                        : static_cast<const int8_t*>(data)[at];
    return label >= 0 && label < count ? label : -1;
  }
};

// How many labels' sums a block holds at once, for each of its warps.
template <typename T>
inline constexpr int kLabels = 128 / sizeof(T);

// Each lane has one channel: tiling.tile_j is 32.
template <typename T, typename S>
__global__ void __launch_bounds__(kTileThreads, 2)
    label_pool_kernel(Labels labels, PoolPlan plan, Map map,
                      const S* x,   // [B][k, j]
                      bool mean,    // divide by the areas (0 where that is 0)
                      T* area_out,  // [B, R]: pixels of each label
                      S* pooled)    // [B, R, J]
{
  extern __shared__ __align__(16) unsigned char memory[];
  const Tiling& t = plan.tiling;
  const int tile_size = (plan.weights_at / 2) / sizeof(S);
  S* tiles = reinterpret_cast<S*>(memory);
  int32_t* staged = reinterpret_cast<int32_t*>(memory + plan.weights_at);  // [2][weights_stride] labels
  T* sums = reinterpret_cast<T*>(memory + plan.sums_at);                   // [warps][kLabels][32]
  __shared__ int32_t pixels_of[kTileWarps][kLabels<T>];

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int32_t b = blockIdx.x / plan.tiles_j, tile_j = blockIdx.x % plan.tiles_j;
  const int count_j = int(min(int64_t(t.tile_j), map.j.size - int64_t(tile_j) * t.tile_j));
  const S* image = x + b * map.image_stride;
  T* own = sums + warp * kLabels<T> * 32 + lane;

  const auto pixels = [&](int32_t tile) { return int(min(int64_t(t.tile_k), map.k.size - int64_t(tile) * t.tile_k)); };
  const auto fetch = [&](int32_t tile, int buffer) {
    fetch_tile(map, t, image, int64_t(tile) * t.tile_k, int64_t(tile_j) * t.tile_j, pixels(tile), count_j,
               tiles + buffer * tile_size);
    commit_copies();
  };
  for (int64_t chunk = 0; chunk < labels.count; chunk += kLabels<T>) {
    const int count = int(min(int64_t(kLabels<T>), labels.count - chunk));
    for (int r = 0; r < count; r++) own[r * 32] = T(0);
    for (int n = threadIdx.x; n < kTileWarps * kLabels<T>; n += kTileThreads) pixels_of[0][n] = 0;
    if (plan.tiles_k > 0) fetch(0, 0);
    for (int32_t tile = 0; tile < plan.tiles_k; tile++) {
      const int buffer = int(tile % 2), count_k = pixels(tile);
      int32_t* here = staged + buffer * plan.weights_stride;
      for (int k = threadIdx.x; k < plan.weights_stride; k += kTileThreads) {
        const int64_t label = k < count_k ? labels(b, int64_t(tile) * t.tile_k + k) - chunk : -1;
        here[k] = label >= 0 && label < count ? int32_t(label) : -1;
      }
      wait_for_copies<0>();
      __syncthreads();
      if (tile + 1 < plan.tiles_k) fetch(tile + 1, buffer ^ 1);
      int32_t label = -1, length = 0;
      T sum = 0;
      const auto flush = [&] {
        if (label < 0) return;
        own[label * 32] += sum;
        if (lane == 0) pixels_of[warp][label] += length;
      };
      // Neighbouring pixels: a warp takes a contiguous stretch.
      const int stretch = (count_k + kTileWarps * kStep<S> - 1) / (kTileWarps * kStep<S>)*kStep<S>;
      for (int k = warp * stretch; k < min((warp + 1) * stretch, count_k); k += kStep<S>) {
        T x_step[kStep<S>] = {};
        if (count_j > 0) read_step<T>(t, tiles + buffer * tile_size, k, min(lane, count_j - 1), count_k, x_step);
#pragma unroll
        for (int i = 0; i < kStep<S>; i++) {
          if (here[k + i] != label) {
            flush();
            label = here[k + i], length = 0, sum = T(0);
          }
          length++;
          sum += x_step[i];
        }
      }
      flush();
    }
    __syncthreads();
    for (int n = threadIdx.x; n < count * 32; n += kTileThreads) {
      const int r = n / 32;
      T total = 0;
      int32_t area = 0;
      for (int other = 0; other < kTileWarps; other++) {
        total += sums[(other * kLabels<T> + r) * 32 + lane];
        area += pixels_of[other][r];
      }
      const int64_t row = int64_t(b) * labels.count + chunk + r;
      if (mean) total = area == 0 ? T(0) : total / T(area);
      if (lane < count_j) pooled[row * map.j.size + int64_t(tile_j) * t.tile_j + lane] = convert<S>(total);
      if (tile_j == 0 && lane == 0) area_out[row] = T(area);
    }
    __syncthreads();
  }
}

// out[i] = Σ_c g[i, c] values[i, c] / area[i], the shift of the masks' gradient for a mean. One warp for each i.
template <typename T, typename S>
__global__ void __launch_bounds__(kTileThreads)
    total_kernel(GradWeights<T, S> weights, int64_t regions, int64_t channels,
                 const S* values,  // [regions, C]
                 T* out)           // [regions]
{
  const int lane = threadIdx.x % 32;
  const int64_t step = int64_t(gridDim.x) * kTileWarps;
  for (int64_t i = int64_t(blockIdx.x) * kTileWarps + threadIdx.x / 32; i < regions; i += step) {
    const auto row = weights.of(i / weights.per_image, i);
    T sum = 0;
    for (int64_t c = lane; c < channels; c += 32) {
      sum += convert<T>(row.g[c * row.stride]) * convert<T>(values[i * channels + c]);
    }
    sum = warp_sum(sum);
    if (lane == 0) out[i] = row.area == T(0) ? T(0) : sum / row.area;
  }
}

}  // namespace maskco
