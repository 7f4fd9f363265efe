"""Labelled sets, all as scenes: an image, boxes and a label for each. Any source with labels gives one.

Without a part to test on, a fifth of the images is held out, always the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from maskco.data import sources
from maskco.data.sources import Source
from maskco.data.sources.demo import LabelledScenes, Scene
from maskco.data.sources.labelled import LabelledPart, Objects, Wanted
from maskco.evaluate.errors import EvaluationError

T = TypeVar("T")


@dataclass(frozen=True)
class LabelledSet:
    name: str
    classes: tuple[str, ...]
    train: Annotated
    test: Annotated
    notes: tuple[str, ...] = ()  # what a reader of the figures should know
    images: tuple[int, int] = (0, 0)  # to learn from and to test on, of which so many were taken as were asked for

    @property
    def has_boxes(self) -> bool:
        """Else each image is of one class."""
        return self.train.boxes is not None


class Scenes(Protocol):
    """Scenes by index, each read or drawn on request."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Scene: ...


@dataclass(frozen=True)
class Annotated:
    """Some images of a source as scenes, read on request. Then it raises ImageError."""

    source: Source
    indices: Sequence[int]
    labels: Sequence[Tensor] | Tensor  # of each image int64 [n]
    boxes: Sequence[Tensor] | None = None  # of each image float32 [n, 4]; None: all of it is one box
    crowds: Sequence[Objects] | None = None  # groups that only detection looks at, and only when it tests
    in_memory: bool = False  # images need not be read or decoded

    @property
    def start_method(self) -> str | None:
        """How loading workers must be started, as `maskco.data.loading.start_method` says."""
        return getattr(self.source, "start_method", None)

    @classmethod
    def whole(cls, part: LabelledPart) -> Annotated:
        indices = range(len(part.source))
        return cls(part.source, indices, part.labels, part.boxes, part.crowds, part.in_memory)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Scene:
        picture = self.source[self.indices[index]]
        image = picture if isinstance(picture, Tensor) else pil_to_tensor(picture)
        height, width = image.shape[-2:]
        whole = torch.tensor([[0.0, 0.0, width, height]])
        return Scene(image, whole if self.boxes is None else self.boxes[index], self.labels[index])

    def take(self, chosen: Sequence[int]) -> Annotated:
        def of(column: Sequence[T]) -> list[T]:
            return [column[index] for index in chosen]

        labels = self.labels[list(chosen)] if isinstance(self.labels, Tensor) else of(self.labels)
        boxes, crowds = self.boxes and of(self.boxes), self.crowds and of(self.crowds)
        return Annotated(self.source, of(self.indices), labels, boxes, crowds, self.in_memory)


def open_labelled(data: str, *, image_size: int = 96, train: int | None = None, test: int | None = None) -> LabelledSet:
    """The labelled set that `data` names.

    Args:
        image_size: side of demo scenes in pixels. Images of files come as they are.
        train, test: at most so many images of each part, at equal distances. None: all.

    Raises:
        SourceError: no such data, no labels, a layout that is ambiguous, or classes without images.
        EvaluationError: a single image.
    """
    found = sources.open_labelled(data, Wanted(image_size, train, test))
    parts = [Annotated.whole(part) for part in found.parts]
    notes = []
    if len(parts) == 1:
        learnt, held = _hold_out(len(parts[0]))
        parts = [parts[0].take(learnt), parts[0].take(held)]
        notes = [f"{found.parts[0].name} is the only part: a fifth of its images was held out to test on"]
    notes += found.notes
    for part in found.parts:
        where = f"{part.name}: " if len(found.parts) > 1 else ""
        notes += [f"{where}{line}" for line in part.source.left_out.lines()]
    learned, tested = some(parts[0], train), some(parts[1], test)
    return LabelledSet(found.name, found.classes, learned, tested, tuple(notes), (len(parts[0]), len(parts[1])))


def some(part: Annotated, count: int | None) -> Annotated:
    """At most `count` images of a part, at equal distances. None: all."""
    return part.take(evenly_spaced(len(part), count)) if count and count < len(part) else part


def missing(classes: Sequence[str], asked: Iterable[int], found: Iterable[int], most: int = 5) -> str:
    """Classes that are wanted, but not found: "2 of 10 classes (bag, coat)", or "" if none are."""
    absent = sorted(set(asked) - set(found))
    names = ", ".join(classes[label] for label in absent[:most]) + (" …" if len(absent) > most else "")
    return f"{len(absent)} of {len(classes)} classes ({names})" if absent else ""


def evenly_spaced(length: int, count: int) -> list[int]:
    """`count` indices, or all if there are fewer, evenly over 0 … length - 1."""
    count = min(length, count)
    return [i * length // count for i in range(count)]


def _hold_out(length: int) -> tuple[list[int], list[int]]:
    if length < 2:
        raise EvaluationError("data: found fewer than two images. Name data with one to learn from and one to test on")
    order = torch.randperm(length, generator=torch.Generator().manual_seed(0)).tolist()
    count = max(1, length // 5)
    return sorted(order[count:]), sorted(order[:count])


# --- boxes as images ----------------------------------------------------------------------------------------------


class CutOuts:
    """Every box of some scenes cut out as an image of its own, `size` pixels square: sets with boxes as sets of
    classified images. The scenes must have boxes."""

    def __init__(self, scenes: Annotated | LabelledScenes, size: int) -> None:
        self.scenes, self.size = scenes, size
        self.places = [(i, j) for i, boxes in enumerate(scenes.boxes or ()) for j in range(len(boxes))]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Scene:
        scene, box = self.places[index]
        image, boxes, labels = self.scenes[scene]
        cut = cut_out(image, boxes[box], self.size).mul(255).round().byte()
        return Scene(cut, torch.tensor([[0.0, 0.0, self.size, self.size]]), labels[box, None])


def cut_out(image: Tensor, box: Tensor, size: int, context: float = 1.15) -> Tensor:
    """A square around the box, so that nothing is distorted: uint8 [3, H, W] -> [3, size, size] in [0, 1]."""
    height, width = image.shape[-2:]
    x1, y1, x2, y2 = box.tolist()
    side = context * max(x2 - x1, y2 - y1)
    theta = torch.tensor([[side / width, 0, (x1 + x2) / width - 1], [0, side / height, (y1 + y2) / height - 1]])
    grid = F.affine_grid(theta[None], [1, 3, size, size], align_corners=False)
    return F.grid_sample(image[None] / 255, grid, padding_mode="border", align_corners=False)[0].clamp(0, 1)
