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
    """The masks that hide regions of the query view."""

    mask_share: Annotated[float, Between(1e-6, 4)] = 0.3
    """Area of a mask over its region's, with the same centre (ours). Below 1, the region's rim stays visible. Above 1,
    the mask also hides some of the surroundings. On photographs the linear probe scored higher with 0.3 than with 1,
    for each of three seeds (docs/results/photographs.md)."""
    mask_fill: MaskFill = "grey"
    """Fill of the masks (ours). grey: a grey next to the mean color. noise: with the images' mean and deviation. mean:
    exactly the mean color, which can make gradients of fresh encoders explode, except of ResNets. token: grey, and a
    learned vector where a vision transformer embeds a hidden patch."""
    mask_patch: Annotated[int, Between(1, 100_000)] | None = None
    """Masks cover whole patches of this side in pixels (ours). Default: the patches that the encoder embeds (ViT, Swin,
    Hiera), else single pixels."""


@dataclass
class ViewConfig(Options):
    """Augmentations, with MoCo v2's strengths, and regions."""

    image_size: Side = 224
    """Side of both views in pixels."""
    regions: Annotated[int, Between(0, 1000)] = 4  # (number and size did best in benchmarks/results/claims_tries.json)
    """Number of regions in each image (ours). 0: none, so views need not share more than --min-overlap."""
    region_scale: Annotated[tuple[float, float], Range(0, 1)] = (0.25, 0.4)
    """Smallest and largest side of a region, the square root of its area, as a share of the view's side (ours)."""
    region_aspect: Annotated[tuple[float, float], Range(0.01, 100)] = (0.5, 2.0)
    """Width over height of a region in the query view (ours)."""
    min_region_pixels: Side = 8
    """Shortest side of a region in either view (ours)."""
    max_region_overlap: Share = 0.25
    """Largest IoU of two regions of one image, where there is room (ours)."""
    min_overlap: Share = 0.25
    """Smallest share of each view that the other shows too (ours)."""
    crop_scale: Annotated[tuple[float, float], Range(0, 1)] = (0.2, 1.0)
    """Smallest and largest share of the image that a view shows."""
    crop_aspect: Annotated[tuple[float, float], Range(0.01, 100)] = (3 / 4, 4 / 3)
    """Width over height of the part of the image that a view shows."""
    flip: Share = 0.5
    """Probability of a horizontal flip."""
    jitter: Share = 0.8
    """Probability of color jitter, with the strengths below."""
    brightness: Share = 0.4
    """Strength of the change in brightness."""
    contrast: Share = 0.4
    """Strength of the change in contrast."""
    saturation: Share = 0.4
    """Strength of the change in saturation."""
    hue: Annotated[float, Between(0, 0.5)] = 0.1
    """Strength of the change in hue."""
    grayscale: Share = 0.2
    """Probability of a grey view."""
    blur: Share = 0.5
    """Probability of a Gaussian blur."""
    blur_sigma: Annotated[tuple[float, float], Range(0, 1000)] = (0.1, 2.0)
    """Smallest and largest sigma of the blur, for a view of 224 pixels. It is scaled with the view's side (ours)."""
    min_image_side: Side = 32
    """Images with a shorter side are refused (ours)."""

    def check(self) -> None:
        super().check()
        if self.regions and self.min_region_pixels > self.region_scale[1] * self.image_size:
            raise ConfigError(
                f"min_region_pixels {self.min_region_pixels} exceeds the largest region, region_scale x image_size = "
                f"{self.region_scale[1] * self.image_size:g} pixels. Raise image_size or region_scale"
            )
