"""`box_pool` and `masked_pool` beside torchvision's roi_align, einsum with masks, and one read of the features."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

from benchmarks.cases import (
    BACKWARD,
    BOTH,
    FORWARD,
    ONLY_QUICK,
    OURS,
    Case,
    Implementation,
    Inputs,
    Passes,
    Target,
    differentiable,
)
from benchmarks.harness import main
from benchmarks.timing import fastest
from maskco.ops import box_pool, masked_pool

STRIDE = 32  # picture pixels per feature pixel
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
Shape = tuple[int, int, int, int]  # B, C, H, W


def ours_boxes(features: Tensor, boxes: Tensor) -> Tensor:
    return box_pool(features, boxes, spatial_scale=1 / STRIDE, output_size=7, sampling_ratio=2)


def torchvision_boxes(features: Tensor, boxes: Tensor) -> Tensor:
    grid = roi_align(features, boxes, 7, spatial_scale=1 / STRIDE, sampling_ratio=2, aligned=True)
    return grid.mean((-2, -1))


def ours_masks(features: Tensor, masks: Tensor) -> Tensor:
    return masked_pool(features, masks)


def einsum_masks(features: Tensor, masks: Tensor) -> Tensor:
    return torch.einsum("bchw,brhw->brc", features, masks) / masks.sum((-2, -1))[..., None]


def ours_labels(features: Tensor, labels: Tensor, regions: int) -> Tensor:
    return masked_pool(features, labels, num_regions=regions)


def one_hot_labels(features: Tensor, labels: Tensor, regions: int) -> Tensor:
    masks = F.one_hot(labels, regions).movedim(-1, 1).to(features.dtype)
    return torch.einsum("bchw,brhw->brc", features, masks) / masks.sum((-2, -1)).clamp(min=1)[..., None]


def one_read(inputs: Inputs) -> Passes:
    """Every feature is read once, and next to nothing else is done, by the fastest way that torch has for it."""
    features = inputs["features"]
    flat = (features.permute(0, 2, 3, 1) if features.stride(1) == 1 else features).view(-1)  # in memory's order
    reads = {"sum": flat.sum, "amax": flat.amax, "dot": lambda: torch.dot(flat, flat)}
    name = fastest(reads, flat.device)
    return Passes(reads[name], note=f"fastest as {name}")


def make_features(
    shape: Shape, layout: str, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(shape, generator=generator).to(device, dtype, memory_format=LAYOUTS[layout])
    return features, generator


def box_inputs(shape: Shape, regions: int, layout: str, device: torch.device, dtype: torch.dtype) -> Inputs:
    """Boxes with sides of a quarter to three quarters of the image's, inside it."""
    features, generator = make_features(shape, layout, device, dtype)
    batch, channels, height, width = shape
    image = torch.arange(batch).repeat_interleave(regions)[:, None]  # [R, 1]
    size = torch.tensor([width, height]) * STRIDE
    sides = (0.25 + 0.5 * torch.rand(len(image), 2, generator=generator)) * size
    corner = torch.rand(len(image), 2, generator=generator) * (size - sides)
    boxes = torch.cat([image, corner, corner + sides], dim=1).to(device, dtype)
    grad_output = torch.randn(len(image), channels, generator=generator).to(device, dtype)
    return {"features": features, "boxes": boxes, "grad_output": grad_output}


def mask_inputs(shape: Shape, regions: int, layout: str, device: torch.device, dtype: torch.dtype) -> Inputs:
    """Soft masks, ready in memory."""
    features, generator = make_features(shape, layout, device, dtype)
    batch, channels, height, width = shape
    masks = torch.rand(batch, regions, height, width, generator=generator).to(device, dtype)
    grad_output = torch.randn(batch, regions, channels, generator=generator).to(device, dtype)
    return {"features": features, "masks": masks, "grad_output": grad_output}


def label_inputs(shape: Shape, regions: int, layout: str, device: torch.device, dtype: torch.dtype) -> Inputs:
    """Label maps in blobs, as a segmentation is: a coarse random map, enlarged."""
    features, generator = make_features(shape, layout, device, dtype)
    batch, channels, height, width = shape
    coarse = torch.randint(regions, (batch, 1, (height + 7) // 8, (width + 7) // 8), generator=generator)
    labels = coarse.repeat_interleave(8, 2).repeat_interleave(8, 3)[:, 0, :height, :width].contiguous().to(device)
    grad_output = torch.randn(batch, regions, channels, generator=generator).to(device, dtype)
    return {"features": features, "labels": labels, "regions": regions, "grad_output": grad_output}


FEATURES = ["features"]
ONE_READ = Implementation("one read of features", one_read, agrees="", memory=False, flops=False)
BOXES = (
    Implementation(OURS, differentiable(ours_boxes, FEATURES)),
    Implementation("roi_align + mean", differentiable(torchvision_boxes, FEATURES)),
    ONE_READ,
)
MASKS = (
    Implementation(OURS, differentiable(ours_masks, FEATURES)),
    Implementation("einsum", differentiable(einsum_masks, FEATURES)),
    Implementation("torch.compile", differentiable(einsum_masks, FEATURES, compile=True)),
    ONE_READ,
)
LABELS = (
    Implementation(OURS, differentiable(ours_labels, FEATURES)),
    Implementation("one-hot einsum", differentiable(one_hot_labels, FEATURES)),
    Implementation("torch.compile", differentiable(one_hot_labels, FEATURES, compile=True)),
    ONE_READ,
)
KINDS = {
    "boxes": (box_inputs, BOXES, "roi_align + mean"),
    "soft masks": (mask_inputs, MASKS, "einsum"),
    "labels": (label_inputs, LABELS, "one-hot einsum"),
}
BACKWARD_LIMIT = Target(2, metric="of forward", on=BACKWARD)


def both_layouts(shape: Shape, regions: int, kind: str, limit: float, *more: Target) -> list[Case]:
    """`limit`: the target against the plain way, in each pass."""
    make_inputs, implementations, plain = KINDS[kind]
    batch, channels, height, width = shape
    products = 2 * batch * regions * channels * height * width if kind == "soft masks" else 0
    return [
        Case(
            f"{regions} {kind}, features {'×'.join(map(str, shape))} {layout}",
            partial(make_inputs, shape, regions, layout),
            implementations,
            flops={FORWARD: products, BACKWARD: products, BOTH: 2 * products},
            targets=(*(Target(limit, plain, on=each) for each in (FORWARD, BACKWARD, BOTH)), BACKWARD_LIMIT, *more),
        )
        for layout in LAYOUTS
    ]


def over_regions(shape: Shape, regions: int, kind: str) -> Case:
    make_inputs, implementations, _ = KINDS[kind]
    return Case(
        f"{regions} {kind}, features {'×'.join(map(str, shape))} NCHW, over regions",
        partial(make_inputs, shape, regions, "NCHW"),
        implementations[:2],  # the limit is one of forward alone, and compiling leaves the same product
        sweep=(f"regions, {kind}", regions),
    )


def cases() -> list[Case]:
    memory_bound = Target(1.5, ONE_READ.name, on=FORWARD)
    return [
        *both_layouts((64, 512, 7, 7), 4, "boxes", 1 / 100),
        *both_layouts((64, 2048, 14, 14), 16, "boxes", 1 / 80),
        *both_layouts((32, 256, 56, 56), 8, "boxes", 1 / 10),
        *both_layouts((64, 2048, 14, 14), 16, "soft masks", 0.6),
        *both_layouts((16, 256, 56, 56), 21, "labels", 0.3, memory_bound),
        *(replace(case, suites=ONLY_QUICK) for kind in KINDS for case in both_layouts((4, 256, 14, 14), 4, kind, 1)),
        *(over_regions((16, 256, 56, 56), 2**e, kind) for kind in KINDS for e in range(0, 7)),
    ]


if __name__ == "__main__":
    main("benchmarks.region_pool", cases)
