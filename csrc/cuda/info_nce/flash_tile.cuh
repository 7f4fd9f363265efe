// Parts of the main loop in flash.cuh: tiles in shared memory, the two products of a tile, and the running maximum
// between them. "Rows" stay with a block, "columns" stream past them.
#pragma once
#include <cstdint>

#include "cuda/common/convert.cuh"
#include "cuda/common/fragments.cuh"
#include "cuda/common/ptx.cuh"
#include "cuda/info_nce/shapes.h"

namespace maskco {

constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

// (the last four parameters: a FlashShape)
template <typename Product, int kChannels_, int kWarps, int kRowBlocks, int kColumns_, int kBlocksPerSm_>
struct Flash : Fragments<float, kRowBlocks, kColumns_ / 8> {
  using T = typename Product::element;
  using Warp = Fragments<float, kRowBlocks, kColumns_ / 8>;
  using typename Warp::Logits, typename Warp::PerRow;
  using Warp::for_each_logit, Warp::for_each_row, Warp::kColumnBlocks;
  static constexpr int kChannels = kChannels_, kThreads = 32 * kWarps, kBlocksPerSm = kBlocksPerSm_;
  static constexpr int kWarpRows = 16 * kRowBlocks, kRows = kWarpRows * kWarps;
  static constexpr int kColumns = kColumns_, kChannelBlocks = kChannels / 8;

  // ---- tiles in shared memory
  // Rows have chunks of 16 bytes. They are swizzled, so that neither ldmatrix of eight rows nor the strided loads below
  // have bank conflicts. (128 bytes are all banks. A row of 64 or 192 bytes covers them twice in turn.)
  static constexpr int kRowBytes = kChannels * sizeof(T), kChunks = kRowBytes / 16, kSteps = kRowBytes / 32;
  static constexpr bool kWholeLines = kRowBytes % 128 == 0;
  static constexpr int kRowTileBytes = kRows * kRowBytes, kColumnTileBytes = kColumns * kRowBytes;

  __device__ __forceinline__ static int offset(int row, int chunk) {
    return row * kRowBytes + 16 * (chunk ^ (kWholeLines ? row % 8 : row / 2 % 4));
  }
  // The address of the chunk 2 · step further, for an address at chunk 0 or 1. The swizzle reduces to one XOR.
  __device__ __forceinline__ static uint32_t at_step(uint32_t address, int step) {
    constexpr int kMixed = kWholeLines ? 127 : 63;
    return (address ^ (32 * step & kMixed)) + (32 * step & ~kMixed);
  }
  // A team of threads copies a row, one chunk for each thread at a time, up to the row's end. Short tiles get larger
  // teams.
  static constexpr int kLeastTeam = kWholeLines ? 8 : 4;
  static constexpr int kTeam = kThreads / kColumns > kLeastTeam ? kThreads / kColumns : kLeastTeam;
  static constexpr int kPassRows = kThreads / kTeam;
  static_assert(kChunks % kTeam == 0);
  static_assert(kColumns <= kThreads);                // one thread for each id
  static constexpr int kRowTiles = kRows / kColumns;  // number of tiles of columns as long as a block's rows
  static_assert(kRowTiles * kColumns == kRows);

  // The number of tiles of `count` columns, and of columns in the last tile. (An int is large enough for any memory.)
  __device__ __forceinline__ static int tiles(int64_t count) { return (count + kColumns - 1) / kColumns; }
  __device__ __forceinline__ static int last_columns(int64_t count) { return (count + kColumns - 1) % kColumns + 1; }

  // Copies the first `count` rows of `from` into a tile of kTileRows rows, and fills up with zeros.
  template <int kTileRows>
  __device__ __forceinline__ static void load(uint32_t tile, const T* from, int64_t stride, int count) {
    static_assert(kTileRows % kPassRows == 0);
    const int thread = thread_index(), row = thread / kTeam, chunk = thread % kTeam;
    const T* source = from + row * stride + chunk * (16 / sizeof(T));
#pragma unroll
    for (int pass = 0; pass < kTileRows; pass += kPassRows) {
      const bool inside = pass + row < count;
#pragma unroll
      for (int i = 0; i < kChunks; i += kTeam)
        copy_async<16>(tile + offset(pass + row, i + chunk), inside ? source + i * (16 / sizeof(T)) : from, inside);
      source += kPassRows * stride;
    }
  }

  // ---- where a lane's fragments are: two of each 8 columns
  using Sums = float[kRowBlocks][kChannelBlocks][4];
  __device__ __forceinline__ static int warp_row() { return threadIdx.x / 32 * kWarpRows; }
  __device__ __forceinline__ static int row(int block, int half) {
    return warp_row() + 16 * block + 8 * half + threadIdx.x % 32 / 4;
  }
  __device__ __forceinline__ static int column(int block, int i) { return 8 * block + threadIdx.x % 4 * 2 + i % 2; }

  // The dot product of a tile's row and a row in global memory: the part of one of kLanes lanes that share it.
  template <int kLanes>
  __device__ __forceinline__ static float dot(const char* tile, int row, const T* other) {
    constexpr int kElements = 16 / sizeof(T);
    float sum = 0;
#pragma unroll
    for (int first = 0; first < kChunks; first += kLanes) {
      const int chunk = first + threadIdx.x % kLanes;
      if (chunk >= kChunks) break;
      const uint4 a = *reinterpret_cast<const uint4*>(tile + offset(row, chunk));
      const uint4 b = *reinterpret_cast<const uint4*>(other + chunk * kElements);
#pragma unroll
      for (int i = 0; i < kElements; i++)
        sum += convert<float>(reinterpret_cast<const T*>(&a)[i]) * convert<float>(reinterpret_cast<const T*>(&b)[i]);
    }
    return sum;
  }

  // The rows' operands stay in registers if they take at most kMostKept.
  using RowOperand = typename Product::template Operand<4>;
  using ColumnOperand = typename Product::template Operand<2>;
  template <int kMostKept>
  struct Rows {
    static constexpr bool kKept = kRowBlocks * kSteps * 4 <= kMostKept;
    uint32_t address;
    uint32_t kept[kKept ? kRowBlocks : 1][kKept ? kSteps : 1][4];

    __device__ __forceinline__ explicit Rows(uint32_t tile)
        : address(tile + offset(warp_row() + threadIdx.x % 16, threadIdx.x % 32 / 16)) {
      if constexpr (kKept) {
#pragma unroll
        for (int block = 0; block < kRowBlocks; block++)
#pragma unroll
          for (int step = 0; step < kSteps; step++) load_matrices(kept[block][step], at(block, step));
      }
    }
    __device__ __forceinline__ uint32_t at(int block, int step) const {
      return at_step(address, step) + block * 16 * kRowBytes;
    }
    __device__ __forceinline__ RowOperand get(int block, int step) const {
      if constexpr (kKept) {
        return Product::operand(kept[block][step]);
      } else {
        uint32_t raw[4];
        load_matrices(raw, at(block, step));
        return Product::operand(raw);
      }
    }
  };

  // s = rows · columnsᵀ, infinite where a factor is. With `kSwapped` the rows are keys, not queries. Each logit is then
  // still the same bit for bit.
  template <bool kSwapped, int kMostKept>
  __device__ __forceinline__ static void multiply(Logits& s, const Rows<kMostKept>& rows, uint32_t tile) {
    const int lane = thread_index() % 32;
    const uint32_t address = tile + offset(lane / 16 * 8 + lane % 8, lane / 8 % 2);
    Logits rest;  // for three terms
    for_each_logit([&](int block, int j, int i) { s[block][j][i] = rest[block][j][i] = 0; });
#pragma unroll(Rows<kMostKept>::kKept ? kSteps : 4)  // if unrolled further, loads would take registers from the sums
    for (int step = 0; step < kSteps; step++) {
      RowOperand a[kRowBlocks];
#pragma unroll
      for (int block = 0; block < kRowBlocks; block++) a[block] = rows.get(block, step);
#pragma unroll
      for (int j = 0; j < kColumnBlocks; j += 2) {
        uint32_t raw[4];
        load_matrices(raw, at_step(address, step) + j * 8 * kRowBytes);
        const ColumnOperand b[2] = {Product::operand({raw[0], raw[1]}), Product::operand({raw[2], raw[3]})};
#pragma unroll
        for (int block = 0; block < kRowBlocks; block++) {
#pragma unroll
          for (int i = 0; i < 2; i++)
            Warp::template add_product<Product, kSwapped>(s, rest, block, j + i, a[block], b[i]);
        }
      }
    }
    Warp::template add_rest<Product>(s, rest);
  }

  // o += weights · columns. The weights that a lane holds are already its part of an operand.
  __device__ __forceinline__ static void accumulate(Sums& o, const Logits& weights, uint32_t tile) {
    const int lane = thread_index() % 32;
    RowOperand w[kRowBlocks];
    if constexpr (sizeof(T) == 2) {
      const uint32_t address = tile + offset(lane % 16, lane / 16);
#pragma unroll
      for (int j = 0; j < kColumnBlocks; j += 2) {
#pragma unroll
        for (int block = 0; block < kRowBlocks; block++) {
          const auto &low = weights[block][j], &high = weights[block][j + 1];
          w[block] = Product::operand({Product::pack(low[0], low[1]), Product::pack(low[2], low[3]),
                                       Product::pack(high[0], high[1]), Product::pack(high[2], high[3])});
        }
#pragma unroll
        for (int channels = 0; channels < kChannelBlocks; channels += 2) {
          uint32_t raw[4];
          load_matrices_transposed(raw, at_step(address, channels / 2) + j * 8 * kRowBytes);
          const ColumnOperand left = Product::operand({raw[0], raw[1]}), right = Product::operand({raw[2], raw[3]});
#pragma unroll
          for (int block = 0; block < kRowBlocks; block++) {
            Product::add(o[block][channels], w[block], left);
            Product::add(o[block][channels + 1], w[block], right);
          }
        }
      }
    } else {
      // A lane holds the weights' columns 2 t and 2 t + 1, where an operand has t and t + 4. Any order works if both
      // operands have the same, so 2 t and 2 t + 1 take the places t and t + 4. (ldmatrix cannot transpose 32 bits, so
      // these are plain loads.)
      const int column = lane % 4 * 2, channel = lane / 4;
      const uint32_t even = tile + offset(column, channel / 4) + channel % 4 * 4;
      const uint32_t odd = tile + offset(column + 1, channel / 4) + channel % 4 * 4;
#pragma unroll
      for (int j = 0; j < kColumnBlocks; j++) {
#pragma unroll
        for (int block = 0; block < kRowBlocks; block++) {
          const auto& s = weights[block][j];
          w[block] = Product::operand(
              {__float_as_uint(s[0]), __float_as_uint(s[2]), __float_as_uint(s[1]), __float_as_uint(s[3])});
        }
#pragma unroll
        for (int channels = 0; channels < kChannelBlocks; channels++) {
          const ColumnOperand b = Product::operand({load_shared(at_step(even, channels) + j * 8 * kRowBytes),
                                                    load_shared(at_step(odd, channels) + j * 8 * kRowBytes)});
#pragma unroll
          for (int block = 0; block < kRowBlocks; block++) Product::add(o[block][channels], w[block], b);
        }
      }
    }
  }

  // Excludes columns from `limit` on, and pairs with column - row == `diagonal`.
  __device__ __forceinline__ static void exclude(Logits& s, int limit, int diagonal) {
    for_each_logit([&](int block, int j, int i) {
      const int c = column(j, i);
      if (c >= limit || c - row(block, i / 2) == diagonal) s[block][j][i] = -INFINITY;
    });
  }
  // Excludes pairs with one id. (The rows' ids are read from global memory. In shared memory they would leave no space
  // for a second block on SMs of 100 KiB.)
  __device__ __forceinline__ static void exclude(Logits& s, const int64_t* row_ids, int row_count,
                                                 const int64_t* column_ids) {
    for_each_row([&](int block, int half) {
      const int r = row(block, half);
      const int64_t id = r < row_count ? row_ids[r] : 0;
#pragma unroll
      for (int j = 0; j < kColumnBlocks; j++)
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; i++)
          if (column_ids[column(j, i)] == id) s[block][j][i] = -INFINITY;
    });
  }

  // The number to subtract in the exponent. With an infinite maximum, weights then become infinite or 0, not NaN.
  __device__ __forceinline__ static float shift(float max) { return isinf(max) ? 0.0f : max; }

  // Each row's largest logit among the lane's columns. (fmaxf ignores a NaN, which will show in the weights.)
  __device__ __forceinline__ static void lane_max(const Logits& s, PerRow& top) {
    for_each_row([&](int block, int half) {
      top[block][half] = -INFINITY;
#pragma unroll
      for (int j = 0; j < kColumnBlocks; j++)
        top[block][half] = fmaxf(top[block][half], fmaxf(s[block][j][2 * half], s[block][j][2 * half + 1]));
    });
  }

  // Turns logits, whose largest are `top`, into weights 2^(s - max) with each row's running maximum. If a maximum
  // grows, it scales `o`, and calls rescale(block, half, factor) for the row's other sums.
  template <typename Rescale>
  __device__ __forceinline__ static void weigh(Logits& s, PerRow& top, PerRow& max, Sums& o, const Rescale& rescale) {
    PerRow shrink;
    bool grown = false;
    for_each_row([&](int block, int half) {
      const float before = max[block][half];
      float& now = top[block][half];
      now = fmaxf(now, __shfl_xor_sync(0xffffffff, now, 1));
      now = fmaxf(now, __shfl_xor_sync(0xffffffff, now, 2));
      now = fmaxf(now, before);
      max[block][half] = now;
      const float factor = exp2_approximate(shift(before) - shift(now));
      shrink[block][half] = before == -INFINITY ? 0.0f : factor;
      grown |= shrink[block][half] != 1;
      rescale(block, half, shrink[block][half]);
    });
    for_each_logit(
        [&](int block, int j, int i) { s[block][j][i] = exp2_approximate(s[block][j][i] - shift(max[block][i / 2])); });
    if (!__any_sync(0xffffffff, grown)) return;  // maxima stop growing after some tiles
#pragma unroll
    for (int block = 0; block < kRowBlocks; block++)
#pragma unroll
      for (int channels = 0; channels < kChannelBlocks; channels++)
#pragma unroll
        for (int i = 0; i < 4; i++) o[block][channels][i] *= shrink[block][i / 2];
  }
};

}  // namespace maskco
