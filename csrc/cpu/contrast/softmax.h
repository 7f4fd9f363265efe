// The policy of losses with normalised logits: over a query's keys (rows), over a key's queries (columns), or both.
//
// Sums leave out a query's own key, so that a loss near 0 keeps its precision. The caller adds it. Logits are in units
// of log 2.
#pragma once
#include "cpu/contrast/sweep.h"

namespace maskco {

// One side's running softmax. Each array is [N rounded up] or [K].
template <class T>
struct SoftmaxSide {
  T* max;                 // of all logits so far
  T* sum;                 // of 2^(s - max)
  int64_t* rank;          // number of logits larger than own_logit; null if not needed
  const T* own_logit;     // logit of the query's, or key's, own pair
  T *total, *count;       // of logits that count; null if not needed
  const T* weight_shift;  // for the weights: max, or 0 if that is infinite
  const T* weight;        // a pair's weight is weight · 2^(s - weight_shift) - share
  const T* share;         // for pairs that share a label, or for all; null: no such term
};

template <class T>
struct SoftmaxPairs {
  using Integer = typename Lanes<T, 16>::Integer;

  bool own_excluded;
  int64_t own;  // key i + own is query i's own
  // Ids of keys [K], and of queries [N rounded up], in as many parts as lanes of T need for 64 bits. Null: no ids.
  const Integer *query_ids, *query_ids_high;
  const int64_t* key_ids;
  bool ids_exclude;  // true: pairs of one id do not count; false: they are the positives
  const T* ceiling;  // [N rounded up]: pairs with a larger logit, times the sign, do not count; or null
  T ceiling_sign;
  SoftmaxSide<T> rows, columns;
  bool has_columns;
  const T* own_weight;  // [N rounded up]: weights of own pairs, which sums leave out
  T* along;             // [N rounded up]: sum of weight · logit, for the scale's gradient

  // (not returned: the ABI of a vector as a return value depends on the target)
  template <class Lane>
  MASKCO_INLINE void same_id(int64_t row, int64_t id, typename Lane::Mask& same) const {
    using Integers = Lanes<Integer, Lane::kBytes>;
    same = Integers::at(query_ids + row) == static_cast<Integer>(id);
    if constexpr (sizeof(T) == 4) same &= Integers::at(query_ids_high + row) == static_cast<int32_t>(id >> 32);
  }

  // Which queries share the key's label, except the query that is the key itself. (Its logit of -inf does not identify
  // it: a positive's logit may be -inf too.)
  template <class Lane>
  MASKCO_INLINE void positives(int64_t row, int64_t key, typename Lane::Mask& which) const {
    same_id<Lane>(row, key_ids[key], which);
    const int64_t itself = key - own - row;
    if (own_excluded && 0 <= itself && itself < Lane::kCount) which[itself] = 0;
  }

  // Pairs that do not count get the logit -inf.
  template <class Tile>
  MASKCO_INLINE void exclude(const Block<T>& block) const {
    using Lane = typename Tile::Lane;
    using Vector = typename Lane::Vector;
    const Vector none = Vector{} - std::numeric_limits<T>::infinity();
    if (block.rows < block.lanes)
      for (int64_t j = 0; j < block.keys; j++)
        std::fill(block.logits + j * block.stride + block.rows, block.logits + j * block.stride + block.lanes, none[0]);
    if (key_ids && ids_exclude)
      for (int64_t j = 0; j < block.keys; j++)
        for (int64_t l = 0; l < block.lanes; l += Lane::kCount) {
          Vector& s = Lane::at(block.logits + j * block.stride + l);
          typename Lane::Mask same;
          same_id<Lane>(block.first_row + l, key_ids[block.first_key + j], same);
          s = same ? none : s;
        }
    if (ceiling)
      for (int64_t j = 0; j < block.keys; j++)
        for (int64_t l = 0; l < block.lanes; l += Lane::kCount) {
          Vector& s = Lane::at(block.logits + j * block.stride + l);
          s = s * ceiling_sign > Lane::at(ceiling + block.first_row + l) ? none : s;
        }
    if (own_excluded)
      for (int64_t i = first_own(block); i < last_own(block); i++)
        block.logits[(i - block.first_key) * block.stride + i - own - block.first_row] = none[0];
  }

  // Adds the block to the sums.
  template <class Tile>
  MASKCO_INLINE void read(const Block<T>& block) const {
    using Lane = typename Tile::Lane;
    using Vector = typename Lane::Vector;
    using Mask = typename Lane::Mask;
    constexpr int64_t kMost = kGroup / Lane::kCount;
    const int64_t vectors = block.lanes / Lane::kCount;
    const Vector infinity = Vector{} + std::numeric_limits<T>::infinity();
    Vector max[kMost], shift[kMost], sum[kMost];
    Mask larger[kMost];
    for (int64_t v = 0; v < vectors; v++) {
      max[v] = Lane::at(rows.max + block.first_row + v * Lane::kCount);
      larger[v] ^= larger[v];
    }
    T column_max[kBlockKeys];
    for (int64_t j = 0; j < block.keys; j++) {
      const T* logits = block.logits + j * block.stride;
      const int64_t key = block.first_key + j;
      Vector highest = -infinity;
      Mask above{};
      const Vector own_of_key = Vector{} + (has_columns ? columns.own_logit[key] : T(0));
      for (int64_t v = 0; v < vectors; v++) {
        const Vector s = Lane::at(logits + v * Lane::kCount);
        max[v] = s > max[v] ? s : max[v];
        highest = s > highest ? s : highest;
        if (rows.rank) larger[v] += s > Lane::at(rows.own_logit + block.first_row + v * Lane::kCount);
        above += s > own_of_key;
      }
      if (!has_columns) continue;
      T highest_lane = columns.max[key];
      int64_t above_lanes = 0;
      for (int l = 0; l < Lane::kCount; l++) {
        highest_lane = highest[l] > highest_lane ? highest[l] : highest_lane;
        above_lanes -= above[l];
      }
      column_max[j] = highest_lane;
      columns.rank[key] += above_lanes;
    }
    if (rows.total) add_totals<Lane>(block);
    for (int64_t v = 0; v < vectors; v++) {
      const int64_t row = block.first_row + v * Lane::kCount;
      Vector factor = Lane::at(rows.max + row) == max[v] ? Vector{} : Lane::at(rows.max + row) - max[v];
      Lane::exp2(factor);
      Lane::at(rows.max + row) = max[v];
      shift[v] = ((max[v] == infinity) | (max[v] == -infinity)) ? Vector{} : max[v];  // (Inf - Inf would be NaN)
      sum[v] = Lane::at(rows.sum + row) * factor;
      for (int l = 0; rows.rank && l < Lane::kCount; l++) rows.rank[row + l] -= larger[v][l];
    }
    for (int64_t j = 0; j < block.keys; j++) {
      const T* logits = block.logits + j * block.stride;
      const T column_shift = has_columns && !std::isinf(column_max[j]) ? column_max[j] : T(0);
      Vector column_sum{};
      for (int64_t v = 0; v < vectors; v++) {
        const Vector s = Lane::at(logits + v * Lane::kCount);
        Vector w = s - shift[v];
        Lane::exp2(w);
        sum[v] += w;
        if (!has_columns) continue;
        Vector u = s - column_shift;
        Lane::exp2(u);
        column_sum += u;
      }
      if (!has_columns) continue;
      const int64_t key = block.first_key + j;
      T total = 0;
      for (int l = 0; l < Lane::kCount; l++) total += column_sum[l];
      const T old = columns.max[key];
      columns.sum[key] = columns.sum[key] * (old == column_max[j] ? T(1) : std::exp2(old - column_max[j])) + total;
      columns.max[key] = column_max[j];
    }
    for (int64_t v = 0; v < vectors; v++) Lane::at(rows.sum + block.first_row + v * Lane::kCount) = sum[v];
  }

  // Sums and numbers of the logits that count, or of the logits of one label.
  template <class Lane>
  MASKCO_INLINE void add_totals(const Block<T>& block) const {
    using Vector = typename Lane::Vector;
    const Vector none = Vector{} - std::numeric_limits<T>::infinity();
    for (int64_t j = 0; j < block.keys; j++) {
      const int64_t key = block.first_key + j;
      Vector key_total{}, key_count{};
      for (int64_t l = 0; l < block.lanes; l += Lane::kCount) {
        const int64_t row = block.first_row + l;
        const Vector s = Lane::at(block.logits + j * block.stride + l);
        typename Lane::Mask counts = s != none;
        if (key_ids && !ids_exclude) positives<Lane>(row, key, counts);
        const Vector one = counts ? Vector{} + 1 : Vector{}, value = counts ? s : Vector{};
        Lane::at(rows.total + row) += value;
        Lane::at(rows.count + row) += one;
        key_total += value;
        key_count += one;
      }
      for (int l = 0; columns.total && l < Lane::kCount; l++) {
        columns.total[key] += key_total[l];
        columns.count[key] += key_count[l];
      }
    }
  }

  // Turns logits into weights.
  template <class Tile>
  MASKCO_INLINE void weigh(const Block<T>& block) const {
    using Lane = typename Tile::Lane;
    using Vector = typename Lane::Vector;
    const Vector none = Vector{} - std::numeric_limits<T>::infinity();
    for (int64_t j = 0; j < block.keys; j++) {
      const int64_t key = block.first_key + j;
      const Vector column_shift = Vector{} + (has_columns ? columns.weight_shift[key] : T(0));
      const Vector column_weight = Vector{} + (has_columns ? columns.weight[key] : T(0));
      const Vector column_share = Vector{} + (has_columns && columns.share ? columns.share[key] : T(0));
      for (int64_t l = 0; l < block.lanes; l += Lane::kCount) {
        const int64_t row = block.first_row + l;
        Vector& logit = Lane::at(block.logits + j * block.stride + l);
        const Vector s = logit;
        Vector w = s - Lane::at(rows.weight_shift + row);
        Lane::exp2(w);
        w *= Lane::at(rows.weight + row);
        if (has_columns) {
          Vector u = s - column_shift;
          Lane::exp2(u);
          w += u * column_weight;
        }
        const typename Lane::Mask finite = s != none;
        typename Lane::Mask counts = finite;
        if (along) Lane::at(along + row) += finite ? w * s : Vector{};
        if (rows.share) {
          if (key_ids && !ids_exclude) positives<Lane>(row, key, counts);
          const Vector share = counts ? Lane::at(rows.share + row) + column_share : Vector{};
          if (along) Lane::at(along + row) -= finite ? share * s : Vector{};
          w -= share;
        }
        logit = w;
      }
    }
    if (own_excluded)
      for (int64_t i = first_own(block); i < last_own(block); i++)
        block.logits[(i - block.first_key) * block.stride + i - own - block.first_row] = own_weight[i - own];
  }

 private:
  // The first of the block's keys that are own keys of its queries.
  MASKCO_INLINE int64_t first_own(const Block<T>& block) const {
    return std::max(block.first_key, block.first_row + own);
  }
  MASKCO_INLINE int64_t last_own(const Block<T>& block) const {
    return std::min(block.first_key + block.keys, block.first_row + own + block.rows);
  }
};

}  // namespace maskco
