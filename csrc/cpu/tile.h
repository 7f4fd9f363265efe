// A register tile of a matrix product, and the copies that bring its operands into order. Vectors are the compiler's
// own (GCC and Clang), so one source serves every instruction set; info_nce.cpp instantiates it per x86 level.
#pragma once
#include <cstdint>

#include "cpu/vector.h"

namespace maskco {

// c[kRows, kColumns] = or += a[kRows, depth] b[depth, kColumns], with the whole c in registers.
template <class T, int kVectorBytes, int kRows_, int kVectors>
struct RegisterTile {
  typedef T Vector __attribute__((vector_size(kVectorBytes), aligned(alignof(T)), may_alias));
  static constexpr int kLanes = kVectorBytes / sizeof(T);
  static constexpr int kRows = kRows_;
  static constexpr int kColumns = kVectors * kLanes;

  static MASKCO_INLINE void multiply(const T* a, int64_t a_row, int64_t a_depth,  // strides
                                     const T* b, int64_t b_depth, T* c, int64_t c_row, int64_t depth, bool add) {
    Vector sum[kRows][kVectors];
    for (int r = 0; r < kRows; r++)
      for (int v = 0; v < kVectors; v++)
        sum[r][v] = add ? *reinterpret_cast<const Vector*>(c + r * c_row + v * kLanes) : Vector{};
    for (int64_t k = 0; k < depth; k++) {
      Vector row[kVectors];
      for (int v = 0; v < kVectors; v++) row[v] = *reinterpret_cast<const Vector*>(b + k * b_depth + v * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; r++) {
        const T x = a[r * a_row + k * a_depth];
        for (int v = 0; v < kVectors; v++) sum[r][v] += x * row[v];
      }
    }
    for (int r = 0; r < kRows; r++)
      for (int v = 0; v < kVectors; v++) *reinterpret_cast<Vector*>(c + r * c_row + v * kLanes) = sum[r][v];
  }
};

MASKCO_INLINE int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// rows[n, c] in any strides -> out[n, width] in T, zeros behind column c
template <class T, class Source>
MASKCO_INLINE void copy_rows(const Source* rows, int64_t row_stride, int64_t column_stride, int64_t n, int64_t c,
                             int64_t width, T* out) {
  for (int64_t j = 0; j < n; j++) {
    if (column_stride == 1)
      for (int64_t x = 0; x < c; x++) out[j * width + x] = static_cast<T>(rows[j * row_stride + x]);
    else
      for (int64_t x = 0; x < c; x++) out[j * width + x] = static_cast<T>(rows[j * row_stride + x * column_stride]);
    for (int64_t x = c; x < width; x++) out[j * width + x] = T(0);
  }
}

// rows[n, c] in T -> panels [ceil(n / kColumns), c, kColumns], the transposed order that a product's right side wants
template <class T, int kColumns>
MASKCO_INLINE void pack_columns(const T* rows, int64_t row_stride, int64_t n, int64_t c, T* panels) {
  for (int64_t j0 = 0; j0 < n; j0 += kColumns, panels += c * kColumns) {
    const int64_t filled = n - j0 < kColumns ? n - j0 : kColumns;
    for (int64_t x = 0; x < c; x++) {
      for (int64_t j = 0; j < filled; j++) panels[x * kColumns + j] = rows[(j0 + j) * row_stride + x];
      for (int64_t j = filled; j < kColumns; j++) panels[x * kColumns + j] = T(0);
    }
  }
}

}  // namespace maskco
