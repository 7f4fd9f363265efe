// Runs the kernels of region pooling over a batch: picks the instruction set, the layout and the tasks. A task is an
// image, or a range of its channels if images are few. Every sum runs within one task and in one order, so results do
// not depend on the number of threads.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <type_traits>
#include <utility>
#include <vector>

#include "cpu/common/instruction_set.h"
#include "cpu/region_pool/weights.h"

namespace maskco {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::stable::Tensor;

template <class S>
struct RegionKernels {
  using T = typename Accumulator<S>::type;
  int64_t strip;  // channels of a read or write; rows of sums and of g have a multiple of it
  int64_t stage;  // elements
  // sums[r] += the weighted pixels of blocks first .. last.
  void (*pool)(const WeightsView<T>& weights, const FeatureMap<const S>& x, int64_t first, int64_t last, T* sums,
               int64_t sums_stride);
  // x[p] = the weighted sum of g[r]. If `stage` is not null, results go through it and bypass the caches.
  void (*spread)(const WeightsView<T>& weights, const T* g, int64_t g_stride, const FeatureMap<S>& x, S* stage);
};

namespace portable {
#define VECTOR_BYTES 16
#include "cpu/region_pool/kernels.h"
#undef VECTOR_BYTES
}  // namespace portable

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define MASKCO_X86_TARGETS
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
#define VECTOR_BYTES 32
#include "cpu/region_pool/kernels.h"
#undef VECTOR_BYTES
}  // namespace avx2
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,prefer-vector-width=512")
namespace avx512 {
#define VECTOR_BYTES 64
#include "cpu/region_pool/kernels.h"
#undef VECTOR_BYTES
}  // namespace avx512
#pragma GCC pop_options
#endif

template <class S>
const RegionKernels<S>& kernels() {
  static const RegionKernels<S> best = [] {
#ifdef MASKCO_X86_TARGETS
    if (instruction_set() >= InstructionSet::Avx512) return avx512::kernels<S>();
    if (instruction_set() == InstructionSet::Avx2) return avx2::kernels<S>();
#endif
    return portable::kernels<S>();
  }();
  return best;
}

Axis pixel_axis(const Tensor& t) {  // of [..., H, W]
  const int64_t h = t.size(-2), w = t.size(-1), row = t.stride(-2), column = t.stride(-1);
  if (h * w == 0 || h == 1 || row == column * w) return {h * w, Axis::ONE_STRIDE, 0, column};
  if (w == 1) return {h, Axis::ONE_STRIDE, 0, row};
  return {h * w, w, row, column};
}
template <class S>
FeatureMap<S> feature_map(const Tensor& t) {  // [B, C, H, W], of the first image
  return {static_cast<S*>(const_cast<void*>(t.const_data_ptr())),
          pixel_axis(t),
          {t.size(1), Axis::ONE_STRIDE, 0, t.stride(1)}};
}

// Calls run(image, first channel, last channel) for every image, even if there are no channels.
template <class F>
void for_each_task(int64_t images, int64_t channels, int64_t work, const F& run) {
  if (images == 0) return;
  const int64_t threads = torch::stable::get_num_threads(), steps = std::max<int64_t>(1, (channels + 63) / 64);
  const int64_t splits = std::min(steps, (2 * threads + images - 1) / images);
  const int64_t width = (steps + splits - 1) / splits * 64, per_image = (steps * 64 + width - 1) / width;
  const int64_t tasks = images * per_image;
  const auto range = [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; task++) {
      const int64_t first = task % per_image * width;
      run(task / per_image, first, std::min(first + width, channels));
    }
  };
  if (work < 32768)
    range(0, tasks);  // too little work for a second thread
  else
    torch::stable::parallel_for(0, tasks, 1, range);
}

// of one image
template <class S>
FeatureMap<S> channel_range(FeatureMap<S> x, int64_t image_offset, int64_t first, int64_t last) {
  x.data += image_offset;
  if (x.channels.uniform())
    x.data += first * x.channels.stride;
  else
    x.channels.begin = first;
  x.channels.size = last - first;
  return x;
}

// The stride of rows of sums and gradients: whole strips plus a cache line. Rows that are a power of two apart would
// share a few cache sets.
template <class S>
int64_t row_stride(int64_t channels) {
  return padded(channels, kernels<S>().strip) + 64 / sizeof(typename Accumulator<S>::type);
}

// For every image, build(image, weights) makes the weights. Then finish(image, first, last, weights, sums, stride) gets
// the sums over its pixels: sums[regions, stride] of channels first .. last.
template <class S, class Build, class Finish>
void pool_regions(int64_t images, int64_t image_stride, const FeatureMap<const S>& x, int64_t work, const Build& build,
                  const Finish& finish) {
  using T = typename Accumulator<S>::type;
  for_each_task(images, x.channels.size, work, [&](int64_t image, int64_t first, int64_t last) {
    Weights<T> weights(x.pixels.size, ListBy::Block);
    build(image, weights);
    const auto view = weights.view();
    const int64_t stride = row_stride<S>(last - first), regions = weights.regions();
    Buffer<T> sums(padded(regions, 4) * stride), part;
    const auto channels = channel_range(x, image * image_stride, first, last);
    // Sums of sums, since the error of one long sum in float32 grows with its length.
    const int64_t blocks = pixel_blocks(x.pixels.size), chunk = std::max<int64_t>(2048, 8 * regions) / PIXEL_BLOCK;
    for (int64_t b = 0; b < blocks; b += chunk) {
      if (b) part.assign(sums.size(), T(0));
      T* target = b ? part.data() : sums.data();
      kernels<S>().pool(view, channels, b, std::min(b + chunk, blocks), target, stride);
      for (size_t i = 0; i < part.size(); i++) sums[i] += part[i];
    }
    finish(image, first, last, weights, sums.data(), stride);
  });
}

// The gradient for the features. build(image, weights) is as above, and fill(image, first, last, g, stride) gives the
// regions' gradients g[regions, stride]. x is [B, C, H, W], contiguous or channels_last, and every element is written.
template <class S, class Build, class Fill>
void spread_regions(const Tensor& x, int64_t work, const Build& build, const Fill& fill) {
  using T = typename Accumulator<S>::type;
  const FeatureMap<S> map = feature_map<S>(x);
  const int64_t pixels = map.pixels.size;
  if (pixels == 0) return;
  constexpr int64_t CACHE = 8 << 20;  // a larger gradient leaves the cache before it is read
  const bool stream = x.numel() * int64_t(sizeof(S)) > CACHE;
  for_each_task(x.size(0), x.size(1), work, [&](int64_t image, int64_t first, int64_t last) {
    Weights<T> weights(pixels, ListBy::Pixel);
    build(image, weights);
    const int64_t stride = row_stride<S>(last - first);
    Buffer<T> g(weights.regions() * stride);
    fill(image, first, last, g.data(), stride);
    Buffer<S> stage(stream ? kernels<S>().stage : 0);
    kernels<S>().spread(weights.view(), g.data(), stride, channel_range(map, image * x.size(1) * pixels, first, last),
                        stream ? stage.data() : nullptr);
  });
}

// The features' gradient, in their layout. For fresh memory of this size, page faults of 4 KiB cost more time than the
// arithmetic. Large pages take a quarter of that, if the system grants them on request.
Tensor new_features(const Tensor& like, const std::vector<int64_t>& size, bool channels_last) {
  using torch::headeronly::MemoryFormat;
  Tensor t = torch::stable::empty(size, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                                  channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
#ifdef __linux__
  constexpr uintptr_t HUGE_PAGE = 2 << 20;
  const uintptr_t data = reinterpret_cast<uintptr_t>(t.data_ptr());
  const uintptr_t begin = (data + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
  const uintptr_t end = (data + t.numel() * t.element_size()) / HUGE_PAGE * HUGE_PAGE;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
  return t;
}

}  // namespace
}  // namespace maskco
