// InfoNCE streamed over the keys: loss and gradient in one pass, without an [N, K] tensor. stream.h has the pass
// itself.
//
// Work is cut into blocks of queries and, if those are few, ranges of keys. Each has its own running state. The states
// are merged in a fixed order, and the cut depends on the sizes alone. So the result does not depend on the threads.
#include "common/info_nce.h"

#include <torch/csrc/stable/ops.h>

#include <memory>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "common/library.h"
#include "cpu/common/amx_tile.h"
#include "cpu/common/instruction_set.h"
#include "cpu/contrast/features.h"
#include "cpu/info_nce/stream.h"

namespace maskco {
namespace {

// ---- one instantiation per instruction set, chosen when first called

template <class T>
struct Kernels {
  int64_t panel;  // queries of a panel; widths are rounded up to it too
  int64_t depth;  // 2 if operands are pairs of bfloat16
  int64_t parts;  // 2 if these represent float32
  int64_t keys;   // of a tile
  int64_t (*workspace)(int64_t c);
  void (*forward)(const ForwardPass<T>&);
  void (*key_gradient)(const KeyGradientPass<T>&);

  int64_t operands(int64_t c) const { return parts * ((c + depth - 1) / depth); }  // of one row
};

#define MASKCO_KERNELS(name, target, bytes, rows, vectors)                                                     \
  template <class T>                                                                                           \
  struct name {                                                                                                \
    using Tile = RegisterTile<MultiplyAdd<T, bytes>, bytes, rows, vectors>;                                    \
    static_assert(Tile::kColumns % rows == 0 && kRowStep % Tile::kColumns == 0 && Tile::kKeys % rows == 0);    \
    target static void forward(const ForwardPass<T>& pass) { stream_forward<Tile>(pass); }                     \
    target static void key_gradient(const KeyGradientPass<T>& pass) { stream_key_gradient<Tile, Tile>(pass); } \
    static Kernels<T> get() {                                                                                  \
      return {Tile::kColumns, 1, 1, Tile::kKeys, &pass_workspace<Tile>, &forward, &key_gradient};              \
    }                                                                                                          \
  };

#if defined(__x86_64__)
MASKCO_KERNELS(Avx512, MASKCO_AVX512, 64, 8, 2)  // 16 of 32 registers hold sums
MASKCO_KERNELS(Avx2, MASKCO_AVX2, 32, 4, 2)      // 8 of 16
MASKCO_KERNELS(Baseline, , 16, 4, 2)             // SSE2: 8 of 16

#ifdef MASKCO_BFLOAT16_PAIRS
struct Avx512Bf16 {
  using Tile = RegisterTile<MultiplyAddPairs, 64, 8, 2>;
  MASKCO_AVX512 static void forward(const ForwardPass<float>& pass) { stream_forward<Tile>(pass); }
  MASKCO_AVX512 static void key_gradient(const KeyGradientPass<float>& pass) {
    stream_key_gradient<Tile, Avx512<float>::Tile>(pass);
  }
  static Kernels<float> get() {
    return {Tile::kColumns, 2, 1, Tile::kKeys, &pass_workspace<Tile>, &forward, &key_gradient};
  }
};
#endif

#ifdef MASKCO_AMX
template <int kParts>
struct Amx {
  using Tile = AmxTile<AmxHere, kParts>;
  static_assert(kRowStep % Tile::kColumns == 0 && Tile::kKeys % Tile::kRows == 0);
  MASKCO_AMX_TARGET static void forward(const ForwardPass<float>& pass) {
    const typename Tile::Registers registers;
    stream_forward<Tile>(pass);
  }
  MASKCO_AMX_TARGET static void key_gradient(const KeyGradientPass<float>& pass) {
    const typename Tile::Registers registers;
    stream_key_gradient<Tile, Avx512<float>::Tile>(pass);
  }
  static Kernels<float> get() {
    return {Tile::kColumns, 2, kParts, Tile::kKeys, &pass_workspace<Tile>, &forward, &key_gradient};
  }
};
#endif
#else
MASKCO_KERNELS(Baseline, , 16, 4, 4)  // NEON: 16 of 32
#endif

// The kernels for sums in T.
template <class T>
Kernels<T> kernels([[maybe_unused]] const InfoNCECall& call) {
#if defined(__x86_64__)
  const InstructionSet best = instruction_set();
  [[maybe_unused]] const bool in_bfloat16 = call.query.scalar_type() == ScalarType::BFloat16;
#ifdef MASKCO_AMX
  if constexpr (std::is_same_v<T, float>) {
    if (has_amx() && in_bfloat16) return Amx<1>::get();
    if (has_amx() && call.query.scalar_type() == ScalarType::Float && call.allow_tf32) return Amx<2>::get();
  }
#endif
#ifdef MASKCO_BFLOAT16_PAIRS
  if constexpr (std::is_same_v<T, float>)
    if (best >= InstructionSet::Avx512Bf16 && in_bfloat16) return Avx512Bf16::get();
#endif
  if (best >= InstructionSet::Avx512) return Avx512<T>::get();
  if (best == InstructionSet::Avx2) return Avx2<T>::get();
#endif
  return Baseline<T>::get();
}

// ---- operands

int64_t valid_count(const std::optional<Tensor>& valid, int64_t size) {
  if (!valid) return size;
  const int64_t count = *data<const int64_t>(*valid);
  STD_TORCH_CHECK(0 <= count && count <= size, "valid must lie between 0 and the queue's ", size, " rows, got ", count);
  return count;
}

template <class T>
T temperature_value(const InfoNCECall& call) {
  return call.temperature_tensor ? *data<const T>(*call.temperature_tensor) : static_cast<T>(call.temperature);
}

Keys make_keys(const InfoNCEKeys& keys) {
  const Tensor& rows = keys.rows;
  return {rows.data_ptr(),
          rows.scalar_type(),
          rows.stride(0),
          rows.stride(1),
          valid_count(keys.valid, rows.size(0)),
          id_pointer(keys.ids),
          keys.own};
}

// A buffer whose memory is not initialised.
template <class T>
std::unique_ptr<T[]> uninitialised(int64_t n) {
  return std::unique_ptr<T[]>(new T[n]);
}

// rows [n, c] -> operands [n rounded up / panel, operands of a row, panel], padded with zeros. Scaled unless they are
// pairs.
template <class T>
std::unique_ptr<T[]> query_panels(const T* rows, int64_t n, int64_t c, const Kernels<T>& kernel, T scale) {
  const int64_t panel = kernel.panel, panels = round_up(n, kRowStep) / panel, size = kernel.operands(c) * panel;
  auto out = uninitialised<T>(panels * size);
  torch::stable::parallel_for(0, panels, grain(size), [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; p++) {
      const T* row = rows + p * panel * c;
      const int64_t count = std::clamp<int64_t>(n - p * panel, 0, panel);
      const auto value = [&](int64_t i, int64_t x) { return i < count && x < c ? row[i * c + x] : T(0); };
      T* to = out.get() + p * size;
      auto* halves = reinterpret_cast<c10::BFloat16*>(to);  // a pair has the size of a float
      if (kernel.parts == 2)
        for (int64_t x = 0; x < round_up(c, 2); x++)
          for (int64_t i = 0; i < panel; i++) {
            c10::BFloat16* rest = halves + (x / 2 * panel + i) * 2 + x % 2;
            c10::BFloat16& nearest = rest[size];  // (the second half of the `size` pairs of both parts)
            nearest = static_cast<float>(value(i, x));
            *rest = static_cast<float>(value(i, x)) - static_cast<float>(nearest);
          }
      else if (kernel.depth == 2)
        for (int64_t x = 0; x < round_up(c, 2); x++)
          for (int64_t i = 0; i < panel; i++) halves[(x / 2 * panel + i) * 2 + x % 2] = value(i, x);
      else
        for (int64_t x = 0; x < c; x++)
          for (int64_t i = 0; i < panel; i++) to[x * panel + i] = value(i, x) * scale;
    }
  });
  return out;
}

template <class T>
T dot(const T* a, const T* b, int64_t c) {
  constexpr int64_t kBlock = 256;  // in blocks for precision, as in panel_logits
  T total = 0;
  for (int64_t first = 0; first < c; first += kBlock) {
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t x = first; x < std::min(c, first + kBlock); x++) sum += a[x] * b[x];
    total += sum;
  }
  return total;
}

// ---- forward

// How queries and keys are cut into passes.
struct Cut {
  int64_t rows, blocks;  // queries of a block
  int64_t keys, ranges;  // keys of a range, a multiple of the tile

  Cut(int64_t n, int64_t key_count, int64_t c, int64_t row_bytes, int64_t tile) {
    constexpr int64_t kPasses = 16;           // enough that a few threads finish at the same time
    constexpr int64_t kLeastWork = 1 << 20;   // multiplications that are worth a pass's start and merge
    constexpr int64_t kStateBytes = 4 << 20;  // limit for the states of all ranges
    blocks = (n + kRowBlock - 1) / kRowBlock;
    const int64_t tiles = (key_count + tile - 1) / tile, worth = n * key_count * c / kLeastWork;
    ranges = std::min({(kPasses + blocks - 1) / blocks, worth, kStateBytes / std::max<int64_t>(n * row_bytes, 1)});
    ranges = std::clamp<int64_t>(ranges, 1, std::max<int64_t>(tiles, 1));
    keys = (tiles + ranges - 1) / ranges * tile;
    blocks = std::max(blocks, std::min(kPasses, worth) / ranges);  // with few keys, smaller blocks
    rows = round_up((n + blocks - 1) / blocks, kRowStep);
  }
};

// One call's queries and their running state.
template <class T>
struct Queries {
  const T* rows;       // [N, C]
  const T* positives;  // [N, C]
  const int64_t* ids;  // [N] or null
  T* local_logits;     // [N, M]
  T* sums;             // [N, C]: weighted sums of the negatives, or null without gradient
  int64_t n, c, m;
  T scale;  // from a product to a logit in units of log 2
  std::optional<double> margin;
  bool decoupled;
  int64_t padded;  // n rounded up
  std::vector<T> positive_logit, ceiling, max, sum;
  std::vector<int64_t> rank;

  // The largest logit before any negative is seen.
  T first_max(int64_t i) const { return decoupled ? -std::numeric_limits<T>::infinity() : positive_logit[i]; }
  bool counts(int64_t i, T logit) const { return !margin || !(logit * (scale < 0 ? -1 : 1) > ceiling[i]); }

  Queries(const T* rows, const T* positives, const int64_t* ids, T* local_logits, T* sums, int64_t n, int64_t c,
          int64_t m, T scale, std::optional<double> margin, bool decoupled)
      : rows(rows),
        positives(positives),
        ids(ids),
        local_logits(local_logits),
        sums(sums),
        n(n),
        c(c),
        m(m),
        scale(scale),
        margin(margin),
        decoupled(decoupled),
        padded(round_up(n, kRowStep)),
        positive_logit(padded),
        max(padded),
        sum(padded),
        rank(padded) {}
};

// Starts each query's state with its own keys: the positive, and local negatives [N, M, C].
template <class T>
void start(Queries<T>& queries, const T* local_negatives) {
  const int64_t c = queries.c, m = queries.m;
  torch::stable::parallel_for(0, queries.n, grain(c), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++)
      queries.positive_logit[i] = as_kept(dot(queries.rows + i * c, queries.positives + i * c, c) * queries.scale);
  });
  queries.ceiling = ceilings(queries.margin, queries.positive_logit.data(), queries.padded, queries.scale);
  torch::stable::parallel_for(0, queries.n, grain(c * (m + 1)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const T* keys = local_negatives + i * m * c;
      T *logits = queries.local_logits + i * m, max = queries.first_max(i);
      for (int64_t j = 0; j < m; j++) {
        logits[j] = dot(queries.rows + i * c, keys + j * c, c) * queries.scale;
        if (!queries.counts(i, logits[j])) logits[j] = -std::numeric_limits<T>::infinity();
        max = logits[j] > max ? logits[j] : max;
        queries.rank[i] += logits[j] > queries.positive_logit[i];
      }
      queries.max[i] = max;
      T* sums = queries.sums ? queries.sums + i * c : nullptr;
      if (sums) std::fill_n(sums, c, T(0));
      for (int64_t j = 0; j < m; j++) {
        const T weight = std::exp2(logits[j] - (std::isinf(max) ? T(0) : max));
        queries.sum[i] += weight;
        for (int64_t x = 0; sums && x < c; x++) sums[x] += weight * keys[j * c + x];
      }
    }
  });
}

// Streams shared keys, cut into passes that run in parallel.
template <class T>
void stream(Queries<T>& queries, const Keys& keys, const Kernels<T>& kernel) {
  const int64_t n = queries.n, c = queries.c, padded = queries.padded;
  const int64_t width = round_up(c, kernel.panel), depth = kernel.operands(c);
  const auto panels = query_panels(queries.rows, n, c, kernel, queries.scale);
  const Cut cut(n, keys.count, c, (queries.sums ? width : 1) * sizeof(T), kernel.keys);
  std::vector<T> range_max(cut.ranges * padded), range_sum(cut.ranges * padded);
  std::vector<int64_t> range_rank(cut.ranges * padded);
  auto range_sums = uninitialised<T>(queries.sums ? cut.ranges * padded * width : 0);

  torch::stable::parallel_for(0, cut.blocks * cut.ranges, 1, [&](int64_t begin, int64_t end) {
    auto workspace = uninitialised<T>(kernel.workspace(c));
    for (int64_t unit = begin; unit < end; unit++) {
      const int64_t block = unit % cut.blocks, range = unit / cut.blocks, first = block * cut.rows;
      const int64_t count = std::min(cut.rows, n - first), at = range * padded + first;
      if (count <= 0) continue;
      const States<T> states{queries.positive_logit.data() + first, range_max.data() + at, range_sum.data() + at,
                             range_rank.data() + at};
      for (int64_t i = 0; i < count; i++) states.max[i] = queries.first_max(first + i);
      T* sums = queries.sums ? range_sums.get() + at * width : nullptr;
      if (sums) std::fill_n(sums, round_up(count, kRowStep) * width, T(0));
      kernel.forward({keys, range * cut.keys, std::min(keys.count, (range + 1) * cut.keys),
                      panels.get() + first * depth, queries.scale, first, count, c, queries.ids,
                      queries.margin ? queries.ceiling.data() : nullptr, T(queries.scale < 0 ? -1 : 1), states, sums,
                      workspace.get()});
    }
  });

  torch::stable::parallel_for(0, n, kRowStep, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++)
      for (int64_t range = 0; range < cut.ranges; range++) {
        const int64_t at = range * padded + i;
        const T old_max = queries.max[i], max = std::max(range_max[at], old_max);
        // (test equality first: maxima may be infinite)
        const T old_share = old_max == max ? T(1) : std::exp2(old_max - max);
        const T new_share = range_max[at] == max ? T(1) : std::exp2(range_max[at] - max);
        queries.max[i] = max;
        queries.sum[i] = queries.sum[i] * old_share + range_sum[at] * new_share;
        queries.rank[i] += range_rank[at];
        if (!queries.sums) continue;
        T* sums = queries.sums + i * c;
        const T* part = range_sums.get() + at * width;
        for (int64_t x = 0; x < c; x++) sums[x] = sums[x] * old_share + part[x] * new_share;
      }
  });
}

template <class T>
InfoNCEResults forward(const InfoNCEForwardCall& call) {
  InfoNCEResults results(call);
  const Tensor query = as_contiguous<T>(call.query), positive = as_contiguous<T>(call.positive);
  std::optional<Tensor> local;
  if (call.local_negatives) local = as_contiguous<T>(*call.local_negatives);
  const int64_t n = query.size(0), c = query.size(1), m = call.num_local();
  const T inverse = T(1) / temperature_value<T>(call);
  if (n == 0) return results;

  // (until the end, the shares hold the logits, and the gradient holds the sums)
  Queries<T> queries(data<const T>(query), data<const T>(positive), id_pointer(call.query_ids),
                     data<T>(results.local_share), call.need_grad ? data<T>(results.grad_query) : nullptr, n, c, m,
                     inverse * T(kLog2E), call.margin, call.decoupled);
  const Kernels<T> kernel = kernels<T>(call);
  start(queries, local ? data<const T>(*local) : nullptr);
  if (call.queue) stream(queries, make_keys(*call.queue), kernel);
  if (call.in_batch) stream(queries, make_keys({positive, call.query_ids, std::nullopt, true}), kernel);

  T *out_loss = data<T>(results.loss), *out_lse = data<T>(results.lse), *out_logit = data<T>(results.positive_logit);
  T *out_max = data<T>(results.normaliser), *out_total = out_max + n;
  std::copy_n(queries.rank.data(), n, data<int64_t>(results.rank));
  torch::stable::parallel_for(0, n, grain(c), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const T ln2 = T(kLn2), own = queries.positive_logit[i], max = queries.max[i], sum = queries.sum[i];
      T total;
      const T value = cross_entropy(own, max, sum, call.decoupled, &total);
      out_loss[i] = value;
      out_logit[i] = own * ln2;
      // (with an infinite logit the loss is NaN or inf, but the sum is infinite too)
      const bool infinite = std::isinf(max) && !std::isnan(sum) && !std::isnan(own);
      out_lse[i] = infinite ? max : max == own ? own * ln2 + value : max * ln2 + std::log(total);
      out_max[i] = max;
      out_total[i] = total;
      for (T* share = queries.local_logits + i * m; share < queries.local_logits + (i + 1) * m; share++)
        *share = total == 0 ? T(0) : std::exp2(*share - (std::isinf(max) ? T(0) : max)) / total;
      if (!call.need_grad) continue;
      T* grad = queries.sums + i * c;
      const T factor = total == 0 ? T(0) : inverse / total, share = sum * factor;  // share = (1 - p_+) / temperature
      for (int64_t x = 0; x < c; x++) grad[x] = grad[x] * factor - share * queries.positives[i * c + x];
    }
  });
  return results;
}

// ---- the keys' gradient

template <class T>
Tensor backward_keys(const InfoNCEKeysCall& call) {
  const Tensor query = as_contiguous<T>(call.query), grad_loss = as_contiguous<T>(call.grad_loss);
  const int64_t n = query.size(0), c = query.size(1), rows = call.keys.rows.size(0);
  const T inverse = T(1) / temperature_value<T>(call);
  const T* q = data<const T>(query);
  if (n == 0) return torch::stable::new_zeros(query, {rows, c});
  const Kernels<T> kernel = kernels<T>(call);
  const int64_t width = round_up(c, kernel.panel);
  const T scale = inverse * T(kLog2E);
  const auto panels = query_panels(q, n, c, kernel, scale);
  std::vector<T> wide(c == width ? 0 : n * width, T(0));  // the queries, if whole vectors cannot be read from them
  if (c != width)
    for (int64_t i = 0; i < n; i++) std::copy_n(q + i * c, c, wide.data() + i * width);
  const T *row_max = data<const T>(call.normaliser), *total = row_max + n, *grad_rows = data<const T>(grad_loss);
  std::vector<T> max(round_up(n, kRowStep), T(0)), upstream(max.size(), T(0));
  for (int64_t i = 0; i < n; i++) {
    max[i] = row_max[i] == -std::numeric_limits<T>::infinity() ? T(0) : row_max[i];  // (decoupled, without negatives)
    upstream[i] = total[i] == 0 ? T(0) : grad_rows[i] * inverse / total[i];
  }

  std::vector<T> own(call.margin ? max.size() : 0);
  for (int64_t i = 0; call.margin && i < n; i++) own[i] = data<const T>(*call.positive_logit)[i] * T(kLog2E);
  const std::vector<T> ceiling = ceilings(call.margin, own.data(), own.size(), scale);

  const Keys keys = make_keys(call.keys);
  Tensor grad_keys = torch::stable::new_empty(query, {rows, c});
  T* grad = data<T>(grad_keys);
  std::fill(grad + keys.count * c, grad + rows * c, T(0));
  constexpr int64_t kParts = 16, kStep = 16;  // of the keys; a step is whole register tiles, except with AMX
  const int64_t part = std::clamp(round_up(keys.count / kParts, kStep), 2 * kStep, kernel.keys);
  torch::stable::parallel_for(0, (keys.count + part - 1) / part, 1, [&](int64_t begin, int64_t end) {
    auto workspace = uninitialised<T>(kernel.workspace(c));
    kernel.key_gradient({keys, begin * part, std::min(keys.count, end * part), panels.get(), scale,
                         c == width ? q : wide.data(), n, c, id_pointer(call.query_ids),
                         call.margin ? ceiling.data() : nullptr, T(scale < 0 ? -1 : 1), max.data(), upstream.data(),
                         grad, workspace.get()});
  });
  const ScalarType dtype = call.keys.rows.scalar_type();
  return dtype == scalar_type_of<T> ? grad_keys : torch::stable::to(grad_keys, dtype);
}

bool in_double(const InfoNCECall& call) { return accumulation_type(call.query) == ScalarType::Double; }
InfoNCEResults forward(const InfoNCEForwardCall& call) {
  return in_double(call) ? forward<double>(call) : forward<float>(call);
}
Tensor backward_keys(const InfoNCEKeysCall& call) {
  return in_double(call) ? backward_keys<double>(call) : backward_keys<float>(call);
}

}  // namespace
}  // namespace maskco

MASKCO_LIBRARY_IMPL(MASKCO_NAMESPACE, CPU, m) {
  m.impl("info_nce_fwd", TORCH_BOX(&maskco::info_nce_fwd<&maskco::forward>));
  m.impl("info_nce_bwd_keys", TORCH_BOX(&maskco::info_nce_bwd_keys<&maskco::backward_keys>));
}
