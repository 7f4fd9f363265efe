"""The contract of a source with labels, which evaluation uses."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from maskco.data.sources.base import Source, SourceError

if TYPE_CHECKING:
    from torch import Tensor

PARTS = ("train", "val", "test")  # the first two that there are: one to learn from, one to test on
_WORDS = {"train": "train|training", "val": "val|valid|validation", "test": "test|testing"}
_MORE = r"[ _-]*(set|data|images?|imgs?|split|part)?[ _-]*\d*"  # as in train_set, val2017


class Wanted(NamedTuple):
    """Part of the data that will be used. A source that draws its images draws these. Others may ignore it."""

    image_size: int = 96  # side in pixels
    train: int | None = None  # at most so many images to learn from; None: all
    test: int | None = None


class Objects(NamedTuple):
    """The annotations of one image."""

    boxes: Tensor  # float32 [n, 4]: x1, y1, x2, y2 in pixels, inside the upright image
    labels: Tensor  # int64 [n]: index into the classes
    crowd: Tensor  # bool [n]: the box surrounds a group; training leaves these out, COCO's mAP ignores matches to them


@dataclass(frozen=True)
class LabelledPart:
    """The training images, or the test images."""

    name: str
    source: Source
    labels: Sequence[Tensor] | Tensor  # of each image int64 [n]: index into the classes
    boxes: Sequence[Tensor] | None = None  # of each image float32 [n, 4]; None: all of it is of its one class
    crowds: Sequence[Objects] | None = None  # groups, which are not among the boxes
    in_memory: bool = False  # images need not be read or decoded


@dataclass(frozen=True)
class LabelledData:
    name: str
    classes: tuple[str, ...]
    parts: tuple[LabelledPart, ...]  # one, or one to learn from and one to test on
    notes: tuple[str, ...] = ()  # what a reader of scores should know


def part_of(name: str) -> str | None:
    """The part that a name means ("Train", "validation ", "test_images"), or None."""
    return next((part for part, words in _WORDS.items() if re.fullmatch(f"({words}){_MORE}", folded(name))), None)


def parts_among(names: Iterable[str], where: str, remedy: str) -> dict[str, str]:
    """Parts among the names, each with its own name, in the order of `PARTS`. Raises SourceError if two names
    are of one part."""
    found: dict[str, str] = {}
    for name in names:
        if (part := part_of(name)) is not None and found.setdefault(part, name) != name:
            raise SourceError(f"data: {where!r} holds both {found[part]!r} and {name!r}. {remedy}")
    return {part: found[part] for part in PARTS if part in found}


def notes_on_parts(parts: dict[str, str]) -> tuple[str, ...]:
    """A note if the parts that are used are not just train and one other. `parts` as of `parts_among`."""
    names = list(parts.values())
    if len(names) < 2 or (len(names) == 2 and "train" in parts):
        return ()
    unused = f". Not used: {names[2]}" if len(names) > 2 else ""
    return (f"learned from {names[0]}, tested on {names[1]}{unused}",)


def folded(name: str) -> str:
    """Names that differ only in case, spaces or encoding become one."""
    return unicodedata.normalize("NFKC", name).strip().casefold()
