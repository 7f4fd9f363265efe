"""Some of a set's images as a source of maskco's, so that no run sees those which it is judged by.

`--data listed:FILE` names a file that `write_list` wrote. Importing this module makes maskco know it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from torch import Tensor

from maskco.data.cache import one_at_a_time
from maskco.data.images import ImageError
from maskco.data.sources import Kind, Source, SourceError, register
from maskco.data.sources.files import ImageFiles
from maskco.data.sources.left_out import LeftOut
from maskco.files import write_atomically

PREFIX = "listed:"


def write_list(folder: Path, name: str, root: Path, names: list[str], *, held: bool) -> str:
    """Writes which images are meant, and returns what `--data` takes. The same images give the same file.

    Args:
        names: paths below root.
        held: decode all of them at the start of a run and keep them in memory. Of small photographs, decoding anew
            would take a seventh of a run.
    """
    text = json.dumps({"root": str(root.absolute()), "held": held, "names": names}).encode()
    path = folder / f"{name}-{hashlib.sha256(text).hexdigest()[:12]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(path):
        if not path.exists():
            write_atomically(path, lambda file: file.write(text))
    return f"{PREFIX}{path.absolute()}"


def open_source(data: str) -> Source:
    """Raises SourceError if there is no such list, or if an image that should be held cannot be read."""
    path = Path(data.removeprefix(PREFIX))
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        source, held = ListedImages(Path(listed["root"]), listed["names"]), listed["held"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(f"data: {str(path)!r} is no list of images. Give the same command again") from error
    return HeldImages(source) if held else source


class ListedImages(ImageFiles):
    """Files below a folder, by their names."""

    def __init__(self, root: Path, names: list[str]) -> None:
        self.root, self.names, self.left_out = root, names, LeftOut()


class HeldImages:
    """A source's images, decoded. Raises SourceError if one cannot be: all methods see the same images."""

    def __init__(self, source: ListedImages) -> None:
        self.source, self.left_out = source, source.left_out
        try:
            self.images = [source.open(index).tensor() for index in range(len(source))]  # uint8 [3, H, W] each
        except ImageError as error:
            raise SourceError(f"images: {error}. Restore it") from error

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]

    def name(self, index: int) -> str:
        return self.source.name(index)


register(Kind(__name__, lambda data: data.startswith(PREFIX), is_path=False))
