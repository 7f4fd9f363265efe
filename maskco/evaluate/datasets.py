"""Labelled sets, all as scenes: a picture, boxes and a label for each. What lies in a folder tells its layout.

    annotations/instances_*.json        COCO's: train and val parts, or one part
    train/CLASS/…, val/CLASS/…          pictures by class (or test/ for val/; or CLASS/… alone): one box, all of it;
                                        see class_folders.py
    "demo"                              the built-in scenes

Where there is no part to test on, a fifth of the pictures is held out for it, always the same one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from maskco.data.sources.base import Source, SourceError
from maskco.data.sources.coco import NO_AREA, CocoSource, Objects, annotation_files
from maskco.data.sources.demo import CLASS_NAMES, LabelledScenes, Scene, demo_scenes
from maskco.data.sources.left_out import LeftOut
from maskco.evaluate.class_folders import PARTS, Part, near_class, read_class_folders
from maskco.evaluate.errors import EvaluationError
from maskco.files import user_path

T = TypeVar("T")

DEMO_COUNTS = (2000, 1000)  # scenes of each part


@dataclass(frozen=True)
class LabelledSet:
    name: str
    classes: tuple[str, ...]
    train: Annotated | LabelledScenes
    test: Annotated | LabelledScenes
    has_boxes: bool  # else each picture is of one class
    notes: tuple[str, ...] = ()  # what a reader of the figures should know


class Scenes(Protocol):
    """Scenes by index, each read or drawn when it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Scene: ...


@dataclass(frozen=True)
class Annotated:
    """Some pictures of a source as scenes, read when they are asked for. Raises PictureError there."""

    source: Source
    indices: Sequence[int]
    labels: Sequence[Tensor]  # of each picture int64 [n]
    boxes: Sequence[Tensor] | None = None  # of each picture float32 [n, 4]; None: all of it is one box
    crowds: Sequence[Objects] | None = None  # groups that only detection looks at, and only when it tests

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

        boxes, crowds = self.boxes and of(self.boxes), self.crowds and of(self.crowds)
        return Annotated(self.source, of(self.indices), of(self.labels), boxes, crowds)


def open_labelled(data: str, *, image_size: int = 96, train: int | None = None, test: int | None = None) -> LabelledSet:
    """The labelled set that `data` names.

    Args:
        image_size: side of demo scenes in pixels; pictures of files come as they are.
        train, test: at most so many pictures of each part, spread evenly; None: all.

    Raises:
        EvaluationError: no such folder or layout, classes without pictures, labels or pictures that are not there.
    """
    if data == "demo":
        counts = [own if asked is None else asked for own, asked in zip(DEMO_COUNTS, (train, test), strict=True)]
        learnt, held = (demo_scenes(part, n, image_size) for part, n in zip(("train", "test"), counts, strict=True))
        return LabelledSet("demo scenes", CLASS_NAMES, learnt, held, has_boxes=True)
    root = user_path(data)
    if not root.is_dir():
        raise EvaluationError(
            f"data: no such folder {data!r}; name one in COCO's layout, one of pictures by class, or 'demo'"
        )
    try:
        found = _open_coco(root) if annotation_files(root) else _open_classes(root)
    except SourceError as error:
        raise EvaluationError(str(error)) from error
    sources = {id(p.source): p.source for p in (found.train, found.test) if isinstance(p, Annotated)}
    left_out = [line for source in sources.values() for line in source.left_out.lines()]
    notes = (*found.notes, *left_out)
    return replace(found, train=_some(found.train, train), test=_some(found.test, test), notes=notes)


def _some(part: Annotated | LabelledScenes, count: int | None) -> Annotated | LabelledScenes:
    return part.take(spread(len(part), count)) if isinstance(part, Annotated) and count else part


def spread(length: int, count: int) -> list[int]:
    """`count` indices, or all if there are fewer, evenly over 0 … length - 1."""
    count = min(length, count)
    return [i * length // count for i in range(count)]


# --- COCO -----------------------------------------------------------------------------------------------------------


def _open_coco(root: Path) -> LabelledSet:
    files = annotation_files(root)
    train, val, test = ([f for f in files if f.stem.lower().startswith(f"instances_{part}")] for part in PARTS)
    test = val or test
    if len(files) == 1:
        train, test = files, []
    if len(train) != 1 or len(test) > 1:
        names = ", ".join(file.name for file in files)
        raise EvaluationError(f"data: expected one instances_train….json and one instances_val….json, found {names}")
    source = _coco_source(train[0])
    whole = _coco_scenes(source)
    if not test:
        learnt, held = _hold_out(len(whole))
        held_out = f"{train[0].name} is the only part: a fifth of its pictures was held out to test on"
        notes = (held_out, *_box_notes(source))
        return LabelledSet(root.resolve().name, source.categories, whole.take(learnt), whole.take(held), True, notes)
    unused = [file.name for file in files if file not in (*train, *test)]
    said = (f"not used: {', '.join(unused)}",) if unused else ()
    other = _coco_source(test[0])
    if other.categories != source.categories:
        raise EvaluationError(f"data: {train[0].name} and {test[0].name} do not have the same categories")
    notes = (*said, *_box_notes(source), *_box_notes(other))
    return LabelledSet(root.resolve().name, source.categories, whole, _coco_scenes(other), True, notes)


def _coco_source(path: Path) -> CocoSource:
    """Refuses what training may leave out: a score on a part of the boxes cannot be compared with anybody's."""
    source = CocoSource(path)
    _require_none(source.left_out, path)
    if not source.categories:
        raise EvaluationError(f"data: {str(path)!r} names no categories")
    source.objects  # noqa: B018 - places the boxes, and so counts those that cannot be
    _require_none(source.boxes_left_out, path)
    return source


def _require_none(left_out: LeftOut, path: Path) -> None:
    wrong = [f"{count} {what} (first: {left_out.first[what]!r})" for what, count in left_out.items() if what != NO_AREA]
    if wrong:
        raise EvaluationError(f"data: {str(path)!r} names {' and '.join(wrong)}: correct the file")


def _box_notes(source: CocoSource) -> tuple[str, ...]:
    return tuple(f"{source.path.name}: {line}" for line in (*source.notes, *source.boxes_left_out.lines()))


def _coco_scenes(source: CocoSource) -> Annotated:
    objects = source.objects
    return Annotated(
        source,
        range(len(source)),
        labels=[o.labels[~o.crowd] for o in objects],
        boxes=[o.boxes[~o.crowd] for o in objects],
        crowds=[Objects(o.boxes[o.crowd], o.labels[o.crowd], o.crowd[o.crowd]) for o in objects],
    )


# --- pictures by class ----------------------------------------------------------------------------------------------


def _open_classes(root: Path) -> LabelledSet:
    parts, notes = read_class_folders(root)
    classes = parts[0].classes
    whole = _whole_images(parts[0], classes)
    name = root.resolve().name
    if len(parts) < 2:
        learnt, held = _hold_out(len(whole))
        notes = [f"{parts[0].folder} is the only part: a fifth of its pictures was held out to test on"]
        return LabelledSet(name, classes, whole.take(learnt), whole.take(held), False, tuple(notes))
    if unknown := sorted(set(parts[1].classes) - set(classes)):
        near = near_class(unknown[0], classes)
        raise EvaluationError(
            f"data: class {unknown[0]!r} of {str(parts[1].folder)!r} has no folder in {str(parts[0].folder)!r}"
            + (f", which has {near!r}: rename one of them" if near else "")
        )
    return LabelledSet(name, classes, whole, _whole_images(parts[1], classes), False, tuple(notes))


def _whole_images(part: Part, classes: tuple[str, ...]) -> Annotated:
    labels = [torch.tensor([classes.index(part.classes[label])]) for label in part.labels]
    return Annotated(part.source, range(len(part.source)), labels)


def _hold_out(length: int) -> tuple[list[int], list[int]]:
    if length < 2:
        raise EvaluationError("data: expected at least two pictures, to learn from one and test on the other")
    order = torch.randperm(length, generator=torch.Generator().manual_seed(0)).tolist()
    count = max(1, length // 5)
    return sorted(order[count:]), sorted(order[:count])


# --- boxes as pictures ----------------------------------------------------------------------------------------------


class CutOuts:
    """Every box of some scenes cut out as a picture of its own, `size` pixels square: sets with boxes as sets of
    classified pictures. The scenes must have boxes."""

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
