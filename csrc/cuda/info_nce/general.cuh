// InfoNCE on CUDA, general path (any C, any dtype): what happens between the two matrix products of a tile of keys.
//
// The keys go by in tiles [T, C]. cuBLAS makes the logits [N, T] of a tile, info_nce_absorb_kernel turns them into
// weights e^(s - max), and cuBLAS multiplies those with the same keys: attention with keys = values = queue, so that
// one pass yields loss and gradient and no [N, K] tensor exists. One kernel does all of the epilogue, because the tile
// is in the second-level cache only for a moment: scale, exclusions, running maximum, rank, exp, sum, and the rescaling
// of the weighted key sums, into which it also takes the previous tile's product. The positive stays out of the running
// sums, so that a loss near 0 and its gradient keep their relative precision.
//
// One block per query everywhere; reductions have a fixed order and there are no atomics: bit for bit repeatable.
#pragma once
#include <cstdint>

#include "cuda/info_nce/rows.cuh"

namespace maskco {

template <typename T>
struct Matrix {
  const T* rows;  // [rows, C]
  int64_t row_stride, stride;
};

// What is kept of each query's negatives between tiles.
template <typename Acc>
struct RunningSums {
  Acc* max;  // [N]: of the positive's logit and all negatives' so far
  Acc* sum;  // [N]: of e^(s - max) over the negatives
};

// Which keys of a tile are not a query's negatives.
struct Exclusions {
  const int64_t* query_ids;  // [N] or null
  const int64_t* key_ids;    // [K] or null: a key with the query's id
  const int64_t* valid;      // one element, or null: keys from there on
  bool own;                  // in-batch: key i is query i's positive
  int64_t first_key;         // of the tile

  __device__ bool operator()(int64_t query, int64_t column) const {
    const int64_t key = first_key + column;
    return (valid != nullptr && key >= *valid) || (own && key == query) ||
           (key_ids != nullptr && query_ids != nullptr && key_ids[key] == query_ids[query]);
  }
};

// Running state of one query, the same in every thread of its block.
template <typename Acc>
struct Row {
  Acc max;             // of the positive's logit and all negatives' so far
  Acc sum;             // of e^(s - max) over the negatives
  int64_t rank;        // negatives with a larger logit than the positive's
  Acc positive_logit;  // query · positive / temperature

  // what is subtracted in the exponent; with an infinite logit 0, so that the sum is infinite and not NaN
  __device__ Acc shift() const { return isinf(max) ? Acc(0) : max; }
};

// Takes `width` logits into the state and writes their weights e^(s - max); returns the factor for earlier weights.
template <typename Acc, typename Logit>
__device__ Acc absorb(Row<Acc>& row, Acc* weights, int64_t width, Logit logit) {
  Acc max = row.max;
  int64_t above = 0;
  for (int64_t j = threadIdx.x; j < width; j += kInfoNceThreads) {
    const Acc s = logit(j);
    max = fmax(max, s);
    above += s > row.positive_logit;
  }
  const Acc earlier = row.shift();
  row.max = block_max(max);
  row.rank += block_sum(above);
  const Acc shift = row.shift();
  Acc sum = 0;
  for (int64_t j = threadIdx.x; j < width; j += kInfoNceThreads) {
    const Acc weight = exp(logit(j) - shift);
    weights[j] = weight;
    sum += weight;
  }
  const Acc shrink = row.sum == 0 ? Acc(0) : exp(earlier - shift);
  row.sum = row.sum * shrink + block_sum(sum);
  return shrink;
}

// Starts the running state with the positive and the query's own local negatives.
template <typename T, typename Acc>
__global__ void __launch_bounds__(kInfoNceThreads)
    info_nce_start_kernel(Matrix<Acc> query,   // [N, C]
                          Matrix<T> positive,  // [N, C]
                          LocalNegatives<T> local_negatives, Temperature<Acc> temperature,
                          Acc* local_weights,  // [N, M] workspace
                          RunningSums<Acc> running, Results<Acc> results, int64_t channels) {
  const int64_t i = blockIdx.x, num_local = local_negatives.count;
  const Acc tau = temperature.get();
  const Acc* q = query.rows + i * query.row_stride;
  const T* local = local_negatives.rows + i * local_negatives.query_stride;
  Acc *weights = local_weights + i * num_local, *logits = results.local_share + i * num_local;
  const Acc s = block_sum(partial_dot<Acc>(q, query.stride, positive.rows + i * positive.row_stride, positive.stride,
                                           channels, threadIdx.x, kInfoNceThreads)) /
                tau;
  Row<Acc> row{s, 0, 0, s};

  const int lane = threadIdx.x % 32;
  for (int64_t m = threadIdx.x / 32; m < num_local; m += kInfoNceThreads / 32) {
    Acc dot = partial_dot<Acc>(q, query.stride, local + m * local_negatives.row_stride, local_negatives.stride,
                               channels, lane, 32);
    for (int offset = 16; offset > 0; offset /= 2) dot += __shfl_xor_sync(0xffffffff, dot, offset);
    if (lane == 0) logits[m] = dot / tau;
  }
  __syncthreads();
  absorb(row, weights, num_local, [&](int64_t m) { return logits[m]; });
  if (results.grad_query != nullptr) {
    for (int64_t c = threadIdx.x; c < channels; c += kInfoNceThreads) {
      Acc sum = 0;
      for (int64_t m = 0; m < num_local; m++) {
        sum += weights[m] * convert<Acc>(local[m * local_negatives.row_stride + c * local_negatives.stride]);
      }
      results.grad_query[i * channels + c] = sum;
    }
  }
  if (threadIdx.x == 0) {
    results.positive_logit[i] = s;
    running.max[i] = row.max;
    running.sum[i] = row.sum;
    results.rank[i] = row.rank;
  }
}

// The epilogue of a tile's first product. (Four blocks an SM: left alone, ptxas spills for the sake of a fifth.)
template <typename Acc>
__global__ void __launch_bounds__(kInfoNceThreads, 4)
    info_nce_absorb_kernel(Acc* logits,  // [N, T] query · key, without temperature; becomes the weights
                           Temperature<Acc> temperature, Exclusions excluded,
                           const Acc* product,  // [N, C] weights · keys of the tile before, or null
                           RunningSums<Acc> running,
                           Results<Acc> results,  // its rank and grad_query are changed
                           int64_t width, int64_t channels) {
  const int64_t i = blockIdx.x;
  const Acc tau = temperature.get();
  Acc *weights = logits + i * width, *key_sums = results.grad_query;
  Row<Acc> row{running.max[i], running.sum[i], results.rank[i], results.positive_logit[i]};
  const Acc shrink = absorb(row, weights, width,
                            [&](int64_t j) { return excluded(i, j) ? -static_cast<Acc>(INFINITY) : weights[j] / tau; });
  if (key_sums != nullptr) {
    for (int64_t c = i * channels + threadIdx.x; c < (i + 1) * channels; c += kInfoNceThreads) {
      key_sums[c] = (key_sums[c] + (product != nullptr ? product[c] : Acc(0))) * shrink;
    }
  }
  if (threadIdx.x == 0) {
    running.max[i] = row.max;
    running.sum[i] = row.sum;
    results.rank[i] = row.rank;
  }
}

template <typename T, typename Acc>
__global__ void __launch_bounds__(kInfoNceThreads)
    info_nce_finish_kernel(Matrix<T> positive,  // [N, C]
                           const Acc* product,  // [N, C] weights · keys of the last tile, or null
                           Temperature<Acc> temperature, RunningSums<Acc> running, Results<Acc> results,
                           int64_t channels, int64_t num_local) {
  const int64_t i = blockIdx.x;
  const Row<Acc> row{running.max[i], running.sum[i], 0, results.positive_logit[i]};
  const Acc own = exp(row.positive_logit - row.shift()), total = own + row.sum;
  if (threadIdx.x == 0) {
    const Acc log_total = own == 1 ? log1p(row.sum) : log(total);
    results.loss[i] = log_total + (row.shift() - row.positive_logit);
    results.lse[i] = log_total + row.shift();
    results.normaliser[i] = row.max;
    results.normaliser[gridDim.x + i] = total;
  }
  Acc* share = results.local_share + i * num_local;
  for (int64_t m = threadIdx.x; m < num_local; m += kInfoNceThreads) share[m] = exp(share[m] - row.shift()) / total;
  Acc* grad_query = results.grad_query;
  if (grad_query == nullptr) return;
  const Acc scale = Acc(1) / (total * temperature.get());
  for (int64_t c = threadIdx.x; c < channels; c += kInfoNceThreads) {
    Acc sum = grad_query[i * channels + c];
    if (product != nullptr) sum += product[i * channels + c];
    const Acc key = convert<Acc>(positive.rows[i * positive.row_stride + c * positive.stride]);
    grad_query[i * channels + c] = (sum - row.sum * key) * scale;  // sum_j p_j k_j - k_+, as 1 - p_+ = sum / total
  }
}

// The recompute pass for the keys' own gradient: what each key takes of each query. The same product as in the forward
// pass gives logits with the same bits, so that none exceeds its row's maximum, however large they are.
template <typename Acc>
__global__ void __launch_bounds__(kInfoNceThreads)
    info_nce_shares_kernel(Acc* logits,  // [N, T] query · key without temperature; becomes grad_loss · p / temperature
                           Temperature<Acc> temperature, Exclusions excluded,
                           const Acc* normaliser,  // [2, N]
                           const Acc* grad_loss,   // [N]
                           int64_t width, int64_t grad_stride) {
  const int64_t i = blockIdx.x;
  const Acc tau = temperature.get(), max = normaliser[i];
  const Acc grad = grad_loss[i * grad_stride] / tau / normaliser[gridDim.x + i];
  for (int64_t j = threadIdx.x; j < width; j += kInfoNceThreads) {
    Acc& entry = logits[i * width + j];
    const Acc behind = entry / tau - max;  // (above 0 only if the product was rounded in another way this time)
    entry = excluded(i, j) ? Acc(0) : grad * exp(behind > 0 ? Acc(0) : behind);
  }
}

// Copies rows from one type to another; rows from `valid` on, which may hold anything, become zero (0 · NaN would not
// be).
template <typename To, typename From>
__global__ void __launch_bounds__(kInfoNceThreads)
    info_nce_copy_rows_kernel(Matrix<From> from,     // [R, C]
                              To* to,                // [R, C]
                              const int64_t* valid,  // one element, or null
                              int64_t first_row, int64_t channels, int64_t to_row_stride) {
  const int64_t r = blockIdx.x;
  const bool copied = valid == nullptr || first_row + r < *valid;
  for (int64_t c = threadIdx.x; c < channels; c += kInfoNceThreads) {
    to[r * to_row_stride + c] =
        copied ? convert<To>(from.rows[r * from.row_stride + c * from.stride]) : convert<To>(0.0f);
  }
}

}  // namespace maskco
