// box_pool and masked_pool on CUDA, host side. A pass takes one or two launches, without synchronisation and without
// float atomics. CUDA graphs can capture it.
#include <algorithm>
#include <tuple>
#include <type_traits>
#include <vector>

#include "common/dispatch.h"
#include "common/region_pool.h"
#include "cuda/common/host.h"
#include "cuda/region_pool/spread.cuh"

namespace maskco {
namespace {

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
  STD_TORCH_CHECK(t.size(2) * t.size(3) < (int64_t(1) << 31),
                  "features must have fewer than 2^31 pixels an image, got ", t.size(2), " times ", t.size(3));
  return {t.size(0), t.stride(0), pixel_axis(t), {t.size(1), t.size(1), 0, t.stride(1)}};
}

// The features' gradient, in their layout.
Tensor new_features(const Tensor& like, const std::vector<int64_t>& size, bool channels_last) {
  using torch::headeronly::MemoryFormat;
  return torch::stable::empty(size, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                              channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

int64_t round_up(int64_t n, int64_t unit) { return ceil_div(n, unit) * unit; }

// Shared memory of a block, in bytes. A map's tile has at most kTileBytes. A tile of sums has at most kSumTileBytes,
// since there is one and not two. So two or more blocks fit on an SM of 164 KiB, and one on an SM of 100 KiB.
constexpr int64_t kTileBytes = 26 * 1024, kSumTileBytes = 52 * 1024, kStayingWeights = 16 * 1024,
                  kSharesBytes = 8 * 1024;
constexpr int64_t kTileRow = 26 * 16;  // bytes of a padded row (which adds 16)
constexpr int64_t kTilePixels = 96;    // if a tile of the map goes with two tiles of weights

// Tiles of tile_j channels and at most `pixels` pixels of a map at `address`. Elements have `size` bytes, and take
// `held` bytes in shared memory. A tile of whole rows of pixels in one run may have more pixels, up to a limit in
// bytes.
Tiling make_tiling(const Map& map, const void* address, int64_t size, int64_t held, int64_t tile_j, int64_t bytes,
                   int64_t pixels) {
  const auto contiguous = [](const Axis& axis) { return axis.inner == axis.size && axis.stride == 1; };
  const int64_t step = 16 / size;
  Tiling t{};
  t.along_k = contiguous(map.k) && (map.k.size > 1 || !contiguous(map.j));
  const bool by_runs = t.along_k || contiguous(map.j);
  if (!by_runs) t.along_k = map.k.stride < map.j.stride;
  const Axis &inner = t.along_k ? map.k : map.j, &outer = t.along_k ? map.j : map.k;

  const int64_t sector = 32 / size, longest = pixels / sector * sector;
  t.tile_j = int32_t(tile_j);
  const int64_t tiles = std::max<int64_t>(1, ceil_div(map.k.size, longest));
  t.tile_k = int32_t(std::max(sector, round_up(ceil_div(map.k.size, tiles), sector)));
  t.flat = by_runs && inner.size * size % 16 != 0 && outer.inner == outer.size && outer.stride == inner.size &&
           (t.along_k ? tile_j * inner.size * held <= bytes : inner.size <= tile_j);
  if (t.flat && t.along_k) t.tile_k = int32_t(round_up(map.k.size, step));

  t.copy = by_runs ? 16 : 0;
  const auto limit = [&](int64_t offset) {  // to what `offset` bytes are aligned to
    while (t.copy && offset % t.copy != 0) t.copy = t.copy == 4 ? 0 : t.copy / 2;
  };
  limit(int64_t(reinterpret_cast<uintptr_t>(address)));
  if (map.images > 1) limit(map.image_stride * size);
  if (!t.flat && outer.size > 1) limit(outer.stride * size);
  if (!t.flat && outer.inner < outer.size) limit(outer.outer_stride * size);
  if (t.copy < size) t.copy = 0;
  if (t.copy == 0) t.flat = false;

  if (!t.along_k) {
    t.stride_j = 1, t.stride_k = int32_t(t.flat ? map.j.size : tile_j);
  } else if (t.flat) {
    t.stride_k = 1, t.stride_j = int32_t(map.k.size);
    const int64_t row = map.k.size * held;  // odd in units of the access, otherwise lanes share a bank
    t.access = row % 16 == 0 && row / 16 % 2 ? 16 : row % 8 == 0 && row / 8 % 2 ? 8 : 0;
  } else {
    t.stride_k = 1, t.stride_j = int32_t((t.tile_k * held / 16 | 1) * 16 / held), t.access = 16;
  }
  const bool odd_halves = t.flat && t.along_k && held == 2 && map.k.size % 2;  // then pairs of rows are whole words
  t.lane_j = odd_halves ? 2 : 1, t.next_j = odd_halves ? 1 : 32;
  const int64_t run = t.flat      ? (t.along_k ? tile_j * map.k.size : t.tile_k * map.j.size)
                      : t.along_k ? t.tile_k
                                  : tile_j;
  t.pieces = uint32_t(ceil_div(run, t.copy ? t.copy / size : 1));
  t.inverse = uint32_t(((uint64_t(1) << 32) + t.pieces - 1) / t.pieces);
  return t;
}
int64_t tile_bytes(const Tiling& t, int64_t held) {
  return round_up((t.along_k ? int64_t(t.tile_j) * t.stride_j : int64_t(t.tile_k) * t.stride_k) * held, 16);
}

// How many items a block takes, so that there are about four blocks for each SM.
int64_t per_block(int64_t items, int64_t most) {
  return std::max<int64_t>(1, std::min(most, items / (4 * device_attribute(cudaDevAttrMultiProcessorCount))));
}

template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared,
            const Tensor& on, Arguments... arguments) {
  STD_TORCH_CHECK(blocks < (int64_t(1) << 31), name, ": the regions or images need ", blocks,
                  " blocks, more than one launch can have. Pass fewer at a time");
  if (shared > 40 * 1024) {
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)), name);
  }
  kernel<<<unsigned(blocks), threads, shared, current_stream(on)>>>(arguments...);
  check_cuda(cudaGetLastError(), name);
}

bool weights_fit(const Map& map, int64_t step, int64_t pixel_bytes) {
  return round_up(map.k.size, step) * pixel_bytes <= kStayingWeights;
}
// Places the weights after the tiles, then the scratch. There are `pixel_bytes` for each pixel of the map, if that is
// little and all pixels may have theirs at once. Otherwise they are for the pixels of a tile, `buffers` times. Returns
// the total bytes.
template <class Plan>
int64_t place_weights(Plan& plan, const Map& map, int64_t tiles, int64_t step, int64_t pixel_bytes, bool may_stay,
                      int64_t buffers, int64_t scratch) {
  const int64_t pixels = std::max<int64_t>(1, round_up(map.k.size, step));
  plan.weights_stay = may_stay && weights_fit(map, step, pixel_bytes);
  plan.weights_stride = int32_t(plan.weights_stay ? pixels : plan.tiling.tile_k);
  plan.weights_at = int32_t(tiles);
  plan.scratch_at =
      int32_t(round_up(tiles + plan.weights_stride * pixel_bytes * (plan.weights_stay ? 1 : buffers), 16));
  return plan.scratch_at + round_up(scratch, 16);
}
template <class Plan>
void count_tiles(Plan& plan, const Map& map) {
  plan.tiles_j = int32_t(ceil_div(map.j.size, plan.tiling.tile_j));
  plan.tiles_k = int32_t(ceil_div(map.k.size, plan.tiling.tile_k));
}

// `lists` is the number of lists of regions: one for each image, and for boxes one without an image.
template <class T, class S, class Weights>
void launch_pool(const Weights& weights, int64_t lists, int64_t scratch, const Map& map, const Tensor& x,
                 const T* shift, bool mean, T* area, const Tensor& pooled) {
  if (pooled.numel() == 0 && (area == nullptr || lists == 0)) return;
  PoolPlan plan{};
  const int64_t pixel_bytes = kRegions * sizeof(T), row = kTileRow / sizeof(S);
  const int64_t most = weights_fit(map, kStep<S>, pixel_bytes) ? row : std::min(row, kTilePixels);
  plan.tiling = make_tiling(map, device_ptr<const S>(x), sizeof(S), sizeof(S), kTileJ, kTileBytes, most);
  count_tiles(plan, map);
  plan.tiles_j = std::max(1, plan.tiles_j);  // (areas are needed even without channels)
  plan.sums_at = int32_t(
      place_weights(plan, map, 2 * tile_bytes(plan.tiling, sizeof(S)), kStep<S>, pixel_bytes, true, 2, scratch));
  const int64_t bytes = plan.sums_at + kTileWarps * 4 * kSumsStride * int64_t(sizeof(T));
  plan.j_per_block = plan.weights_stay ? int32_t(per_block(lists * plan.tiles_j, plan.tiles_j)) : 1;
  launch("pool_kernel", &pool_kernel<T, S, Weights>, lists * ceil_div(plan.tiles_j, plan.j_per_block), kTileThreads,
         bytes, x, weights, plan, map, device_ptr<const S>(x), shift, mean, area, device_ptr<S>(pooled));
}

template <class T, class S, class Kernel, class Weights, class... More>
void launch_spread(const char* name, Kernel kernel, const Weights& weights, int64_t scratch, const Tensor& grad,
                   int64_t grad_image, int64_t grad_region, int64_t grad_channel, const Tensor& x, More... more) {
  if (x.numel() == 0) return;
  const Map map = feature_map(x);
  SpreadPlan plan{};
  plan.tiling = make_tiling(map, device_ptr<S>(x), sizeof(S), sizeof(T), kTileJ, kSumTileBytes, kTileRow / sizeof(T));
  count_tiles(plan, map);
  constexpr bool kLabelMap = std::is_same_v<Weights, Labels>;
  const int64_t bytes = place_weights(plan, map, tile_bytes(plan.tiling, sizeof(T)), kStep<S>,
                                      kLabelMap ? sizeof(int32_t) : kRegions * sizeof(T), !kLabelMap, 1, scratch);
  plan.grads_stay = kLabelMap && scratch > 0;
  const int64_t tiles = map.images * plan.tiles_j * plan.tiles_k;
  const bool stay = plan.weights_stay && plan.tiles_k < 4;
  plan.k_per_block = int32_t(stay ? plan.tiles_k : per_block(tiles, plan.tiles_k));
  plan.j_per_block = int32_t(stay ? per_block(map.images * plan.tiles_j, plan.tiles_j) : 1);
  launch(name, kernel, map.images * ceil_div(plan.tiles_j, plan.j_per_block) * ceil_div(plan.tiles_k, plan.k_per_block),
         kTileThreads, bytes, x, weights, plan, map, device_ptr<const S>(grad), grad_image, grad_region, grad_channel,
         more..., device_ptr<S>(x));
}

// ---- boxes ----

// Scratch memory of a call for the next kernel: the boxes' rows and columns with their shares, and the boxes of each
// image.
struct BoxScratch {
  Tensor shares, bounds, order, starts;
  int64_t height, width, bytes;

  BoxScratch(const Tensor& boxes, const Tensor& like, const RoiGrid& grid, int64_t images, int64_t h, int64_t w)
      : shares(torch::stable::new_empty(like, {boxes.size(0), h + w}, accumulation_type(like))),
        bounds(torch::stable::new_empty(like, {boxes.size(0), int64_t(sizeof(BoxBounds)) / 8}, ScalarType::Long)),
        order(torch::stable::new_empty(like, {boxes.size(0)}, ScalarType::Long)),
        starts(torch::stable::new_empty(like, {images + 2}, ScalarType::Long)),
        height(h),
        width(w) {
    const int64_t count = boxes.size(0);
    dispatch(accumulation_type(like), [&](auto tag) {
      using T = accumulator_t<typename decltype(tag)::type>;
      bytes = kRegions * (h + w) * int64_t(sizeof(T));
      dispatch(boxes.scalar_type(), [&](auto box_tag) {
        using Box = typename decltype(box_tag)::type;
        launch("box_weights_kernel", &box_weights_kernel<T, Box>, count + ceil_div(images + 1, kBoxThreads / 32),
               kBoxThreads, 0, like, device_ptr<const Box>(boxes), boxes.stride(0), boxes.stride(1), grid, count,
               images, h, w, device_ptr<T>(shares), device_ptr<BoxBounds>(bounds), device_ptr<int64_t>(order),
               device_ptr<int64_t>(starts));
      });
    });
  }
  bool staged() const { return bytes <= kSharesBytes; }
  int64_t shared() const { return staged() ? bytes : 0; }
  template <class T>
  BoxWeights<T> weights() const {
    return {device_ptr<const T>(shares),
            device_ptr<const BoxBounds>(bounds),
            device_ptr<const int64_t>(order),
            device_ptr<const int64_t>(starts),
            height,
            width,
            staged()};
  }
};

Tensor box_pool_fwd(const Tensor& features, const Tensor& boxes, double spatial_scale, int64_t output_height,
                    int64_t output_width, int64_t sampling_ratio, bool aligned) {
  check_box_pool_fwd(features, boxes);
  DeviceGuard guard(features);
  Tensor output = torch::stable::new_empty(features, {boxes.size(0), features.size(1)});
  if (output.numel() == 0) return output;
  const BoxScratch scratch(boxes, features, {spatial_scale, output_height, output_width, sampling_ratio, aligned},
                           features.size(0), features.size(2), features.size(3));
  dispatch(features.scalar_type(), [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = accumulator_t<S>;
    launch_pool<T, S>(scratch.weights<T>(), features.size(0) + 1, scratch.shared(), feature_map(features), features,
                      static_cast<const T*>(nullptr), false, static_cast<T*>(nullptr), output);
  });
  return output;
}

Tensor box_pool_bwd(const Tensor& grad_output, const Tensor& boxes, std::vector<int64_t> feature_size,
                    bool channels_last, double spatial_scale, int64_t output_height, int64_t output_width,
                    int64_t sampling_ratio, bool aligned) {
  check_box_pool_bwd(grad_output, boxes, feature_size);
  DeviceGuard guard(grad_output);
  Tensor grad_features = new_features(grad_output, feature_size, channels_last);
  if (grad_features.numel() == 0) return grad_features;
  const BoxScratch scratch(boxes, grad_output, {spatial_scale, output_height, output_width, sampling_ratio, aligned},
                           feature_size[0], feature_size[2], feature_size[3]);
  dispatch(grad_output.scalar_type(), [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = accumulator_t<S>;
    launch_spread<T, S>("spread_kernel", &spread_kernel<T, S, BoxWeights<T>>, scratch.weights<T>(), scratch.shared(),
                        grad_output, 0, grad_output.stride(0), grad_output.stride(1), grad_features);
  });
  return grad_features;
}

// ---- masks and label maps ----

// Masks [B, R, H, W] of dtype S or bool.
template <class T, class S>
MaskWeights<T, S> mask_weights(const Tensor& masks, int64_t regions, const T* area) {
  return {device_ptr<const void>(masks),
          is_floating(masks),
          masks.stride(0),
          masks.stride(1),
          pixel_axis(masks),
          regions,
          area};
}
Labels label_map(const Tensor& labels, int64_t regions) {  // [B, H, W]
  return {device_ptr<const void>(labels),
          int32_t(labels.element_size()),
          labels.scalar_type() == ScalarType::Byte,
          labels.stride(0),
          pixel_axis(labels),
          regions};
}

template <class T, class S>
void launch_label_pool(const Labels& labels, const Tensor& x, bool mean, const Tensor& area, const Tensor& pooled) {
  const Map map = feature_map(x);
  PoolPlan plan{};
  plan.tiling = make_tiling(map, device_ptr<const S>(x), sizeof(S), sizeof(S), 32, kTileBytes, kTileRow / sizeof(S));
  count_tiles(plan, map);
  plan.tiles_j = std::max(1, plan.tiles_j);
  plan.weights_stride = int32_t(plan.tiling.tile_k);
  plan.weights_at = int32_t(2 * tile_bytes(plan.tiling, sizeof(S)));
  plan.sums_at = int32_t(round_up(plan.weights_at + 2 * plan.weights_stride * int64_t(sizeof(int32_t)), 16));
  launch("label_pool_kernel", &label_pool_kernel<T, S>, map.images * plan.tiles_j, kTileThreads,
         plan.sums_at + kTileWarps * kLabels<T> * 32 * int64_t(sizeof(T)), x, labels, plan, map, device_ptr<const S>(x),
         mean, device_ptr<T>(area), device_ptr<S>(pooled));
}

std::tuple<Tensor, Tensor> masked_pool_fwd(const Tensor& features, const Tensor& masks,
                                           std::optional<int64_t> num_regions, bool mean) {
  const int64_t regions = check_masked_pool_fwd(features, masks, num_regions);
  const int64_t images = features.size(0), channels = features.size(1);
  DeviceGuard guard(features);
  Tensor output = torch::stable::new_empty(features, {images, regions, channels});
  Tensor area = torch::stable::new_empty(features, {images, regions}, accumulation_type(features));
  if (area.numel() == 0) return {output, area};
  dispatch(features.scalar_type(), [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = accumulator_t<S>;
    if (masks.dim() == 3) {
      launch_label_pool<T, S>(label_map(masks, regions), features, mean, area, output);
    } else {
      launch_pool<T, S>(mask_weights<T, S>(masks, regions, nullptr), images, 0, feature_map(features), features,
                        static_cast<const T*>(nullptr), mean, device_ptr<T>(area), output);
    }
  });
  return {output, area};
}

Tensor masked_pool_bwd(const Tensor& grad_output, const Tensor& masks, const Tensor& area,
                       std::vector<int64_t> feature_size, bool channels_last, bool mean) {
  check_masked_pool_bwd(grad_output, masks, area, feature_size);
  const int64_t regions = grad_output.size(1);
  DeviceGuard guard(grad_output);
  Tensor grad_features = new_features(grad_output, feature_size, channels_last);
  dispatch(grad_output.scalar_type(), [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = accumulator_t<S>;
    const T* areas = mean ? device_ptr<const T>(area) : nullptr;
    const int64_t image = grad_output.stride(0), region = grad_output.stride(1), channel = grad_output.stride(2);
    if (masks.dim() == 3) {
      const int64_t grads = regions * kTileJ * int64_t(sizeof(T));
      launch_spread<T, S>("label_spread_kernel", &label_spread_kernel<T, S>, label_map(masks, regions),
                          grads <= kStayingWeights ? grads : 0, grad_output, image, region, channel, grad_features,
                          areas);
    } else {
      launch_spread<T, S>("spread_kernel", &spread_kernel<T, S, MaskWeights<T, S>>,
                          mask_weights<T, S>(masks, regions, areas), 0, grad_output, image, region, channel,
                          grad_features);
    }
  });
  return grad_features;
}

Tensor masked_pool_bwd_masks(const Tensor& grad_output, const Tensor& features, const Tensor& output,
                             const Tensor& area, bool mean) {
  check_masked_pool_bwd_masks(grad_output, features, output, area);
  DeviceGuard guard(grad_output);
  const int64_t images = features.size(0), channels = features.size(1), regions = grad_output.size(1);
  Tensor grad_masks = torch::stable::new_empty(features, {images, regions, features.size(2), features.size(3)});
  if (grad_masks.numel() == 0) return grad_masks;
  Tensor shift = torch::stable::new_empty(area, {images, regions});  // Σ_c g[b, r, c] output[b, r, c], for a mean
  dispatch(features.scalar_type(), [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = accumulator_t<S>;
    const GradWeights<T, S> weights{device_ptr<const S>(grad_output),
                                    grad_output.stride(0),
                                    grad_output.stride(1),
                                    grad_output.stride(2),
                                    regions,
                                    mean ? device_ptr<const T>(area) : nullptr};
    if (mean) {
      launch("total_kernel", &total_kernel<T, S>, std::min<int64_t>(ceil_div(images * regions, kTileWarps), 1 << 20),
             kTileThreads, 0, output, weights, images * regions, channels, device_ptr<const S>(output),
             device_ptr<T>(shift));
    }
    Map map = feature_map(features);
    std::swap(map.k, map.j);
    launch_pool<T, S>(weights, images, 0, map, features, mean ? device_ptr<const T>(shift) : nullptr, false,
                      static_cast<T*>(nullptr), grad_masks);
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
