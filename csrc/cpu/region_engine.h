// Runs the kernels of region pooling over a batch: picks the instruction set, the layout and the tasks. A task is an
// image, or a range of its channels where images are few; every sum runs within one task and in one order, so results
// do not depend on the number of threads.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <utility>
#include <vector>

#include "region_weights.h"

namespace maskco {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::stable::Tensor;

template <class S>
struct RegionKernels {
  using T = typename Accumulator<S>::type;
  int64_t lanes;
  void (*pool)(const WeightsView<T>& weights, const Columns<const S>& x, T* out, int64_t out_stride);
  void (*spread)(const WeightsView<T>& weights, const BlockView& entries, const T* g, int64_t g_stride,
                 const Columns<S>& x);
};

namespace portable {
#define VECTOR_BYTES 16
#include "region_kernels.h"
#undef VECTOR_BYTES
}  // namespace portable

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define MASKCO_X86_TARGETS
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
#define VECTOR_BYTES 32
#include "region_kernels.h"
#undef VECTOR_BYTES
}  // namespace avx2
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,prefer-vector-width=512")
namespace avx512 {
#define VECTOR_BYTES 64
#include "region_kernels.h"
#undef VECTOR_BYTES
}  // namespace avx512
#pragma GCC pop_options
#endif

template <class S>
const RegionKernels<S>& kernels() {
  static const RegionKernels<S> best = [] {
#ifdef MASKCO_X86_TARGETS
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq"))
      return avx512::kernels<S>();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2::kernels<S>();
#endif
    return portable::kernels<S>();
  }();
  return best;
}

// Positions along one or two tensor dimensions as one index: i -> (i / inner) * outer_stride + (i % inner) * stride
struct Axis {
  int64_t size, inner, outer_stride, stride;
  bool uniform() const { return inner == size; }
};
Axis pixel_axis(const Tensor& t) {  // of [..., H, W]
  const int64_t h = t.size(-2), w = t.size(-1), row = t.stride(-2), column = t.stride(-1);
  if (h == 1 || row == column * w) return {h * w, h * w, 0, column};
  if (w == 1) return {h, h, 0, row};
  return {h * w, w, row, column};
}

// Features [B, pixels, columns] by their strides. With the axes swapped the same code sums over channels instead.
template <class S>
struct FeatureMap {
  const S* data;
  const S* end;  // behind the last element
  int64_t images, image_stride;
  Axis pixels, columns;
};
template <class S>
FeatureMap<S> feature_map(const Tensor& t) {  // [B, C, H, W]
  const S* data = static_cast<const S*>(t.const_data_ptr());
  int64_t last = 0;
  for (int64_t d = 0; d < 4; d++) last += (t.size(d) - 1) * t.stride(d);
  return {data, data + last + 1, t.size(0), t.stride(0), pixel_axis(t), {t.size(1), t.size(1), 0, t.stride(1)}};
}

// run(image, first column, last column)
template <class F>
void for_each_task(int64_t images, int64_t columns, int64_t work, const F& run) {
  if (images == 0 || columns == 0) return;
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t splits = std::max<int64_t>(1, std::min((columns + 63) / 64, (2 * threads + images - 1) / images));
  const int64_t width = ((columns + splits - 1) / splits + 63) / 64 * 64, per_image = (columns + width - 1) / width;
  const int64_t tasks = images * per_image;
  const auto range = [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; task++) {
      const int64_t first = task % per_image * width;
      run(task / per_image, first, std::min(first + width, columns));
    }
  };
  if (work < 32768)
    range(0, tasks);  // not worth a second thread
  else
    torch::stable::parallel_for(0, tasks, 1, range);
}

// out[regions, columns] = the weighted sums of these columns, by the kernel where it may read whole blocks of them
template <class S, class T>
void pool_columns(const RegionWeights<T>& weights, const Columns<const S>& x, T* out, int64_t out_stride) {
  const WeightsView<T> view = weights.view();
  kernels<S>().pool(view, x, out, out_stride);
  if (!x.pixels_contiguous) return;
  for (int64_t r = 0; r < view.regions; r++) {
    T* sums = out + r * out_stride;
    int bad = 0;
    for (int64_t j = 0; j < x.columns; j++) bad |= !(sums[j] - sums[j] == T(0));
    for (int64_t j = 0; bad && j < x.columns; j++)
      if (!std::isfinite(sums[j])) sums[j] = weights.exact(r, x.data + j * x.column_stride, x.pixel_stride);
  }
}

// For every image: weights by build(image, weights), sums over its pixels, finish(image, first, last, sums[regions,
// last - first]).
template <class S, class Build, class Finish>
void pool_regions(const FeatureMap<S>& x, int64_t work, const Build& build, const Finish& finish) {
  using T = typename Accumulator<S>::type;
  const bool plain = x.pixels.uniform() && x.columns.uniform();
  const bool interleaved = plain && x.columns.stride == 1 && x.pixels.stride != 1;
  const bool planar = plain && x.pixels.stride == 1;
  const int64_t lanes = interleaved ? 1 : kernels<T>().lanes;  // (those of S: both have accumulators of T)
  for_each_task(x.images, x.columns.size, work, [&](int64_t image, int64_t first, int64_t last) {
    RegionWeights<T> weights(lanes, x.pixels.size);
    build(image, weights);
    const int64_t columns = last - first;
    std::vector<T> sums(weights.regions() * columns);
    const S* data = x.data + image * x.image_stride;
    int64_t direct = 0;  // columns that the kernel reads in place
    if (planar || interleaved) {
      direct = columns;
      while (direct && !weights.fits(x.end - (data + (first + direct - 1) * x.columns.stride))) direct--;
      pool_columns<S>(
          weights, {data + first * x.columns.stride, x.pixels.size, direct, x.pixels.stride, x.columns.stride, planar},
          sums.data(), columns);
    }
    constexpr int64_t TILE = 8;
    const int64_t padded = (x.pixels.size + lanes - 1) / lanes * lanes;
    std::vector<T> tile(direct < columns ? TILE * padded : 0);
    for (int64_t j = direct; j < columns; j += TILE) {
      const int64_t count = std::min(TILE, columns - j);
      for (int64_t i = 0; i < count; i++) {
        const int64_t c = first + j + i;
        const S* column = data + c / x.columns.inner * x.columns.outer_stride + c % x.columns.inner * x.columns.stride;
        T* target = tile.data() + i * padded;
        for (int64_t p = 0; p < x.pixels.size; p += x.pixels.inner, column += x.pixels.outer_stride)
          for (int64_t q = 0; q < x.pixels.inner; q++) *target++ = T(column[q * x.pixels.stride]);
      }
      pool_columns<T>(weights, {tile.data(), x.pixels.size, count, 1, padded, true}, sums.data() + j, columns);
    }
    finish(image, first, last, sums.data());
  });
}

// The gradient for the features: build(image, weights) as above; fill(image, first, last, g[regions, last - first])
// gives the regions' gradients. x: [B, C, H, W], contiguous or channels_last; every element is written.
template <class S, class Build, class Fill>
void spread_regions(const Tensor& x, int64_t work, const Build& build, const Fill& fill) {
  using T = typename Accumulator<S>::type;
  const int64_t pixels = x.size(2) * x.size(3);
  if (pixels == 0) return;
  const bool planar = x.is_contiguous();
  const int64_t pixel_stride = planar ? 1 : x.size(1), column_stride = planar ? pixels : 1;
  const int64_t lanes = planar ? kernels<S>().lanes : 1;
  S* data = static_cast<S*>(x.mutable_data_ptr());
  for_each_task(x.size(0), x.size(1), work, [&](int64_t image, int64_t first, int64_t last) {
    RegionWeights<T> weights(lanes, pixels);
    build(image, weights);
    const int64_t columns = last - first;
    std::vector<T> g(weights.regions() * columns);
    fill(image, first, last, g.data());
    const auto blocks = weights.by_block();
    S* target = data + image * x.size(1) * pixels + first * column_stride;
    kernels<S>().spread(weights.view(), blocks.view(), g.data(), columns,
                        {target, pixels, columns, pixel_stride, column_stride, planar});
  });
}

Tensor new_features(const Tensor& like, const std::vector<int64_t>& size, bool channels_last) {
  using torch::headeronly::MemoryFormat;
  return torch::stable::empty(size, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                              channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

}  // namespace
}  // namespace maskco
