// A tile of logits: some rows of one side against some rows of the other, for any C, dtype and strides. The caller uses
// the logits. A block sweeps a rectangle of such tiles. Its channels stream through shared memory in chunks of 128
// bytes for each row. The next chunk is copied while one is multiplied.
#pragma once
#include <cstdint>
#include <type_traits>

#include "cuda/common/convert.cuh"
#include "cuda/common/fragments.cuh"
#include "cuda/common/ptx.cuh"

namespace maskco {

constexpr double kLog2E = 1.44269504088896340736, kLn2 = 0.69314718055994530942;

// One side's features.
template <typename T>
struct PairRows {
  const T* rows;  // [count, C]
  int64_t row_stride, stride;
  int64_t count;
  int channels;  // C
  bool aligned;  // rows start and end at multiples of 16 bytes
};

// A stand-in for a tensor-core product in float64. (The tile multiplies without it.)
struct DoubleProduct {
  using element = double;
  static constexpr int kTerms = 1;
};

// A scale: a number, or a tensor that is read on the device and raised to the power `number`, 1 or -1.
template <typename Acc>
struct DeviceScalar {
  double number;
  const Acc* tensor;  // one element, or null

  __device__ Acc get() const {
    if (tensor == nullptr) return static_cast<Acc>(number);
    return number < 0 ? 1 / *tensor : *tensor;
  }
};

// The upstream gradient of each loss: one number for all, or [N].
template <typename Acc>
struct Upstream {
  double uniform;
  const Acc* rows;  // or null

  __device__ Acc get(int64_t i) const { return rows != nullptr ? rows[i] : static_cast<Acc>(uniform); }
};

__device__ __forceinline__ float exp2_of(float x) { return exp2_approximate(x); }
__device__ __forceinline__ double exp2_of(double x) { return exp2(x); }
// (never part of a fused multiply-add, since every pass must get the same logit)
__device__ __forceinline__ float times(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double times(double a, double b) { return __dmul_rn(a, b); }

// Number of tiles of a block, along each side. A block's tiles start at blockIdx (x for queries, y for keys) times
// these.
struct Rectangle {
  int rows, columns;
};

template <typename Product_, int kWarpsDown_, int kWarpsAcross_, int kRowBlocks, int kColumnBlocks, int kBlocksPerSm_>
struct LogitTile : Fragments<accumulator_t<typename Product_::element>, kRowBlocks, kColumnBlocks> {
  using Product = Product_;
  using T = typename Product::element;
  using Acc = accumulator_t<T>;
  using Warp = Fragments<Acc, kRowBlocks, kColumnBlocks>;
  using typename Warp::Logits, typename Warp::PerColumn, typename Warp::PerRow;
  using Warp::for_each_column, Warp::for_each_logit, Warp::for_each_row;
  static constexpr int kWarpsDown = kWarpsDown_, kWarpsAcross = kWarpsAcross_, kBlocksPerSm = kBlocksPerSm_;
  static constexpr int kThreads = 32 * kWarpsDown * kWarpsAcross;
  static constexpr int kWarpRows = 16 * kRowBlocks, kWarpColumns = 8 * kColumnBlocks;
  static constexpr int kRows = kWarpsDown * kWarpRows, kColumns = kWarpsAcross * kWarpColumns;
  static_assert(kRows + kColumns <= kThreads);  // one thread for each row and each column
  static_assert(kColumnBlocks % 2 == 0);

  // ---- chunks of channels in shared memory, swizzled so that ldmatrix of eight rows, or columns, meets each bank once
  static constexpr int kRowBytes = 128, kStages = 2, kPieces = kRowBytes / 16, kElements = 16 / sizeof(T);
  static constexpr int kChunk = kRowBytes / sizeof(T);  // channels
  static constexpr int kStageBytes = (kRows + kColumns) * kRowBytes;

  __device__ __forceinline__ static int row_offset(int row, int piece) {
    return row * kRowBytes + 16 * (piece ^ row % 8);
  }
  __device__ __forceinline__ static int column_offset(int column, int piece) {  // (columns 0, 1, 4, 5, .., or 2, 3, ..)
    return column * kRowBytes + 16 * (piece ^ (column % 2 + column / 4 % 4 * 2));
  }
  // Copies channels from `channel` on, of rows from `first` on. Beyond the last row or channel it writes zeros.
  template <int kTileRows, int (*kOffset)(int, int)>
  __device__ __forceinline__ static void load(char* tile, const PairRows<T>& from, int64_t first, int channel) {
    static_assert(kTileRows % (kThreads / kPieces) == 0);
    const int row = threadIdx.x / kPieces, piece = threadIdx.x % kPieces;
    const int c = channel + piece * kElements;
#pragma unroll
    for (int pass = 0; pass < kTileRows; pass += kThreads / kPieces) {
      const int64_t r = first + pass + row;
      char* to = tile + kOffset(pass + row, piece);
      const T* source = from.rows + r * from.row_stride + c * from.stride;
      if (from.aligned) {
        const bool inside = r < from.count && c < from.channels;
        copy_async<16>(shared_address(to), inside ? source : from.rows, inside);
      } else {
        Pack<T, kElements> pack;
        for (int e = 0; e < kElements; e++)
          pack.value[e] = r < from.count && c + e < from.channels ? source[e * from.stride] : convert<T>(0.0f);
        *reinterpret_cast<Pack<T, kElements>*>(to) = pack;
      }
    }
  }

  // ---- where a lane's fragments are
  // A lane holds four consecutive columns of each 16: two in the block of columns j, and two in j + 1. (So the columns
  // of a block are 0, 1, 4, 5, .. of 16.)
  __device__ __forceinline__ static int warp_down() { return threadIdx.x / 32 / kWarpsAcross; }
  __device__ __forceinline__ static int warp_across() { return threadIdx.x / 32 % kWarpsAcross; }
  __device__ __forceinline__ static int row(int block, int half) {
    return warp_down() * kWarpRows + 16 * block + 8 * half + threadIdx.x % 32 / 4;
  }
  __device__ __forceinline__ static int column(int j, int i) {
    return warp_across() * kWarpColumns + 16 * (j / 2) + threadIdx.x % 4 * 4 + 2 * (j % 2) + i % 2;
  }

  // s (and `rest`, for three terms) += rows · columnsᵀ of a chunk.
  __device__ __forceinline__ static void multiply(Logits& s, Logits& rest, const char* rows, const char* columns) {
    if constexpr (std::is_same_v<T, double>) {
      const auto at = [](const char* tile, int offset, int c) {
        return *reinterpret_cast<const double*>(tile + offset + c % 2 * 8);
      };
#pragma unroll 1
      for (int c = 0; c < kChunk; c++) {
        PerRow a;
        for_each_row([&](int block, int half) { a[block][half] = at(rows, row_offset(row(block, half), c / 2), c); });
#pragma unroll
        for (int j = 0; j < kColumnBlocks; j++) {
          const double b[2] = {at(columns, column_offset(column(j, 0), c / 2), c),
                               at(columns, column_offset(column(j, 1), c / 2), c)};
          for_each_row([&](int block, int half) {
            for (int i = 0; i < 2; i++) s[block][j][2 * half + i] += a[block][half] * b[i];
          });
        }
      }
    } else {
      const int lane = threadIdx.x % 32;
      const uint32_t a_at = shared_address(rows) + row_offset(warp_down() * kWarpRows + lane % 16, lane / 16);
      const uint32_t b_at =
          shared_address(columns) +
          column_offset(warp_across() * kWarpColumns + lane % 8 / 2 * 4 + lane / 16 * 2 + lane % 2, lane / 8 % 2);
#pragma unroll
      for (int step = 0; step < kRowBytes / 32; step++) {  // (two pieces further, which is one XOR in the swizzle)
        typename Product::template Operand<4> a[kRowBlocks];
#pragma unroll
        for (int block = 0; block < kRowBlocks; block++) {
          uint32_t raw[4];
          load_matrices(raw, (a_at ^ 32 * step) + block * 16 * kRowBytes);
          a[block] = Product::operand(raw);
        }
#pragma unroll
        for (int j = 0; j < kColumnBlocks; j += 2) {
          uint32_t raw[4];
          load_matrices(raw, (b_at ^ 32 * step) + j * 8 * kRowBytes);
          const typename Product::template Operand<2> b[2] = {Product::operand({raw[0], raw[1]}),
                                                              Product::operand({raw[2], raw[3]})};
#pragma unroll
          for (int block = 0; block < kRowBlocks; block++)
#pragma unroll
            for (int i = 0; i < 2; i++) Warp::template add_product<Product>(s, rest, block, j + i, a[block], b[i]);
        }
      }
    }
  }

  // Calls body(first row, first column, s) for each tile of the block's rectangle. s has the products of the tile's
  // rows of both sides. Columns are the outer loop.
  template <typename Body>
  __device__ __forceinline__ static void sweep(char* stages, const PairRows<T>& rows, const PairRows<T>& columns,
                                               Rectangle size, const Body& body) {
    const auto tiles = [](int64_t count, int tile) { return static_cast<int>((count + tile - 1) / tile); };
    const int row_begin = blockIdx.x * size.rows, row_end = min(row_begin + size.rows, tiles(rows.count, kRows));
    const int column_begin = blockIdx.y * size.columns;
    const int column_end = min(column_begin + size.columns, tiles(columns.count, kColumns));
    const int chunks = max(1, tiles(rows.channels, kChunk));
    struct {
      int row, column, chunk;
    } next{row_begin, column_begin, 0};  // to be loaded
    int stage = 0;                       // the stage that is multiplied next
    const auto load_next = [&](int to) {
      if (next.column < column_end) {
        char* tile = stages + to * kStageBytes;
        load<kRows, &row_offset>(tile, rows, int64_t(next.row) * kRows, next.chunk * kChunk);
        load<kColumns, &column_offset>(tile + kRows * kRowBytes, columns, int64_t(next.column) * kColumns,
                                       next.chunk * kChunk);
        if (++next.chunk == chunks) {
          next.chunk = 0;
          if (++next.row == row_end) {
            next.row = row_begin;
            next.column++;
          }
        }
      }
      commit_copies();
    };
    load_next(0);
    for (int column = column_begin; column < column_end; column++)
      for (int row = row_begin; row < row_end; row++) {
        Logits s, rest;
        for_each_logit([&](int block, int j, int i) { s[block][j][i] = rest[block][j][i] = 0; });
        for (int chunk = 0; chunk < chunks; chunk++) {
          wait_for_copies<0>();
          __syncthreads();  // this chunk has arrived, and no thread reads the previous one, which the next copy
                            // replaces
          load_next(1 - stage);
          const char* tile = stages + stage * kStageBytes;
          multiply(s, rest, tile, tile + kRows * kRowBytes);
          stage = 1 - stage;
        }
        Warp::template add_rest<Product>(s, rest);
        body(int64_t(row) * kRows, int64_t(column) * kColumns, s);
      }
  }

  // Stores four elements of a row of `width` elements, a multiple of four.
  __device__ __forceinline__ static void store(T* row, int64_t column, int64_t width, const Acc (&four)[4]) {
    if (column >= width) return;
    if constexpr (sizeof(T) == 2) {
      store_global(row + column, make_uint2(Product::pack(four[0], four[1]), Product::pack(four[2], four[3])));
    } else if constexpr (sizeof(T) == 4) {
      store_global(row + column, make_float4(four[0], four[1], four[2], four[3]));
    } else {
      store_global(row + column, make_double2(four[0], four[1]));
      store_global(row + column + 2, make_double2(four[2], four[3]));
    }
  }

  // ---- reductions over a tile, in a fixed order
  // A warp's part is in `parts` afterwards. The block sees it after the next __syncthreads.
  template <typename Op>
  __device__ __forceinline__ static void reduce_rows(PerRow& values, Acc (&parts)[kWarpsAcross][kRows], const Op& op) {
    for_each_row([&](int block, int half) {
      Acc& value = values[block][half];
      value = op(value, __shfl_xor_sync(0xffffffff, value, 1));
      value = op(value, __shfl_xor_sync(0xffffffff, value, 2));
      if (threadIdx.x % 4 == 0) parts[warp_across()][row(block, half)] = value;
    });
  }
  template <typename Op>
  __device__ __forceinline__ static void reduce_columns(PerColumn& values, Acc (&parts)[kWarpsDown][kColumns],
                                                        const Op& op) {
    for_each_column([&](int j, int i) {
      Acc& value = values[j][i];
      for (int offset = 4; offset < 32; offset *= 2) value = op(value, __shfl_xor_sync(0xffffffff, value, offset));
      if (threadIdx.x % 32 < 4) parts[warp_down()][column(j, i)] = value;
    });
  }
};

struct Plus {
  template <typename T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Larger {  // (ignores a NaN, which will show in the sums)
  __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
  __device__ __forceinline__ double operator()(double a, double b) const { return fmax(a, b); }
};

// The sum of a number from each thread of the block. Thread 0 gets it.
template <int kThreads>
__device__ double block_total(double value) {
  __shared__ double parts[kThreads / 32];
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffff, value, offset);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  double total = 0;
  for (int warp = 0; warp < kThreads / 32; warp++) total += parts[warp];
  __syncthreads();  // (another call writes `parts` again)
  return total;
}

}  // namespace maskco
