"""Projection heads: MoCo v2's, with one hidden layer, and MoCo v3's, with batch norms."""

from __future__ import annotations

from typing import Literal

from torch import nn

Projection = Literal["moco_v2", "moco_v3"]


class ProjectionHead(nn.Sequential):
    """An MLP from features [N, in_channels] to embeddings [N, dim]. It does not normalise them.

    Args:
        hidden: width of the hidden layers. The default is `in_channels`, as in MoCo v2 (2048 for a ResNet-50).
        kind: "moco_v2" is linear, ReLU, linear. "moco_v3" has three linear layers without bias, with a batch norm after
            each (Chen et al., arXiv 2104.02057). The last batch norm has no scale and shift. It needs N > 1. The
            paper's hidden width is 4096.

    Raises:
        ValueError: another kind.
    """

    def __init__(
        self, in_channels: int, hidden: int | None = None, dim: int = 128, *, kind: Projection = "moco_v2"
    ) -> None:
        hidden = in_channels if hidden is None else hidden
        if kind == "moco_v2":
            super().__init__(nn.Linear(in_channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, dim))
            return
        if kind != "moco_v3":
            raise ValueError(f"kind must be 'moco_v2' or 'moco_v3', got {kind!r}")
        layers: list[nn.Module] = []
        for width, following in ((in_channels, hidden), (hidden, hidden)):
            layers += [nn.Linear(width, following, bias=False), nn.BatchNorm1d(following), nn.ReLU(inplace=True)]
        super().__init__(*layers, nn.Linear(hidden, dim, bias=False), nn.BatchNorm1d(dim, affine=False))
