// box_pool and masked_pool on CUDA: host side. No synchronisation, no atomics on floats; capturable in a CUDA graph.
#include <algorithm>
#include <tuple>
#include <vector>

#include "common/dispatch.h"
#include "common/region_pool.h"
#include "host.h"
#include "kernels/region_pool.cuh"

namespace maskco {
namespace {

// enough blocks for `items`; the kernels stride over the rest
unsigned blocks_for(int64_t items, int64_t per_block) {
  return unsigned(std::min<int64_t>(ceil_div(items, per_block), (int64_t(1) << 31) - 1));
}

template <class F>
auto dispatch(ScalarType dtype, const F& f) {
  return dispatch_floating<__half, __nv_bfloat16>(dtype, f);
}

Axis pixel_axis(const Tensor& t) {  // of [..., H, W]
  const int64_t h = t.size(-2), w = t.size(-1), row = t.stride(-2), column = t.stride(-1);
  if (h == 1 || row == column * w) return {h * w, h * w, 0, column};
  return {h * w, w, row, column};
}
Map feature_map(const Tensor& t) {  // [B, C, H, W]
  STD_TORCH_CHECK(t.size(2) * t.size(3) < (int64_t(1) << 31), "features: H times W must be below 2^31");
  return {t.size(0), t.stride(0), pixel_axis(t), {t.size(1), t.size(1), 0, t.stride(1)}};
}
bool lanes_along_k(const Map& map) { return map.j.inner != map.j.size || map.j.stride != 1 || map.k.stride == 1; }

// the gradient of features in their layout
Tensor new_features(const Tensor& like, const std::vector<int64_t>& size, bool channels_last) {
  using torch::headeronly::MemoryFormat;
  return torch::stable::empty(size, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                              channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

template <class T, class S, class Weights>
void launch_pool(const Weights& weights, int64_t regions, const Map& map, const Tensor& x, const T* area,
                 const T* shift, const Tensor& pooled) {
  const int64_t items = regions * map.j.size;
  if (items == 0) return;
  const bool along_k = lanes_along_k(map);
  const auto kernel = along_k ? &pool_kernel<T, S, Weights, true> : &pool_kernel<T, S, Weights, false>;
  kernel<<<blocks_for(items, along_k ? kPoolThreads / 32 : kPoolThreads), kPoolThreads, 0, current_stream(x)>>>(
      weights, regions, map, device_ptr<const S>(x), area, shift, device_ptr<S>(pooled));
  check_cuda(cudaGetLastError(), "pool_kernel");
}

template <class T, class S, class Weights>
void launch_spread(const Weights& weights, int64_t regions, const Tensor& g, const Axis& g_regions, int64_t g_stride,
                   const Tensor& x) {
  if (x.numel() == 0) return;
  const Map map = feature_map(x);
  const bool along_k = x.is_contiguous();
  const auto kernel = along_k ? &spread_kernel<T, S, Weights, true> : &spread_kernel<T, S, Weights, false>;
  const int64_t tile_k = along_k ? 32 : kSpreadRows, tile_j = (along_k ? kSpreadRows : 32) * kSpreadColumns;
  const int64_t tiles = map.images * ceil_div(map.k.size, tile_k) * ceil_div(map.j.size, tile_j);
  kernel<<<blocks_for(tiles, 1), 32 * kSpreadRows, 0, current_stream(x)>>>(
      weights, regions, map, device_ptr<const S>(g), g_regions, g_stride, device_ptr<S>(x));
  check_cuda(cudaGetLastError(), "spread_kernel");
}

template <class T, class S, class Weights>
void launch_total(const Weights& weights, int64_t regions, int64_t terms, const Tensor* values, const Tensor& out) {
  if (regions == 0) return;
  total_kernel<T, S, Weights><<<blocks_for(regions, kPoolThreads / 32), kPoolThreads, 0, current_stream(out)>>>(
      weights, regions, terms, values ? device_ptr<const S>(*values) : nullptr, device_ptr<T>(out));
  check_cuda(cudaGetLastError(), "total_kernel");
}

// ---- boxes ----

// Scratch of a call: the boxes' rows and columns with their shares, for the kernels that follow.
struct BoxScratch {
  Tensor shares, bounds;
  int64_t height, width;

  BoxScratch(const Tensor& boxes, const Tensor& like, const RoiGrid& grid, int64_t images, int64_t h, int64_t w)
      : shares(torch::stable::new_empty(like, {boxes.size(0), h + w}, accumulation_type(like))),
        bounds(torch::stable::new_empty(like, {boxes.size(0), int64_t(sizeof(BoxBounds)) / 8}, ScalarType::Long)),
        height(h),
        width(w) {
    const int64_t count = boxes.size(0);
    if (count == 0) return;
    dispatch(accumulation_type(like), [&](auto tag) {
      using T = accumulator_t<typename decltype(tag)::type>;
      dispatch(boxes.scalar_type(), [&](auto box_tag) {
        using Box = typename decltype(box_tag)::type;
        box_weights_kernel<T, Box><<<blocks_for(count, 1), 128, 0, current_stream(like)>>>(
            device_ptr<const Box>(boxes), boxes.stride(0), boxes.stride(1), grid, count, images, h, w,
            device_ptr<T>(shares), device_ptr<BoxBounds>(bounds));
        check_cuda(cudaGetLastError(), "box_weights_kernel");
      });
    });
  }
  template <class T>
  BoxWeights<T> weights() const {
    return {device_ptr<const T>(shares), device_ptr<const BoxBounds>(bounds), height, width};
  }
};

Tensor box_pool_fwd(const Tensor& features, const Tensor& boxes, double spatial_scale, int64_t output_size,
                    int64_t sampling_ratio, bool aligned) {
  check_box_pool_fwd(features, boxes);
  DeviceGuard guard(features);
  Tensor output = torch::stable::new_empty(features, {boxes.size(0), features.size(1)});
  const BoxScratch scratch(boxes, features, {spatial_scale, output_size, sampling_ratio, aligned}, features.size(0),
                           features.size(2), features.size(3));
  dispatch(features.scalar_type(), [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = accumulator_t<S>;
    launch_pool<T, S>(scratch.weights<T>(), boxes.size(0), feature_map(features), features, static_cast<T*>(nullptr),
                      static_cast<T*>(nullptr), output);
  });
  return output;
}

Tensor box_pool_bwd(const Tensor& grad_output, const Tensor& boxes, std::vector<int64_t> feature_size,
                    bool channels_last, double spatial_scale, int64_t output_size, int64_t sampling_ratio,
                    bool aligned) {
  check_box_pool_bwd(grad_output, boxes, feature_size);
  DeviceGuard guard(grad_output);
  Tensor grad_features = new_features(grad_output, feature_size, channels_last);
  const BoxScratch scratch(boxes, grad_output, {spatial_scale, output_size, sampling_ratio, aligned}, feature_size[0],
                           feature_size[2], feature_size[3]);
  dispatch(grad_output.scalar_type(), [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = accumulator_t<S>;
    const int64_t count = boxes.size(0);
    launch_spread<T, S>(scratch.weights<T>(), count, grad_output, {count, count, 0, grad_output.stride(0)},
                        grad_output.stride(1), grad_features);
  });
  return grad_features;
}

// ---- masks and label maps ----

MaskKind mask_kind(const Tensor& masks) {
  switch (masks.scalar_type()) {
    case ScalarType::Bool:
      return MaskKind::kBool;
    case ScalarType::Char:
      return MaskKind::kLabel8;
    case ScalarType::Byte:
      return MaskKind::kLabelUnsigned8;
    case ScalarType::Short:
      return MaskKind::kLabel16;
    case ScalarType::Int:
      return MaskKind::kLabel32;
    case ScalarType::Long:
      return MaskKind::kLabel64;
    default:
      return MaskKind::kSoft;
  }
}

// masks [B, R, H, W] of the dtype S or bool, or labels [B, H, W]
template <class T, class S>
MaskWeights<T, S> mask_weights(const Tensor& masks, int64_t regions, const T* area) {
  const bool labels = masks.dim() == 3;
  return {device_ptr<const void>(masks),
          mask_kind(masks),
          masks.stride(0),
          labels ? 0 : masks.stride(1),
          pixel_axis(masks),
          regions,
          area};
}

std::tuple<Tensor, Tensor> masked_pool_fwd(const Tensor& features, const Tensor& masks,
                                           std::optional<int64_t> num_regions, bool mean) {
  const int64_t regions = check_masked_pool_fwd(features, masks, num_regions);
  const int64_t images = features.size(0), channels = features.size(1), height = features.size(2);
  DeviceGuard guard(features);
  Tensor output = torch::stable::new_empty(features, {images, regions, channels});
  Tensor area = torch::stable::new_empty(features, {images, regions}, accumulation_type(features));
  dispatch(features.scalar_type(), [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = accumulator_t<S>;
    const auto weights = mask_weights<T, S>(masks, regions, nullptr);
    launch_total<T, S>(weights, images * regions, height * features.size(3), nullptr, area);
    launch_pool<T, S>(weights, images * regions, feature_map(features), features,
                      mean ? device_ptr<const T>(area) : nullptr, static_cast<const T*>(nullptr), output);
  });
  return {output, area};
}

Tensor masked_pool_bwd(const Tensor& grad_output, const Tensor& masks, const Tensor& area,
                       std::vector<int64_t> feature_size, bool channels_last, bool mean) {
  check_masked_pool_bwd(grad_output, masks, area, feature_size);
  const int64_t images = feature_size[0], regions = grad_output.size(1);
  DeviceGuard guard(grad_output);
  Tensor grad_features = new_features(grad_output, feature_size, channels_last);
  dispatch(grad_output.scalar_type(), [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = accumulator_t<S>;
    launch_spread<T, S>(mask_weights<T, S>(masks, regions, mean ? device_ptr<const T>(area) : nullptr),
                        images * regions, grad_output,
                        {images * regions, regions, grad_output.stride(0), grad_output.stride(1)},
                        grad_output.stride(2), grad_features);
  });
  return grad_features;
}

Tensor masked_pool_bwd_masks(const Tensor& grad_output, const Tensor& features, const Tensor& output,
                             const Tensor& area, bool mean) {
  check_masked_pool_bwd_masks(grad_output, features, output, area);
  DeviceGuard guard(grad_output);
  const int64_t images = features.size(0), channels = features.size(1), regions = grad_output.size(1);
  Tensor grad_masks = torch::stable::new_empty(features, {images, regions, features.size(2), features.size(3)});
  Tensor shift = torch::stable::new_empty(area, {images, regions});  // Σ_c g[b, r, c] output[b, r, c], for a mean
  dispatch(features.scalar_type(), [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = accumulator_t<S>;
    const GradWeights<T, S> weights{device_ptr<const S>(grad_output),
                                    grad_output.stride(0),
                                    grad_output.stride(1),
                                    grad_output.stride(2),
                                    regions,
                                    channels,
                                    mean ? device_ptr<const T>(area) : nullptr};
    if (mean) launch_total<T, S>(weights, images * regions, channels, &output, shift);
    Map map = feature_map(features);
    std::swap(map.k, map.j);
    launch_pool<T, S>(weights, images * regions, map, features, static_cast<const T*>(nullptr),
                      mean ? device_ptr<const T>(shift) : nullptr, grad_masks);
  });
  return grad_masks;
}

}  // namespace
}  // namespace maskco

MASKCO_LIBRARY_IMPL(MASKCO_NAMESPACE, MASKCO_CUDA_KEY, m) {
  m.impl("box_pool_fwd", MASKCO_CUDA_BOX(&maskco::box_pool_fwd));
  m.impl("box_pool_bwd", MASKCO_CUDA_BOX(&maskco::box_pool_bwd));
  m.impl("masked_pool_fwd", MASKCO_CUDA_BOX(&maskco::masked_pool_fwd));
  m.impl("masked_pool_bwd", MASKCO_CUDA_BOX(&maskco::masked_pool_bwd));
  m.impl("masked_pool_bwd_masks", MASKCO_CUDA_BOX(&maskco::masked_pool_bwd_masks));
}
