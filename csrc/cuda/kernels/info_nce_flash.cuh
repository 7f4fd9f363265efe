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

#include "info_nce.cuh"
#include "mma.cuh"

namespace maskco {

constexpr int kFlashStages = 2;               // tiles of columns in shared memory: one in use, the next on its way
constexpr int kFlashSharedBytes = 99 * 1024;  // what every GPU from 8.0 on allows a block
constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

// How a block is cut. A warp's rows share each fragment of columns that it loads from shared memory, so more rows a
// warp are faster, until their sums (rows · C / 32 registers a thread) leave no room for anything else.
struct FlashShape {
  int warps;
  int row_blocks;     // of 16 rows, a warp
  int columns;        // of a tile
  int blocks_per_sm;  // that registers must leave room for
};
constexpr FlashShape flash_shape(int element_size, int channels) {
  if (element_size == 2) {
    if (channels <= 128) return {4, 2, 32, channels <= 32 ? 3 : 2};
    return {8, 1, channels <= 192 ? 64 : 32, 1};
  }
  if (channels <= 64) return {4, 2, 32, channels <= 32 ? 3 : 2};
  if (channels <= 128) return {8, 1, 32, 1};
  return {4, 1, 16, channels <= 192 ? 2 : 1};
}

__device__ __forceinline__ float exp2_approximate(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

template <typename Product, int kChannels_>
struct Flash {
  using T = typename Product::element;
  static constexpr int kChannels = kChannels_;
  static constexpr FlashShape kShape = flash_shape(sizeof(T), kChannels);
  static constexpr int kThreads = 32 * kShape.warps;
  static constexpr int kRowBlocks = kShape.row_blocks, kWarpRows = 16 * kRowBlocks, kRows = kWarpRows * kShape.warps;
  static constexpr int kColumns = kShape.columns, kColumnBlocks = kColumns / 8, kChannelBlocks = kChannels / 8;

  // ---- tiles in shared memory: rows of 16-byte chunks, swizzled so that neither ldmatrix of eight rows nor the
  // strided loads below meet in a bank (128 bytes are all banks; a row of 64 or 192 bytes covers them twice in turn)
  static constexpr int kRowBytes = kChannels * sizeof(T), kChunks = kRowBytes / 16, kSteps = kRowBytes / 32;
  static constexpr bool kWholeLines = kRowBytes % 128 == 0;
  static constexpr int kRowTileBytes = kRows * kRowBytes, kColumnTileBytes = kColumns * kRowBytes;

  __device__ __forceinline__ static int offset(int row, int chunk) {
    return row * kRowBytes + 16 * (chunk ^ (kWholeLines ? row % 8 : row / 2 % 4));
  }
  // The chunk 2 · step further on, for an address at chunk 0 or 1: the swizzle reduces to one XOR.
  __device__ __forceinline__ static uint32_t at_step(uint32_t address, int step) {
    constexpr int kMixed = kWholeLines ? 127 : 63;
    return (address ^ (32 * step & kMixed)) + (32 * step & ~kMixed);
  }
  static_assert(kColumns * kChunks % kThreads == 0 && kRows * kChunks % kThreads == 0);

  // Rows first, first + 1 .. of [count, C] into a tile; zeros from `count` on.
  template <int kTileRows>
  __device__ __forceinline__ static void load(uint32_t tile, const T* from, int64_t stride, int64_t first,
                                              int64_t count) {
#pragma unroll
    for (int j = 0; j < kTileRows * kChunks / kThreads; j++) {
      const int i = j * kThreads + threadIdx.x, row = i / kChunks, chunk = i % kChunks;
      const bool inside = first + row < count;
      const T* source = from + (inside ? (first + row) * stride + chunk * (16 / sizeof(T)) : 0);
      copy_async<16>(tile + offset(row, chunk), source, inside);
    }
  }

  // ---- what a thread holds: per block of 16 rows, rows g and g + 8 (`half`), of each 8 columns two
  using Logits = float[kRowBlocks][kColumnBlocks][4];
  using Sums = float[kRowBlocks][kChannelBlocks][4];
  using PerRow = float[kRowBlocks][2];
  __device__ __forceinline__ static int warp_row() { return threadIdx.x / 32 * kWarpRows; }
  __device__ __forceinline__ static int row(int block, int half) {
    return warp_row() + 16 * block + 8 * half + threadIdx.x % 32 / 4;
  }
  __device__ __forceinline__ static int column(int block, int i) { return 8 * block + threadIdx.x % 4 * 2 + i % 2; }

  template <typename Body>  // body(block, half)
  __device__ __forceinline__ static void for_each_row(const Body& body) {
#pragma unroll
    for (int block = 0; block < kRowBlocks; block++)
#pragma unroll
      for (int half = 0; half < 2; half++) body(block, half);
  }
  template <typename Body>  // body(block of rows, block of columns, i): element i of four, in row i / 2
  __device__ __forceinline__ static void for_each_logit(const Body& body) {
#pragma unroll
    for (int block = 0; block < kRowBlocks; block++)
#pragma unroll
      for (int j = 0; j < kColumnBlocks; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) body(block, j, i);
  }

  // A lane's part, of kLanes that share it, of a tile's row · a row in global memory.
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

  // The rows' operands stay in registers where they are few.
  using RowOperand = typename Product::template Operand<4>;
  using ColumnOperand = typename Product::template Operand<2>;
  static constexpr bool kRowsInRegisters = sizeof(T) == 2 && kRowBlocks * kSteps * 4 <= 32;
  struct Rows {
    uint32_t address;
    uint32_t kept[kRowsInRegisters ? kRowBlocks : 1][kRowsInRegisters ? kSteps : 1][4];

    __device__ __forceinline__ explicit Rows(uint32_t tile)
        : address(tile + offset(warp_row() + threadIdx.x % 16, threadIdx.x % 32 / 16)) {
      if constexpr (kRowsInRegisters) {
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
      if constexpr (kRowsInRegisters) {
        return Product::operand(kept[block][step]);
      } else {
        uint32_t raw[4];
        load_matrices(raw, at(block, step));
        return Product::operand(raw);
      }
    }
  };

  // s = rows · columnsᵀ
  __device__ __forceinline__ static void multiply(Logits& s, const Rows& rows, uint32_t tile) {
    const int lane = threadIdx.x % 32;
    const uint32_t address = tile + offset(lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
    for (int i = 0; i < kRowBlocks * kColumnBlocks * 4; i++) (&s[0][0][0])[i] = 0;
#pragma unroll
    for (int step = 0; step < kSteps; step++) {
      RowOperand a[kRowBlocks];
#pragma unroll
      for (int block = 0; block < kRowBlocks; block++) a[block] = rows.get(block, step);
#pragma unroll
      for (int j = 0; j < kColumnBlocks; j += 2) {
        uint32_t raw[4];
        load_matrices(raw, at_step(address, step) + j * 8 * kRowBytes);
        const ColumnOperand left = Product::operand({raw[0], raw[1]}), right = Product::operand({raw[2], raw[3]});
#pragma unroll
        for (int block = 0; block < kRowBlocks; block++) {
          Product::add(s[block][j], a[block], left);
          Product::add(s[block][j + 1], a[block], right);
        }
      }
    }
  }

  // o += weights · columns. What a lane holds of the weights is its part of an operand.
  __device__ __forceinline__ static void accumulate(Sums& o, const Logits& weights, uint32_t tile) {
    const int lane = threadIdx.x % 32;
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
      // The weights' columns 2 t and 2 t + 1 are in the lane where an operand has t and t + 4. As any order will do
      // that both operands agree on, they are called t and t + 4. (ldmatrix cannot transpose 32 bits: plain loads.)
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

  // No weight for columns from `limit` on, nor where column - row is `diagonal` ..
  __device__ __forceinline__ static void exclude(Logits& s, int limit, int diagonal) {
    for_each_logit([&](int block, int j, int i) {
      const int c = column(j, i);
      if (c >= limit || c - row(block, i / 2) == diagonal) s[block][j][i] = -INFINITY;
    });
  }
  // .. nor where the column has the row's id.
  __device__ __forceinline__ static void exclude(Logits& s, const int64_t* row_ids, const int64_t* column_ids) {
    for_each_logit([&](int block, int j, int i) {
      if (column_ids[column(j, i)] == row_ids[row(block, i / 2)]) s[block][j][i] = -INFINITY;
    });
  }

  // What is subtracted in the exponent: an infinite maximum makes weights infinite or 0, not NaN.
  __device__ __forceinline__ static float shift(float max) { return isinf(max) ? 0.0f : max; }

  // Turns logits into weights 2^(s - max) with each row's running maximum, and scales `o` and by rescale(block, half,
  // factor) all else that the row has summed before.
  template <typename Rescale>
  __device__ __forceinline__ static void weigh(Logits& s, PerRow& max, Sums& o, const Rescale& rescale) {
    PerRow shrink;
    bool grown = false;
    for_each_row([&](int block, int half) {
      const float before = max[block][half];
      float top = before;  // (fmaxf passes over a NaN, which will show in the weights)
#pragma unroll
      for (int j = 0; j < kColumnBlocks; j++) top = fmaxf(top, fmaxf(s[block][j][2 * half], s[block][j][2 * half + 1]));
      top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 1));
      top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 2));
      max[block][half] = top;
      shrink[block][half] = before == -INFINITY ? 0.0f : exp2_approximate(shift(before) - shift(top));
      grown |= shrink[block][half] != 1;
      rescale(block, half, shrink[block][half]);
    });
    for_each_logit(
        [&](int block, int j, int i) { s[block][j][i] = exp2_approximate(s[block][j][i] - shift(max[block][i / 2])); });
    if (!__any_sync(0xffffffff, grown)) return;  // the maxima settle after some tiles
#pragma unroll
    for (int block = 0; block < kRowBlocks; block++)
#pragma unroll
      for (int channels = 0; channels < kChannelBlocks; channels++)
#pragma unroll
        for (int i = 0; i < 4; i++) o[block][channels][i] *= shrink[block][i / 2];
  }
};

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

// The ids come last: without them a block takes less, and on 8.6 and 8.9 one more fits for C = 128.
template <class F>
struct FlashForwardShared {
  alignas(128) char rows[F::kRowTileBytes];
  char columns[kFlashStages][F::kColumnTileBytes];
  float row_positive[F::kRows];
  int64_t row_ids[F::kRows];
  int64_t column_ids[kFlashStages][F::kColumns];
};
// Block (x, y): kRows queries from x · kRows on, and the y-th of gridDim.y equal parts of the tiles of all keys, which
// are those of the queue and then, with `in_batch`, the positives.
template <typename F, bool kGradient, typename T = typename F::T>
__global__ void __launch_bounds__(F::kThreads, F::kShape.blocks_per_sm)
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
  const int64_t queue_count = valid_count(queue.count, valid);
  const int64_t queue_tiles = (queue_count + F::kColumns - 1) / F::kColumns;
  const int64_t tiles = queue_tiles + (in_batch ? (positive.count + F::kColumns - 1) / F::kColumns : 0);
  const int64_t first_tile = tiles * blockIdx.y / gridDim.y, last_tile = tiles * (blockIdx.y + 1) / gridDim.y;

  struct Keys {
    bool own;  // key i is query i's positive
    const T* rows;
    int64_t row_stride, first, count;
    const int64_t* ids;
  };
  auto keys_of = [&](int64_t tile) {
    const bool own = tile >= queue_tiles;
    return Keys{own,
                own ? positive.rows : queue.rows,
                own ? positive.row_stride : queue.row_stride,
                (own ? tile - queue_tiles : tile) * F::kColumns,
                own ? positive.count : queue_count,
                query.ids == nullptr ? nullptr
                : own                ? query.ids
                                     : queue.ids};
  };
  auto load_keys = [&](int64_t tile) {
    const int stage = tile % kFlashStages;
    const Keys keys = keys_of(tile);
    F::template load<F::kColumns>(column_tiles + stage * F::kColumnTileBytes, keys.rows, keys.row_stride, keys.first,
                                  keys.count);
    if (keys.ids != nullptr && threadIdx.x < F::kColumns) {
      const int64_t key = keys.first + threadIdx.x;
      const bool inside = key < keys.count;
      copy_async<8>(shared_address(&shared.column_ids[stage][threadIdx.x]), keys.ids + (inside ? key : 0), inside);
    }
  };

  F::template load<F::kRows>(row_tile, query.rows, query.row_stride, first_row, query.count);
  if (query.ids != nullptr && threadIdx.x < F::kRows) {
    const int64_t row = first_row + threadIdx.x;
    shared.row_ids[threadIdx.x] = row < query.count ? query.ids[row] : 0;
  }
  commit_copies();
  if (first_tile < last_tile) load_keys(first_tile);
  commit_copies();
  wait_for_copies<1>();
  __syncthreads();

  for (int i = threadIdx.x % 32 / 8; i < F::kWarpRows; i += 4) {  // eight lanes a row
    const int row = F::warp_row() + i;
    const bool inside = first_row + row < query.count;
    float product =
        inside ? F::template dot<8>(shared.rows, row, positive.rows + (first_row + row) * positive.row_stride) : 0;
    for (int offset = 4; offset > 0; offset /= 2) product += __shfl_xor_sync(0xffffffff, product, offset);
    if (threadIdx.x % 8 == 0) {
      shared.row_positive[row] = product * scale;
      if (blockIdx.y == 0 && inside) positive_product[first_row + row] = product;
    }
  }
  __syncwarp();

  const typename F::Rows rows(row_tile);
  typename F::PerRow max, sum = {};
  int rank[F::kRowBlocks][2] = {};
  typename F::Sums weighted = {};  // (without gradient it stays zero, and takes no registers)
  F::for_each_row([&](int block, int half) { max[block][half] = -INFINITY; });

  const bool idle = first_row + F::warp_row() >= query.count;  // a warp that only helps with the copies
  for (int64_t tile = first_tile; tile < last_tile; tile++) {
    wait_for_copies<0>();
    __syncthreads();  // this tile is there, and nobody reads the one before, which the next one replaces
    if (tile + 1 < last_tile) load_keys(tile + 1);
    commit_copies();
    if (idle) continue;
    const int stage = tile % kFlashStages;
    const uint32_t column_tile = column_tiles + stage * F::kColumnTileBytes;

    typename F::Logits s;
    F::multiply(s, rows, column_tile);
    F::for_each_logit([&](int block, int j, int i) { s[block][j][i] *= scale; });
    const Keys keys = keys_of(tile);
    const bool own = keys.own && keys.first < first_row + F::kRows && first_row < keys.first + F::kColumns;
    if (own || keys.first + F::kColumns > keys.count)
      F::exclude(s, min(keys.count - keys.first, int64_t(F::kColumns)), own ? first_row - keys.first : INT_MIN);
    if (keys.ids != nullptr) F::exclude(s, shared.row_ids, shared.column_ids[stage]);
    F::for_each_row([&](int block, int half) {
      const float positive_logit = shared.row_positive[F::row(block, half)];  // (registers are scarce)
#pragma unroll
      for (int j = 0; j < F::kColumnBlocks; j++) {
        rank[block][half] += s[block][j][2 * half] > positive_logit;
        rank[block][half] += s[block][j][2 * half + 1] > positive_logit;
      }
    });
    F::weigh(s, max, weighted, [&](int block, int half, float shrink) { sum[block][half] *= shrink; });
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
    const int64_t row = first_row + F::row(block, half);
    if (row >= query.count) return;
    const int64_t entry = blockIdx.y * query.count + row;
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

template <class F>
struct FlashKeysShared {
  alignas(128) char rows[F::kRowTileBytes];
  char columns[kFlashStages][F::kColumnTileBytes];
  float2 column_share[kFlashStages][F::kColumns];  // of each query: log2 |grad_loss / temperature| - lse, and the sign
  int64_t row_ids[F::kRows];
  int64_t column_ids[kFlashStages][F::kColumns];
};
template <class Shared>
constexpr int flash_shared_bytes(bool with_ids) {
  return with_ids ? sizeof(Shared) : offsetof(Shared, row_ids);
}

// The recompute pass for the keys' own gradient, with queries and keys in changed places: for key j
// sum_i grad_i / temperature · e^(s_ij - lse_i) · q_i. Upstream gradients and softmax are one exponential, so that a
// running maximum keeps the weights in the range of 16 bits here as well. Block (x, y): kRows keys from x · kRows on
// and the y-th of gridDim.y equal parts of the queries.
template <typename F, typename T = typename F::T>
__global__ void __launch_bounds__(F::kThreads, F::kShape.blocks_per_sm)
    info_nce_flash_keys_kernel(FlashFeatures<T> keys, FlashFeatures<T> query,
                               const int64_t* valid,  // one element, or null
                               bool in_batch, Temperature<float> temperature,
                               const float* lse,        // [N]
                               const float* grad_loss,  // [N]
                               int64_t grad_stride,
                               T* grad_keys,              // [K, C], or
                               float* split_gradients) {  // [S, K, C] for S = gridDim.y > 1, which are to be summed

  extern __shared__ __align__(128) char memory[];
  auto& shared = *reinterpret_cast<FlashKeysShared<F>*>(memory);
  const uint32_t row_tile = shared_address(shared.rows), column_tiles = shared_address(shared.columns);
  const float tau = temperature.get(), scale = kLog2E / tau;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * F::kRows, count = valid_count(keys.count, valid);
  const bool with_ids = keys.ids != nullptr && query.ids != nullptr;
  const int64_t tiles = first_row < count ? (query.count + F::kColumns - 1) / F::kColumns : 0;
  const int64_t first_tile = tiles * blockIdx.y / gridDim.y, last_tile = tiles * (blockIdx.y + 1) / gridDim.y;

  auto share_of = [&](int64_t tile) {
    const int64_t i = tile * F::kColumns + threadIdx.x;
    if (tile >= last_tile || threadIdx.x >= F::kColumns || i >= query.count) return make_float2(-INFINITY, 1);
    const float weight = grad_loss[i * grad_stride] / tau;
    return make_float2(log2f(fabsf(weight)) - lse[i] * kLog2E, weight < 0 ? -1 : 1);
  };
  auto store_share = [&](int64_t tile, float2 share) {
    if (threadIdx.x < F::kColumns) shared.column_share[tile % kFlashStages][threadIdx.x] = share;
  };
  auto load_queries = [&](int64_t tile) {
    const int stage = tile % kFlashStages;
    const int64_t first = tile * F::kColumns, i = first + threadIdx.x;
    F::template load<F::kColumns>(column_tiles + stage * F::kColumnTileBytes, query.rows, query.row_stride, first,
                                  query.count);
    if (with_ids && threadIdx.x < F::kColumns) {
      const bool inside = i < query.count;
      copy_async<8>(shared_address(&shared.column_ids[stage][threadIdx.x]), query.ids + (inside ? i : 0), inside);
    }
  };

  F::template load<F::kRows>(row_tile, keys.rows, keys.row_stride, first_row, count);
  if (with_ids && threadIdx.x < F::kRows) {
    const int64_t row = first_row + threadIdx.x;
    shared.row_ids[threadIdx.x] = row < count ? keys.ids[row] : 0;
  }
  commit_copies();
  if (first_tile < last_tile) load_queries(first_tile);
  commit_copies();
  store_share(first_tile, share_of(first_tile));
  wait_for_copies<1>();
  __syncthreads();

  const typename F::Rows rows(row_tile);
  typename F::PerRow max;
  typename F::Sums gradient = {};
  F::for_each_row([&](int block, int half) { max[block][half] = -INFINITY; });

  for (int64_t tile = first_tile; tile < last_tile; tile++) {
    wait_for_copies<0>();
    __syncthreads();
    if (tile + 1 < last_tile) load_queries(tile + 1);
    commit_copies();
    const float2 next_share = share_of(tile + 1);  // on its way during the products
    const int stage = tile % kFlashStages;
    const uint32_t column_tile = column_tiles + stage * F::kColumnTileBytes;
    const int64_t first = tile * F::kColumns;

    typename F::Logits s;
    F::multiply(s, rows, column_tile);
    F::for_each_logit([&](int block, int j, int i) {
      s[block][j][i] = s[block][j][i] * scale + shared.column_share[stage][F::column(j, i)].x;
    });
    const bool own = in_batch && first < first_row + F::kRows && first_row < first + F::kColumns;
    if (own || first + F::kColumns > query.count)
      F::exclude(s, min(query.count - first, int64_t(F::kColumns)), own ? first_row - first : INT_MIN);
    if (with_ids) F::exclude(s, shared.row_ids, shared.column_ids[stage]);
    F::weigh(s, max, gradient, [](int, int, float) {});
    F::for_each_logit(
        [&](int block, int j, int i) { s[block][j][i] *= shared.column_share[stage][F::column(j, i)].y; });
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

}  // namespace maskco
