"""The projection head of MoCo v2: one hidden layer."""

from __future__ import annotations

from torch import nn


class ProjectionHead(nn.Sequential):
    """Linear, ReLU, Linear: [N, in_channels] -> [N, dim]. The caller normalises, so that the method shows it.

    `hidden` defaults to `in_channels`, as MoCo v2's (2048 for a ResNet-50).
    """

    def __init__(self, in_channels: int, hidden: int | None = None, dim: int = 128) -> None:
        hidden = in_channels if hidden is None else hidden
        super().__init__(nn.Linear(in_channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, dim))
