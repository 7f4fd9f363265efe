"""Images of any map-style data set in Python: `maskco.pretrain(data=my_dataset, …)`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NoReturn

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from maskco.data.images import EncodedImage, ImageError, to_rgb
from maskco.data.sources.base import SourceError
from maskco.data.sources.left_out import LeftOut
from maskco.errors import one_line

PREFIX = "python:"
SAMPLE = 16  # images that the fingerprint looks at
KINDS = "a PIL image, uint8 [H, W, 3] or [3, H, W], the bytes of an image file, or a tuple that starts with one"


def open_source(data: str) -> NoReturn:
    raise SourceError(
        f"data: {data!r} is a data set that was made in Python. Give it there, as maskco.pretrain(data=…), and with "
        "resume=True to resume a run"
    )


class PythonSource:
    """The images of an object with `__len__` and `__getitem__`. A `Source`.

    An item is one of these, or a tuple or list that starts with one, such as torchvision's (image, label):

    - a PIL image
    - a uint8 tensor or array [H, W, 3], [3, H, W], [H, W] or [1, H, W]
    - the bytes of an image file, as litdata's `StreamingRawDataset` returns them

    An exception in `__getitem__` makes an image unusable. A run can be resumed if an index always gives the same image.
    So the data set must neither augment nor shuffle.

    Raises SourceError if the object has no length, no images, or no way to get one.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset, self.left_out, self.title = dataset, LeftOut(), title_of(dataset)
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise SourceError(
                f"data: {self.title} needs __len__ and __getitem__, so that any image can be read. Give it both"
            )
        try:
            self._length = len(dataset)
        except Exception as error:
            raise SourceError(f"data: {self.title} does not report its length: {one_line(error)}") from error
        if not self._length:
            raise SourceError(f"data: {self.title} is empty. Give one that holds images")

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Image.Image | Tensor:
        image = self.open(index)
        return image.decode() if isinstance(image, EncodedImage) else image

    def open(self, index: int) -> EncodedImage | Image.Image | Tensor:
        """An image that is not decoded yet, where the data set returns bytes. Raises ImageError."""
        try:
            item = self.dataset[index]
            if isinstance(item, (tuple, list)) and item:
                item = item[0]
            if isinstance(item, (bytes, bytearray, memoryview)):
                return EncodedImage(bytes(item), name=self.name(index))
            return to_rgb(item) if isinstance(item, Image.Image) else _pixels(item)
        except ImageError:
            raise
        except Exception as error:  # anybody's code
            raise ImageError(self.name(index), one_line(error)) from error

    def name(self, index: int) -> str:
        return f"{self.title}/{index}"

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the length and the pixels of some images: equal if a run can continue with this data set."""
        digest = hashlib.sha256(f"{len(self)}".encode())
        for index in np.linspace(0, len(self) - 1, min(SAMPLE, len(self))).astype(int).tolist():
            try:
                image = self[index]
            except ImageError:
                digest.update(b"\0unusable")
                continue
            values = image.numpy() if isinstance(image, Tensor) else np.asarray(image).transpose(2, 0, 1)
            digest.update(f"\0{values.shape}\0".encode() + np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()


def title_of(dataset: object) -> str:
    """Name of the data set in messages and in a run's options: that of its class."""
    return type(dataset).__name__


def _pixels(item: Any) -> Tensor:
    """uint8 [3, H, W]. Raises ValueError if it is no image."""
    if isinstance(item, Mapping):
        raise ValueError(f"a dict with the keys {', '.join(map(str, item))} is no image. Return {KINDS}")
    values = torch.from_numpy(item.copy()) if isinstance(item, np.ndarray) and item.dtype == np.uint8 else item
    if not isinstance(values, Tensor):
        raise ValueError(f"{_what(item)} is no image. Return {KINDS}")
    if values.dtype != torch.uint8 or values.ndim not in (2, 3) or 0 in values.shape:
        raise ValueError(f"{_what(item)} is no image. Return {KINDS}, without augmentations")
    if values.ndim == 2:
        values = values[None]
    if values.shape[0] not in (1, 3):
        values = values.permute(2, 0, 1)
    if values.shape[0] not in (1, 3):
        raise ValueError(f"{_what(item)} is no image. Return {KINDS}")
    return values.expand(3, -1, -1)


def _what(item: Any) -> str:
    shape = f" {item.dtype} {list(item.shape)}" if hasattr(item, "shape") and hasattr(item, "dtype") else ""
    return f"{type(item).__name__}{shape}"
