// box_pool and masked_pool on the CPU. Both are weighted sums over features, with weights for each image's regions.
// This file makes the weights from boxes, masks and label maps (weights.h). engine.h computes the sums.
#include "common/region_pool.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "common/dispatch.h"
#include "common/library.h"
#include "cpu/region_pool/engine.h"

namespace maskco {
namespace {

template <class F>
auto dispatch(ScalarType dtype, const F& f) {
  return dispatch_floating<Half, BFloat16>(dtype, f);
}

// ---- boxes ----

// The boxes of each image, in the order given.
template <class T>
struct BoxList {
  RoiGrid grid;
  int64_t height, width;
  std::vector<T> boxes;                 // [R, 5]
  std::vector<int64_t> begin, members;  // [B + 1], [R]: box indices by image

  BoxList(const Tensor& t, const RoiGrid& g, int64_t images, int64_t h, int64_t w)
      : grid(g), height(h), width(w), boxes(t.size(0) * 5), begin(images + 1), members(t.size(0)) {
    dispatch(t.scalar_type(), [&](auto tag) {
      const auto* p = static_cast<const typename decltype(tag)::type*>(t.const_data_ptr());
      for (int64_t r = 0; r < t.size(0); r++)
        for (int64_t i = 0; i < 5; i++) boxes[r * 5 + i] = T(p[r * t.stride(0) + i * t.stride(1)]);
    });
    for (int64_t r = 0; r < t.size(0); r++) {
      const T image = boxes[r * 5];
      STD_TORCH_CHECK(image >= 0 && image < T(images), "boxes: row ", r, " names image ", double(image),
                      ", but features holds ", images, " images");
      begin[int64_t(image) + 1]++;
    }
    for (int64_t b = 0; b < images; b++) begin[b + 1] += begin[b];
    std::vector<int64_t> next(begin.begin(), begin.end() - 1);
    for (int64_t r = 0; r < t.size(0); r++) members[next[int64_t(boxes[r * 5])]++] = r;
  }

  void build(int64_t image, Weights<T>& weights) const {
    AxisWeights<T> rows, columns;
    const int64_t first = begin[image];
    weights.list(begin[image + 1] - first, [&](const auto& visit) {
      for (int64_t m = first; m < begin[image + 1]; m++) {
        const T* box = boxes.data() + members[m] * 5;
        const auto& across = columns.compute(box[1], box[3], grid, grid.output_width, width);
        const auto& down = rows.compute(box[2], box[4], grid, grid.output_height, height);
        if (!rows.finite || !columns.finite) {
          if (height > 0 && width > 0) visit(0, m - first, T(NAN));
          continue;
        }
        for (const auto& y : down)
          for (const auto& x : across) visit(y.index * width + x.index, m - first, y.weight * x.weight);
      }
    });
  }
};

Tensor box_pool_fwd(const Tensor& features, const Tensor& boxes, double spatial_scale, int64_t output_height,
                    int64_t output_width, int64_t sampling_ratio, bool aligned) {
  check_box_pool_fwd(features, boxes);
  const int64_t channels = features.size(1);
  Tensor output = torch::stable::new_empty(features, {boxes.size(0), channels});
  dispatch(features.scalar_type(), [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = typename Accumulator<S>::type;
    const BoxList<T> list(boxes, {spatial_scale, output_height, output_width, sampling_ratio, aligned},
                          features.size(0), features.size(2), features.size(3));
    S* out = static_cast<S*>(output.mutable_data_ptr());
    pool_regions<S>(
        features.size(0), features.stride(0), feature_map<const S>(features), boxes.size(0) * channels * 16,
        [&](int64_t image, Weights<T>& weights) { list.build(image, weights); },
        [&](int64_t image, int64_t first, int64_t last, const Weights<T>&, const T* sums, int64_t stride) {
          for (int64_t m = list.begin[image]; m < list.begin[image + 1]; m++, sums += stride)
            for (int64_t c = first; c < last; c++) out[list.members[m] * channels + c] = S(sums[c - first]);
        });
  });
  return output;
}

Tensor box_pool_bwd(const Tensor& grad_output, const Tensor& boxes, std::vector<int64_t> feature_size,
                    bool channels_last, double spatial_scale, int64_t output_height, int64_t output_width,
                    int64_t sampling_ratio, bool aligned) {
  check_box_pool_bwd(grad_output, boxes, feature_size);
  Tensor grad_features = new_features(grad_output, feature_size, channels_last);
  dispatch(grad_output.scalar_type(), [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = typename Accumulator<S>::type;
    const BoxList<T> list(boxes, {spatial_scale, output_height, output_width, sampling_ratio, aligned}, feature_size[0],
                          feature_size[2], feature_size[3]);
    const S* grad = static_cast<const S*>(grad_output.const_data_ptr());
    const int64_t row = grad_output.stride(0), column = grad_output.stride(1);
    spread_regions<S>(
        grad_features, grad_features.numel(), [&](int64_t image, Weights<T>& weights) { list.build(image, weights); },
        [&](int64_t image, int64_t first, int64_t last, T* g, int64_t stride) {
          for (int64_t m = list.begin[image]; m < list.begin[image + 1]; m++, g += stride)
            for (int64_t c = first; c < last; c++) g[c - first] = T(grad[list.members[m] * row + c * column]);
        });
  });
  return grad_features;
}

// ---- masks and label maps ----

// Masks [B, R, H, W] of the features' dtype or bool, or labels [B, H, W] of an integer dtype.
struct MaskList {
  const Tensor& masks;
  int64_t regions;

  template <class T>
  void build(int64_t image, Weights<T>& weights) const {
    switch (masks.scalar_type()) {
      case ScalarType::Bool:
        return choose<T>(image, weights);
      case ScalarType::Byte:
        return label<uint8_t>(image, weights);
      case ScalarType::Char:
        return label<int8_t>(image, weights);
      case ScalarType::Short:
        return label<int16_t>(image, weights);
      case ScalarType::Int:
        return label<int32_t>(image, weights);
      case ScalarType::Long:
        return label<int64_t>(image, weights);
      default:
        dispatch(masks.scalar_type(), [&](auto tag) { weigh<typename decltype(tag)::type>(image, weights); });
    }
  }

 private:
  template <class M, class F>
  void for_each_pixel(int64_t offset, const F& f) const {  // f(pixel, value)
    const M* p = static_cast<const M*>(masks.const_data_ptr()) + offset;
    const Axis axis = pixel_axis(masks);
    for (int64_t i = 0; i < axis.size; i += axis.inner, p += axis.outer_stride)
      for (int64_t k = 0; k < std::min(axis.inner, axis.size - i); k++) f(i + k, p[k * axis.stride]);
  }
  template <class T>
  void choose(int64_t image, Weights<T>& weights) const {
    weights.list(regions, [&](const auto& visit) {
      for (int64_t r = 0; r < regions; r++)
        for_each_pixel<bool>(image * masks.stride(0) + r * masks.stride(1), [&](int64_t pixel, bool chosen) {
          if (chosen) visit(pixel, r, T(1));
        });
    });
  }
  template <class M, class T>
  void weigh(int64_t image, Weights<T>& weights) const {
    T* row = weights.make_matrix(regions);
    for (int64_t r = 0; r < regions; r++, row += weights.row_stride())
      for_each_pixel<M>(image * masks.stride(0) + r * masks.stride(1),
                        [&](int64_t pixel, M weight) { row[pixel] = T(weight); });
  }
  template <class M, class T>
  void label(int64_t image, Weights<T>& weights) const {
    weights.list(regions, [&](const auto& visit) {
      for_each_pixel<M>(image * masks.stride(0), [&](int64_t pixel, M label) {
        const int64_t region = label;
        if (region >= 0 && region < regions) visit(pixel, region, T(1));
      });
    });
  }
};

std::tuple<Tensor, Tensor> masked_pool_fwd(const Tensor& features, const Tensor& masks,
                                           std::optional<int64_t> num_regions, bool mean) {
  const int64_t regions = check_masked_pool_fwd(features, masks, num_regions);
  const int64_t images = features.size(0), channels = features.size(1);
  const MaskList list{masks, regions};
  Tensor output = torch::stable::new_empty(features, {images, regions, channels});
  Tensor area = torch::stable::new_empty(features, {images, regions}, accumulation_type(features));
  dispatch(features.scalar_type(), [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = typename Accumulator<S>::type;
    S* out = static_cast<S*>(output.mutable_data_ptr());
    T* areas = static_cast<T*>(area.mutable_data_ptr());
    pool_regions<S>(
        images, features.stride(0), feature_map<const S>(features), features.numel(),
        [&](int64_t image, Weights<T>& weights) { list.build(image, weights); },
        [&](int64_t image, int64_t first, int64_t last, const Weights<T>& weights, const T* sums, int64_t stride) {
          const std::vector<T> totals = weights.totals();
          for (int64_t r = 0; r < regions; r++, sums += stride) {
            if (first == 0) areas[image * regions + r] = totals[r];
            const bool empty = mean && totals[r] == T(0);
            const T divisor = mean ? totals[r] : T(1);
            S* row = out + (image * regions + r) * channels;
            for (int64_t c = first; c < last; c++) row[c] = S(empty ? T(0) : sums[c - first] / divisor);
          }
        });
  });
  return {output, area};
}

// grad_output [B, R, C], divided by the areas for a mean. An empty region has none.
template <class S, class T>
struct RegionGradient {
  const S* data;
  int64_t image_stride, region_stride, channel_stride, regions;
  const T* area;  // [B, R], or null for a sum

  RegionGradient(const Tensor& t, const Tensor& areas, bool mean)
      : data(static_cast<const S*>(t.const_data_ptr())),
        image_stride(t.stride(0)),
        region_stride(t.stride(1)),
        channel_stride(t.stride(2)),
        regions(t.size(1)),
        area(mean ? static_cast<const T*>(areas.const_data_ptr()) : nullptr) {}

  bool empty(int64_t image, int64_t r) const { return area && area[image * regions + r] == T(0); }
  void copy(int64_t image, int64_t r, int64_t first, int64_t last, T* out) const {  // channels first .. last
    const S* row = data + image * image_stride + r * region_stride;
    const T scale = empty(image, r) ? T(0) : area ? T(1) / area[image * regions + r] : T(1);
    for (int64_t c = first; c < last; c++) out[c - first] = scale == T(0) ? T(0) : scale * T(row[c * channel_stride]);
  }
};

Tensor masked_pool_bwd(const Tensor& grad_output, const Tensor& masks, const Tensor& area,
                       std::vector<int64_t> feature_size, bool channels_last, bool mean) {
  check_masked_pool_bwd(grad_output, masks, area, feature_size);
  const int64_t regions = grad_output.size(1);
  const MaskList list{masks, regions};
  Tensor grad_features = new_features(grad_output, feature_size, channels_last);
  dispatch(grad_output.scalar_type(), [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = typename Accumulator<S>::type;
    const RegionGradient<S, T> gradient(grad_output, area, mean);
    spread_regions<S>(
        grad_features, grad_features.numel(), [&](int64_t image, Weights<T>& weights) { list.build(image, weights); },
        [&](int64_t image, int64_t first, int64_t last, T* g, int64_t stride) {
          for (int64_t r = 0; r < regions; r++, g += stride) gradient.copy(image, r, first, last, g);
        });
  });
  return grad_features;
}

// grad_masks[b, r, p] = Σ_c g[b, r, c] (features[b, c, p] - output[b, r, c]), with g = grad_output / area for a mean. A
// sum has g = grad_output and no output term. This is the forward pass with channels and pixels swapped.
Tensor masked_pool_bwd_masks(const Tensor& grad_output, const Tensor& features, const Tensor& output,
                             const Tensor& area, bool mean) {
  check_masked_pool_bwd_masks(grad_output, features, output, area);
  const int64_t images = features.size(0), regions = grad_output.size(1), channels = features.size(1);
  const int64_t pixels = features.size(2) * features.size(3);
  Tensor grad_masks = torch::stable::new_empty(features, {images, regions, features.size(2), features.size(3)});
  dispatch(features.scalar_type(), [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = typename Accumulator<S>::type;
    const RegionGradient<S, T> gradient(grad_output, area, mean);
    const S* pooled = static_cast<const S*>(output.const_data_ptr());
    S* out = static_cast<S*>(grad_masks.mutable_data_ptr());
    FeatureMap<const S> map = feature_map<const S>(features);
    std::swap(map.pixels, map.channels);
    pool_regions<S>(
        images, features.stride(0), map, features.numel(),
        [&](int64_t image, Weights<T>& weights) {
          T* row = weights.make_matrix(regions);
          for (int64_t r = 0; r < regions; r++, row += weights.row_stride()) gradient.copy(image, r, 0, channels, row);
        },
        [&](int64_t image, int64_t first, int64_t last, const Weights<T>& weights, const T* sums, int64_t stride) {
          const T* g = weights.view().matrix;
          for (int64_t r = 0; r < regions; r++, sums += stride, g += weights.row_stride()) {
            const int64_t row = image * regions + r;
            const bool empty = gradient.empty(image, r);
            T own = 0;
            for (int64_t c = 0; mean && !empty && c < channels; c++) own += g[c] * T(pooled[row * channels + c]);
            for (int64_t p = first; p < last; p++) out[row * pixels + p] = S(empty ? T(0) : sums[p - first] - own);
          }
        });
  });
  return grad_masks;
}

}  // namespace
}  // namespace maskco

MASKCO_LIBRARY_IMPL(MASKCO_NAMESPACE, CPU, m) {
  m.impl("box_pool_fwd", TORCH_BOX(&maskco::box_pool_fwd));
  m.impl("box_pool_bwd", TORCH_BOX(&maskco::box_pool_bwd));
  m.impl("masked_pool_fwd", TORCH_BOX(&maskco::masked_pool_fwd));
  m.impl("masked_pool_bwd", TORCH_BOX(&maskco::masked_pool_bwd));
  m.impl("masked_pool_bwd_masks", TORCH_BOX(&maskco::masked_pool_bwd_masks));
}
