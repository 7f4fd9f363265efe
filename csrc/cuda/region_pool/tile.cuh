// Tiles of a feature map in shared memory, for kernels that pool or spread. A map is x[image][k, j]. Its pixels k are
// weighed, and its channels j lie along the lanes of a warp. For the masks' gradient, pixels and channels are swapped.
// Either axis may be contiguous in memory. Global memory is read and written in runs of the contiguous axis, 16 bytes
// for each thread if alignment allows. The arithmetic always gets 16 bytes of pixels for each of its channels.
#pragma once
#include <cstdint>

#include "cuda/common/convert.cuh"
#include "cuda/common/ptx.cuh"

namespace maskco {

constexpr int kTileThreads = 256, kTileWarps = kTileThreads / 32;
constexpr int kLaneChannels = 2, kTileJ = 32 * kLaneChannels;  // channels of a lane, of a tile

template <typename S>
inline constexpr int kStep = 16 / sizeof(S);  // pixels that a warp takes at once

template <typename S>
inline constexpr int kSmallestCopy = sizeof(S) < 4 ? 4 : sizeof(S);  // bytes

// One or two tensor dimensions as one index, such as rows of pixels.
struct Axis {
  int64_t size, inner, outer_stride, stride;
  __device__ int64_t offset(int64_t i) const {
    if (inner == size) return i * stride;
    const uint32_t q = uint32_t(i) / uint32_t(inner);  // (with two dimensions, below 2^31)
    return q * outer_stride + (uint32_t(i) - q * uint32_t(inner)) * stride;
  }
};

struct Map {  // x[image][k, j]
  int64_t images, image_stride;
  Axis k, j;
};

// How a map is cut into tiles, and their layout in shared memory. The host makes it.
struct Tiling {
  bool along_k;    // k is the contiguous axis, else j
  bool flat;       // a tile takes all of the contiguous axis and lies in one run, as it does in the map
  int32_t copy;    // bytes of a copy: 16, 8 or 4, to which all runs are aligned; 0: by elements, any strides
  int32_t tile_k;  // pixels of a tile, a multiple of a step
  int32_t tile_j;  // channels of a tile, at most kTileJ
  int32_t stride_k, stride_j;  // in shared memory, in elements. Without bank conflicts for 16-byte (or `access`) reads
  int32_t access;              // bytes of one access to a lane's pixels in shared memory: 16, 8, 0: by elements
  int32_t lane_j, next_j;      // a lane's channels are lane * lane_j + c * next_j: 1 and 32, or 2 and 1
  uint32_t pieces, inverse;    // copies of a run, and ceil(2^32 / pieces)
};

// Calls f(run, i, length) for elements i, i + 1, … of a tile's run, split over the threads. i has steps of kCount. It
// ends at `length`, or beyond it if runs are padded to whole steps.
template <int kCount, typename S, typename F>
__device__ __forceinline__ void for_each_piece(const Tiling& t, int count_k, int count_j, const F& f) {
  const int runs = t.flat ? 1 : t.along_k ? count_j : count_k;
  const int length = t.flat ? count_k * count_j : t.along_k ? count_k : count_j;
  for (uint32_t n = threadIdx.x; n < runs * t.pieces; n += kTileThreads) {
    const uint32_t run = t.pieces == 1 ? n : __umulhi(n, t.inverse);
    f(int(run), int(n - run * t.pieces) * kCount, length);
  }
}

// The start of run `run` of the tile at (k, j) in the map.
__device__ __forceinline__ int64_t run_offset(const Map& map, const Tiling& t, int64_t k, int64_t j, int run) {
  return t.along_k ? map.j.offset(j + run) + k : map.k.offset(k + run) + j;
}

template <int kBytes, typename S>
__device__ __forceinline__ void fetch_runs(const Map& map, const Tiling& t, const S* image, int64_t k, int64_t j,
                                           int count_k, int count_j, S* tile) {
  constexpr int kCount = kBytes / sizeof(S);
  for_each_piece<kCount, S>(t, count_k, count_j, [&](int run, int i, int length) {
    const S* from = image + run_offset(map, t, k, j, run);
    S* to = tile + run * (t.along_k ? t.stride_j : t.stride_k);
    const int padded = t.along_k && !t.flat ? (length + kStep<S> - 1) / kStep<S> * kStep<S> : length;
    if (i + kCount <= length) {
      copy_async<kBytes>(shared_address(to + i), from + i);
    } else {
      for (int e = i; e < min(i + kCount, padded); e++) to[e] = e < length ? from[e] : S(0.0f);
    }
  });
}

// Starts to copy count_k × count_j elements from (k, j) on into shared memory. Call commit_copies and wait_for_copies
// and a barrier afterwards. Pixels that pad the last step of a run are zero.
template <typename S>
__device__ __forceinline__ void fetch_tile(const Map& map, const Tiling& t, const S* image, int64_t k, int64_t j,
                                           int count_k, int count_j, S* tile) {
  if (t.copy == 16) {
    fetch_runs<16>(map, t, image, k, j, count_k, count_j, tile);
  } else if (t.copy == 8) {
    fetch_runs<8>(map, t, image, k, j, count_k, count_j, tile);
  } else if (t.copy == 4) {
    fetch_runs<kSmallestCopy<S>>(map, t, image, k, j, count_k, count_j, tile);
  } else {
    for_each_piece<1, S>(t, count_k, count_j, [&](int run, int i, int length) {
      const int padded = t.along_k ? (length + kStep<S> - 1) / kStep<S> * kStep<S> : length;
      if (i >= padded) return;
      const int64_t at =
          t.along_k ? map.j.offset(j + run) + map.k.offset(k + i) : map.k.offset(k + run) + map.j.offset(j + i);
      tile[run * (t.along_k ? t.stride_j : t.stride_k) + i] = i < length ? image[at] : S(0.0f);
    });
  }
}

template <int kBytes, typename T, typename S>
__device__ __forceinline__ void store_runs(const Map& map, const Tiling& t, S* image, int64_t k, int64_t j, int count_k,
                                           int count_j, const T* tile) {
  constexpr int kCount = kBytes / sizeof(S);
  for_each_piece<kCount, S>(t, count_k, count_j, [&](int run, int i, int length) {
    S* to = image + run_offset(map, t, k, j, run);
    const T* from = tile + run * (t.along_k ? t.stride_j : t.stride_k);
    if (i + kCount <= length) {
      Pack<S, kCount> out;
      if constexpr (kCount * sizeof(T) <= 16) {
        const auto in = *reinterpret_cast<const Pack<T, kCount>*>(from + i);
#pragma unroll
        for (int n = 0; n < kCount; n++) out.value[n] = convert<S>(in.value[n]);
      } else {  // two reads: of eight lanes some start with the second half, to avoid bank conflicts
        constexpr int kHalf = 16 / sizeof(T);
        static_assert(kCount == 2 * kHalf);
        const uint32_t unit = uint32_t(from + i - tile) / kHalf;  // (the strides of rows are odd)
        const bool swapped = (unit / 8 ^ unit) % 2;
        const auto one = *reinterpret_cast<const Pack<T, kHalf>*>(from + i + (swapped ? kHalf : 0));
        const auto other = *reinterpret_cast<const Pack<T, kHalf>*>(from + i + (swapped ? 0 : kHalf));
#pragma unroll
        for (int n = 0; n < kHalf; n++) {
          out.value[n] = convert<S>(swapped ? other.value[n] : one.value[n]);
          out.value[n + kHalf] = convert<S>(swapped ? one.value[n] : other.value[n]);
        }
      }
      *reinterpret_cast<Pack<S, kCount>*>(to + i) = out;
    } else {
      for (int e = i; e < min(i + kCount, length); e++) to[e] = convert<S>(from[e]);
    }
  });
}

// Writes a tile of sums to the map.
template <typename T, typename S>
__device__ __forceinline__ void store_tile(const Map& map, const Tiling& t, S* image, int64_t k, int64_t j, int count_k,
                                           int count_j, const T* tile) {
  if (t.copy == 16) {
    store_runs<16>(map, t, image, k, j, count_k, count_j, tile);
  } else if (t.copy == 8) {
    store_runs<8>(map, t, image, k, j, count_k, count_j, tile);
  } else if (t.copy == 4) {
    store_runs<kSmallestCopy<S>>(map, t, image, k, j, count_k, count_j, tile);
  } else {
    for_each_piece<1, S>(t, count_k, count_j, [&](int run, int i, int length) {
      if (i >= length) return;
      const int64_t at =
          t.along_k ? map.j.offset(j + run) + map.k.offset(k + i) : map.k.offset(k + run) + map.j.offset(j + i);
      image[at] = convert<S>(tile[run * (t.along_k ? t.stride_j : t.stride_k) + i]);
    });
  }
}

template <int kBytes, typename T, typename S>
__device__ __forceinline__ void read_packs(const S* from, T (&out)[kStep<S>]) {
  constexpr int kCount = kBytes / sizeof(S);
#pragma unroll
  for (int i = 0; i < kStep<S>; i += kCount) {
    const auto in = *reinterpret_cast<const Pack<S, kCount>*>(from + i);
#pragma unroll
    for (int n = 0; n < kCount; n++) out[i + n] = convert<T>(in.value[n]);
  }
}

// Reads a step of pixels of channel j from a tile of map elements. Past the tile's end it gives its last pixel, or
// zeros.
template <typename T, typename S>
__device__ __forceinline__ void read_step(const Tiling& t, const S* tile, int k, int j, int count_k,
                                          T (&out)[kStep<S>]) {
  const S* from = tile + j * t.stride_j;
  if (t.access == 16) {
    read_packs<16>(from + k, out);
  } else if (sizeof(S) < 8 && t.access == 8 && k + kStep<S> <= count_k) {
    read_packs<8>(from + k, out);
  } else {
#pragma unroll
    for (int i = 0; i < kStep<S>; i++) out[i] = convert<T>(from[min(k + i, count_k - 1) * t.stride_k]);
  }
}

// Writes a step of pixels of channel j into a tile of sums, or adds to it.
template <typename S, typename T>
__device__ __forceinline__ void write_step(const Tiling& t, T* tile, int k, int j, int count_k, bool add,
                                           T (&in)[kStep<S>]) {
  T* to = tile + j * t.stride_j;
  if (t.access == 16 && k + kStep<S> <= count_k) {
    constexpr int kCount = 16 / sizeof(T);
#pragma unroll
    for (int i = 0; i < kStep<S>; i += kCount) {
      auto& at = *reinterpret_cast<Pack<T, kCount>*>(to + k + i);
      Pack<T, kCount> out;
      if (add) out = at;
#pragma unroll
      for (int n = 0; n < kCount; n++) out.value[n] = add ? out.value[n] + in[i + n] : in[i + n];
      at = out;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kStep<S>; i++) {
      if (k + i >= count_k) break;
      T& at = to[(k + i) * t.stride_k];
      at = add ? at + in[i] : in[i];
    }
  }
}

}  // namespace maskco
