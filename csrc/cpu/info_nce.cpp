// InfoNCE streamed over the keys: loss and gradient in one pass, no [N, K] tensor. The pass itself: info_nce_stream.h.
//
// Work is cut into blocks of queries and, where those are few, ranges of keys, each with a running state of its own;
// the states are merged in a fixed order. The cut depends on the sizes alone, so the result does not depend on the
// threads.
#include "common/info_nce.h"

#include <torch/csrc/stable/ops.h>

#include <memory>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "common/library.h"
#include "cpu/info_nce_stream.h"
#include "cpu/instruction_set.h"

namespace maskco {
namespace {

// ---- one instantiation per instruction set, chosen when first called

template <class T>
struct Kernels {
  int64_t panel;  // queries of a panel; widths are rounded up to it, too
  int64_t depth;  // 2 where operands are pairs of bfloat16
  int64_t (*workspace)(int64_t c);
  void (*forward)(const ForwardPass<T>&);
  void (*key_gradient)(const KeyGradientPass<T>&);
};

#define MASKCO_KERNELS(name, target, bytes, rows, vectors)                                                  \
  template <class T>                                                                                        \
  struct name {                                                                                             \
    using Tile = RegisterTile<MultiplyAdd<T, bytes>, bytes, rows, vectors>;                                 \
    static_assert(Tile::kColumns % rows == 0 && kRowStep % Tile::kColumns == 0 && kKeyTile % rows == 0);    \
    target static void forward(const ForwardPass<T>& pass) { stream_forward<Tile>(pass); }                  \
    target static void key_gradient(const KeyGradientPass<T>& pass) { stream_key_gradient<Tile>(pass); }    \
    static Kernels<T> get() { return {Tile::kColumns, 1, &pass_workspace<Tile>, &forward, &key_gradient}; } \
  };

#if defined(__x86_64__)
MASKCO_KERNELS(Avx512, __attribute__((target("arch=x86-64-v4"))), 64, 8, 2)  // 16 of 32 registers hold sums
MASKCO_KERNELS(Avx2, __attribute__((target("arch=x86-64-v3"))), 32, 4, 2)    // 8 of 16
MASKCO_KERNELS(Baseline, , 16, 4, 2)                                         // SSE2: 8 of 16

struct Avx512Bf16 {
  using Tile = RegisterTile<MultiplyAddPairs, 64, 8, 2>;
  __attribute__((target("arch=x86-64-v4"))) static void forward(const ForwardPass<float>& pass) {
    stream_forward<Tile>(pass);
  }
  static Kernels<float> get() { return {Tile::kColumns, 2, &pass_workspace<Tile>, &forward, nullptr}; }
};
#else
MASKCO_KERNELS(Baseline, , 16, 4, 4)  // NEON: 16 of 32
#endif

// For sums in T and queries of this dtype. The keys' gradient is computed in T whatever the dtype.
template <class T>
Kernels<T> kernels(ScalarType dtype) {
#if defined(__x86_64__)
  const InstructionSet best = instruction_set();
  if constexpr (std::is_same_v<T, float>)
    if (best == InstructionSet::Avx512Bf16 && dtype == ScalarType::BFloat16) return Avx512Bf16::get();
  if (best >= InstructionSet::Avx512) return Avx512<T>::get();
  if (best == InstructionSet::Avx2) return Avx2<T>::get();
#endif
  return Baseline<T>::get();
}

// ---- operands

template <class T>
constexpr ScalarType scalar_type_of = std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float;

int64_t valid_count(const std::optional<Tensor>& valid, int64_t size) {
  if (!valid) return size;
  const int64_t count = *static_cast<const int64_t*>(valid->data_ptr());
  STD_TORCH_CHECK(0 <= count && count <= size, "valid must lie between 0 and the queue's ", size, " rows, got ", count);
  return count;
}

const int64_t* id_pointer(const std::optional<Tensor>& ids) {
  return ids ? static_cast<const int64_t*>(ids->data_ptr()) : nullptr;
}

template <class T>
T temperature_value(double temperature, const std::optional<Tensor>& tensor) {
  return tensor ? *static_cast<const T*>(tensor->data_ptr()) : static_cast<T>(temperature);
}

Keys make_keys(const Tensor& rows, const std::optional<Tensor>& valid, const std::optional<Tensor>& ids,
               bool own_excluded) {
  return {rows.data_ptr(), rows.scalar_type(), rows.stride(0), rows.stride(1), valid_count(valid, rows.size(0)),
          id_pointer(ids), own_excluded};
}

// a contiguous copy in T, or the tensor itself where it is one already
template <class T>
Tensor as_contiguous(const Tensor& t) {
  constexpr ScalarType dtype = scalar_type_of<T>;
  return torch::stable::contiguous(t.scalar_type() == dtype ? t : torch::stable::to(t, dtype));
}

constexpr double kLog2E = 1.44269504088896340736, kLn2 = 0.69314718055994530942;

// rows [n, c] -> operands [n rounded up / panel, c / depth, panel], zeros around; times scale, if they are no pairs
template <class T>
std::vector<T> query_panels(const T* rows, int64_t n, int64_t c, int64_t panel, int64_t depth, T scale) {
  std::vector<T> out(round_up(n, kRowStep) * ((c + depth - 1) / depth), T(0));
  if (depth == 2) {  // an operand is as large as a float
    auto* halves = reinterpret_cast<c10::BFloat16*>(out.data());
    for (int64_t i = 0; i < n; i++)
      for (int64_t x = 0; x < c; x++)
        halves[((i / panel * ((c + 1) / 2) + x / 2) * panel + i % panel) * 2 + x % 2] = rows[i * c + x];
    return out;
  }
  for (int64_t i = 0; i < n; i++)
    for (int64_t x = 0; x < c; x++) out[(i / panel * c + x) * panel + i % panel] = rows[i * c + x] * scale;
  return out;
}

// values [n] -> [n rounded up], times scale
template <class T>
std::vector<T> padded(const T* values, int64_t n, T scale) {
  std::vector<T> out(round_up(n, kRowStep), T(0));
  for (int64_t i = 0; i < n; i++) out[i] = values[i] * scale;
  return out;
}

template <class T>
T dot(const T* a, const T* b, int64_t c) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t x = 0; x < c; x++) sum += a[x] * b[x];
  return sum;
}

// A buffer whose memory is not touched before it is used.
template <class T>
std::unique_ptr<T[]> uninitialised(int64_t n) {
  return std::unique_ptr<T[]>(new T[n]);
}

// ---- forward

// How queries and keys are cut into passes.
struct Cut {
  int64_t rows, blocks;  // queries of a block
  int64_t keys, ranges;  // keys of a range, a multiple of the tile

  Cut(int64_t n, int64_t key_count, int64_t row_bytes) {
    constexpr int64_t kPasses = 16;           // enough that a few threads end together
    constexpr int64_t kLeastTiles = 8;        // a range should be worth its start and its merge
    constexpr int64_t kStateBytes = 4 << 20;  // bound on what the ranges' states take together
    blocks = (n + kRowBlock - 1) / kRowBlock;
    rows = round_up((n + blocks - 1) / blocks, kRowStep);
    const int64_t tiles = (key_count + kKeyTile - 1) / kKeyTile;
    ranges = std::min(
        {(kPasses + blocks - 1) / blocks, tiles / kLeastTiles, kStateBytes / std::max<int64_t>(n * row_bytes, 1)});
    ranges = std::max<int64_t>(ranges, 1);
    keys = (tiles + ranges - 1) / ranges * kKeyTile;
  }
};

template <class T>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> forward(
    const Tensor& query_in, const Tensor& positive_in, const std::optional<Tensor>& queue,
    const std::optional<Tensor>& local_negatives, bool in_batch, const std::optional<Tensor>& query_ids,
    const std::optional<Tensor>& queue_ids, const std::optional<Tensor>& valid, double temperature,
    const std::optional<Tensor>& temperature_tensor, bool need_grad) {
  const Tensor query = as_contiguous<T>(query_in), positive = as_contiguous<T>(positive_in);
  const int64_t n = query.size(0), c = query.size(1);
  const T inverse = T(1) / temperature_value<T>(temperature, temperature_tensor);

  Tensor loss = torch::stable::new_empty(query, {n}), lse = torch::stable::new_empty(query, {n});
  Tensor positive_logit = torch::stable::new_empty(query, {n});
  Tensor rank = torch::stable::new_empty(query, {n}, ScalarType::Long);
  // becomes the weighted sum of the negatives, and in the end the gradient
  Tensor grad_query = torch::stable::new_empty(query, {need_grad ? n : 0, c});
  if (n == 0) return {loss, lse, positive_logit, rank, grad_query};

  const T* q = static_cast<const T*>(query.data_ptr());
  const T* p = static_cast<const T*>(positive.data_ptr());
  T* sums = need_grad ? static_cast<T*>(grad_query.data_ptr()) : nullptr;
  const T scale = inverse * T(kLog2E);  // from a product to a logit in units of log 2
  const int64_t padded = round_up(n, kRowStep);
  std::vector<T> positive_logits(padded), maxima(padded), totals(padded);
  std::vector<int64_t> ranks(padded);
  const States<T> rows{positive_logits.data(), maxima.data(), totals.data(), ranks.data()};

  // each query's own keys: the positive and the local negatives
  std::optional<Tensor> local;
  if (local_negatives) local = as_contiguous<T>(*local_negatives);
  const int64_t m = local ? local->size(1) : 0;
  const int64_t grain = 1 + (1 << 14) / (c * (m + 1) + 1);  // queries worth a thread
  torch::stable::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) {
    std::vector<T> weights(m);
    for (int64_t i = begin; i < end; i++) {
      const T* keys = local ? static_cast<const T*>(local->data_ptr()) + i * m * c : nullptr;  // [M, C]
      T max = positive_logits[i] = dot(q + i * c, p + i * c, c) * scale;
      for (int64_t j = 0; j < m; j++) {
        weights[j] = dot(q + i * c, keys + j * c, c) * scale;
        max = weights[j] > max ? weights[j] : max;
        ranks[i] += weights[j] > positive_logits[i];
      }
      maxima[i] = max;
      if (sums) std::fill_n(sums + i * c, c, T(0));
      for (int64_t j = 0; j < m; j++) {
        const T weight = std::exp2(weights[j] - (std::isinf(max) ? T(0) : max));
        totals[i] += weight;
        for (int64_t x = 0; sums && x < c; x++) sums[i * c + x] += weight * keys[j * c + x];
      }
    }
  });

  const Kernels<T> kernel = kernels<T>(query_in.scalar_type());
  const int64_t width = round_up(c, kernel.panel), depth = (c + kernel.depth - 1) / kernel.depth;
  const std::vector<T> panels = query_panels(q, n, c, kernel.panel, kernel.depth, scale);
  auto stream = [&](const Keys& keys) {
    const Cut cut(n, keys.count, (need_grad ? width : 1) * sizeof(T));
    std::vector<T> range_max(cut.ranges * padded), range_sum(cut.ranges * padded);
    std::vector<int64_t> range_rank(cut.ranges * padded);
    auto range_sums = uninitialised<T>(need_grad ? cut.ranges * padded * width : 0);
    torch::stable::parallel_for(0, cut.blocks * cut.ranges, 1, [&](int64_t begin, int64_t end) {
      auto workspace = uninitialised<T>(kernel.workspace(c));
      for (int64_t unit = begin; unit < end; unit++) {
        const int64_t block = unit % cut.blocks, range = unit / cut.blocks, first = block * cut.rows;
        const int64_t count = std::min(cut.rows, n - first), at = range * padded + first;
        if (count <= 0) continue;
        const States<T> states{positive_logits.data() + first, range_max.data() + at, range_sum.data() + at,
                               range_rank.data() + at};
        std::copy_n(states.positive_logit, count, states.max);
        T* own_sums = need_grad ? range_sums.get() + at * width : nullptr;
        if (need_grad) std::fill_n(own_sums, round_up(count, kRowStep) * width, T(0));
        kernel.forward({keys, range * cut.keys, std::min(keys.count, (range + 1) * cut.keys),
                        panels.data() + first * depth, scale, first, count, c, id_pointer(query_ids), states, own_sums,
                        workspace.get()});
      }
    });
    torch::stable::parallel_for(0, n, 32, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++)
        for (int64_t range = 0; range < cut.ranges; range++) {
          const int64_t at = range * padded + i;
          const T max = std::max(range_max[at], rows.max[i]);
          // (equal maxima first: they may be infinite)
          const T old_share = rows.max[i] == max ? T(1) : std::exp2(rows.max[i] - max);
          const T new_share = range_max[at] == max ? T(1) : std::exp2(range_max[at] - max);
          rows.max[i] = max;
          rows.sum[i] = rows.sum[i] * old_share + range_sum[at] * new_share;
          rows.rank[i] += range_rank[at];
          const T* part = range_sums.get() + at * width;
          for (int64_t x = 0; sums && x < c; x++) sums[i * c + x] = sums[i * c + x] * old_share + part[x] * new_share;
        }
    });
  };
  if (queue) stream(make_keys(*queue, valid, queue_ids, false));
  if (in_batch) stream(make_keys(positive, std::nullopt, query_ids, true));

  T* out_loss = static_cast<T*>(loss.data_ptr());
  T* out_lse = static_cast<T*>(lse.data_ptr());
  T* out_logit = static_cast<T*>(positive_logit.data_ptr());
  std::copy_n(ranks.data(), n, static_cast<int64_t*>(rank.data_ptr()));
  for (int64_t i = 0; i < n; i++) {
    const T ln2 = T(kLn2), sum = totals[i];
    const T behind = (maxima[i] - positive_logits[i]) * ln2;  // NaN, and so the loss, with an infinite positive logit
    const T total = std::exp(-behind) + sum;
    out_loss[i] = behind + (behind == 0 ? std::log1p(sum) : std::log(total));
    out_logit[i] = positive_logits[i] * ln2;
    out_lse[i] = behind == 0 ? out_logit[i] + out_loss[i] : maxima[i] * ln2 + std::log(total);
    if (!sums) continue;
    const T factor = inverse / total, share = sum * factor;  // share = (1 - p_+) / temperature
    for (int64_t x = 0; x < c; x++) sums[i * c + x] = sums[i * c + x] * factor - share * p[i * c + x];
  }
  return {loss, lse, positive_logit, rank, grad_query};
}

// ---- the keys' gradient

template <class T>
Tensor backward_keys(const Tensor& grad_loss_in, const Tensor& lse_in, const Tensor& query_in, const Tensor& keys_in,
                     bool in_batch, const std::optional<Tensor>& query_ids, const std::optional<Tensor>& key_ids,
                     const std::optional<Tensor>& valid, double temperature,
                     const std::optional<Tensor>& temperature_tensor) {
  const Tensor query = as_contiguous<T>(query_in), grad_loss = as_contiguous<T>(grad_loss_in);
  const Tensor lse_row = as_contiguous<T>(lse_in);
  const int64_t n = query.size(0), c = query.size(1);
  const T inverse = T(1) / temperature_value<T>(temperature, temperature_tensor);
  const T* q = static_cast<const T*>(query.data_ptr());
  const Kernels<T> kernel = kernels<T>(scalar_type_of<T>);
  const int64_t width = round_up(c, kernel.panel);
  const std::vector<T> panels = query_panels(q, n, c, kernel.panel, 1, inverse * T(kLog2E));
  std::vector<T> wide(round_up(n, kRowStep) * width, T(0));
  for (int64_t i = 0; i < n; i++)
    for (int64_t x = 0; x < c; x++) wide[i * width + x] = q[i * c + x] * inverse;
  const std::vector<T> lse = padded(static_cast<const T*>(lse_row.data_ptr()), n, T(kLog2E));
  const std::vector<T> upstream = padded(static_cast<const T*>(grad_loss.data_ptr()), n, T(1));

  Tensor grad_keys = torch::stable::new_empty(query, {keys_in.size(0), c});
  const Keys keys = make_keys(keys_in, valid, key_ids, in_batch);
  T* grad = static_cast<T*>(grad_keys.data_ptr());
  std::fill(grad + keys.count * c, grad + keys_in.size(0) * c, T(0));
  const int64_t tiles = (keys.count + kKeyTile - 1) / kKeyTile;
  torch::stable::parallel_for(0, tiles, 1, [&](int64_t begin, int64_t end) {
    auto workspace = uninitialised<T>(kernel.workspace(c));
    kernel.key_gradient({keys, begin * kKeyTile, std::min(keys.count, end * kKeyTile), panels.data(), wide.data(), n, c,
                         id_pointer(query_ids), lse.data(), upstream.data(), grad, workspace.get()});
  });
  return keys_in.scalar_type() == scalar_type_of<T> ? grad_keys : torch::stable::to(grad_keys, keys_in.scalar_type());
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> info_nce_fwd(
    const Tensor& query,                           // [N, C]
    const Tensor& positive,                        // [N, C]
    const std::optional<Tensor>& queue,            // [K, C], any strides
    const std::optional<Tensor>& local_negatives,  // [N, M, C]
    bool in_batch,
    const std::optional<Tensor>& query_ids,  // [N] int64
    const std::optional<Tensor>& queue_ids,  // [K] int64
    const std::optional<Tensor>& valid,      // one int64
    double temperature,
    const std::optional<Tensor>&
        temperature_tensor,  // one float32 (float64 with float64 queries); replaces temperature
    bool need_grad) {
  check_info_nce_fwd(query, positive, queue, local_negatives, query_ids, queue_ids, valid, temperature_tensor);
  auto run = accumulation_type(query) == ScalarType::Double ? &forward<double> : &forward<float>;
  return run(query, positive, queue, local_negatives, in_batch, query_ids, queue_ids, valid, temperature,
             temperature_tensor, need_grad);
}

Tensor info_nce_bwd_keys(const Tensor& grad_loss,  // [N]
                         const Tensor& lse,        // [N]
                         const Tensor& query,      // [N, C]
                         const Tensor& keys,       // [K, C]
                         bool in_batch,            // key i is query i's own positive, and no negative of it
                         const std::optional<Tensor>& query_ids,  // [N] int64
                         const std::optional<Tensor>& key_ids,    // [K] int64
                         const std::optional<Tensor>& valid,      // one int64
                         double temperature, const std::optional<Tensor>& temperature_tensor) {
  check_info_nce_bwd_keys(grad_loss, lse, query, keys, in_batch, query_ids, key_ids, valid, temperature_tensor);
  auto run = accumulation_type(query) == ScalarType::Double ? &backward_keys<double> : &backward_keys<float>;
  return run(grad_loss, lse, query, keys, in_batch, query_ids, key_ids, valid, temperature, temperature_tensor);
}

}  // namespace
}  // namespace maskco

MASKCO_LIBRARY_IMPL(MASKCO_NAMESPACE, CPU, m) {
  m.impl("info_nce_fwd", TORCH_BOX(&maskco::info_nce_fwd));
  m.impl("info_nce_bwd_keys", TORCH_BOX(&maskco::info_nce_bwd_keys));
}
