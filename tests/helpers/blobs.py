"""Made-up features for the read-outs."""

from __future__ import annotations

import torch
from torch import Tensor


def blobs(
    rows: int = 600, channels: int = 24, classes: int = 5, noise: float = 1.6, seed: int = 0
) -> tuple[Tensor, ...]:
    """Overlapping Gaussian classes whose channels have very different scales and offsets: train x, y and test x, y."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, channels, generator=generator)
    labels = torch.randint(classes, (rows,), generator=generator)
    x = centres[labels] + noise * torch.randn(rows, channels, generator=generator)
    x = x * torch.logspace(-2, 2, channels) + 3
    train = rows * 2 // 3
    return x[:train], labels[:train], x[train:], labels[train:]
