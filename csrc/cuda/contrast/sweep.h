// Host side of the sweeps over all pairs: which tile a dtype gets, how a sweep is cut into blocks, and gradients.
//
// cuBLAS computes the gradients, which are products of the weights with the features. The weights of a slab of queries
// are in memory, in the features' dtype, and both gradients use them. So there are as many products as in plain torch,
// and one more for the forward sweep's logits.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <tuple>

#include "common/aten.h"
#include "common/dispatch.h"
#include "common/pair_losses.h"
#include "cuda/common/host.h"
#include "cuda/contrast/finish.cuh"

namespace maskco {

// A warp's 64 x 32 logits take 64 registers of each thread, and every fragment that it loads serves four products. The
// three terms of Float32Tile take twice as many registers and would spill, so its fragments of rows serve two.
using Float16Tile = LogitTile<HalfProduct<__half>, 2, 4, 4, 4, 1>;
using BFloat16Tile = LogitTile<HalfProduct<__nv_bfloat16>, 2, 4, 4, 4, 1>;
using Float32Tile = LogitTile<Tf32Product<3>, 2, 4, 2, 4, 1>;
using Tf32Tile = LogitTile<Tf32Product<1>, 2, 4, 4, 4, 1>;
using Float64Tile = LogitTile<DoubleProduct, 2, 4, 2, 2, 1>;

// Calls f(LogitTile) for the dtype.
template <class F>
auto dispatch_tile(ScalarType dtype, bool allow_tf32, const F& f) {
  if (dtype == ScalarType::Half) return f(Float16Tile());
  if (dtype == ScalarType::BFloat16) return f(BFloat16Tile());
  if (dtype == ScalarType::Double) return f(Float64Tile());
  return allow_tf32 ? f(Tf32Tile()) : f(Float32Tile());
}

template <class T>
constexpr ScalarType scalar_type_of = std::is_same_v<T, double>    ? ScalarType::Double
                                      : std::is_same_v<T, float>   ? ScalarType::Float
                                      : std::is_same_v<T, int64_t> ? ScalarType::Long
                                                                   : ScalarType::Int;
template <class T>
Tensor new_tensor(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef size) {
  return torch::stable::new_empty(like, size, scalar_type_of<T>);
}

template <class T>
PairRows<T> pair_rows(const Tensor& t) {
  const int64_t size = t.element_size(), c = t.size(1);
  STD_TORCH_CHECK(c <= std::numeric_limits<int32_t>::max(), "features have ", c,
                  " channels. At most 2^31 - 1 can be taken");
  const bool aligned = t.stride(1) == 1 && c * size % 16 == 0 && t.stride(0) * size % 16 == 0 &&
                       reinterpret_cast<uintptr_t>(t.data_ptr()) % 16 == 0;
  return {device_ptr<const T>(t), t.stride(0), t.stride(1), t.size(0), static_cast<int>(c), aligned};
}

template <class Acc>
DeviceScalar<Acc> device_scalar(const ScaleArgument& scale) {
  return {scale.number, optional_ptr<Acc>(scale.tensor)};
}
template <class Acc>
Upstream<Acc> uniform_upstream(double value) {
  return {value, nullptr};
}
template <class Acc>
Upstream<Acc> upstream_of(const Tensor& rows) {
  return {0, device_ptr<const Acc>(rows)};
}

// Number of blocks of kLineThreads threads, with one thread for each of `count`.
inline unsigned line_blocks(int64_t count) {
  const int64_t blocks = ceil_div(count, kLineThreads);
  STD_TORCH_CHECK(blocks <= std::numeric_limits<int32_t>::max(), "contrast: ", count,
                  " rows need more blocks than one launch can have. Pass fewer queries or keys at a time");
  return static_cast<unsigned>(blocks);
}
template <class... Parameters, class... Arguments>
void launch_lines(int64_t count, const Tensor& like, void (*kernel)(Parameters...), Arguments... arguments) {
  if (count > 0) kernel<<<line_blocks(count), kLineThreads, 0, current_stream(like)>>>(Parameters(arguments)...);
  check_cuda(cudaGetLastError(), "contrast");
}

// Only the CPU keeps logits. Here the second sweep computes them again.
inline void check_no_logits(int64_t kept) { STD_TORCH_CHECK(kept == 0, "kept must be 0 on CUDA, got ", kept); }
template <class Acc>
Tensor no_logits(const Tensor& like, int64_t k, int64_t kept) {
  check_no_logits(kept);
  return new_tensor<Acc>(like, {k, 0});
}

// How a sweep over queries and keys is cut into blocks.
struct SweepCut {
  Rectangle size;
  dim3 grid;

  int64_t blocks() const { return int64_t(grid.x) * grid.y; }
};

// Blocks take squares of tiles, since their results to merge are as long as the sides. There are two waves of blocks,
// or one tile for each block.
template <class Tile>
SweepCut sweep_cut(int64_t n, int64_t k) {
  constexpr int64_t kMostTiles = 16;
  const int64_t rows = ceil_div(n, Tile::kRows), columns = ceil_div(k, Tile::kColumns);
  const int64_t slots = int64_t(Tile::kBlocksPerSm) * device_attribute(cudaDevAttrMultiProcessorCount);
  const auto side = static_cast<int64_t>(std::sqrt(double(rows) * double(columns) / double(2 * slots)));
  const auto tiles = static_cast<int>(std::clamp<int64_t>(side, 1, kMostTiles));
  const int64_t x = ceil_div(rows, tiles), y = ceil_div(columns, tiles);
  STD_TORCH_CHECK(x <= std::numeric_limits<int32_t>::max() && y <= 65535, "contrast: ", n, " queries and ", k,
                  " keys need more blocks than one launch can have. Pass fewer at a time");
  return {{tiles, tiles}, dim3(static_cast<unsigned>(x), static_cast<unsigned>(y))};
}

template <class Kernel>
void allow_shared_memory(Kernel* kernel, size_t bytes) {
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
             "contrast: shared memory");
}

// The sum of all values times factor · unit · scale^power.
template <class Value, class Acc>
void total_of(const Tensor& values, double factor, int power, const ScaleArgument& scale,
              const std::optional<Tensor>& unit, const Tensor& out) {
  contrast_total_kernel<Value, Acc><<<1, kTotalThreads, 0, current_stream(values)>>>(
      device_ptr<const Value>(values), values.numel(), factor, power, device_scalar<Acc>(scale),
      optional_ptr<Acc>(unit), device_ptr<Acc>(out));
  check_cuda(cudaGetLastError(), "contrast: total");
}

// The unit of float16 weights. Null for other dtypes.
template <class Acc>
std::optional<Tensor> weight_unit(const Tensor& query, const Upstream<Acc>& rows, int64_t num_rows,
                                  const Upstream<Acc>& columns, int64_t num_columns, const ScaleArgument& scale) {
  if (query.scalar_type() != ScalarType::Half) return std::nullopt;
  const Tensor unit = new_tensor<Acc>(query, {1});
  contrast_unit_kernel<Acc><<<1, kTotalThreads, 0, current_stream(query)>>>(
      rows, num_rows, columns, num_columns, device_scalar<Acc>(scale), device_ptr<Acc>(unit));
  check_cuda(cudaGetLastError(), "contrast: unit");
  return unit;
}

// Converts sums in Acc, times the unit, to a gradient in its own dtype, or adds them to it.
template <class Acc>
void convert_sums(const Tensor& from, const std::optional<Tensor>& unit, bool add, const Tensor& to) {
  const int64_t count = from.numel();
  dispatch_floating<__half, __nv_bfloat16>(to.scalar_type(), [&](auto tag) {
    using To = typename decltype(tag)::type;
    launch_lines(count, from, &contrast_convert_kernel<To, Acc>, device_ptr<const Acc>(from), optional_ptr<Acc>(unit),
                 add, device_ptr<To>(to), count);
  });
}

// Slabs of queries, with one sweep for each. The weights of one slab are in memory at a time.
template <class Tile>
struct Slabs {
  static constexpr int64_t kBytesPerSm = 2 << 20;  // so that each slab fills the whole GPU

  int64_t n, k, width, rows;  // width of a row of weights (K rounded up); rows of a slab
  bool stored;

  Slabs(int64_t n_, int64_t k_, bool stored_) : n(n_), k(k_), width(ceil_div(k_, 8) * 8), stored(stored_) {
    const int64_t bytes = kBytesPerSm * device_attribute(cudaDevAttrMultiProcessorCount);
    const int64_t fit = bytes / std::max<int64_t>(width * int64_t(sizeof(typename Tile::T)), 1);
    rows = stored ? std::max<int64_t>(fit / Tile::kRows, 1) * Tile::kRows : std::max<int64_t>(n, 1);
  }
  template <class Body>  // body(first query, how many, cut)
  void for_each(const Body& body) const {
    for (int64_t first = 0; k > 0 && first < n; first += rows) {
      const int64_t count = std::min(rows, n - first);
      body(first, count, sweep_cut<Tile>(count, k));
    }
  }
  int64_t blocks() const {
    int64_t total = 0;
    for_each([&](int64_t, int64_t, const SweepCut& cut) { total += cut.blocks(); });
    return total;
  }
};

// One slab: arguments of a kernel that weighs pairs.
template <class T>
struct Slab {
  int64_t first, count;  // queries
  SweepCut cut;
  T* weights;     // [count, width], or null
  int64_t width;  //
  int64_t block;  // index of the sweep's first block among all slabs' blocks
};

struct PairGradients {
  Tensor query, keys;  // [N, C], [K, C], or [0, C] if not needed
};

// The gradients of both features, in `dtype`: products of the features with the weights that weigh(slab) makes.
template <class Tile, class Weigh>
PairGradients gradients_of(const Tensor& query, const Tensor& keys, Needed need, ScalarType dtype,
                           const std::optional<Tensor>& unit, const Weigh& weigh) {
  using T = typename Tile::T;
  using Acc = typename Tile::Acc;
  const int64_t n = query.size(0), k = keys.size(0), c = query.size(1);
  const Slabs<Tile> slabs(n, k, need.query || need.keys);
  const auto gradient = [&](int64_t rows) {
    return n == 0 || k == 0 ? torch::stable::new_zeros(query, {rows, c}, dtype)
                            : torch::stable::new_empty(query, {rows, c}, dtype);
  };
  const PairGradients out{gradient(need.query ? n : 0), gradient(need.keys ? k : 0)};
  const auto multiply = [&](const Tensor& to, const Tensor& weights, const Tensor& features) {
    if (dtype == features.scalar_type() && !unit) return mm_out(to, weights, features);
    if (dtype == scalar_type_of<Acc> && !unit) return wide_mm_out(to, weights, features);
    const Tensor sums = new_tensor<Acc>(query, {to.size(0), c});
    wide_mm_out(sums, weights, features);
    convert_sums<Acc>(sums, unit, false, to);
  };
  const Tensor weights = torch::stable::new_empty(query, {slabs.stored ? std::min(slabs.rows, n) : 0, slabs.width});
  std::optional<Tensor> key_sums;
  int64_t block = 0;
  slabs.for_each([&](int64_t first, int64_t count, const SweepCut& cut) {
    weigh(Slab<T>{first, count, cut, slabs.stored ? device_ptr<T>(weights) : nullptr, slabs.width, block});
    block += cut.blocks();
    if (!slabs.stored) return;
    const Tensor w = narrow(narrow(weights, 0, 0, count), 1, 0, k), queries = narrow(query, 0, first, count);
    if (need.query) multiply(narrow(out.query, 0, first, count), w, keys);
    if (!need.keys) return;
    if (count == n) return multiply(out.keys, torch::stable::transpose(w, 0, 1), queries);
    const Tensor sums = new_tensor<Acc>(query, {k, c});
    wide_mm_out(sums, torch::stable::transpose(w, 0, 1), queries);
    if (key_sums) {
      convert_sums<Acc>(sums, std::nullopt, true, *key_sums);
    } else {
      key_sums = sums;
    }
  });
  if (key_sums) convert_sums<Acc>(*key_sums, unit, false, out.keys);
  return out;
}

}  // namespace maskco
