// A register tile of a matrix product.
#pragma once
#include <cstdint>

#include "cpu/common/vector.h"

namespace maskco {

// One step of a product, which adds to its sums. Here: a multiplication of floats or doubles.
template <class T_, int kBytes>
struct MultiplyAdd {
  using T = T_;
  using Operand = T;
  static constexpr int kDepth = 1;  // factors in an operand
  using Vector = typename Lanes<T, kBytes>::Vector;
  static MASKCO_INLINE void add(Vector& sum, Operand x, const Vector& row) { sum += x * row; }
};

// One step for pairs of bfloat16 (AVX512_BF16). It is inline assembly, since the intrinsic cannot be inlined into a
// function whose target is set by attribute. Clang refuses the instruction here for the same reason.
#if defined(__x86_64__) && !defined(__clang__)
#define MASKCO_BFLOAT16_PAIRS
struct MultiplyAddPairs {
  using T = float;
  using Operand = int32_t;
  static constexpr int kDepth = 2;
  using Vector = Lanes<int32_t, 64>::Vector;
  static MASKCO_INLINE void add(Lanes<float, 64>::Vector& sum, Operand x, const Vector& row) {
    auto in_register = sum;  // (an array element as the operand would stay in memory)
    asm("vdpbf16ps %2, %1, %0" : "+v"(in_register) : "v"(row), "v"(Vector{} + x));
    sum = in_register;
  }
};
#endif

// c[kRows, kColumns] = or += a[kRows, depth] b[depth, kColumns], with the whole product in registers. It is added to c
// at the end. So a long sum that is cut into several calls has the small rounding error of a blocked sum.
template <class Step, int kVectorBytes, int kRows_, int kVectors>
struct RegisterTile {
  using T = typename Step::T;
  using Operand = typename Step::Operand;
  using Lane = Lanes<T, kVectorBytes>;
  static constexpr int kDepth = Step::kDepth;
  static constexpr int kParts = 1;         // operands that represent one number: see operands.h
  static constexpr bool kStrided = true;   // a_depth may be any
  static constexpr int64_t kLongest = 64;  // sum: a longer sum of positive factors rounds noticeably more
  static constexpr int64_t kKeys = 96;     // of a pass's tile: a panel's logits and a few columns of keys fit the L1
  static constexpr int kRows = kRows_;
  static constexpr int kColumns = kVectors * Lane::kCount;

  static MASKCO_INLINE void multiply(const Operand* a, int64_t a_row, int64_t a_depth,  // strides
                                     const Operand* b, int64_t b_depth, T* c, int64_t c_row, int64_t depth, bool add) {
    typename Lane::Vector sum[kRows][kVectors];
    for (int r = 0; r < kRows; r++)
      for (int v = 0; v < kVectors; v++) sum[r][v] = typename Lane::Vector{};
    for (int64_t k = 0; k < depth; k++) {
      typename Step::Vector row[kVectors];
      for (int v = 0; v < kVectors; v++) row[v] = Lanes<Operand, kVectorBytes>::at(b + k * b_depth + v * Lane::kCount);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; r++) {
        const Operand x = a[r * a_row + k * a_depth];
        for (int v = 0; v < kVectors; v++) Step::add(sum[r][v], x, row[v]);
      }
    }
    for (int r = 0; r < kRows; r++)
      for (int v = 0; v < kVectors; v++) {
        auto& to = Lane::at(c + r * c_row + v * Lane::kCount);
        to = add ? to + sum[r][v] : sum[r][v];
      }
  }
};

MASKCO_INLINE int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

}  // namespace maskco
