"""Read one picture file of any mode as 8-bit RGB."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

# What Pillow decodes by itself; matched in any case of letters.
_FORMATS = "jpg jpeg jpe jfif png webp bmp dib gif tif tiff ppm pgm pbm pnm tga jp2 avif"
EXTENSIONS = frozenset(f".{name}" for name in _FORMATS.split())
BACKGROUND = (128, 128, 128)  # behind transparent pixels: mid-grey draws no hard edge around light or dark cut-outs


class PictureError(Exception):
    """One picture cannot be used. `path` names it, `reason` says why."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)  # both, so that it survives pickling between DataLoader workers
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def read_picture(path: str | Path) -> Image.Image:
    """The picture as RGB, upright (EXIF orientation applied), first frame if animated. Raises PictureError."""
    try:
        with Image.open(path) as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return to_rgb(image)
    except Exception as error:  # damaged files make decoders raise almost anything, IndexError and zlib.error included
        reason = str(error).replace(str(path), "file").replace("\n", " ") or type(error).__name__
        raise PictureError(str(path), reason) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode as RGB: transparency over mid-grey, and pictures of more than 8 bits (16-bit grey, 32-bit integer
    or float) stretched from their own smallest and largest value to 0..255, since their scale is not known."""
    if image.mode == "F" or image.mode.startswith("I"):
        return _stretch(np.asarray(image)).convert("RGB")
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        opaque = Image.new("RGBA", image.size, BACKGROUND)
        opaque.alpha_composite(image.convert("RGBA"))
        return opaque.convert("RGB")
    return image.convert("RGB")


def _stretch(values: np.ndarray) -> Image.Image:
    finite = np.isfinite(values)
    if not finite.any():
        raise ValueError("holds no finite value")
    values = values.astype(np.float64)
    low, high = values[finite].min(), values[finite].max()
    scaled = (np.where(finite, values, low) - low) * (255 / max(high - low, 1e-12))
    return Image.fromarray(np.rint(scaled).astype(np.uint8))
