// Losses with normalised logits, over a query's keys (rows), a key's queries (columns), or both. One sweep computes the
// sums of both directions, and a second one all weights. As in csrc/cpu/contrast/softmax.h, sums leave out own pairs,
// so that a loss near 0 keeps its precision. Logits are in units of log 2.
#pragma once
#include "cuda/contrast/tile.cuh"

namespace maskco {

// Own logits are stored in natural units, and converted here. So every pass uses the same number.
template <typename Acc>
__device__ __forceinline__ Acc in_base2(Acc natural) {
  return times(natural, static_cast<Acc>(kLog2E));
}

// Which pairs count.
template <typename Acc>
struct SoftmaxPairs {
  bool own_excluded;
  int64_t own;                         // key i + own is query i's own
  const int64_t *query_ids, *key_ids;  // [N], [K], or null
  bool ids_exclude;                    // true: pairs of one id do not count; false: they are the positives
  const int64_t* valid;                // one element, the number of keys; or null
  bool with_margin;                    // keys whose logit exceeds own logit + margin · scale do not count
  double margin;
  const Acc* own_logit;  // [N], natural; null if not needed

  __device__ __forceinline__ int64_t keys(int64_t count) const {
    return valid == nullptr || *valid >= count ? count : *valid < 0 ? 0 : *valid;
  }
  // Whether the margin excludes a key with this logit, given the query's own logit. Both are times `scale`.
  __device__ __forceinline__ bool too_similar(Acc logit, Acc own, Acc scale) const {
    const Acc sign = scale < 0 ? -1 : 1;
    return with_margin && logit * sign > (own + static_cast<Acc>(margin) * scale) * sign;
  }
};

// One side's sums, [P, size] each: one part for each block that works on it.
template <typename Acc>
struct PartialSums {
  Acc *max, *sum;        // of the logits, and of 2^(s - max)
  int* rank;             // number of logits larger than the own pair's; null if not needed
  Acc *total, *count;    // of logits that count, or of positives; null if not needed
  const Acc* own_logit;  // [size], natural, for the rank
  int64_t size;
};

// One side's factors of weights, [size] each. A weight is weight · 2^(s - shift), less share for pairs that count or
// for positives.
template <typename Acc>
struct SideWeights {
  const Acc *shift, *weight;
  const Acc* share;  // or null
};

// The number to subtract in the exponent. With an infinite maximum, sums then become infinite or 0, not NaN.
template <typename Acc>
__device__ __forceinline__ Acc shift_of(Acc max) {
  return isinf(max) ? Acc(0) : max;
}

// The place of a tile of logits (times the scale), and which of its pairs exist.
template <typename Tile>
struct SoftmaxTile {
  using Acc = typename Tile::Acc;
  const SoftmaxPairs<Acc>& pairs;
  int64_t first_row, first_column, rows, columns;  // of all

  __device__ __forceinline__ int64_t row(int block, int half) const { return first_row + Tile::row(block, half); }
  __device__ __forceinline__ int64_t column(int j, int i) const { return first_column + Tile::column(j, i); }
  __device__ __forceinline__ bool has_row(int block, int half) const { return row(block, half) < rows; }
  __device__ __forceinline__ bool has_column(int j, int i) const { return column(j, i) < columns; }
  __device__ __forceinline__ bool is_own(int block, int j, int i) const {
    return pairs.own_excluded && column(j, i) == row(block, i / 2) + pairs.own;
  }
  // Calls body(block, j, i, whether the pair has one id). Each id is loaded once.
  template <typename Body>
  __device__ __forceinline__ void for_each_id(const Body& body) const {
    int64_t of_row[Tile::kRowBlocks][2];
    Tile::for_each_row([&](int block, int half) {
      of_row[block][half] = has_row(block, half) ? pairs.query_ids[row(block, half)] : 0;
    });
    Tile::for_each_column([&](int j, int i) {
      const int64_t of_column = has_column(j, i) ? pairs.key_ids[column(j, i)] : 0;
      Tile::for_each_row([&](int block, int half) {
        const bool there = has_row(block, half) && has_column(j, i);
        body(block, j, 2 * half + i, there && of_row[block][half] == of_column);
      });
    });
  }
  __device__ __forceinline__ bool has_labels() const { return pairs.key_ids != nullptr && !pairs.ids_exclude; }
  // Calls body(block, j, i) for logits that enter totals and shares: all that count, or the positives.
  template <typename Body>
  __device__ __forceinline__ void for_each_counting(const typename Tile::Logits& s, const Body& body) const {
    if (has_labels()) {
      for_each_id([&](int block, int j, int i, bool same) {
        if (same && !is_own(block, j, i)) body(block, j, i);
      });
    } else {
      Tile::for_each_logit([&](int block, int j, int i) {
        if (s[block][j][i] != -static_cast<Acc>(INFINITY)) body(block, j, i);
      });
    }
  }

  // Pairs that do not count get the logit -inf.
  __device__ __forceinline__ void exclude(typename Tile::Logits& s, Acc scale) const {
    const Acc none = -static_cast<Acc>(INFINITY);
    if (first_row + Tile::kRows > rows || first_column + Tile::kColumns > columns)
      Tile::for_each_logit([&](int block, int j, int i) {
        if (!has_row(block, i / 2) || !has_column(j, i)) s[block][j][i] = none;
      });
    const int64_t own = first_row + pairs.own;  // the first row's
    if (pairs.own_excluded && own < first_column + Tile::kColumns && own + Tile::kRows > first_column)
      Tile::for_each_logit([&](int block, int j, int i) {
        if (is_own(block, j, i)) s[block][j][i] = none;
      });
    if (pairs.key_ids != nullptr && pairs.ids_exclude)
      for_each_id([&](int block, int j, int i, bool same) {
        if (same) s[block][j][i] = none;
      });
    if (pairs.with_margin)
      Tile::for_each_row([&](int block, int half) {
        if (!has_row(block, half)) return;
        const Acc own_logit = in_base2(pairs.own_logit[row(block, half)]);
#pragma unroll
        for (int j = 0; j < Tile::kColumnBlocks; j++)
#pragma unroll
          for (int i = 2 * half; i < 2 * half + 2; i++)
            if (pairs.too_similar(s[block][j][i], own_logit, scale)) s[block][j][i] = none;
      });
  }
};

template <typename Tile>
struct ReadShared {
  using Acc = typename Tile::Acc;
  alignas(128) char stages[Tile::kStages * Tile::kStageBytes];
  Acc row_parts[4][Tile::kWarpsAcross][Tile::kRows];  // maxima, then sums; ranks, totals, counts
  Acc column_parts[4][Tile::kWarpsDown][Tile::kColumns];
  Acc row_shift[Tile::kRows], column_shift[Tile::kColumns];
};

// Maxima, sums, ranks and totals of all rows, and with `has_columns` of all columns. Block (x, y) sweeps a rectangle of
// tiles. Its rows' sums are part y, and its columns' sums are part x. The block's earlier sums are in global memory
// that no other block uses. One thread for each row and each column adds to them.
template <typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocksPerSm)
    contrast_read_kernel(PairRows<typename Tile::T> query, PairRows<typename Tile::T> keys,
                         SoftmaxPairs<typename Tile::Acc> pairs, DeviceScalar<typename Tile::Acc> natural_scale,
                         Rectangle size, bool has_columns, PartialSums<typename Tile::Acc> row_sums,
                         PartialSums<typename Tile::Acc> column_sums) {
  using Acc = typename Tile::Acc;
  extern __shared__ __align__(128) char memory[];
  auto& shared = *reinterpret_cast<ReadShared<Tile>*>(memory);
  const Acc scale = natural_scale.get() * static_cast<Acc>(kLog2E), none = -static_cast<Acc>(INFINITY);
  const int64_t num_keys = pairs.keys(keys.count);

  Tile::sweep(shared.stages, query, keys, size, [&](int64_t first_row, int64_t first_column, auto& s) {
    const SoftmaxTile<Tile> tile{pairs, first_row, first_column, query.count, num_keys};
    Tile::for_each_logit([&](int block, int j, int i) { s[block][j][i] = times(s[block][j][i], scale); });
    tile.exclude(s, scale);

    // 1. Each side's largest logits.
    {
      typename Tile::PerRow top;
      Tile::for_each_row([&](int block, int half) { top[block][half] = none; });
      Tile::for_each_logit(
          [&](int block, int j, int i) { top[block][i / 2] = Larger()(top[block][i / 2], s[block][j][i]); });
      Tile::reduce_rows(top, shared.row_parts[0], Larger());
    }
    if (has_columns) {
      typename Tile::PerColumn top;
      Tile::for_each_column([&](int j, int i) { top[j][i] = none; });
      Tile::for_each_logit([&](int block, int j, int i) { top[j][i % 2] = Larger()(top[j][i % 2], s[block][j][i]); });
      Tile::reduce_columns(top, shared.column_parts[0], Larger());
    }
    __syncthreads();

    // 2. Merge them with those of earlier tiles.
    const bool of_row = threadIdx.x < Tile::kRows;
    const int own_line = threadIdx.x - (of_row ? 0 : Tile::kRows);  // this thread's row or column
    const auto merge = [&](const auto& body) {  // body(side, global line, part, is it the first tile, parts, shift)
      if (of_row) {
        body(row_sums, first_row + own_line, blockIdx.y,
             first_column == int64_t(blockIdx.y) * size.columns * Tile::kColumns, shared.row_parts, shared.row_shift);
      } else if (has_columns && own_line < Tile::kColumns) {
        body(column_sums, first_column + own_line, blockIdx.x,
             first_row == int64_t(blockIdx.x) * size.rows * Tile::kRows, shared.column_parts, shared.column_shift);
      }
    };
    Acc before = none, max = none;
    merge([&](const PartialSums<Acc>& side, int64_t line, unsigned part, bool first, const auto& parts, auto& shift) {
      if (line < side.size && !first) before = side.max[part * side.size + line];
      max = before;
      for (const auto& of_warp : parts[0]) max = Larger()(max, of_warp[own_line]);
      shift[own_line] = shift_of(max);
    });
    __syncthreads();

    // 3. The tile's sums.
    {
      typename Tile::PerRow sum = {}, shift;
      Tile::for_each_row([&](int block, int half) { shift[block][half] = shared.row_shift[Tile::row(block, half)]; });
      Tile::for_each_logit(
          [&](int block, int j, int i) { sum[block][i / 2] += exp2_of(s[block][j][i] - shift[block][i / 2]); });
      Tile::reduce_rows(sum, shared.row_parts[0], Plus());
    }
    if (has_columns) {
      typename Tile::PerColumn sum = {}, shift;
      Tile::for_each_column([&](int j, int i) { shift[j][i] = shared.column_shift[Tile::column(j, i)]; });
      Tile::for_each_logit(
          [&](int block, int j, int i) { sum[j][i % 2] += exp2_of(s[block][j][i] - shift[j][i % 2]); });
      Tile::reduce_columns(sum, shared.column_parts[0], Plus());
    }
    if (row_sums.rank != nullptr) {
      typename Tile::PerRow above = {}, own;
      Tile::for_each_row([&](int block, int half) {
        own[block][half] = tile.has_row(block, half) ? in_base2(row_sums.own_logit[tile.row(block, half)]) : Acc(0);
      });
      Tile::for_each_logit([&](int block, int j, int i) { above[block][i / 2] += s[block][j][i] > own[block][i / 2]; });
      Tile::reduce_rows(above, shared.row_parts[1], Plus());
    }
    if (has_columns && column_sums.rank != nullptr) {
      typename Tile::PerColumn above = {}, own;
      Tile::for_each_column([&](int j, int i) {
        own[j][i] = tile.has_column(j, i) ? in_base2(column_sums.own_logit[tile.column(j, i)]) : Acc(0);
      });
      Tile::for_each_logit([&](int block, int j, int i) { above[j][i % 2] += s[block][j][i] > own[j][i % 2]; });
      Tile::reduce_columns(above, shared.column_parts[1], Plus());
    }
    if (row_sums.total != nullptr) {
      typename Tile::PerRow total = {}, count = {};
      typename Tile::PerColumn column_total = {}, column_count = {};
      tile.for_each_counting(s, [&](int block, int j, int i) {
        total[block][i / 2] += s[block][j][i];
        count[block][i / 2] += 1;
        column_total[j][i % 2] += s[block][j][i];
        column_count[j][i % 2] += 1;
      });
      Tile::reduce_rows(total, shared.row_parts[2], Plus());
      Tile::reduce_rows(count, shared.row_parts[3], Plus());
      if (has_columns) {
        Tile::reduce_columns(column_total, shared.column_parts[2], Plus());
        Tile::reduce_columns(column_count, shared.column_parts[3], Plus());
      }
    }
    __syncthreads();

    // 4. Merge them with those of earlier tiles.
    merge([&](const PartialSums<Acc>& side, int64_t line, unsigned part, bool first, const auto& parts, auto&) {
      if (line >= side.size) return;
      const int64_t entry = part * side.size + line;
      const auto total = [&](int which, Acc sum) {
        for (const auto& of_warp : parts[which]) sum += of_warp[own_line];
        return sum;
      };
      const Acc shrink = before == none ? Acc(0) : exp2_of(shift_of(before) - shift_of(max));
      side.max[entry] = max;
      side.sum[entry] = total(0, first ? Acc(0) : side.sum[entry] * shrink);
      if (side.rank != nullptr) {
        int rank = first ? 0 : side.rank[entry];
        for (const auto& of_warp : parts[1]) rank += static_cast<int>(of_warp[own_line]);
        side.rank[entry] = rank;
      }
      if (side.total != nullptr) {
        side.total[entry] = total(2, first ? Acc(0) : side.total[entry]);
        side.count[entry] = total(3, first ? Acc(0) : side.count[entry]);
      }
    });
  });
}

// Weights of all pairs of some queries with all keys, and the sum of weights times logits, for the scale's gradient.
template <typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocksPerSm)
    contrast_weigh_kernel(PairRows<typename Tile::T> query, PairRows<typename Tile::T> keys,
                          SoftmaxPairs<typename Tile::Acc> pairs, DeviceScalar<typename Tile::Acc> natural_scale,
                          Rectangle size, SideWeights<typename Tile::Acc> rows,
                          SideWeights<typename Tile::Acc> columns,   // null pointers if only rows are weighed
                          const typename Tile::Acc* own_weight,      // [N]: weights of own pairs, or null
                          typename Tile::T* weights, int64_t width,  // [N, width], or null
                          double* along) {                           // [blocks], or null
  using Acc = typename Tile::Acc;
  extern __shared__ __align__(128) char memory[];
  const Acc scale = natural_scale.get() * static_cast<Acc>(kLog2E), none = -static_cast<Acc>(INFINITY);
  const int64_t num_keys = pairs.keys(keys.count);
  double products = 0;

  Tile::sweep(memory, query, keys, size, [&](int64_t first_row, int64_t first_column, auto& s) {
    const SoftmaxTile<Tile> tile{pairs, first_row, first_column, query.count, num_keys};
    Tile::for_each_logit([&](int block, int j, int i) { s[block][j][i] = times(s[block][j][i], scale); });
    tile.exclude(s, scale);
    Acc product = 0;
    struct Line {
      Acc shift, weight, share;
      int64_t label;
    };
    const bool labels = rows.share != nullptr && tile.has_labels();
    const auto line_of = [&](const SideWeights<Acc>& side, const int64_t* ids, bool there, int64_t line) {
      Line out{0, 0, 0, 0};
      if (there && labels) out.label = ids[line];
      if (!there || side.weight == nullptr) return out;
      out.shift = side.shift[line];
      out.weight = side.weight[line];
      if (side.share != nullptr) out.share = side.share[line];
      return out;
    };
    const auto weigh = [](Acc logit, const Line& line) {
      const Acc behind = logit - line.shift;  // (above 0 only if a GPU rounds a · b unlike b · a)
      return exp2_of(behind > 0 ? Acc(0) : behind) * line.weight;
    };
#pragma unroll
    for (int first = 0; first < Tile::kColumnBlocks; first += 2) {
      Line of_column[4];
#pragma unroll
      for (int i = 0; i < 4; i++)
        of_column[i] =
            line_of(columns, pairs.key_ids, tile.has_column(first + i / 2, i), tile.column(first + i / 2, i));
      Tile::for_each_row([&](int block, int half) {
        if (!tile.has_row(block, half)) return;
        const int64_t row = tile.row(block, half);
        const Line of_row = line_of(rows, pairs.query_ids, true, row);
        Acc four[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int j = first + i / 2, at = 2 * half + i % 2;
          const Acc logit = s[block][j][at];
          Acc w = 0;
          if (tile.is_own(block, j, at)) {
            w = own_weight != nullptr ? own_weight[row] : Acc(0);
            if (along != nullptr && w != 0) product += w * in_base2(pairs.own_logit[row]);
          } else if (tile.has_column(j, at)) {
            w = weigh(logit, of_row);
            if (columns.weight != nullptr) w += weigh(logit, of_column[i]);
            if (labels ? of_row.label == of_column[i].label : logit != none) w -= of_row.share + of_column[i].share;
            if (along != nullptr && logit != none) product += w * logit;
          }
          four[i] = w;
        }
        if (weights != nullptr) Tile::store(weights + row * width, tile.column(first, 0), width, four);
      });
    }
    products += product;
  });
  if (along == nullptr) return;
  const double total = block_total<Tile::kThreads>(products);
  if (threadIdx.x == 0) along[int64_t(blockIdx.y) * gridDim.x + blockIdx.x] = total;
}

}  // namespace maskco
