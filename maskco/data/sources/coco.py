"""Pictures and labelled boxes of a COCO annotation file. Plain JSON: reading it needs no pycocotools.

    pictures = CocoSource("COCO/annotations/instances_val2017.json")
    image, (boxes, labels, crowd) = pictures[0], pictures.objects[0]
    pictures.categories[labels[0]]                                           # "person"

Pretraining takes the pictures and never looks at the boxes; they are for evaluation.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from msgspec import UNSET
from torch import Tensor

from maskco.data.kinds import why_unreadable
from maskco.data.sources.base import PictureFiles, SourceError
from maskco.data.sources.coco_file import Annotation, Category, read_coco
from maskco.data.sources.coco_sizes import find_frames, place_boxes, read_headers
from maskco.data.sources.left_out import LeftOut

NO_AREA = "boxes without area"  # as annotators leave them; whoever scores may ignore them


class Objects(NamedTuple):
    """What is annotated in one picture."""

    boxes: Tensor  # float32 [n, 4]: x1, y1, x2, y2 in pixels, inside the upright picture
    labels: Tensor  # int64 [n]: index into `CocoSource.categories`
    crowd: Tensor  # bool [n]: the box surrounds a group; training leaves these out, COCO's mAP ignores matches to them


class CocoSource(PictureFiles):
    """The pictures that a COCO annotation file lists, in order of their ids; a `maskco.data.sources.base.Source`.

    They are looked for in the folder named like what follows `instances_` (beside `annotations/`, or in `images/`),
    then in `images/` and beside `annotations/`. Pictures that are missing are counted in `left_out`. Counted in
    `boxes_left_out` are boxes without area, outside of their picture, or of unknown pictures or categories.

    Boxes are placed when `objects` is first asked for, which reads every annotated picture's header. They follow a
    picture that was resized or that EXIF turns, and `notes` then says how many did. Categories of one name are one.

    Raises SourceError if the file is not COCO's, lists nothing, or none of its pictures exists.

    Args:
        annotations: `.../annotations/instances_<split>.json`.
        pictures: the folder of the pictures, if it is another than those named above.
    """

    def __init__(self, annotations: str | Path, pictures: str | Path | None = None) -> None:
        self.path, self.left_out, self.boxes_left_out = Path(annotations), LeftOut(), LeftOut()
        self.notes: list[str] = []
        content = read_coco(self.path)
        self.root = _folder(self.path, [image.file_name for image in content.images], pictures)
        present = []
        for image in content.images:
            if reason := self._problem(image.file_name):
                self.left_out.add(reason, image.file_name)
            else:
                present.append(image)
        if not present:
            raise SourceError(f"data: {str(self.path)!r} lists no picture that can be read: {self.left_out.lines()[0]}")
        present.sort(key=lambda image: image.id)
        self.image_ids = [image.id for image in present]
        self.names = [image.file_name for image in present]
        self._sizes = [None if i.width is None or i.height is None else (int(i.width), int(i.height)) for i in present]

        categories = sorted(content.categories, key=lambda category: category.id)
        first_of = {category.name: category.id for category in reversed(categories)}
        self.categories = tuple(dict.fromkeys(category.name for category in categories))
        if more := len(categories) - len(self.categories):
            self.notes.append(f"{more} categories have the name of another: each name is one class")
        self.category_ids = tuple(first_of[name] for name in self.categories)  # as in the file; COCO's own have gaps
        listed_ids = {image.id for image in content.images}
        self._keep_annotations(content.annotations, categories, listed_ids)

    def _problem(self, name: str) -> str | None:
        path = os.path.join(self.root, name)
        if os.path.isfile(path):
            return why_unreadable(name)
        return "pipes, sockets, devices or folders" if os.path.exists(path) else "missing pictures"

    def _keep_annotations(self, annotations: list[Annotation], categories: list[Category], listed: set) -> None:
        """As arrays: a million objects would be copied by every loading worker."""
        index_of = {number: index for index, number in enumerate(self.image_ids)}
        label_named = {name: label for label, name in enumerate(self.categories)}
        label_of = {category.id: label_named[category.name] for category in categories}
        entries, boxes, labels, crowds, images = [], [], [], [], []
        for entry, annotation in enumerate(annotations):
            if annotation.image_id not in listed:
                self.boxes_left_out.add("boxes of unknown pictures", f"annotations[{entry}]")
            elif annotation.bbox is UNSET or annotation.category_id is UNSET:
                self.boxes_left_out.add("annotations without box or category", f"annotations[{entry}]")
            elif annotation.category_id not in label_of:
                self.boxes_left_out.add("boxes of unknown categories", f"annotations[{entry}]")
            elif annotation.image_id in index_of:
                images.append(index_of[annotation.image_id])
                boxes.append(annotation.bbox)
                labels.append(label_of[annotation.category_id])
                crowds.append(bool(annotation.iscrowd))
                entries.append(entry)
        order = np.argsort(np.array(images, np.int64), kind="stable")
        self._image_of = np.array(images, np.int64)[order]
        self._boxes = np.array(boxes, float).reshape(-1, 4)[order]
        self._labels, self._crowds = np.array(labels, np.int64)[order], np.array(crowds, bool)[order]
        self._entries = np.array(entries, np.int64)[order]

    @cached_property
    def objects(self) -> list[Objects]:
        """Of each picture. Raises SourceError if a picture's size is neither that of the file nor follows from it."""
        annotated, image = np.unique(self._image_of, return_inverse=True)
        names, sizes = ([column[index] for index in annotated] for column in (self.names, self._sizes))
        headers = read_headers([self.root / name for name in names])
        frames, notes, unexplained = find_frames(names, sizes, headers)
        self.notes += notes
        if unexplained:
            first = unexplained[0]
            raise SourceError(_unexplained(self.path, names[first], sizes[first], headers[first], len(unexplained)))
        placed = place_boxes(self._boxes, image, frames)
        boxes = placed.astype(np.float32)
        kept = (boxes[:, :2] < boxes[:, 2:]).all(1)
        outside = (self._boxes[:, 2:] > 0).all(1) & ~(placed[:, :2] < placed[:, 2:]).all(1)
        for reason, wrong in ((NO_AREA, ~kept & ~outside), ("boxes outside of their picture", outside)):
            for entry in self._entries[wrong]:
                self.boxes_left_out.add(reason, f"annotations[{entry}]")
        ends = np.searchsorted(self._image_of[kept], np.arange(1, len(self)))
        columns = (boxes[kept], self._labels[kept], self._crowds[kept])
        parts = zip(*(np.split(column, ends) for column in columns), strict=True)
        return [Objects(*map(torch.from_numpy, part)) for part in parts]


def annotation_files(root: str | Path) -> list[Path]:
    """The `annotations/instances_*.json` of a folder in COCO's layout, sorted by name; none in any other folder."""
    return sorted(Path(root).glob("annotations/instances_*.json"))


def _unexplained(path: Path, name: str, size, header, count: int) -> str:
    shown = " × ".join(map(str, header[:2]))
    if header.orientation != 1:
        shown += f" (EXIF orientation {header.orientation})"
    others = f" and {count - 1} more" if count > 1 else ""
    return (
        f"data: {str(path)!r} lists {name!r}{others} as {size[0]} × {size[1]} pixels, and the image has {shown}: "
        "neither resizing nor EXIF explains it. Correct width and height; if boxes are of the stored image, remove both"
    )


def _folder(annotations: Path, names: list[str], given: str | Path | None) -> Path:
    """The first folder that holds any of the named pictures."""
    root, split = annotations.absolute().parent.parent, annotations.stem.split("_", 1)[-1]
    folders = [root / split, root / "images" / split, root / "images", root] if given is None else [Path(given)]
    for folder in folders:
        if folder.is_dir() and any(os.path.isfile(os.path.join(folder, name)) for name in names):
            return folder
    raise SourceError(
        f"data: none of the {len(names)} pictures that {str(annotations)!r} lists exists "
        f"(looked for {names[0]!r} in {', '.join(map(str, folders))})"
    )
