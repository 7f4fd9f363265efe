"""The contract of a source of images. Every source imports this module, and this module imports none of them.

A source is one file with a function `open_source(data) -> Source` and one entry in `registry.SOURCES`. If it has
labels, it also has a function `open_labelled(data, wanted) -> LabelledData`.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote

from maskco.data.sources.left_out import LeftOut
from maskco.errors import UserError

if TYPE_CHECKING:  # both are heavy, and who asks only whether data are remote should not wait for them
    from PIL import Image
    from torch import Tensor


class SourceError(UserError, ValueError):
    """A source holds no images, or cannot be read."""


class Source(Protocol):
    """A numbered collection of images."""

    left_out: LeftOut  # what there is besides, and why it is not used: logged before training

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Image.Image | Tensor:
        """RGB PIL image or uint8 tensor [3, H, W]. Raises ImageError."""

    def name(self, index: int) -> str:
        """Name of the image in a log."""

    # Sources of files also have `open(index) -> EncodedImage`: views that show little of a large image decode less.
    # Sources may also have
    # - `fingerprint`: str, in place of a hash of all names;
    # - `shard_starts`: int64 [shards + 1], the first image of each and the number of all, for `--shuffle window`;
    # - `start_method`: by which their loading workers must be started;
    # - `read_ahead(keys)`: hands on lists of keys, fetches what they need, and has `close()`.


def is_remote(data: str) -> bool:
    """Whether `data` is no path, and lies outside this machine's file system. (pipe: too, which is always refused.)"""
    return not data.lower().startswith("file://") and ("://" in data or data.lower().startswith("pipe:"))


def check_regular(path: Path) -> None:
    """Raises SourceError unless it is a file or folder. Reading a named pipe would wait for ever."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise SourceError(f"data: {str(path)!r} is a pipe, socket or device. Give a file or a folder")


def import_package(package: str, needed_for: str, install: str) -> ModuleType:
    """The optional package. Raises SourceError, which says what to install, if it cannot be imported."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise SourceError(f"data: {needed_for} needs {package}. Run pip install {install}") from error


def split_options(data: str) -> tuple[str, dict[str, str]]:
    """NAME and the options of `NAME?option=value&option=value`. %26 is an & in a value. Raises SourceError."""
    name, _, query = data.partition("?")
    options: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        option, equals, text = part.partition("=")
        if not equals or option in options:
            problem = "has no value" if not equals else "is given twice"
            raise SourceError(f"data: option {option!r} of {data!r} {problem}. Write NAME?option=value&option=value")
        options[option] = unquote(text)
    return name, options
