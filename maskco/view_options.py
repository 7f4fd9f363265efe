"""How views, regions and masks are drawn: options of a run, of `maskco views` and of `TwoViews`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from maskco.errors import ConfigError
from maskco.option_values import Between, Options, Range, Share

MaskFill = Literal["grey", "noise", "mean", "token"]
Side = Annotated[int, Between(1, 100_000)]


@dataclass
class MaskOptions(Options):
    """What hides a region."""

    mask_share: Annotated[float, Between(1e-6, 4)] = 0.3
    """Area of the mask over a region's, both with one centre. Below 1 the region's rim shows the context, above 1 the
    mask hides some of what surrounds the region as well (ours)."""
    mask_fill: MaskFill = "grey"
    """Color of the masks: a grey next to the mean color, noise of the images' spread, or exactly the mean
    (ours). Norms of fresh encoders other than ResNets can blow up the gradient of exactly the mean. token: grey, and
    where a vision transformer embeds a hidden patch, a vector that is learned."""
    mask_patch: Annotated[int, Between(1, 100_000)] | None = None
    """Masks cover whole patches of this side in pixels; default: those that the encoder embeds (ViT, Swin, Hiera), else
    single pixels (ours)."""


@dataclass
class ViewConfig(Options):
    """Augmentation strengths are MoCo v2's; regions and overlap are ours. Number and size of the regions did best in
    benchmarks/results/claims_tries.json.
    """

    image_size: Side = 224
    """Side of both views in pixels."""
    regions: Annotated[int, Between(0, 1000)] = 4
    """Regions of each image (ours). 0: none, and views need not share an area beyond min_overlap."""
    region_scale: Annotated[tuple[float, float], Range(0, 1)] = (0.25, 0.4)
    """Smallest and largest side of a region (square root of its area) as a share of the query view's side (ours)."""
    region_aspect: Annotated[tuple[float, float], Range(0.01, 100)] = (0.5, 2.0)
    """Width over height of a region in the query view (ours)."""
    min_region_pixels: Side = 8
    """Both sides of every region are at least this long in both views (ours)."""
    max_region_overlap: Share = 0.25
    """Regions of one image should not exceed this IoU with each other (ours)."""
    min_overlap: Share = 0.25
    """The area that both views show is at least this share of either (ours)."""
    crop_scale: Annotated[tuple[float, float], Range(0, 1)] = (0.2, 1.0)
    """Smallest and largest share of the image that a view shows."""
    crop_aspect: Annotated[tuple[float, float], Range(0.01, 100)] = (3 / 4, 4 / 3)
    """Width over height of that part of the image."""
    flip: Share = 0.5
    """Probability of a horizontal flip."""
    jitter: Share = 0.8
    """Probability of color jitter, by the strengths that follow."""
    brightness: Share = 0.4
    contrast: Share = 0.4
    saturation: Share = 0.4
    hue: Annotated[float, Between(0, 0.5)] = 0.1
    grayscale: Share = 0.2
    """Probability of losing all color."""
    blur: Share = 0.5
    """Probability of a Gaussian blur."""
    blur_sigma: Annotated[tuple[float, float], Range(0, 1000)] = (0.1, 2.0)
    """Of a 224-pixel view, in pixels; scaled with the view's side, or a 64-pixel view would be mush (scaling: ours)."""
    min_image_side: Side = 32
    """Images with a shorter side than this are refused (ours)."""

    def check(self) -> None:
        super().check()
        if self.regions and self.min_region_pixels > self.region_scale[1] * self.image_size:
            raise ConfigError(
                f"min_region_pixels {self.min_region_pixels} exceeds the largest region, region_scale x image_size = "
                f"{self.region_scale[1] * self.image_size:g} pixels: raise image_size or region_scale"
            )
