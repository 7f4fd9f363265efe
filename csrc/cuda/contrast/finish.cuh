// The small steps around the sweeps over all pairs, each in a fixed order. They compute own logits, merge parts into
// losses, prepare weights, add up totals, and convert gradients.
#pragma once
#include "cuda/contrast/softmax.cuh"

namespace maskco {

constexpr int kLineThreads = 256;
constexpr int kTotalThreads = 1024;  // for kernels of one block

__device__ __forceinline__ int64_t line_index() { return int64_t(blockIdx.x) * kLineThreads + threadIdx.x; }

// Reduces a value over the warp's lanes. All lanes get the result.
template <typename T, typename Op>
__device__ __forceinline__ T warp_reduce(T value, const Op& op) {
  for (int offset = 16; offset > 0; offset /= 2) value = op(value, __shfl_xor_sync(0xffffffff, value, offset));
  return value;
}

// Each query's logit with its own key, in natural units. One warp for each line.
template <typename T, typename Acc>
__global__ void __launch_bounds__(kLineThreads)
    contrast_own_kernel(PairRows<T> query, PairRows<T> keys, int64_t own, DeviceScalar<Acc> scale,
                        Acc* of_query,              // [rows]: N, and zeros
                        int64_t rows, Acc* of_key,  // [K], -inf for keys that are no query's own; or null
                        int64_t lines) {
  const int64_t i = line_index() / 32;
  if (i >= lines) return;
  Acc sum = 0;
  if (i < query.count) {
    const T *a = query.rows + i * query.row_stride, *b = keys.rows + (i + own) * keys.row_stride;
    for (int c = threadIdx.x % 32; c < query.channels; c += 32)
      sum += convert<Acc>(a[c * query.stride]) * convert<Acc>(b[c * keys.stride]);
  }
  sum = warp_reduce(sum, Plus());
  if (threadIdx.x % 32 != 0) return;
  const Acc logit = times(times(sum, scale.get() * Acc(kLog2E)), Acc(kLn2));
  if (i < rows) of_query[i] = logit;
  if (of_key == nullptr) return;
  if (i < query.count) of_key[i + own] = logit;
  if (i < keys.count && (i < own || i >= own + query.count)) of_key[i] = -Acc(INFINITY);
}

// One line's sums, merged over all parts.
template <typename Acc>
struct LineSums {
  Acc max, sum, total, count;
  int64_t rank;
};

// A whole warp merges a line, since with few queries and many keys a line has thousands of parts. `start` is a logit
// that counts for the maximum but not for the sum.
template <typename Acc>
__device__ __forceinline__ LineSums<Acc> merge(const PartialSums<Acc>& sums, int parts, int64_t line, Acc start) {
  LineSums<Acc> all{start, 0, 0, 0, 0};
  const int lane = threadIdx.x % 32;
  for (int part = lane; part < parts; part += 32) all.max = Larger()(all.max, sums.max[part * sums.size + line]);
  all.max = warp_reduce(all.max, Larger());
  for (int part = lane; part < parts; part += 32) {
    const int64_t entry = part * sums.size + line;
    const Acc sum = sums.sum[entry];
    all.sum += sum == 0 ? Acc(0) : sum * exp2(shift_of(sums.max[entry]) - shift_of(all.max));
    if (sums.rank != nullptr) all.rank += sums.rank[entry];
    if (sums.total != nullptr) {
      all.total += sums.total[entry];
      all.count += sums.count[entry];
    }
  }
  all.sum = warp_reduce(all.sum, Plus());
  if (sums.rank != nullptr) all.rank = warp_reduce(all.rank, Plus());
  if (sums.total != nullptr) {
    all.total = warp_reduce(all.total, Plus());
    all.count = warp_reduce(all.count, Plus());
  }
  return all;
}

// The loss, which is the natural logsumexp of all logits less the own logit, and their sum times 2^-max. `sum` leaves
// out the own logit, so that a loss near 0 keeps its precision. If decoupled, no sum contains the own logit, and the
// loss without negatives is 0.
template <typename Acc>
__device__ __forceinline__ Acc cross_entropy(Acc own, Acc max, Acc sum, bool decoupled, Acc* total) {
  const Acc behind = (max - own) * Acc(kLn2);  // NaN for an infinite own logit, and so is the loss
  if (decoupled) {
    *total = sum;
    return sum == 0 ? Acc(0) : behind + log(sum);
  }
  *total = exp(-behind) + sum;
  return behind + (behind == 0 ? log1p(sum) : log(*total));
}

// The factors of a weight. Lines whose largest logit is infinite get NaN.
template <typename Acc>
__device__ __forceinline__ Acc weight_of(Acc upstream, Acc max, Acc total) {
  if (max == Acc(INFINITY)) return Acc(NAN);
  return total == 0 ? Acc(0) : upstream / total;
}

// ---- clip_loss ----

// One side's results, as the op returns them and as the backward pass gets them.
template <typename Acc>
struct ClipSide {
  Acc* sums;             // [2, size]: largest logits, and sums of 2^(s - largest) over all but own pairs
  int64_t* rank;         // [size]; null in the backward pass
  Acc* totals;           // [2, size]: sums and numbers of logits, or null without smoothing
  const Acc* own_logit;  // [size], natural
  int64_t size;          // N rounded up, or K; 0 if the side is not needed

  __device__ LineSums<Acc> line(int64_t i) const {
    const Acc total = totals != nullptr ? totals[i] : 0, count = totals != nullptr ? totals[size + i] : 0;
    return {sums[i], sums[size + i], total, count, 0};
  }
  __device__ void store(int64_t i, const LineSums<Acc>& line) const {
    sums[i] = line.max;
    sums[size + i] = line.sum;
    rank[i] = line.rank;
    if (totals == nullptr) return;
    totals[i] = line.total;
    totals[size + i] = line.count;
  }
};

// One warp for row i and column i. With `both`, all queries of column i are here, and its own query is i. (Three blocks
// for each SM: without this limit, ptxas for 12.0 spills to fit a fourth.)
template <typename Acc>
__global__ void __launch_bounds__(kLineThreads, 3)
    clip_finish_kernel(PartialSums<Acc> row_parts, int num_row_parts, PartialSums<Acc> column_parts,
                       int num_column_parts, ClipSide<Acc> rows, ClipSide<Acc> columns, bool both, bool decoupled,
                       double smoothing, int64_t n,
                       Acc* loss,     // [N]
                       Acc* parts) {  // [2, N]: cross-entropies
  const int64_t i = line_index() / 32;
  const bool first = threadIdx.x % 32 == 0;  // one lane writes, since all lanes have the same values
  const auto finish = [&](const PartialSums<Acc>& from, int num_parts, const ClipSide<Acc>& side, Acc* part) {
    if (i >= from.size) {  // padding
      if (first) side.store(i, {0, 0, 0, 0, 0});
      return Acc(0);
    }
    const Acc own = in_base2(side.own_logit[i]);
    const LineSums<Acc> all = merge(from, num_parts, i, decoupled ? -Acc(INFINITY) : own);
    if (first) side.store(i, all);
    if (part == nullptr) return Acc(0);
    Acc total;
    const Acc entropy = cross_entropy(own, all.max, all.sum, decoupled, &total);
    if (first) *part = entropy;
    if (side.totals == nullptr) return entropy;
    return entropy + Acc(smoothing) * Acc(kLn2) * (own - (all.total + own) / (all.count + 1));
  };
  Acc of_row = 0, of_column = 0;
  if (i < rows.size) of_row = finish(row_parts, num_row_parts, rows, parts + i);
  if (i < columns.size) of_column = finish(column_parts, num_column_parts, columns, both ? parts + n + i : nullptr);
  if (i >= n || !first) return;
  if (!both) parts[n + i] = 0;
  loss[i] = both ? (of_row + of_column) / 2 : of_row;
}

// One side's factors, [N] or [K], for the sweep that weighs.
template <typename Acc>
struct NewWeights {
  Acc *shift, *weight, *share;  // `share` is null without shares
};

// One thread for row i and column i. An own pair's weight is its softmax less 1, which is e^-loss - 1 without
// cancellation, plus smoothing.
template <typename Acc>
__global__ void __launch_bounds__(kLineThreads)
    clip_weights_kernel(ClipSide<Acc> rows, ClipSide<Acc> columns, int64_t n, int64_t own, bool decoupled,
                        double smoothing_, DeviceScalar<Acc> scale,
                        const Acc* unit,   // one element, or null: 1
                        const Acc* parts,  // [2, N]
                        Upstream<Acc> row_upstream, Upstream<Acc> column_upstream, NewWeights<Acc> new_rows,
                        NewWeights<Acc> new_columns,
                        Acc* own_weight) {  // [N]
  const int64_t i = line_index();
  const Acc factor = unit != nullptr ? scale.get() / *unit : scale.get(), smoothing = static_cast<Acc>(smoothing_);
  const auto weigh = [&](const ClipSide<Acc>& side, const NewWeights<Acc>& made, Acc upstream) {
    const LineSums<Acc> line = side.line(i);
    Acc total;
    cross_entropy(in_base2(side.own_logit[i]), line.max, line.sum, decoupled, &total);
    made.shift[i] = shift_of(line.max);
    made.weight[i] = weight_of(factor * upstream, line.max, total);
    if (made.share != nullptr) made.share[i] = factor * upstream * smoothing / (line.count + 1);
  };
  const auto own_of = [&](const ClipSide<Acc>& side, int64_t line, Acc upstream, Acc part) {
    const LineSums<Acc> sums = side.line(line);
    Acc total, less_one = expm1(-part);
    cross_entropy(in_base2(side.own_logit[line]), sums.max, sums.sum, decoupled, &total);
    if (decoupled) less_one = weight_of(factor * upstream, sums.max, total) == 0 ? 0 : -1;
    const Acc share = side.totals != nullptr ? factor * upstream * smoothing / (sums.count + 1) : Acc(0);
    return factor * upstream * (less_one + smoothing) - share;
  };
  if (i < n) {
    weigh(rows, new_rows, row_upstream.get(i));
    Acc weight = own_of(rows, i, row_upstream.get(i), parts[i]);
    if (columns.size > 0) weight += own_of(columns, i + own, column_upstream.get(i + own), parts[n + i]);
    own_weight[i] = weight;
  }
  if (i < columns.size) weigh(columns, new_columns, column_upstream.get(i));
}

// ---- supcon_loss ----

// One warp for each row.
template <typename Acc>
__global__ void __launch_bounds__(kLineThreads) supcon_finish_kernel(PartialSums<Acc> parts, int num_parts,
                                                                     Acc* sums,     // [2, rows]
                                                                     int64_t rows,  // N rounded up
                                                                     Acc* loss, Acc* lse, Acc* positive_logit,  // [N]
                                                                     int64_t* positives) {                      // [N]
  const int64_t i = line_index() / 32;
  const bool first = threadIdx.x % 32 == 0;
  if (i >= rows) return;
  if (i >= parts.size) {  // padding
    if (first) sums[i] = sums[rows + i] = 0;
    return;
  }
  const LineSums<Acc> all = merge(parts, num_parts, i, -Acc(INFINITY));
  if (!first) return;
  const Acc ln2 = Acc(kLn2), mean = all.count > 0 ? all.total / all.count : Acc(0);
  sums[i] = all.max;
  sums[rows + i] = all.sum;
  lse[i] = all.max * ln2 + (isinf(all.max) && !isnan(all.sum) ? Acc(0) : log(all.sum));
  loss[i] = all.count > 0 ? (all.max - mean) * ln2 + log(all.sum) : Acc(0);
  positive_logit[i] = mean * ln2;
  positives[i] = static_cast<int64_t>(all.count);
}

template <typename Acc>
__global__ void __launch_bounds__(kLineThreads) supcon_weights_kernel(const Acc* sums,  // [2, rows]
                                                                      int64_t rows,
                                                                      const int64_t* positives,  // [N]
                                                                      int64_t n, DeviceScalar<Acc> scale,
                                                                      const Acc* unit,  // one element, or null: 1
                                                                      Upstream<Acc> upstream, NewWeights<Acc> made) {
  const int64_t i = line_index();
  if (i >= n) return;
  const Acc weight = (unit != nullptr ? scale.get() / *unit : scale.get()) * upstream.get(i);
  const bool any = positives[i] > 0;
  made.shift[i] = shift_of(sums[i]);
  made.weight[i] = any ? weight_of(weight, sums[i], sums[rows + i]) : Acc(0);
  made.share[i] = any ? weight / positives[i] : Acc(0);
}

// ---- all ----

// Adds up each row's parts: [P, N] -> [N]. One warp for each row.
template <typename Acc>
__global__ void __launch_bounds__(kLineThreads) contrast_rows_kernel(const Acc* parts,  // [P, N]
                                                                     int num_parts,
                                                                     Acc* out,  // [N]
                                                                     int64_t n) {
  const int64_t i = line_index() / 32;
  if (i >= n) return;
  Acc sum = 0;
  for (int part = threadIdx.x % 32; part < num_parts; part += 32) sum += parts[part * n + i];
  sum = warp_reduce(sum, Plus());
  if (threadIdx.x % 32 == 0) out[i] = sum;
}

// The sum of all values times factor · unit · scale^power. Runs as one block.
template <typename Value, typename Acc>
__global__ void __launch_bounds__(kTotalThreads)
    contrast_total_kernel(const Value* values,  // [count]
                          int64_t count, double factor, int power, DeviceScalar<Acc> scale,
                          const Acc* unit,  // one element, or null: 1
                          Acc* out) {       // one element
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += kTotalThreads) sum += values[i];
  double total = block_total<kTotalThreads>(sum);
  if (threadIdx.x != 0) return;
  total *= factor;
  if (unit != nullptr) total *= *unit;
  for (int i = 0; i > power; i--) total /= double(scale.get());
  *out = static_cast<Acc>(total);
}

// The unit of float16 weights: |scale| times the largest upstream gradient, times 2^-14. The largest weights are then
// near float16's largest number. Runs as one block.
template <typename Acc>
__global__ void __launch_bounds__(kTotalThreads)
    contrast_unit_kernel(Upstream<Acc> rows, int64_t num_rows, Upstream<Acc> columns, int64_t num_columns,
                         DeviceScalar<Acc> scale,
                         Acc* unit) {  // one element
  __shared__ Acc parts[kTotalThreads / 32];
  Acc most = 0;
  for (int64_t i = threadIdx.x; i < num_rows; i += kTotalThreads) most = Larger()(most, fabs(rows.get(i)));
  for (int64_t i = threadIdx.x; i < num_columns; i += kTotalThreads) most = Larger()(most, fabs(columns.get(i)));
  most = warp_reduce(most, Larger());
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = most;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int warp = 1; warp < kTotalThreads / 32; warp++) most = Larger()(most, parts[warp]);
  most *= fabs(scale.get()) * Acc(1.0 / (1 << 14));
  *unit = most == 0 ? Acc(1) : most;
}

// Converts sums to a gradient: to (+)= from · unit.
template <typename To, typename Acc>
__global__ void __launch_bounds__(kLineThreads) contrast_convert_kernel(const Acc* from,  // [count]
                                                                        const Acc* unit,  // one element, or null: 1
                                                                        bool add,
                                                                        To* to,  // [count]
                                                                        int64_t count) {
  const int64_t i = line_index();
  if (i >= count) return;
  const Acc value = unit != nullptr ? from[i] * *unit : from[i];
  to[i] = convert<To>(add ? convert<Acc>(to[i]) + value : value);
}

}  // namespace maskco
