// The streaming pass of info_nce over one block of queries and one range of keys, by one thread.
//
// A tile of keys at a time: logits by a matrix product; then, while they are in cache, a pass per row for the running
// maximum, the rank, the weights e^(s - max) and their sum; then the weights times the same keys. That is attention
// with keys = values = queue. Everything is inlined into one function per instruction set (top of info_nce.cpp).
#pragma once
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "cpu/tile.h"
#include "cpu/vector.h"

namespace maskco {

// Running state of one query.
template <class T>
struct Row {
  T max;  // of the positive's logit and all negatives' so far
  T sum;  // of e^(s - max) over the negatives: the positive stays out, so that a loss near 0 keeps its precision
  T positive_logit;
  int64_t rank;  // negatives with a larger logit than the positive's
};

// Keys that all queries share, and which of them are a query's negatives.
struct Keys {
  const void* rows;  // [count, C]
  torch::headeronly::ScalarType dtype;
  int64_t row_stride, column_stride;
  int64_t count;
  const int64_t* ids;  // [count] or null
  bool own_excluded;   // in-batch: key i is query i's positive
};

constexpr int64_t kKeyTile = 192;   // keys of one tile, and
constexpr int64_t kRowBlock = 264;  // queries of one block: with both, a pass stays in a second-level cache of 1 MiB
constexpr int64_t kRowStep = 24;    // blocks start at multiples of this, which every register tile's rows divide

// One block of queries against one range of keys. Rows and columns "rounded up" are there to be computed, not used.
template <class T>
struct ForwardPass {
  Keys keys;
  int64_t first_key, last_key;
  const T* query;  // [rows rounded up, C], divided by the temperature
  int64_t first_row, rows, c;
  const int64_t* query_ids;  // [N] or null
  Row<T>* state;             // [rows]
  T* sums;                   // [rows rounded up, C rounded up]: weighted sums of keys; null without gradient
  T* workspace;              // pass_workspace() elements
};

// All queries against one range of keys, once more: the keys' gradient.
template <class T>
struct KeyGradientPass {
  Keys keys;
  int64_t first_key, last_key;
  const T* query;       // [N rounded up, C], divided by the temperature
  const T* query_wide;  // [N rounded up, C rounded up], the same
  int64_t n, c;
  const int64_t* query_ids;  // [N] or null
  const T* lse;              // [N]
  const T* grad_loss;        // [N]
  T* grad_keys;              // [K, C]
  T* workspace;              // pass_workspace() elements
};

// logits, the transposed tile, a copy of the tile, the gradient of a tile
template <class Tile>
int64_t pass_workspace(int64_t c) {
  return kKeyTile * (kRowBlock + c + 2 * round_up(c, Tile::kColumns));
}

// Turns logits[n] into weights e^(s - max) in place; returns the factor by which earlier sums shrink.
template <class T>
MASKCO_INLINE T absorb(T* logits, int64_t n, Row<T>& row) {
  constexpr int kLanes = 32;  // independent partial results, so that maxima and sums vectorise
  T max_lane[kLanes], sum_lane[kLanes] = {};
  int32_t rank_lane[kLanes] = {};
  for (int l = 0; l < kLanes; l++) max_lane[l] = row.max;
  const int64_t full = n / kLanes * kLanes;
  for (int64_t j = 0; j < full; j += kLanes)
    for (int l = 0; l < kLanes; l++) {
      const T s = logits[j + l];
      max_lane[l] = s > max_lane[l] ? s : max_lane[l];
      rank_lane[l] += s > row.positive_logit;
    }
  for (int64_t j = full; j < n; j++) {
    max_lane[0] = logits[j] > max_lane[0] ? logits[j] : max_lane[0];
    rank_lane[0] += logits[j] > row.positive_logit;
  }
  T max = max_lane[0];
  for (int l = 0; l < kLanes; l++) {
    max = max_lane[l] > max ? max_lane[l] : max;
    row.rank += rank_lane[l];
  }
  const T shift =
      std::isinf(max) ? T(0) : max;  // Inf - Inf would be NaN: keys without a logit, or with an infinite one
  for (int64_t j = 0; j < full; j += kLanes)
    for (int l = 0; l < kLanes; l++) {
      const T w = fast_exp(logits[j + l] - shift);
      logits[j + l] = w;
      sum_lane[l] += w;
    }
  for (int64_t j = full; j < n; j++) sum_lane[0] += logits[j] = fast_exp(logits[j] - shift);
  T sum = 0;
  for (int l = 0; l < kLanes; l++) sum += sum_lane[l];
  const T shrink = max == row.max ? T(1) : std::exp(row.max - max);
  row.max = max;
  row.sum = row.sum * shrink + sum;
  return shrink;
}

// Keys that are not a query's negatives get the logit -inf.
template <class T>
MASKCO_INLINE void exclude(T* logits, int64_t row, int64_t first_key, int64_t n, const Keys& keys,
                           const int64_t* query_ids) {
  constexpr T none = -std::numeric_limits<T>::infinity();
  if (query_ids && keys.ids)
    for (int64_t j = 0; j < n; j++) logits[j] = keys.ids[first_key + j] == query_ids[row] ? none : logits[j];
  if (keys.own_excluded && first_key <= row && row < first_key + n) logits[row - first_key] = none;
}

// Keys first .. first + n as rows of T, at least `width` wide: in place if they are that already, else copied to
// `buffer`.
template <class T>
MASKCO_INLINE const T* key_rows(const Keys& keys, int64_t first, int64_t n, int64_t c, int64_t width, T* buffer,
                                int64_t& row_stride) {
  using torch::headeronly::ScalarType;
  constexpr ScalarType own = sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float;
  if (keys.dtype == own && keys.column_stride == 1 && c == width) {
    row_stride = keys.row_stride;
    return static_cast<const T*>(keys.rows) + first * row_stride;
  }
  auto copy = [&](auto* rows) __attribute__((always_inline)) {
    copy_rows<T>(rows + first * keys.row_stride, keys.row_stride, keys.column_stride, n, c, width, buffer);
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

// The logits of all rows of a block against a tile of n keys, which is left in `panels` and `*tile`.
template <class Tile, class T>
MASKCO_INLINE void tile_logits(const T* query, int64_t rows, int64_t c, const T* tile, int64_t tile_stride, int64_t n,
                               T* panels, T* logits) {
  pack_columns<T, Tile::kColumns>(tile, tile_stride, n, c, panels);
  for (int64_t j = 0; j < n; j += Tile::kColumns)
    for (int64_t i = 0; i < rows; i += Tile::kRows)
      Tile::multiply(query + i * c, c, 1, panels + j * c, Tile::kColumns, logits + i * kKeyTile + j, kKeyTile, c,
                     false);
}

template <class Tile, class T>
MASKCO_INLINE void stream_forward(const ForwardPass<T>& pass) {
  const int64_t c = pass.c, width = round_up(c, Tile::kColumns);
  T* logits = pass.workspace;                 // [kRowBlock, kKeyTile]
  T* panels = logits + kRowBlock * kKeyTile;  // the tile, transposed
  T* buffer = panels + kKeyTile * c;          // [kKeyTile, width]
  for (int64_t k0 = pass.first_key; k0 < pass.last_key; k0 += kKeyTile) {
    const int64_t n = std::min(kKeyTile, pass.last_key - k0);
    int64_t tile_stride;
    const T* tile = key_rows<T>(pass.keys, k0, n, c, pass.sums ? width : c, buffer, tile_stride);
    tile_logits<Tile>(pass.query, pass.rows, c, tile, tile_stride, n, panels, logits);
    for (int64_t i = 0; i < pass.rows; i++) {
      exclude(logits + i * kKeyTile, pass.first_row + i, k0, n, pass.keys, pass.query_ids);
      const T shrink = absorb(logits + i * kKeyTile, n, pass.state[i]);
      if (pass.sums && shrink != T(1))
        for (int64_t x = 0; x < width; x++) pass.sums[i * width + x] *= shrink;
    }
    if (!pass.sums) continue;
    for (int64_t x = 0; x < width; x += Tile::kColumns)
      for (int64_t i = 0; i < pass.rows; i += Tile::kRows)
        Tile::multiply(logits + i * kKeyTile, kKeyTile, 1, tile + x, tile_stride, pass.sums + i * width + x, width, n,
                       true);
  }
}

template <class Tile, class T>
MASKCO_INLINE void stream_key_gradient(const KeyGradientPass<T>& pass) {
  const int64_t c = pass.c, width = round_up(c, Tile::kColumns);
  T* logits = pass.workspace;
  T* panels = logits + kRowBlock * kKeyTile;
  T* buffer = panels + kKeyTile * c;
  T* gradient = buffer + kKeyTile * width;  // [kKeyTile, width]
  for (int64_t k0 = pass.first_key; k0 < pass.last_key; k0 += kKeyTile) {
    const int64_t n = std::min(kKeyTile, pass.last_key - k0);
    int64_t tile_stride;
    const T* tile = key_rows<T>(pass.keys, k0, n, c, c, buffer, tile_stride);
    std::fill_n(gradient, kKeyTile * width, T(0));
    for (int64_t i0 = 0; i0 < pass.n; i0 += kRowBlock) {
      const int64_t rows = std::min(kRowBlock, pass.n - i0);
      tile_logits<Tile>(pass.query + i0 * c, rows, c, tile, tile_stride, n, panels, logits);
      for (int64_t i = 0; i < rows; i++) {
        exclude(logits + i * kKeyTile, i0 + i, k0, n, pass.keys, pass.query_ids);
        const T lse = pass.lse[i0 + i], scale = pass.grad_loss[i0 + i];
        for (int64_t j = 0; j < n; j++) logits[i * kKeyTile + j] = fast_exp(logits[i * kKeyTile + j] - lse) * scale;
      }
      for (int64_t x = 0; x < width; x += Tile::kColumns)
        for (int64_t j = 0; j < n; j += Tile::kRows)
          Tile::multiply(logits + j, 1, kKeyTile, pass.query_wide + i0 * width + x, width, gradient + j * width + x,
                         width, rows, true);
    }
    for (int64_t j = 0; j < n; j++) std::copy_n(gradient + j * width, c, pass.grad_keys + (k0 + j) * c);
  }
}

}  // namespace maskco
