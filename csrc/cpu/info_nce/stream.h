// The streaming pass of info_nce over one block of queries and one range of keys, by one thread.
//
// It takes one tile of keys at a time, and a panel of queries as wide as a few vectors:
// - A matrix product makes the logits [keys, panel].
// - While they are in the first-level cache, the pass updates the running maximum and the rank, and makes the weights
//   2^(s - max) and their sum.
// - It multiplies the weights by the same keys.
//
// That is attention with keys = values = queue. Queries lie across lanes. So nothing is summed across a vector, and
// float keys are read in place. Logits are in units of log 2: the query is scaled by log2(e) / temperature. Everything
// is inlined into one function for each instruction set (top of info_nce.cpp).
//
// If the CPU multiplies pairs of bfloat16, bfloat16 keys are not converted, and the weights are rounded to bfloat16. An
// "operand" is then a pair: two columns of a key in the first product, two keys in the second. With AMX the second
// product is computed transposed (weighted_sums_amx.h), and float32 may have two parts (operands.h).
#pragma once
#include <algorithm>
#include <cstdint>
#include <limits>

#include "cpu/contrast/logits.h"
#include "cpu/info_nce/weighted_sums_amx.h"

namespace maskco {

// Running state of some queries, one array each.
template <class T>
struct States {
  const T* positive_logit;
  T* max;         // maximum of the positive's logit and those of all negatives so far
  T* sum;         // sum of 2^(s - max) over the negatives, without the positive for precision of losses near 0
  int64_t* rank;  // number of negatives with a larger logit than the positive's

  States operator+(int64_t n) const { return {positive_logit + n, max + n, sum + n, rank + n}; }
};

constexpr int64_t kRowBlock = 256;    // queries of a block: they, their sums and a tile fit the L2 cache
constexpr int64_t kQueryGroup = 128;  // queries that add to the keys' gradient at a time
constexpr int64_t kRowStep = 32;      // blocks start at multiples of this, a multiple of every panel

// One block of queries against one range of keys. Padding up to sizes "rounded up" is computed, but not used.
template <class T>
struct ForwardPass {
  Keys keys;
  int64_t first_key, last_key;
  const void* query;  // operands [rows rounded up / panel, row_operands(C), panel]; scaled unless they are pairs
  T scale;            // for the logits of pairs
  int64_t first_row, rows, c;
  const int64_t* query_ids;  // [N] or null
  const T* ceiling;          // [N rounded up]: keys with a larger logit, times the sign, are not negatives; or null
  T ceiling_sign;
  States<T> states;  // [rows rounded up]
  T* sums;           // [rows rounded up, C rounded up]: weighted sums of keys, or null without gradient
  T* workspace;      // pass_workspace() elements
};

// All queries against one range of keys again, for the keys' gradient. A logit must have the same bits as in the
// forward pass. Then no weight 2^(s - max) exceeds 1, however large the logits and their rounding errors are.
template <class T>
struct KeyGradientPass {
  Keys keys;
  int64_t first_key, last_key;
  const void* query;  // operands, as in the forward pass
  T scale;
  const T* query_wide;  // [N, C rounded up], as it is
  int64_t n, c;
  const int64_t* query_ids;  // [N] or null
  const T* ceiling;          // as in the forward pass
  T ceiling_sign;
  const T* max;       // [N rounded up], of the forward pass, in units of log 2
  const T* upstream;  // [N rounded up]: grad_loss / (temperature · sum of 2^(s - max))
  T* grad_keys;       // [K, C]
  T* workspace;       // pass_workspace() elements
};

// Size of: logits of some queries, weights in two parts, a copy of a tile, and its pairs in another order or its
// gradient.
template <class Tile>
int64_t pass_workspace(int64_t c) {
  return Tile::kKeys * (kQueryGroup + 2 * round_up(c, Tile::kColumns));
}

// Sets the logit -inf for keys first_key .. first_key + n that are not negatives of queries row .. row + lanes.
template <class Pass, class T>
MASKCO_INLINE void exclude(const Pass& pass, T* logits, int64_t stride, int64_t first_key, int64_t n, int64_t row,
                           int64_t lanes) {
  const Keys& keys = pass.keys;
  const int64_t* query_ids = pass.query_ids;
  constexpr T none = -std::numeric_limits<T>::infinity();
  if (query_ids && keys.ids)
    for (int64_t j = 0; j < n; j++)
      for (int64_t l = 0; l < lanes; l++)
        logits[j * stride + l] = keys.ids[first_key + j] == query_ids[row + l] ? none : logits[j * stride + l];
  if (pass.ceiling)
    for (int64_t j = 0; j < n; j++)
      for (int64_t l = 0; l < lanes; l++) {
        T& s = logits[j * stride + l];
        s = s * pass.ceiling_sign > pass.ceiling[row + l] ? none : s;
      }
  if (keys.own_excluded)
    for (int64_t i = std::max(first_key, row); i < std::min(first_key + n, row + lanes); i++)
      logits[(i - first_key) * stride + i - row] = none;
}

// Turns logits[n, panel] into weights 2^(s - max) in place. shrink[panel] gets the factors for earlier sums.
template <class Tile, class T>
MASKCO_INLINE void absorb(T* logits, int64_t n, const States<T>& states, T* shrink) {
  using Lane = typename Tile::Lane;
  using Vector = typename Lane::Vector;
  constexpr int kPanel = Tile::kColumns, kVectors = kPanel / Lane::kCount;
  const Vector infinity = Vector{} + std::numeric_limits<T>::infinity();
  Vector positive[kVectors], max[kVectors], shift[kVectors], sum[kVectors];
  typename Lane::Mask larger[kVectors];
  for (int v = 0; v < kVectors; v++) {
    positive[v] = Lane::at(states.positive_logit + v * Lane::kCount);
    max[v] = Lane::at(states.max + v * Lane::kCount);
    larger[v] ^= larger[v];
  }
  for (int64_t j = 0; j < n; j++)
    for (int v = 0; v < kVectors; v++) {
      const Vector s = Lane::at(logits + j * kPanel + v * Lane::kCount);
      max[v] = s > max[v] ? s : max[v];
      larger[v] += s > positive[v];  // -1 where true
    }
  for (int v = 0; v < kVectors; v++) {
    T* old = states.max + v * Lane::kCount;
    Vector factor = Lane::at(old) == max[v] ? Vector{} : Lane::at(old) - max[v];
    Lane::exp2(factor);
    Lane::at(shrink + v * Lane::kCount) = factor;
    Lane::at(old) = max[v];
    // Inf - Inf would be NaN, for keys without a logit or with an infinite one.
    shift[v] = ((max[v] == infinity) | (max[v] == -infinity)) ? Vector{} : max[v];
    sum[v] = Lane::at(states.sum + v * Lane::kCount) * factor;
    for (int l = 0; l < Lane::kCount; l++) states.rank[v * Lane::kCount + l] -= larger[v][l];
  }
  for (int64_t j = 0; j < n; j++)
    for (int v = 0; v < kVectors; v++) {
      Vector& logit = Lane::at(logits + j * kPanel + v * Lane::kCount);
      Vector w = logit - shift[v];
      Lane::exp2(w);
      logit = w;
      sum[v] += w;
    }
  for (int v = 0; v < kVectors; v++) Lane::at(states.sum + v * Lane::kCount) = sum[v];
}

template <class Tile, class T>
MASKCO_INLINE void stream_forward(const ForwardPass<T>& pass) {
  using Operand = typename Tile::Operand;
  constexpr int64_t kPanel = Tile::kColumns, kDepth = Tile::kDepth, kKeys = Tile::kKeys;
  const int64_t c = pass.c, width = round_up(c, kPanel), depth = row_operands<Tile>(c);
  const int64_t key_width = kDepth == 1 && pass.sums ? width : depth;  // the second product reads whole vectors
  const auto* query = static_cast<const Operand*>(pass.query);
  T* logits = pass.workspace;                                                         // [kParts * kKeys, panel]
  auto* buffer = reinterpret_cast<Operand*>(logits + Tile::kParts * kKeys * kPanel);  // [kKeys, key_width]
  WeightedSums<Tile> weighted(c, width, buffer + kKeys * width);
  for (int64_t k0 = pass.first_key; k0 < pass.last_key; k0 += kKeys) {
    const int64_t n = std::min(kKeys, pass.last_key - k0);
    int64_t tile_stride;
    const Operand* tile = key_rows<Tile>(pass.keys, k0, n, c, key_width, buffer, tile_stride);
    if (pass.sums) weighted.take_keys(tile, tile_stride, n);
    Ahead ahead = Ahead::of<Tile>(tile, tile_stride, depth, pass.rows);
    for (int64_t i0 = 0; i0 < pass.rows; i0 += kPanel) {
      T shrink[kPanel];
      panel_logits<Tile>(tile, tile_stride, n, query + i0 * depth, depth, pass.scale, logits, kPanel, ahead);
      exclude(pass, logits, kPanel, k0, n, pass.first_row + i0, std::min(kPanel, pass.rows - i0));
      absorb<Tile>(logits, n, pass.states + i0, shrink);
      if (pass.sums) weighted.add(logits, shrink, pass.sums + i0 * width);
    }
  }
  for (int64_t i0 = 0; pass.sums && i0 < pass.rows; i0 += kPanel)
    weighted.finish(pass.sums + i0 * width, pass.workspace);
}

// LogitTile makes the logits as the forward pass does, Tile the gradient, in T.
template <class LogitTile, class Tile, class T>
MASKCO_INLINE void stream_key_gradient(const KeyGradientPass<T>& pass) {
  using Operand = typename LogitTile::Operand;
  using Lane = typename Tile::Lane;
  constexpr int64_t kPanel = Tile::kColumns, kKeys = LogitTile::kKeys;
  static_assert(LogitTile::kColumns == kPanel && sizeof(Operand) == sizeof(T));
  const int64_t c = pass.c, width = round_up(c, kPanel), depth = row_operands<LogitTile>(c);
  const auto* query = static_cast<const Operand*>(pass.query);
  T* logits = pass.workspace;                                               // [kKeys, kQueryGroup]
  auto* buffer = reinterpret_cast<Operand*>(logits + kKeys * kQueryGroup);  // [kKeys, depth]
  T* gradient = logits + kKeys * (kQueryGroup + width);                     // [kKeys, width]
  for (int64_t k0 = pass.first_key; k0 < pass.last_key; k0 += kKeys) {
    const int64_t n = std::min(kKeys, pass.last_key - k0);
    int64_t tile_stride;
    const Operand* tile = key_rows<LogitTile>(pass.keys, k0, n, c, depth, buffer, tile_stride);
    std::fill_n(gradient, kKeys * width, T(0));
    Ahead ahead = Ahead::of<LogitTile>(tile, tile_stride, depth, pass.n);
    for (int64_t i0 = 0; i0 < pass.n; i0 += kQueryGroup) {
      const int64_t queries = std::min(kQueryGroup, pass.n - i0);
      for (int64_t i = 0; i < queries; i += kPanel)
        panel_logits<LogitTile>(tile, tile_stride, n, query + (i0 + i) * depth, depth, pass.scale, logits + i,
                                kQueryGroup, ahead);
      exclude(pass, logits, kQueryGroup, k0, n, i0, queries);
      for (int64_t j = 0; j < n; j++)
        for (int64_t i = 0; i < queries; i += Lane::kCount) {
          auto& logit = Lane::at(logits + j * kQueryGroup + i);
          auto weight = logit - Lane::at(pass.max + i0 + i);
          Lane::exp2(weight);
          logit = weight * Lane::at(pass.upstream + i0 + i);
        }
      for (int64_t x = 0; x < width; x += kPanel)
        for (int64_t j = 0; j < n; j += Tile::kRows)
          Tile::multiply(logits + j * kQueryGroup, kQueryGroup, 1, pass.query_wide + i0 * width + x, width,
                         gradient + j * width + x, width, queries, true);
    }
    for (int64_t j = 0; j < n; j++) std::copy_n(gradient + j * width, c, pass.grad_keys + (k0 + j) * c);
  }
}

}  // namespace maskco
