"""`ops.box_pool` and `ops.masked_pool` as modules; they hold no parameters."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from maskco import ops
from maskco.ops._inputs import as_float, as_int, as_pair


class BoxPool(nn.Module):
    """The mean of a RoIAlign grid, without the grid: [B, C, H, W] and boxes → [R, C]; see `maskco.ops.box_pool`.

    Arguments are in the order of `torchvision.ops.RoIAlign`. `aligned` is on by default, and `sampling_ratio` has a
    default.

    Raises:
        TypeError, ValueError: an argument that is no number, or not one or two integers; names it.
    """

    def __init__(
        self, output_size: int | Sequence[int], spatial_scale: float, sampling_ratio: int = 2, aligned: bool = True
    ) -> None:
        super().__init__()
        height, width = as_pair(output_size, "output_size")
        self.output_size = height if height == width else (height, width)
        self.spatial_scale = as_float(spatial_scale, "spatial_scale")
        self.sampling_ratio = as_int(sampling_ratio, "sampling_ratio")
        self.aligned = aligned

    def forward(self, features: Tensor, boxes: Tensor | Sequence[Tensor]) -> Tensor:
        """The mean feature of every box, [R, C]; errors are those of `maskco.ops.box_pool`.

        Args:
            features: [B, C, H, W].
            boxes: [R, 5] of (image index, x1, y1, x2, y2), or a list of one [Ri, 4] for each image, in image pixels.
        """
        return ops.box_pool(
            features,
            boxes,
            spatial_scale=self.spatial_scale,
            output_size=self.output_size,
            sampling_ratio=self.sampling_ratio,
            aligned=self.aligned,
        )

    def extra_repr(self) -> str:
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, aligned={self.aligned}"
        )


class MaskedPool(nn.Module):
    """The mean (or sum) of the features under each mask: → [B, R, C]; see `maskco.ops.masked_pool`.

    Args:
        num_regions: how many labels there are, for label maps; None for masks.
        reduction: "mean" or "sum".
    """

    def __init__(self, num_regions: int | None = None, reduction: str = "mean") -> None:
        super().__init__()
        self.num_regions = None if num_regions is None else as_int(num_regions, "num_regions")
        self.reduction = reduction

    def forward(self, features: Tensor, masks: Tensor) -> Tensor:
        """The mean or sum under every mask, [B, R, C]; errors are those of `maskco.ops.masked_pool`.

        Args:
            features: [B, C, H, W].
            masks: [B, R, H, W], soft or bool, or labels [B, H, W].
        """
        return ops.masked_pool(features, masks, num_regions=self.num_regions, reduction=self.reduction)

    def extra_repr(self) -> str:
        return f"num_regions={self.num_regions}, reduction={self.reduction!r}"
