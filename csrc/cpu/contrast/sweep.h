// All pairs of queries and keys, one block at a time, for losses that use a pair from both sides.
//
// A block is a tile of keys times a group of queries, whose logits fit the second-level cache. A matrix product makes
// the logits. A policy (softmax.h, sigmoid.h) reads them, or turns them into weights dL/d(query · key) in place. The
// products of the weights with keys and with queries are added to the two gradients. Queries lie across lanes. Each
// loss is a policy.
//
// One thread sweeps a unit: a group of queries against a range of keys. It owns the policy's state for its rows and
// keys, and the rows of both gradients. schedule.h runs only units at once that share neither.
//
// If the CPU multiplies pairs of bfloat16, this pass uses them for the logits, since ATen would round logits to
// bfloat16. Weights are rounded to bfloat16 in any case. So this pass only writes them, and ATen computes the
// gradients' products.
#pragma once
#include <algorithm>
#include <cstdint>
#include <limits>

#include "cpu/contrast/logits.h"

namespace maskco {

constexpr int64_t kGroup = 128;           // queries of a group at most
constexpr int64_t kBlockKeys = 128;       // keys of a block at most
constexpr int64_t kFeatures = 256;        // features of a gradient at a time: they and a block fit the L2 cache
constexpr int64_t kStride = kGroup + 16;  // of a block's rows: with a power of two, columns would share cache sets

template <class T>
struct Block {
  T* logits;  // [keys, stride]
  int64_t stride;
  int64_t first_key, keys;
  int64_t first_row, rows, lanes;  // lanes: rows, rounded up to a panel
};

// Logits of the first queries, kept from reading to weighing. Each group has [K, lanes], one group after the other, so
// that those of a block are contiguous. `rows` is 0 if none are kept.
template <class T>
struct Kept {
  T* logits;
  int64_t rows;
};

// State that the units of one chunk of queries share. Widths are C rounded up to a panel.
template <class T>
struct Sweep {
  Keys keys;
  int64_t c, width;
  T scale;                    // from a product to a logit
  int64_t chunk;              // its first row
  const void* query;          // operands [rows rounded up / panel, C / depth, panel]
  T *grad_query, *grad_keys;  // [N rounded up, width], [K, width] to add to, or null; not for pairs
  const T* query_values;      // [width / panel, query_values_rows, panel], for the keys' gradient
  int64_t query_values_rows;
  uint16_t* weights;  // for pairs: the chunk's weights [K, weights_stride], bfloat16
  int64_t weights_stride;
  Kept<T> kept;
};

template <class T>
struct Unit {
  int64_t first_row, rows, first_key, last_key;
  T* workspace;  // sweep_workspace() elements
};

template <class Tile>
int64_t sweep_workspace(int64_t c) {
  const int64_t width = round_up(c, Tile::kColumns);
  return kBlockKeys * (kStride + 2 * kFeatures + width) + kGroup * width;
}

// rows [n, C], `stride` apart -> [width / panel, terms, panel], of which n terms are filled. This is the second factor
// of a product with the rows along its depth.
template <class Tile, class T = typename Tile::T>
MASKCO_INLINE void pack_values(const T* rows, int64_t stride, int64_t n, int64_t c, int64_t width, int64_t terms,
                               T* out) {
  constexpr int64_t kPanel = Tile::kColumns;
  for (int64_t j = 0; j < n; j++)
    for (int64_t x0 = 0; x0 < width; x0 += kPanel) {
      T* to = out + (x0 / kPanel * terms + j) * kPanel;
      const T* from = rows + j * stride + x0;
      if (c - x0 >= kPanel) {
        for (int64_t l = 0; l < kPanel; l += Tile::Lane::kCount) Tile::Lane::at(to + l) = Tile::Lane::at(from + l);
        continue;
      }
      for (int64_t x = 0; x < kPanel; x++) to[x] = x < c - x0 ? from[x] : 0;
    }
}

// weights [keys, kStride] -> [keys, stride], rounded to the nearest bfloat16.
template <class Tile>
MASKCO_INLINE void round_weights(const typename Tile::T* weights, int64_t keys, int64_t lanes, uint16_t* out,
                                 int64_t stride) {
  using Bits = Lanes<int32_t, Tile::Lane::kBytes>;
  typedef uint16_t Halves __attribute__((vector_size(Bits::kBytes / 2), aligned(2), may_alias));
  const auto* bits = reinterpret_cast<const int32_t*>(weights);
  for (int64_t j = 0; j < keys; j++)
    for (int64_t l = 0; l < lanes; l += Bits::kCount) {
      // The nearest bfloat16 is the upper half of the bits, after adding half of its last place.
      const auto upper = (Bits::at(bits + j * kStride + l) + 0x8000) >> 16;
      *reinterpret_cast<Halves*>(out + j * stride + l) = __builtin_convertvector(upper, Halves);
    }
}

// Adds sums of products [width / panel, stride, panel] to rows[n, width], row_stride apart.
template <class Tile, class T>
MASKCO_INLINE void add_to_rows(const T* sums, int64_t stride, int64_t n, int64_t width, T* rows, int64_t row_stride) {
  using Lane = typename Tile::Lane;
  constexpr int64_t kPanel = Tile::kColumns;
  for (int64_t i = 0; i < n; i++)
    for (int64_t x = 0; x < width; x += kPanel)
      for (int64_t l = 0; l < kPanel; l += Lane::kCount)
        Lane::at(rows + i * row_stride + x + l) += Lane::at(sums + (x / kPanel * stride + i) * kPanel + l);
}

// One side's product of a block: out[width / panel, rows_out, panel] = or += weights[rows, terms] values[terms, width].
// Sums lie in panels. In rows of 2^k features they would share cache sets.
template <class Tile, class T = typename Tile::T>
MASKCO_INLINE void multiply_block(const T* weights, int64_t row_stride, int64_t term_stride, int64_t rows,
                                  int64_t terms, const T* values, int64_t values_stride, int64_t width, T* out,
                                  int64_t rows_out, bool add) {
  constexpr int64_t kPanel = Tile::kColumns;
  for (int64_t x = 0; x < width / kPanel; x++)
    for (int64_t i = 0; i < rows; i += Tile::kRows)
      Tile::multiply(weights + i * row_stride, row_stride, term_stride, values + x * values_stride * kPanel, kPanel,
                     out + (x * rows_out + i) * kPanel, kPanel, terms, add);
}

template <class Tile, bool kWeigh, class T, class Policy>
MASKCO_INLINE void sweep_unit(const Sweep<T>& sweep, const Unit<T>& unit, const Policy& policy) {
  using Operand = typename Tile::Operand;
  constexpr int64_t kPanel = Tile::kColumns, kDepth = Tile::kDepth;
  static_assert(Tile::kParts == 1, "panel_logits holds no more rests than a tile of kKeys keys has");
  const int64_t c = sweep.c, width = sweep.width, depth = (c + kDepth - 1) / kDepth;
  const int64_t lanes = round_up(unit.rows, kPanel), in_chunk = unit.first_row - sweep.chunk;
  const auto* query = static_cast<const Operand*>(sweep.query) + in_chunk * depth;
  T* logits = unit.workspace;                                                // [kBlockKeys, kStride]
  auto* buffer = reinterpret_cast<Operand*>(logits + kBlockKeys * kStride);  // [kBlockKeys, width]: a copied tile
  T* values = reinterpret_cast<T*>(buffer + kBlockKeys * width);             // [features / panel, keys, panel]
  T* key_sums = values + kBlockKeys * kFeatures;                             // [features / panel, kBlockKeys, panel]
  T* query_sums = key_sums + kBlockKeys * kFeatures;                         // [width / panel, lanes, panel]
  for (int64_t k0 = unit.first_key; k0 < unit.last_key; k0 += kBlockKeys) {
    const int64_t n = std::min(kBlockKeys, unit.last_key - k0);
    const bool keep = unit.first_row + lanes <= sweep.kept.rows;
    T* kept = keep ? sweep.kept.logits + unit.first_row * sweep.keys.count + k0 * lanes : nullptr;
    const bool in_place = !kWeigh && keep && n % Tile::kRows == 0;  // (whole tiles are written)
    const int64_t stride = in_place ? lanes : kStride;
    const Block<T> block{in_place ? kept : logits, stride, k0, n, unit.first_row, unit.rows, lanes};
    int64_t tile_stride;
    const Operand* tile = key_rows<Tile>(sweep.keys, k0, n, c, depth, buffer, tile_stride);
    if (kWeigh && keep) {
      for (int64_t j = 0; j < n; j++) std::copy_n(kept + j * lanes, lanes, logits + j * kStride);
    } else {
      Ahead ahead = Ahead::of<Tile, kBlockKeys>(tile, tile_stride, depth, unit.rows);
      for (int64_t i = 0; i < lanes; i += kPanel)
        panel_logits<Tile, false>(tile, tile_stride, n, query + i * depth, depth, sweep.scale, block.logits + i, stride,
                                  ahead);
      policy.template exclude<Tile>(block);
      if (keep && !in_place)
        for (int64_t j = 0; j < n; j++) std::copy_n(logits + j * kStride, lanes, kept + j * lanes);
    }
    if constexpr (!kWeigh) {
      policy.template read<Tile>(block);
      continue;
    }
    policy.template weigh<Tile>(block);
    if constexpr (kDepth == 2) {
      round_weights<Tile>(logits, n, lanes, sweep.weights + k0 * sweep.weights_stride + in_chunk, sweep.weights_stride);
    } else {
      const T* query_values = sweep.query_values + in_chunk * kPanel;
      for (int64_t x = 0; x < width; x += kFeatures) {
        const int64_t features = std::min(kFeatures, width - x);
        if (sweep.grad_query) {
          pack_values<Tile>(tile + x, tile_stride, n, c - x, features, n, values);
          multiply_block<Tile>(logits, 1, kStride, lanes, n, values, n, features, query_sums + x * lanes, lanes,
                               k0 > unit.first_key);
        }
        if (sweep.grad_keys) {
          multiply_block<Tile>(logits, kStride, 1, n, unit.rows, query_values + x * sweep.query_values_rows,
                               sweep.query_values_rows, features, key_sums, kBlockKeys, false);
          add_to_rows<Tile>(key_sums, kBlockKeys, n, features, sweep.grad_keys + k0 * width + x, width);
        }
      }
    }
  }
  if (kWeigh && sweep.grad_query)
    add_to_rows<Tile>(query_sums, lanes, unit.rows, width, sweep.grad_query + unit.first_row * width, width);
}

}  // namespace maskco
