"""Region pooling: the mean feature of boxes (`box_pool`), and means or sums under masks or labels (`masked_pool`).

Every pooling is a weighted sum of feature pixels. A box's weights are a product of row and column weights. So there is
no [R, C, P, P] tensor of samples, and only pixels inside the box are read. In the backward pass each pixel sums the
gradients of the regions that cover it. That is deterministic and needs no atomics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from maskco.ops import _library, reference
from maskco.ops._inputs import (
    FLOATS,
    INTEGERS,
    as_float,
    as_int,
    as_pair,
    as_tensor,
    autocast_on,
    check_device,
    check_dtype,
    check_shape,
    refuse_forward_mode,
    refuse_transforms,
)

MOST_POINTS = 1 << 16  # sample points of a box along an axis. Far more would run for hours


def box_pool(
    features: Tensor,
    boxes: Tensor | Sequence[Tensor],
    *,
    spatial_scale: float,
    output_size: int | Sequence[int] = 7,
    sampling_ratio: int = 2,
    aligned: bool = True,
) -> Tensor:
    """The mean feature of every box: `torchvision.ops.roi_align(...).mean((-2, -1))`, without its [R, C, P, P] tensor.

    Args:
        features: [B, C, H, W], float32, float64, float16 or bfloat16, with any strides.
        boxes: [R, 5] rows (image index, x1, y1, x2, y2), or a list with one [Ri, 4] for each image. Coordinates are in
            image pixels. The dtype is float32 or the features'. A 16-bit dtype cannot hold every image index, so use
            float32 or the list there. No gradient flows to the boxes, as in torchvision.
        spatial_scale: feature pixels per image pixel, for example 1/32 for a stride of 32.
        output_size: RoIAlign's grid of bins, as one number for both sides or (height, width).
        sampling_ratio: sample points of a bin along each axis. 0 or less is adaptive: about one for each feature pixel.
            `output_size` times this is at most 65,536.
        aligned: shift by half a pixel, so that pixel centres agree (torchvision's `aligned=True`). Without it a box is
            at least one feature pixel wide and high.

    Returns:
        [R, C] in the features' dtype, in the order of the boxes. Boxes of a list are in the order of the images. Sums
        run in float32 (float64 for float64 features).

    Special cases:

    - Points more than a pixel outside the map count as zero.
    - A box with a NaN or Inf gives a row of NaN.
    - With `aligned=True` an inverted box (x2 < x1) is sampled backwards. With adaptive sampling it gives zeros.
    - NaN in a feature reaches the rows of boxes that sample it, and no others.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a shape, device or option that does not fit.
        RuntimeError: a second derivative, forward-mode AD, or a gradient of torch.func. `maskco.ops.reference.box_pool`
            supports these. On the CPU also an image index out of range. CUDA gives such a box a row of NaN, since a
            check would wait for the device.
    """
    features = as_tensor(features, "features")
    check_shape(features, ("B", "C", "H", "W"), "features")
    check_dtype(features, FLOATS, "features")
    rois = _rois(features, boxes)
    spatial_scale, (height, width), sampling_ratio = check_grid(spatial_scale, output_size, sampling_ratio)
    ops = _library.kernels(features.device)
    if ops is None:
        return reference.box_pool(
            features,
            rois,
            spatial_scale=spatial_scale,
            output_size=(height, width),
            sampling_ratio=sampling_ratio,
            aligned=aligned,
        )
    refuse_transforms("box_pool", features, rois)
    return ops.box_pool_fwd(features, rois.detach(), spatial_scale, height, width, sampling_ratio, aligned)


def check_grid(spatial_scale: Any, output_size: Any, sampling_ratio: Any) -> tuple[float, tuple[int, int], int]:
    """The options of `box_pool` as plain numbers, `output_size` as (height, width). Raises TypeError, ValueError."""
    scale = as_float(spatial_scale, "spatial_scale")
    if not abs(scale) < math.inf:  # (math.isfinite would end torch.compile's graph)
        raise ValueError(f"spatial_scale must be finite, got {scale}")
    height, width = as_pair(output_size, "output_size")
    if min(height, width) < 1:
        raise ValueError(f"output_size must be at least 1, got {output_size}")
    per_bin = as_int(sampling_ratio, "sampling_ratio")
    if max(height, width) * max(per_bin, 1) > MOST_POINTS:
        raise ValueError(
            f"output_size × sampling_ratio must be at most {MOST_POINTS} sample points along an axis, got "
            f"{output_size} × {max(per_bin, 1)}"
        )
    return scale, (height, width), per_bin


def _rois(features: Tensor, boxes: Tensor | Sequence[Tensor]) -> Tensor:
    """The boxes as [R, 5], from either form."""
    listed = isinstance(boxes, list | tuple)
    if listed and len(boxes) != features.shape[0]:
        raise ValueError(f"boxes must list one [Ri, 4] for each of the {features.shape[0]} images, got {len(boxes)}")
    parts = [as_tensor(b, f"boxes[{i}]") for i, b in enumerate(boxes)] if listed else [as_tensor(boxes, "boxes")]
    allowed = (torch.float32,) if features.dtype == torch.float32 else (torch.float32, features.dtype)
    for i, part in enumerate(parts):
        name = f"boxes[{i}]" if listed else "boxes"
        check_shape(part, (f"R{i}", 4) if listed else ("R", 5), name)
        check_dtype(part, allowed, name)
        check_device(part, features, name, "features")
    if not listed:
        return parts[0]
    wide = torch.promote_types(features.dtype, torch.float32)  # holds every image index exactly
    rows = [torch.cat([p.new_full((p.shape[0], 1), i, dtype=wide), p.to(wide)], dim=1) for i, p in enumerate(parts)]
    return torch.cat(rows) if rows else features.new_zeros(0, 5, dtype=wide)


def masked_pool(
    features: Tensor,
    masks: Tensor,
    *,
    num_regions: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The mean (or sum) of the features under every mask, or over every label of a label map.

    Equivalent to `einsum("bchw,brhw->brc", features, masks)`, divided by each mask's sum for a mean. Label maps never
    become one-hot.

    Args:
        features: [B, C, H, W], float32, float64, float16 or bfloat16, with any strides.
        masks: soft or bool masks [B, R, H, W], or with `num_regions` a label map [B, H, W] of an integer dtype. Soft
            masks have the features' dtype, or under autocast any float dtype, and get gradients too. A label outside
            [0, num_regions), such as an ignore index, belongs to no region.
        num_regions: R, the number of labels. Leave it out for masks.
        reduction: "mean" (Σ mask · feature / Σ mask) or "sum".

    Returns:
        [B, R, C] in the features' dtype. A mask whose sum is 0, or a label that does not occur, has the mean 0 and
        gives no gradient. Sums run in float32 (float64 for float64 features).

    Bool masks and labels choose pixels, so NaN in other pixels has no effect. Soft masks weigh pixels: 0 · NaN is NaN.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a shape, device or option that does not fit.
        RuntimeError: a second derivative, forward-mode AD, or a gradient of torch.func.
            `maskco.ops.reference.masked_pool` supports these.
    """
    features, masks = as_tensor(features, "features"), as_tensor(masks, "masks")
    check_shape(features, ("B", "C", "H", "W"), "features")
    check_dtype(features, FLOATS, "features")
    batch, _, height, width = features.shape
    if num_regions is not None:
        num_regions = check_num_regions(num_regions)
        check_dtype(masks, INTEGERS, "masks (labels, as num_regions is given)")
        check_shape(masks, (batch, height, width), "masks (labels, as num_regions is given)")
    elif masks.dtype in INTEGERS:
        raise TypeError("masks of an integer dtype are labels. Give num_regions too, or bool or float masks")
    else:
        if masks.dtype in FLOATS and autocast_on(features):
            masks = masks.to(features.dtype)
        check_dtype(masks, (features.dtype, torch.bool), "masks")
        check_shape(masks, (batch, "R", height, width), "masks")
    check_device(masks, features, "masks", "features")
    check_region_reduction(reduction)
    ops = _library.kernels(features.device)
    if ops is None:
        return reference.masked_pool(features, masks, num_regions=num_regions, reduction=reduction)
    refuse_transforms("masked_pool", features, masks)
    return ops.masked_pool_fwd(features, masks, num_regions, reduction == "mean")[0]


def check_num_regions(value: Any) -> int:
    number = as_int(value, "num_regions")
    if number < 0:
        raise ValueError(f"num_regions must not be negative, got {number}")
    return number


def check_region_reduction(reduction: str) -> None:
    if reduction not in ("mean", "sum"):
        raise ValueError(f'reduction must be "mean" or "sum", got {reduction!r}')


def _channels_last(features: Tensor) -> bool:
    """Whether the features are channels_last. Their gradient gets the same layout."""
    return features.shape[1] > 1 and features.stride(1) == 1


def _new_features(like: Tensor, size: Sequence[int], channels_last: bool) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=layout)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def register(namespace: str) -> None:
    """Registers fake kernels and gradients of the ops in `namespace`."""
    ops = getattr(torch.ops, namespace)

    @torch.library.register_fake(f"{namespace}::box_pool_fwd")
    def _(features, boxes, spatial_scale, output_height, output_width, sampling_ratio, aligned):
        refuse_forward_mode("box_pool")
        return features.new_empty(boxes.shape[0], features.shape[1])

    @torch.library.register_fake(f"{namespace}::box_pool_bwd")
    def _(grad_output, boxes, feature_size, channels_last, *grid):
        return _new_features(grad_output, feature_size, channels_last)

    def save_box_pool(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        features, boxes, *ctx.grid = inputs
        ctx.save_for_backward(boxes)
        ctx.feature_size, ctx.channels_last = features.shape, _channels_last(features)

    def box_pool_backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (boxes,) = ctx.saved_tensors
        grad_features = None
        if ctx.needs_input_grad[0]:
            grad_features = ops.box_pool_bwd(grad_output, boxes, ctx.feature_size, ctx.channels_last, *ctx.grid)
        return grad_features, None, None, None, None, None, None

    torch.library.register_autograd(f"{namespace}::box_pool_fwd", box_pool_backward, setup_context=save_box_pool)

    @torch.library.register_fake(f"{namespace}::masked_pool_fwd")
    def _(features, masks, num_regions, mean):
        refuse_forward_mode("masked_pool")
        regions = masks.shape[1] if num_regions is None else num_regions
        output = features.new_empty(features.shape[0], regions, features.shape[1])
        return output, features.new_empty(features.shape[0], regions, dtype=_wide(features.dtype))

    @torch.library.register_fake(f"{namespace}::masked_pool_bwd")
    def _(grad_output, masks, area, feature_size, channels_last, mean):
        return _new_features(grad_output, feature_size, channels_last)

    @torch.library.register_fake(f"{namespace}::masked_pool_bwd_masks")
    def _(grad_output, features, output, area, mean):
        batch, _, height, width = features.shape
        return features.new_empty(batch, output.shape[1], height, width)

    def save_masked_pool(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        features, masks, _, ctx.mean = inputs
        pooled, area = output
        ctx.mark_non_differentiable(area)
        ctx.feature_size, ctx.channels_last = features.shape, _channels_last(features)
        # only the masks' gradient needs the feature map
        ctx.save_for_backward(masks, area, *((features, pooled) if ctx.needs_input_grad[1] else ()))

    def masked_pool_backward(ctx: Any, grad_output: Tensor, grad_area: Tensor) -> tuple[Tensor | None, ...]:
        masks, area, *saved = ctx.saved_tensors
        grad_features = grad_masks = None
        if ctx.needs_input_grad[0]:
            grad_features = ops.masked_pool_bwd(grad_output, masks, area, ctx.feature_size, ctx.channels_last, ctx.mean)
        if ctx.needs_input_grad[1]:
            grad_masks = ops.masked_pool_bwd_masks(grad_output, *saved, area, ctx.mean)
        return grad_features, grad_masks, None, None

    torch.library.register_autograd(
        f"{namespace}::masked_pool_fwd", masked_pool_backward, setup_context=save_masked_pool
    )

    for op in ("box_pool_bwd", "masked_pool_bwd", "masked_pool_bwd_masks"):
        torch.library.register_autograd(f"{namespace}::{op}", _no_double_backward)


def _no_double_backward(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError(
        "box_pool and masked_pool have no gradient of their gradient. Use torchvision's roi_align, or einsum, for that"
    )


register("maskco")
