// Sweeps all pairs with a policy. This file prepares operands, cuts units, runs threads and picks the CPU's kernels.
//
// The matrix of pairs is cut into groups of queries and as many ranges of keys. In round r, group u is paired with
// range u + r. No two units of a round share a row or a key, so each adds to both gradients in place. The cut depends
// on the sizes alone, and the order of rounds is fixed. So the result does not depend on the threads.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <memory>
#include <mutex>
#include <type_traits>
#include <vector>

#include "common/aten.h"
#include "common/checks.h"
#include "cpu/common/amx_tile.h"
#include "cpu/common/instruction_set.h"
#include "cpu/contrast/features.h"
#include "cpu/contrast/sweep.h"

namespace maskco {

// ---- one instantiation per instruction set

template <class T, class Policy>
struct SweepKernels {
  int64_t panel;  // queries of a panel; widths are rounded up to it too
  int64_t depth;  // 2 if operands are pairs of bfloat16
  int64_t (*workspace)(int64_t c);
  void (*read)(const Sweep<T>&, const Unit<T>&, const Policy&);
  void (*weigh)(const Sweep<T>&, const Unit<T>&, const Policy&);
  void (*pack)(const T* rows, int64_t stride, int64_t n, int64_t c, int64_t width, int64_t terms, T* out);
};

#define MASKCO_SWEEP_KERNELS(name, target, Step, bytes, rows, vectors)                                         \
  template <class T, class Policy>                                                                             \
  struct name {                                                                                                \
    using Tile = RegisterTile<Step, bytes, rows, vectors>;                                                     \
    target static void read(const Sweep<T>& sweep, const Unit<T>& unit, const Policy& policy) {                \
      sweep_unit<Tile, false>(sweep, unit, policy);                                                            \
    }                                                                                                          \
    target static void weigh(const Sweep<T>& sweep, const Unit<T>& unit, const Policy& policy) {               \
      sweep_unit<Tile, true>(sweep, unit, policy);                                                             \
    }                                                                                                          \
    target static void pack(const T* from, int64_t stride, int64_t n, int64_t c, int64_t width, int64_t terms, \
                            T* out) {                                                                          \
      pack_values<Tile>(from, stride, n, c, width, terms, out);                                                \
    }                                                                                                          \
    static SweepKernels<T, Policy> get() {                                                                     \
      return {Tile::kColumns, Tile::kDepth, &sweep_workspace<Tile>, &read, &weigh, &pack};                     \
    }                                                                                                          \
  };
#define MASKCO_COMMA ,
#define MASKCO_MULTIPLY_ADD(bytes) MultiplyAdd<T MASKCO_COMMA bytes>

#if defined(__x86_64__)
MASKCO_SWEEP_KERNELS(SweepAvx512, MASKCO_AVX512, MASKCO_MULTIPLY_ADD(64), 64, 8, 2)
MASKCO_SWEEP_KERNELS(SweepAvx2, MASKCO_AVX2, MASKCO_MULTIPLY_ADD(32), 32, 4, 2)
MASKCO_SWEEP_KERNELS(SweepBaseline, , MASKCO_MULTIPLY_ADD(16), 16, 4, 2)
#ifdef MASKCO_BFLOAT16_PAIRS
MASKCO_SWEEP_KERNELS(SweepPairs, MASKCO_AVX512, MultiplyAddPairs, 64, 8, 2)
#endif
#else
MASKCO_SWEEP_KERNELS(SweepBaseline, , MASKCO_MULTIPLY_ADD(16), 16, 4, 4)
#endif

#ifdef MASKCO_AMX
template <class T, class Policy>
struct SweepAmx {
  using Tile = AmxTile<AmxHere>;
  MASKCO_AMX_TARGET static void read(const Sweep<T>& sweep, const Unit<T>& unit, const Policy& policy) {
    const Tile::Registers registers;
    sweep_unit<Tile, false>(sweep, unit, policy);
  }
  MASKCO_AMX_TARGET static void weigh(const Sweep<T>& sweep, const Unit<T>& unit, const Policy& policy) {
    const Tile::Registers registers;
    sweep_unit<Tile, true>(sweep, unit, policy);
  }
  MASKCO_AMX_TARGET static void pack(const T* from, int64_t stride, int64_t n, int64_t c, int64_t width, int64_t terms,
                                     T* out) {
    pack_values<Tile>(from, stride, n, c, width, terms, out);
  }
  static SweepKernels<T, Policy> get() {
    return {Tile::kColumns, Tile::kDepth, &sweep_workspace<Tile>, &read, &weigh, &pack};
  }
};
#endif

// The kernels for sums in T and features of this dtype.
template <class T, class Policy>
SweepKernels<T, Policy> sweep_kernels([[maybe_unused]] ScalarType dtype) {
#if defined(__x86_64__)
  const InstructionSet best = instruction_set();
#ifdef MASKCO_AMX
  if constexpr (std::is_same_v<T, float>)
    if (has_amx() && dtype == ScalarType::BFloat16) return SweepAmx<T, Policy>::get();
#endif
#ifdef MASKCO_BFLOAT16_PAIRS
  if constexpr (std::is_same_v<T, float>)
    if (best >= InstructionSet::Avx512Bf16 && dtype == ScalarType::BFloat16) return SweepPairs<T, Policy>::get();
#endif
  if (best >= InstructionSet::Avx512) return SweepAvx512<T, Policy>::get();
  if (best == InstructionSet::Avx2) return SweepAvx2<T, Policy>::get();
#endif
  return SweepBaseline<T, Policy>::get();
}

// ---- the cut

struct SweepCut {
  int64_t group, groups;  // queries of a group
  int64_t range, ranges;  // keys of a range; at least as many ranges as groups of a chunk
  int64_t chunk_groups;

  // kSide is the number of groups of a chunk: as many threads can work at once.
  SweepCut(int64_t n, int64_t keys, int64_t c, int64_t kSide = 16) {
    constexpr double kLeastUnit = 3 << 18;  // multiplications that are worth a unit of their own
    constexpr int64_t kStep = 32;           // of rows and keys: a multiple of every panel and register tile
    const int64_t worth = std::lround(std::sqrt(double(n) * double(keys) * double(c) / kLeastUnit));
    const int64_t least = (n + kGroup - 1) / kGroup;
    const int64_t side = std::clamp<int64_t>(std::max(least, worth), 1, kSide);
    group = std::clamp(round_up((n + side - 1) / side, kStep), kStep, kGroup);
    groups = (n + group - 1) / group;
    range = std::max(round_up((keys + side - 1) / side, kStep), kStep);
    ranges = std::max((keys + range - 1) / range, std::min(groups, kSide));
    chunk_groups = std::min(ranges, kSide);
  }
};

// A slice is short, so it gains more from larger groups than from more threads.
constexpr int64_t kSliceGroups = 8;

template <class T>
SweepCut cut_of(const PairFeatures<T>& f) {
  return SweepCut(f.n, f.k, f.c, f.n < f.all ? kSliceGroups : 16);
}

// ---- the sweep

// A buffer for each working thread, kept from round to round.
template <class T>
class Workspaces {
 public:
  explicit Workspaces(int64_t size) : size_(size) {}
  std::unique_ptr<T[]> take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (free_.empty()) return std::unique_ptr<T[]>(new T[size_]);
    auto buffer = std::move(free_.back());
    free_.pop_back();
    return buffer;
  }
  void give(std::unique_ptr<T[]> buffer) {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(std::move(buffer));
  }

 private:
  int64_t size_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<T[]>> free_;
};

// rows [rows, c] -> [c rounded up / kPairs, panel] operands of kPairs features each, padded with zeros.
template <int kPairs, class Value>
void pack_panel(const Value* from, int64_t rows, int64_t c, int64_t panel, Value* to) {
  constexpr int64_t kBlock = 16;  // channels: the part of a cache line of a row that is read at once
  if (rows < panel || c % kPairs) std::fill_n(to, round_up(c, kPairs) * panel, Value(0));
  for (int64_t x0 = 0; x0 < c; x0 += kBlock)
    for (int64_t i = 0; i < rows; i++)
      for (int64_t x = x0; x < std::min(x0 + kBlock, c); x++)
        to[(x / kPairs * panel + i) * kPairs + x % kPairs] = from[i * c + x];
}

// Rows as the second factor of a logit product: [count rounded up / panel, c / depth, panel] operands, padded with
// zeros.
template <class T>
void pack_queries(const PairFeatures<T>& f, int64_t first, int64_t count, int64_t panel, int64_t depth, T* out) {
  const int64_t panels = round_up(count, 32) / panel, size = (f.c + depth - 1) / depth * panel;
  torch::stable::parallel_for(0, panels, grain(size), [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; p++) {
      const int64_t row = first + p * panel, rows = std::clamp<int64_t>(f.n - row, 0, panel);
      T* to = out + p * size;
      const auto* halves = data<const uint16_t>(f.query) + row * f.c;  // (two are one float)
      const bool whole_pairs = f.c % 2 == 0 && reinterpret_cast<uintptr_t>(halves) % 4 == 0;
      if (f.bfloat16 && whole_pairs)
        pack_panel<1>(reinterpret_cast<const int32_t*>(halves), rows, f.c / 2, panel, reinterpret_cast<int32_t*>(to));
      else if (f.bfloat16)
        pack_panel<2>(halves, rows, f.c, panel, reinterpret_cast<uint16_t*>(to));
      else
        pack_panel<1>(data<const T>(f.query) + row * f.c, rows, f.c, panel, to);
    }
  });
}

// A tensor [K, rows] for the first queries' logits, which is kept between the passes. No group writes its end if the
// last one is shorter than 32 queries, or none fits there. That end is 0, since the tensor is an operator's output.
template <class T>
Tensor logits_to_keep(const PairFeatures<T>& f, int64_t panel, int64_t rows) {
  STD_TORCH_CHECK(rows == f.padded || (0 <= rows && rows < f.padded && rows % kGroup == 0), "kept must be ", f.padded,
                  ", or a smaller multiple of ", kGroup, ", got ", rows);
  const Tensor logits = torch::stable::new_empty(f.query, {f.k, rows}, scalar_type_of<T>);
  const int64_t group = cut_of(f).group;
  int64_t written = 0;
  for (int64_t row = 0; row < f.n; row += group) {
    const int64_t end = row + round_up(std::min(group, f.n - row), panel);
    if (end <= rows) written = end;
  }
  std::fill(data<T>(logits) + f.k * written, data<T>(logits) + f.k * rows, T(0));
  return logits;
}

// Runs the units of one chunk, round by round.
template <class T, class Policy>
void sweep_chunk(const SweepCut& cut, const Sweep<T>& sweep, int64_t count, const Policy& policy,
                 void (*kernel)(const Sweep<T>&, const Unit<T>&, const Policy&), Workspaces<T>& workspaces) {
  const int64_t groups = (count + cut.group - 1) / cut.group;
  for (int64_t round = 0; round < cut.ranges; round++)
    torch::stable::parallel_for(0, groups, 1, [&](int64_t begin, int64_t end) {
      auto workspace = workspaces.take();
      for (int64_t u = begin; u < end; u++) {
        const int64_t row = u * cut.group, key = (u + round) % cut.ranges * cut.range;
        const Unit<T> unit{sweep.chunk + row, std::min(cut.group, count - row), key,
                           std::min(key + cut.range, sweep.keys.count), workspace.get()};
        if (key < sweep.keys.count) kernel(sweep, unit, policy);
      }
      workspaces.give(std::move(workspace));
    });
}

// Sweeps all pairs in chunks of queries. `around` gets each chunk's sweep and number of rows, and calls sweep_chunk.
template <class T, class Policy, class F>
void for_chunks(const SweepCut& cut, const PairFeatures<T>& f, const SweepKernels<T, Policy>& kernels, T scale,
                const Tensor& kept, bool read_kept, const F& around) {
  if (f.n == 0 || f.k == 0) return;
  const int64_t chunk = cut.chunk_groups * cut.group, depth = (f.c + kernels.depth - 1) / kernels.depth;
  const bool read_queries = !(read_kept && kept.size(1) >= f.padded);
  std::unique_ptr<T[]> query(new T[read_queries ? std::min(chunk, f.padded) * depth : 0]);
  Sweep<T> sweep{};
  sweep.keys = {f.keys.data_ptr(), f.keys.scalar_type(), f.c, 1, f.k, nullptr, false};
  sweep.c = f.c;
  sweep.width = f.width;
  sweep.scale = scale;
  sweep.query = query.get();
  sweep.kept = {data<T>(kept), kept.size(1)};
  for (int64_t first = 0; first < f.n; first += chunk) {
    const int64_t count = std::min(chunk, f.n - first);
    if (read_queries) pack_queries(f, first, count, kernels.panel, kernels.depth, query.get());
    sweep.chunk = first;
    around(sweep, count);
  }
}

// The policy reads every pair. Logits are kept if there is room for them.
template <class T, class Policy>
void read_pairs(const PairFeatures<T>& f, const SweepKernels<T, Policy>& kernels, T scale, const Policy& policy,
                const Tensor& logits) {
  const SweepCut cut = cut_of(f);
  Workspaces<T> workspaces(kernels.workspace(f.c));
  for_chunks(cut, f, kernels, scale, logits, false, [&](const Sweep<T>& sweep, int64_t count) {
    sweep_chunk(cut, sweep, count, policy, kernels.read, workspaces);
  });
}

// The policy weighs every pair. Register tiles compute both gradients from the weights.
template <class T, class Policy>
void weigh_in_place(const PairFeatures<T>& f, const SweepKernels<T, Policy>& kernels, T scale, const Policy& policy,
                    const Tensor& logits, GradientSum<T>& grad_query, GradientSum<T>& grad_keys) {
  const SweepCut cut = cut_of(f);
  Workspaces<T> workspaces(kernels.workspace(f.c));
  const int64_t value_rows = std::min(cut.chunk_groups * cut.group, f.padded);
  T* query_sums = grad_query.sums();
  T* key_sums = grad_keys.sums();
  std::unique_ptr<T[]> values(new T[key_sums ? value_rows * f.width : 0]);
  for_chunks(cut, f, kernels, scale, logits, true, [&](Sweep<T> sweep, int64_t count) {
    sweep.grad_query = query_sums ? query_sums + f.first * f.width : nullptr;
    sweep.grad_keys = key_sums;
    sweep.query_values = values.get();
    sweep.query_values_rows = value_rows;
    if (key_sums)
      torch::stable::parallel_for(0, count, grain(f.c), [&](int64_t begin, int64_t end) {
        kernels.pack(data<const T>(f.query) + (sweep.chunk + begin) * f.c, f.c, end - begin, f.c, f.width, value_rows,
                     values.get() + begin * kernels.panel);
      });
    sweep_chunk(cut, sweep, count, policy, kernels.weigh, workspaces);
  });
}

// The same for bfloat16: a chunk's weights are written in bfloat16, and ATen multiplies them. Its products are faster,
// with AMX several times. In float32 the register tiles are as fast as ATen, and need no memory for weights.
template <class Policy>
void weigh_bfloat16(const PairFeatures<float>& f, const SweepKernels<float, Policy>& kernels, float scale,
                    const Policy& policy, const Tensor& logits, GradientSum<float>& grad_query,
                    GradientSum<float>& grad_keys) {
  constexpr int64_t kWeights = 4 << 20;  // of a chunk: 8 MiB
  constexpr int64_t kPart = 1 << 20;     // for a chunk's part of the keys' gradient: 2 MiB
  SweepCut cut = cut_of(f);
  cut.chunk_groups = std::clamp<int64_t>(kWeights / (f.k * cut.group + 1), 1, cut.chunk_groups);
  const int64_t chunk = std::min(cut.chunk_groups * cut.group, f.padded);
  const bool whole = chunk >= f.all;
  const bool need_query = grad_query.needed(), need_keys = grad_keys.needed();
  Workspaces<float> workspaces(kernels.workspace(f.c));
  const Tensor weights = torch::stable::new_empty(f.query, {f.k, chunk});
  const int64_t part_rows = std::min(f.k, std::max<int64_t>(kPart / std::max<int64_t>(f.c, 1), 1));
  const Tensor part = torch::stable::new_empty(f.query, {need_keys && !whole ? part_rows : 0, f.c});
  for_chunks(cut, f, kernels, scale, logits, true, [&](Sweep<float> sweep, int64_t count) {
    sweep.weights = data<uint16_t>(weights);
    sweep.weights_stride = chunk;
    sweep_chunk(cut, sweep, count, policy, kernels.weigh, workspaces);
    const Tensor by_key = narrow(weights, 1, 0, count), query = narrow(f.query, 0, sweep.chunk, count);
    if (need_query)
      mm_out(narrow(grad_query.whole(), 0, f.first + sweep.chunk, count), torch::stable::transpose(by_key, 0, 1),
             f.keys);
    if (need_keys && whole) mm_out(grad_keys.whole(), by_key, query);
    for (int64_t key = 0; need_keys && !whole && key < f.k; key += part_rows) {
      const int64_t keys = std::min(part_rows, f.k - key);
      const Tensor share = narrow(part, 0, 0, keys);
      mm_out(share, narrow(by_key, 0, key, keys), query);
      const auto* add = data<const c10::BFloat16>(share);
      float* sums = grad_keys.sums() + key * f.width;
      torch::stable::parallel_for(0, keys, grain(f.c), [&](int64_t begin, int64_t end) {
        for (int64_t j = begin; j < end; j++)
          for (int64_t x = 0; x < f.c; x++) sums[j * f.width + x] += static_cast<float>(add[j * f.c + x]);
      });
    }
  });
}

template <class T, class Policy>
void weigh_pairs(const PairFeatures<T>& f, const SweepKernels<T, Policy>& kernels, T scale, const Policy& policy,
                 const Tensor& logits, GradientSum<T>& grad_query, GradientSum<T>& grad_keys) {
  if constexpr (std::is_same_v<T, float>)
    if (kernels.depth == 2) return weigh_bfloat16(f, kernels, scale, policy, logits, grad_query, grad_keys);
  weigh_in_place(f, kernels, scale, policy, logits, grad_query, grad_keys);
}

// The number of rows of a slice, or 0 if too few would fit. If each query's weights follow from its own logits, a slice
// of queries is read, and weighed while its logits are still in memory. That takes three products instead of four.
template <class T>
int64_t slice_rows(const PairFeatures<T>& f) {
  constexpr int64_t kFloats = 27 << 20, kPairs = 12 << 20;  // bytes; with the rest of a call they stay below 32 MiB
  constexpr int64_t kStep = 32 * kSliceGroups;              // so that its groups have one size
  // (logits and weights, or both packings)
  const int64_t row = f.bfloat16 ? f.k * 6 : (f.k + 2 * f.c) * int64_t(sizeof(T));
  return std::min((f.bfloat16 ? kPairs : kFloats) / std::max<int64_t>(row, 1) / kStep, kGroup / 32) * kStep;
}

}  // namespace maskco
