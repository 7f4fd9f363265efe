// A register tile of a matrix product, and the copies that bring its operands into order.
#pragma once
#include <cstdint>

#include "cpu/vector.h"

namespace maskco {

// c[kRows, kColumns] = or += a[kRows, depth] b[depth, kColumns], with the whole c in registers.
template <class T_, int kVectorBytes, int kRows_, int kVectors>
struct RegisterTile {
  using T = T_;
  using Lane = Lanes<T, kVectorBytes>;
  using Vector = typename Lane::Vector;
  static constexpr int kRows = kRows_;
  static constexpr int kColumns = kVectors * Lane::kCount;

  static MASKCO_INLINE void multiply(const T* a, int64_t a_row, int64_t a_depth,  // strides
                                     const T* b, int64_t b_depth, T* c, int64_t c_row, int64_t depth, bool add) {
    Vector sum[kRows][kVectors];
    for (int r = 0; r < kRows; r++)
      for (int v = 0; v < kVectors; v++) sum[r][v] = add ? Lane::at(c + r * c_row + v * Lane::kCount) : Vector{};
    for (int64_t k = 0; k < depth; k++) {
      Vector row[kVectors];
      for (int v = 0; v < kVectors; v++) row[v] = Lane::at(b + k * b_depth + v * Lane::kCount);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; r++) {
        const T x = a[r * a_row + k * a_depth];
        for (int v = 0; v < kVectors; v++) sum[r][v] += x * row[v];
      }
    }
    for (int r = 0; r < kRows; r++)
      for (int v = 0; v < kVectors; v++) Lane::at(c + r * c_row + v * Lane::kCount) = sum[r][v];
  }
};

MASKCO_INLINE int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// rows[n, c] in any strides -> out[rows_out, width] in T, zeros behind row n and column c
template <class T, class Source>
MASKCO_INLINE void copy_rows(const Source* rows, int64_t row_stride, int64_t column_stride, int64_t n, int64_t c,
                             int64_t rows_out, int64_t width, T* out) {
  for (int64_t j = 0; j < n; j++) {
    if (column_stride == 1)
      for (int64_t x = 0; x < c; x++) out[j * width + x] = static_cast<T>(rows[j * row_stride + x]);
    else
      for (int64_t x = 0; x < c; x++) out[j * width + x] = static_cast<T>(rows[j * row_stride + x * column_stride]);
    for (int64_t x = c; x < width; x++) out[j * width + x] = T(0);
  }
  for (int64_t i = n * width; i < rows_out * width; i++) out[i] = T(0);
}

}  // namespace maskco
