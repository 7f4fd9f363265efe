"""`ops.box_pool` and `ops.masked_pool` as modules without parameters."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from maskco import ops
from maskco.ops.region_pool import check_grid, check_num_regions, check_region_reduction


class BoxPool(nn.Module):
    """The mean feature of every box, as of a RoIAlign grid but without the grid. See `maskco.ops.box_pool`.

    Features [B, C, H, W] and boxes become [R, C]. Arguments have the order of `torchvision.ops.RoIAlign`. Unlike
    there, `aligned` is true by default, and `sampling_ratio` has a default.

    Raises:
        TypeError, ValueError: an argument that `maskco.ops.box_pool` would refuse. The message names it.
    """

    def __init__(
        self, output_size: int | Sequence[int], spatial_scale: float, sampling_ratio: int = 2, aligned: bool = True
    ) -> None:
        super().__init__()
        self.spatial_scale, (height, width), self.sampling_ratio = check_grid(
            spatial_scale, output_size, sampling_ratio
        )
        self.output_size = height if height == width else (height, width)
        self.aligned = aligned

    def forward(self, features: Tensor, boxes: Tensor | Sequence[Tensor]) -> Tensor:
        """The mean feature of every box, [R, C]. Errors are those of `maskco.ops.box_pool`.

        Args:
            features: [B, C, H, W].
            boxes: [R, 5] rows (image index, x1, y1, x2, y2), or a list with one [Ri, 4] for each image. Coordinates are
                in image pixels.
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
    """The mean (or sum) of the features under each mask, [B, R, C]. See `maskco.ops.masked_pool`.

    Args:
        num_regions: the number of labels, for label maps. None for masks.
        reduction: "mean" or "sum".

    Raises:
        TypeError, ValueError: `num_regions` is no integer of at least 0, or the reduction is unknown.
    """

    def __init__(self, num_regions: int | None = None, reduction: str = "mean") -> None:
        super().__init__()
        self.num_regions = None if num_regions is None else check_num_regions(num_regions)
        check_region_reduction(reduction)
        self.reduction = reduction

    def forward(self, features: Tensor, masks: Tensor) -> Tensor:
        """The mean or sum under every mask, [B, R, C]. Errors are those of `maskco.ops.masked_pool`.

        Args:
            features: [B, C, H, W].
            masks: soft or bool masks [B, R, H, W], or labels [B, H, W].
        """
        return ops.masked_pool(features, masks, num_regions=self.num_regions, reduction=self.reduction)

    def extra_repr(self) -> str:
        return f"num_regions={self.num_regions}, reduction={self.reduction!r}"
