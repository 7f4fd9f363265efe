// Checks of box_pool's and masked_pool's host functions, the same on all devices.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "checks.h"

namespace maskco {

inline void check_beside(const Tensor& t, const Tensor& first, const char* name) {
  STD_TORCH_CHECK(t.device() == first.device(), name, " is on another device than the first argument. Move it there");
}
inline void check_feature_map(const Tensor& features) {  // [B, C, H, W]
  check_floating(features, "features");
  check_dim(features, 4, "features");
}
// grad_output has `dim` dimensions. The last one is the channels of features of this size.
inline void check_region_gradient(const Tensor& grad_output, int64_t dim, const std::vector<int64_t>& feature_size) {
  check_floating(grad_output, "grad_output");
  check_dim(grad_output, dim, "grad_output");
  STD_TORCH_CHECK(feature_size.size() == 4, "feature_size must be [B, C, H, W], got ", feature_size.size(), " numbers");
  for (int64_t size : feature_size) STD_TORCH_CHECK(size >= 0, "feature_size must not be negative, got ", size);
  check_size(grad_output, dim - 1, feature_size[1], "grad_output");
}

// ---- boxes [R, 5] ----

inline void check_boxes(const Tensor& boxes, const Tensor& first) {
  check_floating(boxes, "boxes");
  check_dim(boxes, 2, "boxes");
  check_size(boxes, 1, 5, "boxes");
  check_beside(boxes, first, "boxes");
}
inline void check_box_pool_fwd(const Tensor& features, const Tensor& boxes) {
  check_feature_map(features);
  check_boxes(boxes, features);
}
inline void check_box_pool_bwd(const Tensor& grad_output, const Tensor& boxes,
                               const std::vector<int64_t>& feature_size) {
  check_region_gradient(grad_output, 2, feature_size);
  check_boxes(boxes, grad_output);
  check_size(grad_output, 0, boxes.size(0), "grad_output");
}

// ---- masks [B, R, H, W] of the features' dtype or bool, or labels [B, H, W] of an integer dtype ----

inline void check_masks(const Tensor& masks, const Tensor& first, const std::vector<int64_t>& feature_size,
                        int64_t regions) {
  const bool floating = is_floating(masks), labels = !floating && masks.scalar_type() != ScalarType::Bool;
  check_dim(masks, labels ? 3 : 4, "masks");
  if (floating) check_dtype(masks, first.scalar_type(), "masks");
  if (!labels) check_size(masks, 1, regions, "masks");
  STD_TORCH_CHECK(
      masks.size(0) == feature_size[0] && masks.size(-2) == feature_size[2] && masks.size(-1) == feature_size[3],
      "masks must have the features' batch, height and width (", feature_size[0], ", ", feature_size[2], ", ",
      feature_size[3], "), got (", masks.size(0), ", ", masks.size(-2), ", ", masks.size(-1), ")");
  check_beside(masks, first, "masks");
}
// area [B, R], as masked_pool_fwd returns it.
inline void check_area(const Tensor& area, const Tensor& grad_output) {
  check_dim(area, 2, "area");
  check_dtype(area, accumulation_type(grad_output), "area");
  for (int64_t d = 0; d < 2; d++) check_size(area, d, grad_output.size(d), "area");
  STD_TORCH_CHECK(area.is_contiguous(), "area is not contiguous. Pass the area that masked_pool_fwd returned");
  check_beside(area, grad_output, "area");
}
// Returns the number of regions.
inline int64_t check_masked_pool_fwd(const Tensor& features, const Tensor& masks, std::optional<int64_t> num_regions) {
  check_feature_map(features);
  check_dim(masks, num_regions ? 3 : 4, "masks");
  const int64_t regions = num_regions ? *num_regions : masks.size(1);
  STD_TORCH_CHECK(regions >= 0 && regions <= INT32_MAX, "num_regions must be from 0 to 2^31 - 1, got ", regions);
  check_masks(masks, features, {features.size(0), features.size(1), features.size(2), features.size(3)}, regions);
  return regions;
}
inline void check_masked_pool_bwd(const Tensor& grad_output, const Tensor& masks, const Tensor& area,
                                  const std::vector<int64_t>& feature_size) {
  check_region_gradient(grad_output, 3, feature_size);
  check_size(grad_output, 0, feature_size[0], "grad_output");
  check_area(area, grad_output);
  check_masks(masks, grad_output, feature_size, grad_output.size(1));
}
inline void check_masked_pool_bwd_masks(const Tensor& grad_output, const Tensor& features, const Tensor& output,
                                        const Tensor& area) {
  check_feature_map(features);
  check_dtype(features, grad_output.scalar_type(), "features");
  check_region_gradient(grad_output, 3, {features.size(0), features.size(1), features.size(2), features.size(3)});
  check_size(grad_output, 0, features.size(0), "grad_output");
  check_beside(features, grad_output, "features");
  check_area(area, grad_output);
  check_dim(output, 3, "output");
  check_dtype(output, grad_output.scalar_type(), "output");
  for (int64_t d = 0; d < 3; d++) check_size(output, d, grad_output.size(d), "output");
  STD_TORCH_CHECK(output.is_contiguous(), "output is not contiguous. Pass the output of the forward op");
  check_beside(output, grad_output, "output");
}

}  // namespace maskco
