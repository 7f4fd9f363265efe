// Fragments: the elements of a tensor-core tile that a warp's lanes hold, and loops over them.
#pragma once
#include "cuda/common/products.cuh"

namespace maskco {

// A tile has blocks of 16 rows and blocks of 8 columns. In each pair of blocks a lane holds four elements: two of row g
// and two of row g + 8 (`half`), for lane = 4 g + t.
template <typename Acc, int kRowBlocks_, int kColumnBlocks_>
struct Fragments {
  static constexpr int kRowBlocks = kRowBlocks_, kColumnBlocks = kColumnBlocks_;
  using Logits = Acc[kRowBlocks][kColumnBlocks][4];
  using PerRow = Acc[kRowBlocks][2];
  using PerColumn = Acc[kColumnBlocks][2];

  template <typename Body>  // body(block of rows, block of columns, i) for element i of four, in row i / 2
  __device__ __forceinline__ static void for_each_logit(const Body& body) {
#pragma unroll
    for (int j = 0; j < kColumnBlocks; j++)
#pragma unroll
      for (int block = 0; block < kRowBlocks; block++)
#pragma unroll
        for (int i = 0; i < 4; i++) body(block, j, i);
  }
  template <typename Body>  // body(block, half)
  __device__ __forceinline__ static void for_each_row(const Body& body) {
#pragma unroll
    for (int block = 0; block < kRowBlocks; block++)
#pragma unroll
      for (int half = 0; half < 2; half++) body(block, half);
  }
  template <typename Body>  // body(block, i)
  __device__ __forceinline__ static void for_each_column(const Body& body) {
#pragma unroll
    for (int j = 0; j < kColumnBlocks; j++)
#pragma unroll
      for (int i = 0; i < 2; i++) body(j, i);
  }

  // A step of s += a · bᵀ. With three terms, the small ones go into `rest`, since an infinite factor makes them NaN.
  // With `kSwapped` it rounds as if a and b were swapped.
  template <typename Product, bool kSwapped = false>
  __device__ __forceinline__ static void add_product(Logits& s, Logits& rest, int block, int j,
                                                     const typename Product::template Operand<4>& a,
                                                     const typename Product::template Operand<2>& b) {
    if constexpr (Product::kTerms == 3) {
      Product::template add_rest<kSwapped>(rest[block][j], a, b);
      Product::add_high(s[block][j], a, b);
    } else {
      Product::add(s[block][j], a, b);
    }
  }
  // The last step. The result is infinite where a factor is.
  template <typename Product>
  __device__ __forceinline__ static void add_rest(Logits& s, const Logits& rest) {
    if constexpr (Product::kTerms == 3)
      for_each_logit([&](int block, int j, int i) {
        if (!isinf(s[block][j][i])) s[block][j][i] += rest[block][j][i];
      });
  }
};

}  // namespace maskco
