"""Smooth images of a few colors, which any format keeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, size: tuple[int, int] = (60, 40)) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)


def folder_of_pictures(root: Path, count: int) -> Path:
    for i in range(count):
        picture(i).save(root / f"{i:03}.png")
    return root
