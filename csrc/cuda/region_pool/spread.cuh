// Region pooling, backward: x[k, j] = Σ_i w(i, k) g[i, j] over the regions i of an image. The sum runs in their order,
// so it needs no atomics, and results are the same bit for bit. As in pool.cuh, lanes lie along j and warps take
// different pixels. A block makes tiles of the gradient in shared memory and writes each once.
#pragma once
#include "cuda/region_pool/pool.cuh"

namespace maskco {

// The work of a block of spread_kernel, and the layout of its shared memory in bytes, after a tile of sums.
struct SpreadPlan {
  Tiling tiling;  // (stride_k, stride_j and access are those of a tile of sums)
  int32_t tiles_j, tiles_k;
  int32_t j_per_block, k_per_block;  // tiles
  bool weights_stay;                 // whether those of all pixels of the image are in shared memory
  bool grads_stay;                   // for label maps: whether all labels' gradients are in shared memory
  int32_t weights_stride, weights_at, scratch_at;
};

// out = Σ_r w[r, k …] g[r], without pixels that are left out.
template <bool kStrict, int kCount, typename T>
__device__ __forceinline__ void weigh(const T* w, int w_stride, int count, const T (&g)[kRegions][kLaneChannels],
                                      T (&out)[kLaneChannels][kCount]) {
#pragma unroll
  for (int c = 0; c < kLaneChannels; c++) {
#pragma unroll
    for (int i = 0; i < kCount; i++) out[c][i] = T(0);
  }
#pragma unroll
  for (int r = 0; r < kRegions; r++) {
    if (r / 4 * 4 >= count) break;
#pragma unroll
    for (int i = 0; i < kCount; i += 16 / sizeof(T)) {
      const auto v = *reinterpret_cast<const Pack<T, 16 / sizeof(T)>*>(w + r * w_stride + i);
#pragma unroll
      for (int n = 0; n < 16 / int(sizeof(T)); n++) {
        if (kStrict && is_left_out(v.value[n])) continue;
#pragma unroll
        for (int c = 0; c < kLaneChannels; c++) out[c][i + n] += v.value[n] * g[r][c];
      }
    }
  }
}

template <typename T, typename S, typename Weights>
__global__ void __launch_bounds__(kTileThreads, kResident<T>)
    spread_kernel(Weights weights, SpreadPlan plan, Map map,
                  const S* grad,  // [B, R, J]; for boxes [R, J], and grad_image is 0
                  int64_t grad_image, int64_t grad_region, int64_t grad_channel,
                  S* x)  // [B][k, j]
{
  extern __shared__ __align__(16) unsigned char memory[];
  const Tiling& t = plan.tiling;
  T* tile = reinterpret_cast<T*>(memory);
  T* staged = reinterpret_cast<T*>(memory + plan.weights_at);
  T* scratch = reinterpret_cast<T*>(memory + plan.scratch_at);
  __shared__ T grads[kRegions][kTileJ];
  __shared__ int64_t rows[kRegions];
  __shared__ int32_t extent[2];

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int32_t groups_j = (plan.tiles_j + plan.j_per_block - 1) / plan.j_per_block;
  const int32_t groups_k = (plan.tiles_k + plan.k_per_block - 1) / plan.k_per_block;
  // (in shared memory, otherwise they would always take registers)
  __shared__ Regions regions;
  __shared__ S* image;
  __shared__ int32_t b, first_j, last_j, first_k, last_k;
  if (threadIdx.x == 0) {
    b = blockIdx.x / (groups_j * groups_k);
    const int32_t in_image = blockIdx.x % (groups_j * groups_k);
    regions = weights.regions(b);
    image = x + b * map.image_stride;
    first_j = in_image / groups_k * plan.j_per_block;
    last_j = min(first_j + plan.j_per_block, plan.tiles_j);
    first_k = in_image % groups_k * plan.k_per_block;
    last_k = min(first_k + plan.k_per_block, plan.tiles_k);
  }
  __syncthreads();
  const bool one_chunk = regions.count <= kRegions;

  T g[kRegions][kLaneChannels];
  for (int32_t tile_j = first_j; tile_j < last_j; tile_j++) {
    const int64_t j = int64_t(tile_j) * t.tile_j;
    const int count_j = int(min(int64_t(t.tile_j), map.j.size - j));
    for (int32_t tile_k = first_k; tile_k < last_k; tile_k++) {
      const int64_t k = int64_t(tile_k) * t.tile_k;
      const int count_k = int(min(int64_t(t.tile_k), map.k.size - k));
      for (int32_t chunk = 0; chunk == 0 || chunk < regions.count; chunk += kRegions) {
        const int count = min(kRegions, regions.count - chunk);
        const bool first = tile_j == first_j && tile_k == first_k;
        if (first || !one_chunk) {
          __syncthreads();
          if (threadIdx.x < count) rows[threadIdx.x] = weights.row(regions.first + chunk + threadIdx.x);
          __syncthreads();
          int64_t from, to;
          weights.prepare(rows, count, scratch, extent, &from, &to);
        }
        __syncthreads();  // (the tile was written to the map, and no thread needs the weights)
        const bool new_grads = tile_k == first_k || !one_chunk;
        for (int n = threadIdx.x; new_grads && n < kRegions * kTileJ; n += kTileThreads) {
          const int r = n / kTileJ, c = n % kTileJ;
          T value = 0;
          if (r < count && c < count_j) {
            const int64_t at = b * grad_image + weights.grad_row(b, rows[r]) * grad_region;
            value = weights.divided(convert<T>(grad[at + (j + c) * grad_channel]), rows[r]);
          }
          grads[r][c] = value;
        }
        if (!plan.weights_stay) {
          stage_weights<S>(weights, b, rows, scratch, count, k, count_k, staged, plan.weights_stride);
        } else if (first || !one_chunk) {
          stage_weights<S>(weights, b, rows, scratch, count, 0, int(map.k.size), staged, plan.weights_stride);
        }
        __syncthreads();
#pragma unroll
        for (int r = 0; r < kRegions; r++) {
#pragma unroll
          for (int c = 0; c < kLaneChannels; c++) {
            if (new_grads) g[r][c] = grads[r][lane + 32 * c];
          }
        }
        const T* w = staged + (plan.weights_stay ? k : 0);
#pragma unroll 1
        for (int i = warp * kStep<S>; i < count_k; i += kTileWarps * kStep<S>) {
          T out[kLaneChannels][kStep<S>];
          weigh<false>(w + i, plan.weights_stride, count, g, out);
          bool finite = true;
#pragma unroll
          for (int c = 0; c < kLaneChannels; c++) {
#pragma unroll
            for (int n = 0; n < kStep<S>; n++) finite = finite && is_finite(out[c][n]);
          }
          if (!finite) weigh<true>(w + i, plan.weights_stride, count, g, out);
#pragma unroll
          for (int c = 0; c < kLaneChannels; c++) {
            if (lane + 32 * c < count_j) write_step<S>(t, tile, i, lane + 32 * c, count_k, chunk > 0, out[c]);
          }
        }
      }
      __syncthreads();
      store_tile(map, t, image, k, j, count_k, count_j, tile);
    }
  }
}

template <typename T, typename S>
__global__ void __launch_bounds__(kTileThreads, 2)
    label_spread_kernel(Labels labels, SpreadPlan plan, Map map,
                        const S* grad,  // [B, R, J]
                        int64_t grad_image, int64_t grad_region, int64_t grad_channel,
                        const T* area,  // [B, R], or null for sums
                        S* x)           // [B][k, j]
{
  extern __shared__ __align__(16) unsigned char memory[];
  const Tiling& t = plan.tiling;
  T* tile = reinterpret_cast<T*>(memory);
  int32_t* staged = reinterpret_cast<int32_t*>(memory + plan.weights_at);  // [tile_k] labels
  T* grads = reinterpret_cast<T*>(memory + plan.scratch_at);               // [R, kTileJ], if it stays

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int32_t groups_k = (plan.tiles_k + plan.k_per_block - 1) / plan.k_per_block;
  const int32_t b = blockIdx.x / (plan.tiles_j * groups_k), in_image = blockIdx.x % (plan.tiles_j * groups_k);
  const int64_t j = int64_t(in_image / groups_k) * t.tile_j;
  const int32_t first_k = in_image % groups_k * plan.k_per_block;
  const int32_t last_k = min(first_k + plan.k_per_block, plan.tiles_k);
  const int count_j = int(min(int64_t(t.tile_j), map.j.size - j));
  const auto value = [&](int64_t label, int c) {
    const T size = area ? area[int64_t(b) * labels.count + label] : T(1);
    if (size == T(0) || c >= count_j) return T(0);
    return convert<T>(grad[b * grad_image + label * grad_region + (j + c) * grad_channel]) / size;
  };
  for (int n = threadIdx.x; plan.grads_stay && n < labels.count * kTileJ; n += kTileThreads) {
    grads[n] = value(n / kTileJ, n % kTileJ);
  }

  for (int32_t tile_k = first_k; tile_k < last_k; tile_k++) {
    const int64_t k = int64_t(tile_k) * t.tile_k;
    const int count_k = int(min(int64_t(t.tile_k), map.k.size - k));
    __syncthreads();
    for (int i = threadIdx.x; i < t.tile_k; i += kTileThreads) {
      staged[i] = i < count_k ? int32_t(labels(b, k + i)) : -1;
    }
    __syncthreads();
    const int stretch = (count_k + kTileWarps * kStep<S> - 1) / (kTileWarps * kStep<S>)*kStep<S>;
    int32_t label = -1;
    T g[kLaneChannels] = {};
    for (int i = warp * stretch; i < min((warp + 1) * stretch, count_k); i += kStep<S>) {
      T out[kLaneChannels][kStep<S>];
#pragma unroll
      for (int n = 0; n < kStep<S>; n++) {
        if (staged[i + n] != label) {
          label = staged[i + n];
#pragma unroll
          for (int c = 0; c < kLaneChannels; c++) {
            const int at = lane + 32 * c;
            g[c] = label < 0 ? T(0) : plan.grads_stay ? grads[label * kTileJ + at] : value(label, at);
          }
        }
#pragma unroll
        for (int c = 0; c < kLaneChannels; c++) out[c][n] = g[c];
      }
#pragma unroll
      for (int c = 0; c < kLaneChannels; c++) {
        if (lane + 32 * c < count_j) write_step<S>(t, tile, i, lane + 32 * c, count_k, false, out[c]);
      }
    }
    __syncthreads();
    store_tile(map, t, x + b * map.image_stride, k, j, count_k, count_j, tile);
  }
}

}  // namespace maskco
