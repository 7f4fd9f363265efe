"""Read one image file of any mode as 8-bit RGB, whole or shrunk."""

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

from maskco.data.kinds import open_image

try:
    from torchvision.io import ImageReadMode, decode_jpeg, decode_png
except ImportError:  # torchvision has announced that its decoders will go; Pillow's JPEG takes a quarter longer
    decode_jpeg = decode_png = None

OUTLIERS = 0.005  # share of pixels at each end that may be clipped when more than 8 bits become 8
BACKGROUND = (128, 128, 128)  # behind transparent pixels: mid-grey draws no hard edge around light or dark cut-outs


class ImageError(Exception):
    """One image cannot be used. `path` names it, `reason` says why."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)  # both, so that it survives pickling between DataLoader workers
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class EncodedImage:
    """One image file that is opened, and its size known, before it is decoded. Raises ImageError in either step.

    Crops can be drawn between the two steps. Then a JPEG can be decoded at a half, a quarter or an eighth of its size,
    which takes much less time.

    Args:
        file: path, or the file's bytes.
        name: its name in errors. By default the path.
    """

    def __init__(self, file: str | Path | bytes, name: str | None = None) -> None:
        self.name = str(file) if name is None else name
        with self._naming_itself():
            self._data = file if isinstance(file, bytes) else Path(file).read_bytes()
            self._image = open_image(io.BytesIO(self._data))
            # (colors only: grey of 16 bits has a mode of its own)
            self._is_deep = any(";16" in str(tile) for tile in getattr(self._image, "tile", ()))
            self._is_jpeg = isinstance(self._image, JpegImageFile)
            if not self._is_jpeg:  # other formats may show their orientation only after decoding
                self._image.load()
            width, height = self._image.size
            self._orientation = orientation_of(self._image)
            self.size = (width, height) if self._orientation >= 5 else (height, width)
            """Height and width of the upright image in pixels."""

    def decode(self, shrink: int = 1) -> Image.Image:
        """The image as RGB, upright (EXIF orientation applied), first frame if animated. To be called once.

        shrink: 1, 2, 4 or 8. A JPEG comes with 1 / shrink of its height and width, rounded up. Others ignore it.
        """
        with self._naming_itself():
            if self._is_jpeg and shrink > 1:
                width, height = self._image.size
                self._image.draft(None, (width // shrink, height // shrink))
            self._image.load()
            if self._is_deep and self._image.mode in ("RGB", "RGBA") and "transparency" not in self._image.info:
                self._image = self._stretched()
            return to_rgb(self._image)

    def tensor(self, shrink: int = 1) -> Tensor:
        """`decode(shrink)` as uint8 [3, H, W], in memory [H, W, 3]: torch resizes that several times faster."""
        if decode_jpeg and self._is_jpeg and shrink == 1 and self._orientation == 1:
            try:  # the same pixels, without two copies on the way
                return decode_jpeg(torch.frombuffer(bytearray(self._data), dtype=torch.uint8), ImageReadMode.RGB)
            except RuntimeError:
                pass  # Pillow either can or says why not
        return pil_to_tensor(self.decode(shrink))

    def _stretched(self) -> Image.Image:
        """Colors of 16 bits as 8, with one scale for all three. Pillow keeps the upper 8 bits, which are nearly black
        where a camera fills 10 or 12. torchvision gives all 16 of a PNG."""
        values = np.asarray(self._image)
        if decode_png and self._image.format == "PNG":
            encoded = torch.frombuffer(bytearray(self._data), dtype=torch.uint8)
            values = decode_png(encoded, ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()
            if values.shape[2] == 2:  # grey and opacity
                values = values[..., [0, 0, 0, 1]]
        colors = stretch(values[..., :3])
        if self._image.mode == "RGBA":
            colors = np.concatenate([colors, np.asarray(self._image)[..., 3:]], axis=2)
        result = Image.fromarray(colors)
        result.info = self._image.info
        result.getexif()[ExifTags.Base.Orientation] = self._orientation
        return result

    @contextmanager
    def _naming_itself(self) -> Iterator[None]:
        try:
            yield
        except (
            Exception
        ) as error:  # damaged files make decoders raise almost anything, IndexError and zlib.error included
            reason = re.sub("<_io.BytesIO[^>]*>", "", str(error).replace(self.name, "file")).replace("\n", " ").strip()
            raise ImageError(self.name, reason or type(error).__name__) from error


def read_image(path: str | Path) -> Image.Image:
    """The whole image as RGB, upright (EXIF orientation applied), first frame if animated. Raises ImageError."""
    return EncodedImage(path).decode()


def orientation_of(image: Image.Image) -> int:
    """EXIF's orientation, 1 (upright) to 8. Other values count as 1."""
    value = image.getexif().get(ExifTags.Base.Orientation, 1)
    return value if value in range(1, 9) else 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode as RGB, upright (EXIF orientation applied). Transparency is shown over mid-grey. Images of more
    than 8 bits (16-bit grey, 32-bit integer or float) are stretched to 0..255 by `stretch`, since their scale is not
    known."""
    image.load()  # formats may show their orientation only after decoding
    if orientation_of(image) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(stretch(np.asarray(image))).convert("RGB")
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        opaque = Image.new("RGBA", image.size, BACKGROUND)
        opaque.alpha_composite(image.convert("RGBA"))
        return opaque.convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # which copies even what is RGB


def stretch(values: np.ndarray) -> np.ndarray:
    """Numbers of any kind and scale as uint8 of the same shape: the smallest becomes 0, the largest 255.

    A few pixels must not turn the others black or white. So up to 0.5% of them, and at least one, are clipped at an
    end. This is done only if the rest spans less than half of the whole range. It clips hot pixels, and stars in a
    noisy sky. Where the rest is constant nothing is clipped, which keeps stars in a sky that is exactly black.

    -Inf and NaN become 0, Inf 255. Raises ValueError if nothing is finite.
    """
    is_float = values.dtype.kind == "f"
    finite = values[np.isfinite(values)] if is_float else values.ravel()
    if not finite.size:
        raise ValueError("holds no finite value")
    few = min(max(1, int(OUTLIERS * finite.size)), (finite.size - 1) // 2)
    ends = np.partition(finite, (few, finite.size - 1 - few))
    inner_low, inner_high, low, high = map(float, (ends[few], ends[-1 - few], finite.min(), finite.max()))
    if 0 < inner_high - inner_low < (high - low) / 2:
        low, high = inner_low, inner_high
    scaled = values.astype(np.float32 if values.dtype.itemsize <= 2 else np.float64)  # (16 bits fit into either)
    if is_float:
        np.nan_to_num(scaled, copy=False, nan=low, posinf=high, neginf=low)
    scaled = np.clip(scaled, low, high, out=scaled)
    scaled -= low
    scaled *= 255 / ((high - low) or 1.0)
    return np.rint(scaled, out=scaled).astype(np.uint8)
