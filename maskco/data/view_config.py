"""How views and regions are drawn: options of a run, of `maskco views`, and of `TwoViews`. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from maskco.option_values import Bounds, make_plain, misfit, out_of_bounds

MaskFill = Literal["grey", "noise", "mean"]

BOUNDS: Bounds = {  # smallest and largest value
    **dict.fromkeys(("image_size", "min_region_pixels", "min_picture_side"), (1, 100_000)),
    "regions": (1, 1000),  # each is compared with all others
    **dict.fromkeys(("max_region_overlap", "min_overlap", "flip", "jitter", "brightness", "contrast"), (0, 1)),
    **dict.fromkeys(("saturation", "grayscale", "blur"), (0, 1)),
    "hue": (0, 0.5),  # half a turn
}
RANGES: Bounds = {  # within which both ends of a range lie
    "region_scale": (0, 1),
    "region_aspect": (0.01, 100),
    "crop_scale": (0, 1),
    "crop_aspect": (0.01, 100),  # a narrower part of an image has no pixel
    "blur_sigma": (0, 1000),
}


@dataclass
class ViewConfig:
    """Augmentation strengths are MoCo v2's; regions, masks and overlap are ours. Number, size and hidden share of the
    regions are the best of the tries in benchmarks/results/claims_tries.json. Raises ValueError for what cannot work.
    """

    image_size: int = 224
    """Side of both views in pixels."""
    regions: int = 4
    """Regions masked in each picture (ours)."""
    region_scale: tuple[float, float] = (0.25, 0.4)
    """Smallest and largest side of a region (square root of its area) as a share of the query view's side (ours)."""
    region_aspect: tuple[float, float] = (0.5, 2.0)
    """Width over height of a region in the query view (ours)."""
    mask_share: float = 0.3
    """Share of a region's area that is hidden, in its middle; the rest shows what it stands in (ours)."""
    mask_fill: MaskFill = "grey"
    """Colour of the masks: a grey just beside the mean colour, noise of the images' spread, or exactly the mean
    (ours). Norms of fresh encoders other than ResNets can blow up the gradient of exactly the mean."""
    min_region_pixels: int = 8
    """Both sides of every region are at least this long in both views (ours)."""
    max_region_overlap: float = 0.25
    """Regions of one picture should not exceed this IoU with each other (ours)."""
    min_overlap: float = 0.25
    """The area that both views show is at least this share of either (ours)."""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Smallest and largest share of the picture that a view shows."""
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height of that part of the picture."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    jitter: float = 0.8
    """Probability of colour jitter, by the strengths that follow."""
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    grayscale: float = 0.2
    """Probability of losing all colour."""
    blur: float = 0.5
    """Probability of a Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Of a 224-pixel view, in pixels; scaled with the view's side, or a 64-pixel view would be mush (scaling: ours)."""
    min_picture_side: int = 32
    """Pictures with a shorter side than this are refused (ours)."""

    def __post_init__(self) -> None:
        make_plain(self)
        if wrong := misfit(self, ViewConfig) or out_of_bounds(self, BOUNDS):
            raise ValueError(wrong)
        for name, (least, most) in RANGES.items():
            low, high = getattr(self, name)
            if not least <= low <= high <= most or low == 0:
                wanted = f"{least} <= low" if least else "0 < low"
                raise ValueError(f"{name} must be (low, high) with {wanted} <= high <= {most}, got {(low, high)}")
        if not 0 < self.mask_share <= 1:
            raise ValueError(f"mask_share must be above 0 and at most 1, got {self.mask_share}")
        if self.min_region_pixels > self.region_scale[1] * self.image_size:
            raise ValueError(
                f"min_region_pixels {self.min_region_pixels} exceeds the largest region, region_scale x image_size = "
                f"{self.region_scale[1] * self.image_size:g} pixels: raise image_size or region_scale"
            )
