// box_pool and masked_pool on the CPU. Both are sums over features with the block-sparse weights of each image's
// regions (region_weights.h): here those are made from boxes, masks and label maps, and region_engine.h does the sums.
#include "common/region_pool.h"

#include <torch/csrc/stable/ops.h>

#include <cmath>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "common/dispatch.h"
#include "common/library.h"
#include "region_engine.h"

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

  void build(int64_t image, RegionWeights<T>& weights) const {
    AxisWeights<T> rows, columns;
    for (int64_t m = begin[image]; m < begin[image + 1]; m++) {
      const T* box = boxes.data() + members[m] * 5;
      const auto& across = columns.compute(box[1], box[3], grid, width);
      const auto& down = rows.compute(box[2], box[4], grid, height);
      if (!rows.finite || !columns.finite) {
        if (height > 0 && width > 0) weights.set(0, T(NAN));
      } else {
        for (const auto& y : down)
          for (const auto& x : across) weights.set(y.index * width + x.index, y.weight * x.weight);
      }
      weights.end_region();
    }
  }
};

Tensor box_pool_fwd(const Tensor& features, const Tensor& boxes, double spatial_scale, int64_t output_size,
                    int64_t sampling_ratio, bool aligned) {
  check_box_pool_fwd(features, boxes);
  const int64_t channels = features.size(1);
  Tensor output = torch::stable::new_empty(features, {boxes.size(0), channels});
  dispatch(features.scalar_type(), [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = typename Accumulator<S>::type;
    const BoxList<T> list(boxes, {spatial_scale, output_size, sampling_ratio, aligned}, features.size(0),
                          features.size(2), features.size(3));
    S* out = static_cast<S*>(output.mutable_data_ptr());
    pool_regions<S>(
        feature_map<S>(features), boxes.size(0) * channels * 16,
        [&](int64_t image, RegionWeights<T>& weights) { list.build(image, weights); },
        [&](int64_t image, int64_t first, int64_t last, const T* sums) {
          for (int64_t m = list.begin[image]; m < list.begin[image + 1]; m++)
            for (int64_t c = first; c < last; c++) out[list.members[m] * channels + c] = S(*sums++);
        });
  });
  return output;
}

Tensor box_pool_bwd(const Tensor& grad_output, const Tensor& boxes, std::vector<int64_t> feature_size,
                    bool channels_last, double spatial_scale, int64_t output_size, int64_t sampling_ratio,
                    bool aligned) {
  check_box_pool_bwd(grad_output, boxes, feature_size);
  Tensor grad_features = new_features(grad_output, feature_size, channels_last);
  dispatch(grad_output.scalar_type(), [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = typename Accumulator<S>::type;
    const BoxList<T> list(boxes, {spatial_scale, output_size, sampling_ratio, aligned}, feature_size[0],
                          feature_size[2], feature_size[3]);
    const S* grad = static_cast<const S*>(grad_output.const_data_ptr());
    const int64_t row = grad_output.stride(0), column = grad_output.stride(1);
    spread_regions<S>(
        grad_features, grad_features.numel(),
        [&](int64_t image, RegionWeights<T>& weights) { list.build(image, weights); },
        [&](int64_t image, int64_t first, int64_t last, T* g) {
          for (int64_t m = list.begin[image]; m < list.begin[image + 1]; m++)
            for (int64_t c = first; c < last; c++) *g++ = T(grad[list.members[m] * row + c * column]);
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
  void build(int64_t image, RegionWeights<T>& weights) const {
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
      for (int64_t k = 0; k < axis.inner; k++) f(i + k, p[k * axis.stride]);
  }
  template <class T>
  void choose(int64_t image, RegionWeights<T>& weights) const {
    for (int64_t r = 0; r < regions; r++) {
      for_each_pixel<bool>(image * masks.stride(0) + r * masks.stride(1), [&](int64_t pixel, bool chosen) {
        if (chosen) weights.set(pixel, T(1));
      });
      weights.end_region();
    }
  }
  template <class M, class T>
  void weigh(int64_t image, RegionWeights<T>& weights) const {
    for (int64_t r = 0; r < regions; r++) {
      T* row = weights.add_dense_region();
      for_each_pixel<M>(image * masks.stride(0) + r * masks.stride(1),
                        [&](int64_t pixel, M weight) { row[pixel] = T(weight); });
    }
  }
  template <class M, class T>
  void label(int64_t image, RegionWeights<T>& weights) const {
    std::vector<int64_t> begin(regions + 1);  // pixels by region: a counting sort
    const int64_t offset = image * masks.stride(0);
    const auto valid = [&](M label) { return int64_t(label) >= 0 && int64_t(label) < regions; };
    for_each_pixel<M>(offset, [&](int64_t, M label) {
      if (valid(label)) begin[int64_t(label) + 1]++;
    });
    for (int64_t r = 0; r < regions; r++) begin[r + 1] += begin[r];
    std::vector<int64_t> pixels(begin.back()), next(begin.begin(), begin.end() - 1);
    for_each_pixel<M>(offset, [&](int64_t pixel, M label) {
      if (valid(label)) pixels[next[int64_t(label)]++] = pixel;
    });
    for (int64_t r = 0; r < regions; r++) {
      for (int64_t i = begin[r]; i < begin[r + 1]; i++) weights.set(pixels[i], T(1));
      weights.end_region();
    }
  }
};

// 1, or 1 / area for a mean; an empty region's mean is 0
template <class T>
T region_scale(T area, bool mean) {
  return !mean ? T(1) : area == T(0) ? T(0) : T(1) / area;
}

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
    for_each_task(images, 1, features.size(0) * regions * features.size(2) * features.size(3),
                  [&](int64_t image, int64_t, int64_t) {
                    RegionWeights<T> weights(1, features.size(2) * features.size(3));
                    list.build(image, weights);
                    for (int64_t r = 0; r < regions; r++) areas[image * regions + r] = weights.total(r);
                  });
    pool_regions<S>(
        feature_map<S>(features), features.numel(),
        [&](int64_t image, RegionWeights<T>& weights) { list.build(image, weights); },
        [&](int64_t image, int64_t first, int64_t last, const T* sums) {
          for (int64_t r = image * regions; r < (image + 1) * regions; r++) {
            const bool empty = mean && areas[r] == T(0);
            const T divisor = mean ? areas[r] : T(1);
            for (int64_t c = first; c < last; c++, sums++) out[r * channels + c] = S(empty ? T(0) : *sums / divisor);
          }
        });
  });
  return {output, area};
}

Tensor masked_pool_bwd(const Tensor& grad_output, const Tensor& masks, const Tensor& area,
                       std::vector<int64_t> feature_size, bool channels_last, bool mean) {
  check_masked_pool_bwd(grad_output, masks, area, feature_size);
  const int64_t regions = grad_output.size(1);
  const MaskList list{masks, regions};
  Tensor grad_features = new_features(grad_output, feature_size, channels_last);
  dispatch(grad_output.scalar_type(), [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = typename Accumulator<S>::type;
    const S* grad = static_cast<const S*>(grad_output.const_data_ptr());
    const T* areas = static_cast<const T*>(area.const_data_ptr());
    spread_regions<S>(
        grad_features, grad_features.numel(),
        [&](int64_t image, RegionWeights<T>& weights) { list.build(image, weights); },
        [&](int64_t image, int64_t first, int64_t last, T* g) {
          for (int64_t r = 0; r < regions; r++) {
            const S* row = grad + image * grad_output.stride(0) + r * grad_output.stride(1);
            const T scale = region_scale(areas[image * regions + r], mean);
            for (int64_t c = first; c < last; c++)
              *g++ = scale == T(0) ? T(0) : scale * T(row[c * grad_output.stride(2)]);
          }
        });
  });
  return grad_features;
}

// grad_masks[b, r, p] = Σ_c g[b, r, c] (features[b, c, p] - output[b, r, c]), g = grad_output / area for a mean;
// without the output for a sum. It is the forward pass with channels and pixels in each other's place.
Tensor masked_pool_bwd_masks(const Tensor& grad_output, const Tensor& features, const Tensor& output,
                             const Tensor& area, bool mean) {
  check_masked_pool_bwd_masks(grad_output, features, output, area);
  const int64_t images = features.size(0), regions = grad_output.size(1), channels = features.size(1);
  const int64_t pixels = features.size(2) * features.size(3);
  Tensor grad_masks = torch::stable::new_empty(features, {images, regions, features.size(2), features.size(3)});
  dispatch(features.scalar_type(), [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = typename Accumulator<S>::type;
    const S* grad = static_cast<const S*>(grad_output.const_data_ptr());
    const S* pooled = static_cast<const S*>(output.const_data_ptr());
    const T* areas = static_cast<const T*>(area.const_data_ptr());
    S* out = static_cast<S*>(grad_masks.mutable_data_ptr());
    const auto g = [&](int64_t image, int64_t r, int64_t c) {
      const int64_t offset = image * grad_output.stride(0) + r * grad_output.stride(1) + c * grad_output.stride(2);
      const T scale = region_scale(areas[image * regions + r], mean);
      return scale == T(0) ? T(0) : scale * T(grad[offset]);
    };
    FeatureMap<S> map = feature_map<S>(features);
    std::swap(map.pixels, map.columns);
    pool_regions<S>(
        map, features.numel(),
        [&](int64_t image, RegionWeights<T>& weights) {
          for (int64_t r = 0; r < regions; r++) {
            T* row = weights.add_dense_region();
            for (int64_t c = 0; c < channels; c++) row[c] = g(image, r, c);
          }
        },
        [&](int64_t image, int64_t first, int64_t last, const T* sums) {
          for (int64_t r = 0; r < regions; r++) {
            const int64_t row = image * regions + r;
            const bool empty = mean && areas[row] == T(0);
            T own = 0;
            for (int64_t c = 0; mean && !empty && c < channels; c++)
              own += g(image, r, c) * T(pooled[row * channels + c]);
            for (int64_t p = first; p < last; p++, sums++) out[row * pixels + p] = S(empty ? T(0) : *sums - own);
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
