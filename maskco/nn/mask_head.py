"""Mask prediction heads: they predict a masked region's features from its surroundings.

The paper calls this head the key to its success. Its type, depth and width are not known to us. So all three
heads, and every default, are ours.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def create_mask_head(kind: str, channels: int, *, depth: int = 3) -> nn.Module:
    """Creates a mask prediction head, a module from feature maps [B, C, h, w] to [B, C, h, w].

    Args:
        kind: "conv", "attention" or "none". "none" is the identity, for the ablation without a head.
        channels: C.
        depth: number of blocks.

    Raises:
        ValueError: an unknown kind.
    """
    if kind == "conv":
        return ConvMaskHead(channels, depth=depth)
    if kind == "attention":
        return AttentionMaskHead(channels, depth=depth)
    if kind == "none":
        return nn.Identity()
    raise ValueError(f"mask_head must be 'conv', 'attention' or 'none', got {kind!r}")


class ConvMaskHead(nn.Sequential):
    """Residual bottlenecks with dilations 1, 2, 4, 1, 2, …, so that few blocks cover the whole masked region."""

    def __init__(self, channels: int, *, depth: int = 3) -> None:
        super().__init__(*(DilatedBottleneck(channels, dilation=2 ** (block % 3)) for block in range(depth)))


class DilatedBottleneck(nn.Module):
    """A residual bottleneck block: x + BN(1×1(ReLU(BN(3×3 dilated(ReLU(BN(1×1(x)))))))).

    It has a quarter of the channels inside, at most `max_width`. With 96, three blocks on ResNet-50's 2048 channels
    cost 1.5% of a training step at 224 pixels. With 512 they cost 10%.
    """

    def __init__(self, channels: int, *, dilation: int, max_width: int = 96) -> None:
        super().__init__()
        width = max(min(channels // 4, max_width), 1)
        self.branch = nn.Sequential(
            nn.Conv2d(channels, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        # The block starts as the identity, so a deep head does not disturb the encoder's features at the first steps.
        nn.init.zeros_(self.branch[-1].get_parameter("weight"))

    def forward(self, features: Tensor) -> Tensor:
        return features + self.branch(features)


class AttentionMaskHead(nn.Module):
    """Transformer blocks over the map's pixels, at most 512 wide. Their output is added to the input map.

    Positions are 2D sines and cosines, computed for the size of each map. So any map size works.
    """

    def __init__(self, channels: int, *, depth: int = 3, max_width: int = 512) -> None:
        super().__init__()
        heads = max(min(channels, max_width) // 64, 1)
        self.width = max(min(channels, max_width) // (4 * heads), 1) * 4 * heads  # sin-cos needs a multiple of 4
        self.enter = nn.Linear(channels, self.width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                self.width,
                heads,
                dim_feedforward=4 * self.width,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(self.width)
        self.leave = nn.Linear(self.width, channels)
        nn.init.zeros_(self.leave.weight)  # starts as the identity, as the convolutional head does
        nn.init.zeros_(self.leave.bias)

    def forward(self, features: Tensor) -> Tensor:
        height, width = features.shape[-2:]
        tokens = self.enter(features.flatten(2).transpose(1, 2))  # [B, h * w, width]
        tokens = tokens + sin_cos_positions(height, width, self.width, device=tokens.device).to(tokens.dtype)
        for block in self.blocks:
            tokens = block(tokens)
        prediction = self.leave(self.norm(tokens))  # [B, h * w, C]
        return features + prediction.transpose(1, 2).unflatten(2, (height, width))


def sin_cos_positions(height: int, width: int, channels: int, *, device: torch.device | None = None) -> Tensor:
    """Sin-cos positions [height * width, channels], float32.

    Half of the channels encode the row, half the column. `channels` must be a multiple of 4.
    """
    quarter = channels // 4
    frequency = torch.exp(torch.arange(quarter, device=device) * (-math.log(10000.0) / quarter))
    row = torch.arange(height, device=device)[:, None] * frequency  # [h, C / 4]
    column = torch.arange(width, device=device)[:, None] * frequency  # [w, C / 4]
    row = torch.cat([row.sin(), row.cos()], 1)[:, None].expand(-1, width, -1)
    column = torch.cat([column.sin(), column.cos()], 1)[None].expand(height, -1, -1)
    return torch.cat([row, column], 2).flatten(0, 1)
