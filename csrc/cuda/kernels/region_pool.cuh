// Region pooling on CUDA, as on the CPU one scheme for boxes, masks and label maps: a pooling is a sum
//     pooled[i, j] = Σ_k w(i, k) x[k, j]
// over the pixels k of region i's image, and its gradient x[k, j] = Σ_i w(i, k) g[i, j] gathers over the regions of an
// image in their order, so no atomics and the same bits every time. What differs is w: `BoxWeights`, `MaskWeights`. The
// gradient for soft masks is the first sum with channels and pixels in each other's place (`GradWeights`).
// Lanes of a warp lie along whichever of k and j is contiguous in x. Any strides, 64-bit indices.
#pragma once
#include <cstdint>

#include "../../common/roi_samples.h"
#include "convert.cuh"

namespace maskco {

constexpr int kPoolThreads = 256, kSpreadRows = 8, kSpreadColumns = 4;

// One or two tensor dimensions as one index (rows of pixels, images of regions).
struct Axis {
  int64_t size, inner, outer_stride, stride;
  __device__ int64_t offset(int64_t i) const {
    if (inner == size) return i * stride;
    if (((i | inner) >> 32) == 0) {  // a 64-bit division costs several times as much
      const uint32_t q = uint32_t(i) / uint32_t(inner);
      return q * outer_stride + (uint32_t(i) - q * uint32_t(inner)) * stride;
    }
    return i / inner * outer_stride + i % inner * stride;
  }
};

struct Map {  // x[image][k, j]
  int64_t images, image_stride;
  Axis k, j;
};

__device__ __forceinline__ double not_a_number() { return __longlong_as_double(0x7ff8000000000000LL); }

template <typename T>
__device__ T warp_sum(T v) {
  for (int lane = 16; lane; lane /= 2) v += __shfl_xor_sync(~0u, v, lane);
  return v;
}

// ---- weights ----

// Of each box: first and last touched row and column, and the image (-1: none, the row becomes NaN).
struct BoxBounds {
  int32_t y0, y1, x0, x1;
  int64_t image;
};

// shares[r, H + W]: every row's and column's share of the mean of box r, -1 where no sample point touches it.
template <typename T, typename Box>
__global__ void box_weights_kernel(const Box* boxes, int64_t box_row, int64_t box_column,  // [R, 5]
                                   RoiGrid grid, int64_t count, int64_t images, int64_t height, int64_t width,
                                   T* shares,          // [R, H + W]
                                   BoxBounds* bounds)  // [R]
{
  __shared__ int32_t extent[4];  // first row, last row, first column, last column
  for (int64_t r = blockIdx.x; r < count; r += gridDim.x) {
    const Box* box = boxes + r * box_row;
    const T image = convert<T>(box[0]);
    const bool known = image >= T(0) && image < T(images);
    RoiSamples<T> rows(convert<T>(box[2 * box_column]), convert<T>(box[4 * box_column]), grid, height);
    RoiSamples<T> columns(convert<T>(box[box_column]), convert<T>(box[3 * box_column]), grid, width);
    const bool finite = rows.finite && columns.finite;
    if (threadIdx.x < 4) extent[threadIdx.x] = threadIdx.x % 2 ? -1 : INT32_MAX;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < height + width; i += blockDim.x) {
      const bool across = i >= height;
      const int64_t at = across ? i - height : i;
      T share = T(-1);
      if (finite) {
        const RoiSamples<T>& samples = across ? columns : rows;
        const T low = at == 0 ? T(-1) : T(at - 1), high = at == samples.size - 1 ? T(samples.size) : T(at + 1);
        for (long long bin = 0; bin < samples.bins; bin++) {
          long long first, last;
          samples.range(bin, low, high, &first, &last);
          for (long long n = first, end; n < last; n = end) {
            end = samples.run_end(bin, n, last);
            const T position = samples.position(bin, n), points = T(end - n);
            if (!samples.inside(position)) continue;
            long long below, above;
            T fraction;
            samples.rows(position, &below, &above, &fraction);
            if (below == at) share = (share < T(0) ? T(0) : share) + points * (T(1) - fraction);
            if (above == at && above != below) share = (share < T(0) ? T(0) : share) + points * fraction;
          }
        }
        if (share >= T(0)) share *= samples.share();
      } else if (at == 0) {
        share = T(not_a_number());  // one pixel of NaN
      }
      shares[r * (height + width) + i] = share;
      if (!(share < T(0))) {
        atomicMin(&extent[across ? 2 : 0], int32_t(at));
        atomicMax(&extent[across ? 3 : 1], int32_t(at));
      }
    }
    __syncthreads();
    if (threadIdx.x == 0) bounds[r] = {extent[0], extent[1], extent[2], extent[3], known ? int64_t(image) : -1};
    __syncthreads();
  }
}

template <typename T>
struct BoxWeights {
  const T* shares;          // [R, H + W]
  const BoxBounds* bounds;  // [R]
  int64_t height, width;
  static constexpr bool kScattered = true;  // an image's regions are anywhere in the list

  struct Region {
    const T *down, *across;
    BoxBounds box;
    int64_t columns, width;
    __device__ int64_t candidates() const { return columns > 0 ? (box.y1 - box.y0 + 1) * columns : 0; }
    __device__ bool at(int64_t q, int64_t* k, T* w) const {  // the q-th candidate
      const uint32_t row = uint32_t(q) / uint32_t(columns), y = box.y0 + row, x = box.x0 + uint32_t(q) - row * columns;
      *k = int64_t(y) * width + x;
      *w = down[y] * across[x];
      return !(down[y] < T(0) || across[x] < T(0));
    }
  };
  __device__ int64_t image(int64_t i) const { return bounds[i].image; }
  __device__ Region region(int64_t i) const {
    const T* down = shares + i * (height + width);
    return {down, down + height, bounds[i], int64_t(bounds[i].x1) - bounds[i].x0 + 1, width};
  }
  __device__ bool covers(int64_t i, int64_t b, int64_t first, int64_t last) const {  // any of these pixels?
    return bounds[i].image == b && bounds[i].y0 <= last / width && bounds[i].y1 >= first / width;
  }
  __device__ bool weight(int64_t i, int64_t k, T* w) const {
    const T* down = shares + i * (height + width);
    const T y = down[k / width], x = down[height + k % width];
    *w = y * x;
    return !(y < T(0) || x < T(0));
  }
  __device__ T scale(int64_t) const { return T(1); }
};

enum class MaskKind { kSoft, kBool, kLabel8, kLabelUnsigned8, kLabel16, kLabel32, kLabel64 };

template <typename T, typename S>
struct MaskWeights {
  const void* masks;  // [B, R, H, W] or labels [B, H, W]
  MaskKind kind;
  int64_t image_stride, region_stride;
  Axis pixels;
  int64_t regions;  // of an image
  const T* area;    // [B, R], or null for sums
  static constexpr bool kScattered = false;

  struct Region {
    const MaskWeights* of;
    int64_t i;
    __device__ int64_t candidates() const { return of->pixels.size; }
    __device__ bool at(int64_t q, int64_t* k, T* w) const {
      *k = q;
      return of->weight(i, q, w);
    }
  };
  __device__ int64_t image(int64_t i) const { return i / regions; }
  __device__ Region region(int64_t i) const { return {this, i}; }
  __device__ bool weight(int64_t i, int64_t k, T* w) const {
    const int64_t b = i / regions, r = i - b * regions;
    int64_t at = b * image_stride + pixels.offset(k), label = 0;
    *w = T(1);
    switch (kind) {
      case MaskKind::kSoft:
        *w = convert<T>(static_cast<const S*>(masks)[at + r * region_stride]);
        return true;
      case MaskKind::kBool:
        return static_cast<const bool*>(masks)[at + r * region_stride];
      case MaskKind::kLabel8:
        label = static_cast<const int8_t*>(masks)[at];
        break;
      case MaskKind::kLabelUnsigned8:
        label = static_cast<const uint8_t*>(masks)[at];
        break;
      case MaskKind::kLabel16:
        label = static_cast<const int16_t*>(masks)[at];
        break;
      case MaskKind::kLabel32:
        label = static_cast<const int32_t*>(masks)[at];
        break;
      case MaskKind::kLabel64:
        label = static_cast<const int64_t*>(masks)[at];
        break;
    }
    return label == r;
  }
  __device__ T scale(int64_t i) const { return !area ? T(1) : area[i] == T(0) ? T(0) : T(1) / area[i]; }
};

// The upstream gradient as weights over channels: w(i, c) = grad_output[b, r, c] / area[b, r]
template <typename T, typename S>
struct GradWeights {
  const S* grad_output;  // [B, R, C]
  int64_t image_stride, region_stride, channel_stride;
  int64_t regions, channels;
  const T* area;  // [B, R], or null for sums

  struct Region {
    const S* row;
    int64_t stride, channels;
    T scale;
    __device__ int64_t candidates() const { return channels; }
    __device__ bool at(int64_t q, int64_t* k, T* w) const {
      *k = q;
      *w = scale * convert<T>(row[q * stride]);
      return scale != T(0);
    }
  };
  __device__ int64_t image(int64_t i) const { return i / regions; }
  __device__ Region region(int64_t i) const {
    const int64_t b = i / regions, r = i - b * regions;
    const T scale = !area ? T(1) : area[i] == T(0) ? T(0) : T(1) / area[i];
    return {grad_output + b * image_stride + r * region_stride, channel_stride, channels, scale};
  }
};

// ---- sums ----

// pooled[i, j] = Σ_k w(i, k) x[k, j], divided by area[i] (0 where that is 0), less shift[i]
template <typename T, typename S, typename Weights, bool kLanesAlongK>
__global__ void __launch_bounds__(kPoolThreads) pool_kernel(Weights weights, int64_t regions, Map map,
                                                            const S* x,      // [B][k, j]
                                                            const T* area,   // [regions] or null
                                                            const T* shift,  // [regions] or null
                                                            S* pooled)       // [regions, J]
{
  constexpr int kLanes = kLanesAlongK ? 32 : 1;
  const int lane = threadIdx.x % kLanes;
  const int64_t step = int64_t(gridDim.x) * (kPoolThreads / kLanes), total = regions * map.j.size;
  for (int64_t item = int64_t(blockIdx.x) * (kPoolThreads / kLanes) + threadIdx.x / kLanes; item < total;
       item += step) {
    const int64_t i = item / map.j.size, j = item - i * map.j.size, b = weights.image(i);
    T sum = 0;
    if (b >= 0) {
      const auto region = weights.region(i);
      const S* column = x + b * map.image_stride + map.j.offset(j);
      const int64_t candidates = region.candidates();
      for (int64_t q = lane; q < candidates; q += kLanes) {
        int64_t k;
        T w;
        if (region.at(q, &k, &w)) sum += w * convert<T>(column[map.k.offset(k)]);
      }
      if (kLanesAlongK) sum = warp_sum(sum);
    } else {
      sum = T(not_a_number());
    }
    if (area) sum = area[i] == T(0) ? T(0) : sum / area[i];
    if (shift) sum -= shift[i];
    if (lane == 0) pooled[item] = convert<S>(sum);
  }
}

// x[b][k, j] = Σ_i w(i, k) g[i, j] over the regions of image b. A block makes a tile of 32 × kSpreadRows, lanes along
// whichever of k and j is contiguous, with kSpreadColumns values of the other a thread.
template <typename T, typename S, typename Weights, bool kLanesAlongK>
__global__ void __launch_bounds__(32 * kSpreadRows) spread_kernel(Weights weights, int64_t regions, Map map,
                                                                  const S* g,  // [regions, J]
                                                                  Axis g_regions, int64_t g_stride,
                                                                  S* x)  // [B][k, j]
{
  constexpr int kRows = kSpreadRows, kThreads = 32 * kRows;
  constexpr int kTileK = kLanesAlongK ? 32 : kRows, kTileJ = (kLanesAlongK ? kRows : 32) * kSpreadColumns;
  __shared__ int32_t found[kThreads];  // regions of this chunk that cover the tile, in order
  __shared__ int32_t found_by_warp[kRows];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t tiles_k = (map.k.size + kTileK - 1) / kTileK, tiles_j = (map.j.size + kTileJ - 1) / kTileJ;
  const int64_t tiles = map.images * tiles_k * tiles_j;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t b = tile / (tiles_k * tiles_j), in_image = tile - b * tiles_k * tiles_j;
    const int64_t tile_k = in_image / tiles_j * kTileK, tile_j = in_image % tiles_j * kTileJ;
    const int64_t k = tile_k + (kLanesAlongK ? lane : warp), j = tile_j + (kLanesAlongK ? warp : lane);
    constexpr int kStepJ = kLanesAlongK ? kRows : 32;
    T sum[kSpreadColumns] = {};

    const auto add = [&](int64_t i) {
      T w;
      const T scale = weights.scale(i);
      if (k >= map.k.size || scale == T(0) || !weights.weight(i, k, &w)) return;
      w *= scale;
      const S* row = g + g_regions.offset(i);
#pragma unroll
      for (int c = 0; c < kSpreadColumns; c++)
        if (j + c * kStepJ < map.j.size) sum[c] += w * convert<T>(row[(j + c * kStepJ) * g_stride]);
    };
    if constexpr (Weights::kScattered) {
      const int64_t last_k = min(tile_k + kTileK, map.k.size) - 1;
      for (int64_t chunk = 0; chunk < regions; chunk += kThreads) {
        const int64_t i = chunk + threadIdx.x;
        const bool covers = i < regions && weights.covers(i, b, tile_k, last_k);
        const unsigned votes = __ballot_sync(~0u, covers);
        if (lane == 0) found_by_warp[warp] = __popc(votes);
        __syncthreads();
        int before = __popc(votes & ((1u << lane) - 1)), count = 0;
        for (int other = 0; other < kRows; other++) {
          if (other < warp) before += found_by_warp[other];
          count += found_by_warp[other];
        }
        if (covers) found[before] = threadIdx.x;
        __syncthreads();
        for (int n = 0; n < count; n++) add(chunk + found[n]);
        __syncthreads();
      }
    } else {
      const int64_t per_image = regions / map.images;
      for (int64_t i = b * per_image; i < (b + 1) * per_image; i++) add(i);
    }
    if (k >= map.k.size) continue;
    S* out = x + b * map.image_stride + map.k.offset(k);
#pragma unroll
    for (int c = 0; c < kSpreadColumns; c++)
      if (j + c * kStepJ < map.j.size) out[map.j.offset(j + c * kStepJ)] = convert<S>(sum[c]);
  }
}

// out[i] = Σ_k w(i, k), times values[i, k] if given: the areas of masks, and the shift of the masks' gradient. A warp
// each.
template <typename T, typename S, typename Weights>
__global__ void __launch_bounds__(kPoolThreads) total_kernel(Weights weights, int64_t regions, int64_t terms,
                                                             const S* values,  // [regions, terms] or null
                                                             T* out)           // [regions]
{
  const int lane = threadIdx.x % 32;
  const int64_t step = int64_t(gridDim.x) * (kPoolThreads / 32);
  for (int64_t i = int64_t(blockIdx.x) * (kPoolThreads / 32) + threadIdx.x / 32; i < regions; i += step) {
    const auto region = weights.region(i);
    T sum = 0;
    for (int64_t q = lane; q < terms; q += 32) {
      int64_t k;
      T w;
      if (region.at(q, &k, &w)) sum += values ? w * convert<T>(values[i * terms + k]) : w;
    }
    sum = warp_sum(sum);
    if (lane == 0) out[i] = sum;
  }
}

}  // namespace maskco
