// The weights of region pooling. A pooling is pooled[i, j] = Σ_k w(i, k) x[k, j] over the pixels k of region i's image.
// Its gradient is x[k, j] = Σ_i w(i, k) g[i, j]. Boxes, masks and the masks' own gradient differ only in w:
// `BoxWeights`, `MaskWeights`, `GradWeights`. Kernels take an image's regions in chunks of kRegions. They hold the
// weights of a chunk in shared memory, as [kRegions][pixels].
//
// A pixel outside a box or bool mask is left out: NaN there must not reach the result. Its weight is -0.0. A finite
// number times -0.0 changes no sum. So kernels first multiply all pixels, and repeat that with tests (`strict`) if a
// result is not finite. All other zero weights are +0.0.
#pragma once
#include <cstdint>

#include "common/roi_samples.h"
#include "cuda/region_pool/tile.cuh"

namespace maskco {

constexpr int kRegions = 16, kBoxThreads = 128;

template <typename T>
__device__ __forceinline__ T left_out() {
  return T(-0.0);
}
__device__ __forceinline__ bool is_left_out(float w) { return __float_as_uint(w) == 0x80000000u; }
__device__ __forceinline__ bool is_left_out(double w) {
  return uint64_t(__double_as_longlong(w)) == 0x8000000000000000u;
}
template <typename T>
__device__ __forceinline__ bool is_finite(T x) {
  return x - x == T(0);
}
__device__ __forceinline__ double not_a_number() { return __longlong_as_double(0x7ff8000000000000LL); }

template <typename T>
__device__ T warp_sum(T v) {
  for (int lane = 16; lane; lane /= 2) v += __shfl_xor_sync(~0u, v, lane);
  return v;
}

struct Regions {  // of an image
  int64_t first;
  int32_t count;
};

// The first and last row and column that a box touches. If there is none, the last is -1.
struct BoxBounds {
  int32_t y0, y1, x0, x1;
};

// Blocks 0 … R - 1 make a box's shares and bounds. Each warp of the later blocks lists an image's boxes, in their
// order. The last warp lists the boxes without a valid image, whose rows become NaN.
template <typename T, typename Box>
__global__ void __launch_bounds__(kBoxThreads) box_weights_kernel(
    const Box* boxes, int64_t box_row, int64_t box_column,  // [R, 5]
    RoiGrid grid, int64_t count, int64_t images, int64_t height, int64_t width,
    T* shares,          // [R, H + W]: a row's or column's share of the mean, -1 where no sample point touches
    BoxBounds* bounds,  // [R]
    int64_t* order,     // [R]: boxes by image
    int64_t* starts)    // [images + 2]: where an image's boxes start in `order`
{
  __shared__ int32_t extent[4];  // first row, last row, first column, last column
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (blockIdx.x >= count) {
    __shared__ int64_t image_of[kBoxThreads];
    const int64_t image = (blockIdx.x - count) * (kBoxThreads / 32) + warp;
    int64_t at = 0;  // the number of earlier images' boxes, later the next box's place
    for (int pass = 0; pass < 2; pass++) {
      for (int64_t first = 0; first < count; first += kBoxThreads) {
        const int64_t r = first + threadIdx.x;
        const T b = r < count ? convert<T>(boxes[r * box_row]) : T(0);
        __syncthreads();
        image_of[threadIdx.x] = r >= count ? images + 1 : b >= T(0) && b < T(images) ? int64_t(b) : images;
        __syncthreads();
        for (int n = lane; n < kBoxThreads; n += 32) {
          const bool chosen = pass ? image_of[n] == image : image_of[n] < image;
          const unsigned votes = __ballot_sync(~0u, chosen);
          if (pass && chosen && image <= images) order[at + __popc(votes & ((1u << lane) - 1))] = first + n;
          at += __popc(votes);
        }
      }
      if (pass == 0 && lane == 0 && image <= images) starts[image] = at;
    }
    if (lane == 0 && image == images) starts[images + 1] = count;
    return;
  }
  const int64_t r = blockIdx.x;
  const T box = lane < 5 ? convert<T>(boxes[r * box_row + lane * box_column]) : T(0);  // image, x1, y1, x2, y2
  RoiSamples<T> rows(__shfl_sync(~0u, box, 2), __shfl_sync(~0u, box, 4), grid, grid.output_height, height);
  RoiSamples<T> columns(__shfl_sync(~0u, box, 1), __shfl_sync(~0u, box, 3), grid, grid.output_width, width);
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
  if (threadIdx.x == 0) bounds[r] = {extent[0], extent[1], extent[2], extent[3]};
}

template <typename T>
struct BoxWeights {
  const T* shares;          // [R, H + W]
  const BoxBounds* bounds;  // [R]
  const int64_t* order;     // [R]
  const int64_t* starts;    // [images + 2]
  int64_t height, width;
  bool staged;  // whether a chunk's shares fit into shared memory
  static constexpr bool kHasArea = false;

  __device__ Regions regions(int64_t b) const { return {starts[b], int32_t(starts[b + 1] - starts[b])}; }
  __device__ int64_t row(int64_t n) const { return order[n]; }
  // Copies a chunk's shares to `scratch`. Narrows [*from, *to) to the pixels of rows that its boxes touch.
  __device__ void prepare(const int64_t* rows, int count, T* scratch, int32_t* extent, int64_t* from,
                          int64_t* to) const {
    if (threadIdx.x < 2) extent[threadIdx.x] = threadIdx.x ? -1 : INT32_MAX;
    __syncthreads();
    if (threadIdx.x < count) {
      const BoxBounds box = bounds[rows[threadIdx.x]];
      atomicMin(&extent[0], box.x1 < 0 ? INT32_MAX : box.y0);
      atomicMax(&extent[1], box.x1 < 0 ? -1 : box.y1);
    }
    if (staged) {
      const int length = int(height + width);
      for (int r = threadIdx.x / 32; r < count; r += kTileWarps) {
        for (int i = threadIdx.x % 32; i < length; i += 32) scratch[r * length + i] = shares[rows[r] * length + i];
      }
    }
    __syncthreads();
    *to = int64_t(extent[1] + 1) * width;
    *from = min(int64_t(extent[0]) * width, *to);
  }
  struct Row {
    const T *down, *across;
    uint32_t width;
    __device__ T operator()(int64_t k) const {
      const uint32_t y = uint32_t(k) / width, x = uint32_t(k) - y * width;
      const T dy = down[y], dx = across[x];
      return dy < T(0) || dx < T(0) ? left_out<T>() : dy * dx;
    }
  };
  __device__ Row of(int64_t, int64_t row, const T* scratch, int r) const {
    const T* down = staged ? scratch + r * int(height + width) : shares + row * (height + width);
    return {down, down + height, uint32_t(width)};
  }
  __device__ int64_t grad_row(int64_t, int64_t row) const { return row; }
  __device__ T divided(T g, int64_t) const { return g; }
};

template <typename T, typename S>
struct MaskWeights {
  const void* masks;  // [B, R, H, W], of S or bool
  bool soft;
  int64_t image_stride, region_stride;
  Axis pixels;
  int64_t per_image;  // R
  const T* area;      // [B, R], or null for sums, and in the forward pass, which computes it
  static constexpr bool kHasArea = true;

  __device__ Regions regions(int64_t b) const { return {b * per_image, int32_t(per_image)}; }
  __device__ int64_t row(int64_t n) const { return n; }
  __device__ void prepare(const int64_t*, int, T*, int32_t*, int64_t*, int64_t*) const {}
  struct Row {
    const S* soft;  // one of the two
    const bool* hard;
    Axis pixels;
    __device__ T operator()(int64_t k) const {
      const int64_t at = pixels.offset(k);
      if (soft) return convert<T>(soft[at]) + T(0);  // (no -0.0)
      return hard[at] ? T(1) : left_out<T>();
    }
  };
  __device__ Row of(int64_t b, int64_t row, const T*, int) const {
    const int64_t at = b * image_stride + grad_row(b, row) * region_stride;
    return {soft ? static_cast<const S*>(masks) + at : nullptr, static_cast<const bool*>(masks) + at, pixels};
  }
  __device__ int64_t grad_row(int64_t b, int64_t row) const { return row - b * per_image; }
  __device__ T divided(T g, int64_t row) const { return !area ? g : area[row] == T(0) ? T(0) : g / area[row]; }
};

// The upstream gradient as weights over channels: w(i, c) = grad_output[b, r, c] / area[b, r].
template <typename T, typename S>
struct GradWeights {
  const S* grad_output;  // [B, R, C]
  int64_t image_stride, region_stride, channel_stride;
  int64_t per_image;  // R
  const T* area;      // [B, R], or null for sums
  static constexpr bool kHasArea = false;

  __device__ Regions regions(int64_t b) const { return {b * per_image, int32_t(per_image)}; }
  __device__ int64_t row(int64_t n) const { return n; }
  __device__ void prepare(const int64_t*, int, T*, int32_t*, int64_t*, int64_t*) const {}
  struct Row {
    const S* g;
    int64_t stride;
    T area;
    __device__ T operator()(int64_t c) const {
      return area == T(0) ? left_out<T>() : convert<T>(g[c * stride]) / area + T(0);
    }
  };
  __device__ Row of(int64_t b, int64_t row, const T* = nullptr, int = 0) const {
    const int64_t at = b * image_stride + (row - b * per_image) * region_stride;
    return {grad_output + at, channel_stride, area ? area[row] : T(1)};
  }
};

// Fills w[kRegions][stride] with a chunk's weights for `count_k` pixels from k on. Whole steps of pixels, and regions
// up to the next multiple of four, are padded with left_out.
template <typename S, typename T, typename Weights>
__device__ __forceinline__ void stage_weights(const Weights& weights, int64_t b, const int64_t* rows, const T* scratch,
                                              int count, int64_t k, int count_k, T* w, int stride) {
  const int padded = (count_k + kStep<S> - 1) / kStep<S> * kStep<S>;
  for (int r = threadIdx.x / 32; r < (count + 3) / 4 * 4; r += kTileWarps) {
    if (r >= count) {
      for (int i = threadIdx.x % 32; i < padded; i += 32) w[r * stride + i] = left_out<T>();
      continue;
    }
    const auto row = weights.of(b, rows[r], scratch, r);
#pragma unroll 4
    for (int i = threadIdx.x % 32; i < padded; i += 32) {
      w[r * stride + i] = i < count_k ? row(k + i) : left_out<T>();
    }
  }
}

}  // namespace maskco
