"""Read one picture file of any mode as 8-bit RGB, whole or shrunk."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

try:
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:  # torchvision has announced that its decoders will go; Pillow's takes a quarter longer
    decode_jpeg = None

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


class Picture:
    """One picture file: opened, and its size known, before it is decoded. Raises PictureError, then or when decoded.

    A JPEG can be decoded at a half, a quarter or an eighth of its size, for much less than the whole costs; and what is
    shown of it can be drawn in between.

    Args:
        file: path, or the file's bytes.
        name: what errors call it; by default the path.
    """

    def __init__(self, file: str | Path | bytes, name: str | None = None) -> None:
        self.name = str(file) if name is None else name
        with self._naming_itself():
            self._data = file if isinstance(file, bytes) else Path(file).read_bytes()
            self._image = Image.open(io.BytesIO(self._data))
            self._is_jpeg = isinstance(self._image, JpegImageFile)
            if not self._is_jpeg:  # other formats may tell only after decoding how they are to be turned
                self._image.load()
            width, height = self._image.size
            self._orientation = self._image.getexif().get(ExifTags.Base.Orientation, 1)
            self.size = (width, height) if self._orientation >= 5 else (height, width)
            """Height and width of the upright picture in pixels."""

    def decode(self, shrink: int = 1) -> Image.Image:
        """The picture as RGB, upright (EXIF orientation applied), first frame if animated. To be called once.

        shrink: 1, 2, 4 or 8: a JPEG comes with 1 / shrink of its height and width, rounded up; others ignore it.
        """
        with self._naming_itself():
            if self._is_jpeg and shrink > 1:
                width, height = self._image.size
                self._image.draft(None, (width // shrink, height // shrink))
            self._image.load()
            ImageOps.exif_transpose(self._image, in_place=True)
            return to_rgb(self._image)

    def tensor(self, shrink: int = 1) -> Tensor:
        """`decode(shrink)` as uint8 [3, H, W], in memory [H, W, 3]: torch resizes that several times faster."""
        if decode_jpeg and self._is_jpeg and shrink == 1 and self._orientation == 1:
            try:  # the same pixels, without two copies on the way
                return decode_jpeg(torch.frombuffer(bytearray(self._data), dtype=torch.uint8), ImageReadMode.RGB)
            except RuntimeError:
                pass  # Pillow either can or says why not
        return pil_to_tensor(self.decode(shrink))

    @contextmanager
    def _naming_itself(self) -> Iterator[None]:
        try:
            yield
        except (
            Exception
        ) as error:  # damaged files make decoders raise almost anything, IndexError and zlib.error included
            reason = re.sub("<_io.BytesIO[^>]*>", "", str(error).replace(self.name, "file")).replace("\n", " ").strip()
            raise PictureError(self.name, reason or type(error).__name__) from error


def read_picture(path: str | Path) -> Image.Image:
    """The whole picture as RGB, upright (EXIF orientation applied), first frame if animated. Raises PictureError."""
    return Picture(path).decode()


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode as RGB: transparency over mid-grey, and pictures of more than 8 bits (16-bit grey, 32-bit integer
    or float) stretched from their own smallest and largest value to 0..255, since their scale is not known."""
    if image.mode == "F" or image.mode.startswith("I"):
        return _stretch(np.asarray(image)).convert("RGB")
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        opaque = Image.new("RGBA", image.size, BACKGROUND)
        opaque.alpha_composite(image.convert("RGBA"))
        return opaque.convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # which copies even what is RGB


def _stretch(values: np.ndarray) -> Image.Image:
    finite = np.isfinite(values)
    if not finite.any():
        raise ValueError("holds no finite value")
    values = values.astype(np.float64)
    low, high = values[finite].min(), values[finite].max()
    scaled = (np.where(finite, values, low) - low) * (255 / max(high - low, 1e-12))
    return Image.fromarray(np.rint(scaled).astype(np.uint8))
