// The operands of a contrastive pass's products. Keys are read in place if possible, else from a converted copy of a
// tile. The weights are here too.
//
// With AMX, pairs of bfloat16 may represent float32. A number then has two parts: the nearest bfloat16, and the rest in
// bfloat16. Keys are rows [nearest, rest], queries [rest, nearest]. The product of the whole rows multiplies each
// side's nearest by the other side's rest. Nearest times nearest is added separately. Only rest times rest is left out:
// 2^-16 of the product or less.
#pragma once
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstring>

#include "cpu/common/register_tile.h"

namespace maskco {

// Keys that all queries share, and which of them are a query's negatives.
struct Keys {
  const void* rows;  // [count, C]
  torch::headeronly::ScalarType dtype;
  int64_t row_stride, column_stride;
  int64_t count;
  const int64_t* ids;  // [count] or null
  bool own_excluded;   // in one batch: key i is query i's positive
};

MASKCO_INLINE int32_t pair(uint16_t low, uint16_t high) { return static_cast<int32_t>(low | uint32_t(high) << 16); }

// Number of operands of a row of c elements.
template <class Tile>
MASKCO_INLINE int64_t row_operands(int64_t c) {
  return Tile::kParts * ((c + Tile::kDepth - 1) / Tile::kDepth);
}

// The bits of the nearest bfloat16, and of two equally near ones the larger: the upper half, after adding half of its
// last place.
MASKCO_INLINE uint16_t nearest_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return static_cast<uint16_t>((bits + 0x8000) >> 16);
}
MASKCO_INLINE float rest_of(float x, uint16_t nearest) {  // NaN for an infinite x
  const uint32_t bits = uint32_t(nearest) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return x - value;
}

// Operand x of a row of c elements, `stride` apart.
template <class Tile, class Source>
MASKCO_INLINE typename Tile::Operand operand(const Source* row, int64_t stride, int64_t c, int64_t x) {
  if constexpr (Tile::kDepth == 2) {
    auto bits = [&](int64_t i) { return i < c ? c10::BFloat16(static_cast<float>(row[i * stride])).x : 0; };
    return pair(bits(2 * x), bits(2 * x + 1));
  } else {
    return x < c ? static_cast<typename Tile::Operand>(row[x * stride]) : 0;
  }
}

// rows[n, c] -> out[rows_out, width], operands of two parts, padded with zeros.
template <class Source>
MASKCO_INLINE void split_rows(const Source* rows, int64_t row_stride, int64_t column_stride, int64_t n, int64_t c,
                              int64_t rows_out, int64_t width, int32_t* out) {
  constexpr int64_t kBlock = 16;  // as in copy_rows
  auto* halves = reinterpret_cast<uint16_t*>(out);
  const auto split = [&](int64_t j, int64_t x, float value) {
    const uint16_t nearest = nearest_bfloat16(value);
    halves[2 * j * width + x] = nearest;
    halves[(2 * j + 1) * width + x] = nearest_bfloat16(rest_of(value, nearest));
  };
  if (column_stride == 1)
    for (int64_t j = 0; j < n; j++)
      for (int64_t x = 0; x < c; x++) split(j, x, static_cast<float>(rows[j * row_stride + x]));
  else
    for (int64_t j0 = 0; j0 < n; j0 += kBlock)
      for (int64_t x = 0; x < c; x++)
        for (int64_t j = j0; j < std::min(j0 + kBlock, n); j++)
          split(j, x, static_cast<float>(rows[j * row_stride + x * column_stride]));
  for (int64_t j = 0; c < width && j < n; j++) split(j, c, 0);
  std::fill(out + n * width, out + rows_out * width, 0);
}

// rows[n, c] with any strides -> out[rows_out, width] operands, padded with zeros.
template <class Tile, class Source>
MASKCO_INLINE void copy_rows(const Source* rows, int64_t row_stride, int64_t column_stride, int64_t n, int64_t c,
                             int64_t rows_out, int64_t width, typename Tile::Operand* out) {
  constexpr int64_t kBlock = 16;  // rows: the part of a cache line of column-major keys that is read at once
  if (column_stride == 1)
    for (int64_t j = 0; j < n; j++)
      for (int64_t x = 0; x < width; x++) out[j * width + x] = operand<Tile>(rows + j * row_stride, 1, c, x);
  else
    for (int64_t j0 = 0; j0 < n; j0 += kBlock)
      for (int64_t x = 0; x < width; x++)
        for (int64_t j = j0; j < std::min(j0 + kBlock, n); j++)
          out[j * width + x] = operand<Tile>(rows + j * row_stride, column_stride, c, x);
  std::fill(out + n * width, out + rows_out * width, 0);
}

// Keys first .. first + n as rows of operands, `row_stride` apart. A copy, in `buffer`, has zeros up to `width`
// operands and up to a multiple of the register tile's rows.
template <class Tile>
MASKCO_INLINE const typename Tile::Operand* key_rows(const Keys& keys, int64_t first, int64_t n, int64_t c,
                                                     int64_t width, typename Tile::Operand* buffer,
                                                     int64_t& row_stride) {
  using torch::headeronly::ScalarType;
  constexpr ScalarType own = Tile::kDepth == 2               ? ScalarType::BFloat16
                             : sizeof(typename Tile::T) == 8 ? ScalarType::Double
                                                             : ScalarType::Float;
  if (Tile::kParts == 1 && keys.dtype == own && keys.column_stride == 1 && keys.row_stride % Tile::kDepth == 0 &&
      c == width * Tile::kDepth && n % Tile::kRows == 0) {
    row_stride = keys.row_stride / Tile::kDepth;
    return static_cast<const typename Tile::Operand*>(keys.rows) + first * row_stride;
  }
  auto copy = [&](auto* rows) __attribute__((always_inline)) {
    rows += first * keys.row_stride;
    if constexpr (Tile::kParts == 2)
      split_rows(rows, keys.row_stride, keys.column_stride, n, c, round_up(n, Tile::kRows), width, buffer);
    else
      copy_rows<Tile>(rows, keys.row_stride, keys.column_stride, n, c, round_up(n, Tile::kRows), width, buffer);
  };
  switch (keys.dtype) {
    case ScalarType::Double:
      copy(static_cast<const double*>(keys.rows));
      break;
    case ScalarType::Half:
      copy(static_cast<const c10::Half*>(keys.rows));
      break;
    case ScalarType::BFloat16:
      copy(static_cast<const c10::BFloat16*>(keys.rows));
      break;
    default:
      copy(static_cast<const float*>(keys.rows));
  }
  row_stride = width;
  return buffer;
}

// The same keys for the second product, along whose depth they lie: [n / kDepth, width]. Only pairs need another order.
template <class Tile>
MASKCO_INLINE const typename Tile::Operand* value_rows(const typename Tile::Operand* tile, int64_t n, int64_t c,
                                                       int64_t width, typename Tile::Operand* buffer,
                                                       int64_t& row_stride) {
  if constexpr (Tile::kDepth == 1) {
    return tile;
  } else {
    for (int64_t j = 0; j < n;
         j += 2) {  // (the register tile's rows are even: there is a row n, of zeros, if n is odd)
      const auto* even = reinterpret_cast<const uint16_t*>(tile + j * row_stride);
      const auto* odd = reinterpret_cast<const uint16_t*>(tile + (j + 1) * row_stride);
      int32_t* out = buffer + j / 2 * width;
      for (int64_t x = 0; x < c; x++) out[x] = pair(even[x], odd[x]);
      for (int64_t x = c; x < width; x++) out[x] = 0;
    }
    row_stride = width;
    return buffer;
  }
}

// Converts weights [n, panel] to operands [n / kDepth, panel], in place.
template <class Tile>
MASKCO_INLINE const typename Tile::Operand* weight_rows(typename Tile::T* weights, int64_t n) {
  if constexpr (Tile::kDepth == 1) {
    return weights;
  } else {
    using Bits = Lanes<int32_t, Tile::Lane::kBytes>;
    auto* bits = reinterpret_cast<int32_t*>(weights);
    for (int64_t j = 0; j < n; j += 2)
      for (int64_t l = 0; l < Tile::kColumns; l += Bits::kCount) {
        // The nearest bfloat16 is the upper half of the bits, after adding half of its last place.
        const auto even = (Bits::at(bits + j * Tile::kColumns + l) + 0x8000) >> 16;
        const auto odd = Bits::at(bits + (j + 1) * Tile::kColumns + l) + 0x8000;
        Bits::at(bits + j / 2 * Tile::kColumns + l) = (even & 0xffff) | (odd & -0x10000);
      }
    return bits;
  }
}

}  // namespace maskco
