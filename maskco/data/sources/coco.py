"""Images and labelled boxes of a COCO annotation file. Plain JSON: reading it needs no pycocotools.

    images = CocoSource("COCO/annotations/instances_val2017.json")
    image, (boxes, labels, crowd) = images[0], images.objects[0]
    images.categories[labels[0]]                                           # "person"

Pretraining takes the images only. The boxes are for evaluation.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from msgspec import UNSET

from maskco.data.kinds import why_unreadable
from maskco.data.sources.base import SourceError
from maskco.data.sources.coco_file import Annotation, Category, read_coco
from maskco.data.sources.coco_sizes import checked_frames, place_boxes, read_headers
from maskco.data.sources.files import ImageFiles
from maskco.data.sources.labelled import PARTS, LabelledData, LabelledPart, Objects, Wanted
from maskco.data.sources.left_out import LeftOut

NO_AREA = "boxes without area"  # as annotators leave them; a scorer may ignore them


def open_source(data: str) -> CocoSource:
    """The images of an annotation file. Of several in a folder, the one for training."""
    files = _annotation_files(data)
    if len(files) > 1:
        files = [file for file in files if file.stem.startswith("instances_train")] or files
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise SourceError(f"data: {data!r} holds several annotation files ({names}). Name one of them")
    return CocoSource(files[0])


def open_labelled(data: str, wanted: Wanted) -> LabelledData:
    """The boxes of the train and val files (or test in place of val), or of the only file."""
    files = _annotation_files(data)
    train, val, test = ([f for f in files if f.stem.lower().startswith(f"instances_{part}")] for part in PARTS)
    test = val or test
    if len(files) == 1:
        train, test = files, []
    if len(train) != 1 or len(test) > 1:
        names = ", ".join(file.name for file in files)
        raise SourceError(
            f"data: expected one instances_train….json and one instances_val….json, found {names}. Keep one of each, "
            "or name one file"
        )
    used = [*train, *test]
    sources = [_complete(path) for path in used]
    if sources[0].categories != sources[-1].categories:
        raise SourceError(
            f"data: {used[0].name} and {used[1].name} do not have the same categories. Correct one of them"
        )
    unused = [file.name for file in files if file not in used]
    notes = [f"not used: {', '.join(unused)}"] if unused else []
    notes += [f"{s.path.name}: {line}" for s in sources for line in (*s.notes, *s.boxes_left_out.lines())]
    name = Path(data).resolve().name
    return LabelledData(name, sources[0].categories, tuple(map(_part, sources)), tuple(notes))


def _part(source: CocoSource) -> LabelledPart:
    objects = source.objects
    return LabelledPart(
        source.path.name,
        source,
        labels=[o.labels[~o.crowd] for o in objects],
        boxes=[o.boxes[~o.crowd] for o in objects],
        crowds=[Objects(o.boxes[o.crowd], o.labels[o.crowd], o.crowd[o.crowd]) for o in objects],
    )


def _complete(path: Path) -> CocoSource:
    """Refuses left-out boxes, since a score on a part of the boxes cannot be compared with others."""
    source = CocoSource(path)
    _require_none(source.left_out, path)
    if not source.categories:
        raise SourceError(f"data: {str(path)!r} names no categories. Correct the file")
    source.objects  # noqa: B018 - places the boxes, and so counts those that cannot be
    _require_none(source.boxes_left_out, path)
    return source


def _require_none(left_out: LeftOut, path: Path) -> None:
    wrong = [f"{count} {what} (first: {left_out.first[what]!r})" for what, count in left_out.items() if what != NO_AREA]
    if wrong:
        raise SourceError(f"data: {str(path)!r} names {' and '.join(wrong)}. Correct the file")


class CocoSource(ImageFiles):
    """The images that a COCO annotation file lists, in order of their ids. A `maskco.data.sources.Source`.

    They are looked for in the folder named like what follows `instances_` (next to `annotations/`, or in `images/`),
    then in `images/` and next to `annotations/`. Images that are missing are counted in `left_out`. Counted in
    `boxes_left_out` are boxes without area, outside of their image, or of unknown images or categories.

    Boxes are placed when `objects` is first asked for, which reads every annotated image's header. They follow an
    image that was resized or that EXIF turns, and `notes` then says how many did. Categories of one name are one.

    Raises SourceError if the file is not COCO's, lists nothing, or none of its images exists.

    Args:
        annotations: `.../annotations/instances_<split>.json`.
        pictures: the folder of the images, if it is another than those named above.
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
            raise SourceError(
                f"data: {str(self.path)!r} lists no image that can be read ({self.left_out.lines()[0]}). Restore or "
                "convert the images"
            )
        present.sort(key=lambda image: image.id)
        self.image_ids = [image.id for image in present]
        self.names = [image.file_name for image in present]
        self._sizes = [None if i.width is None or i.height is None else (int(i.width), int(i.height)) for i in present]

        categories = sorted(content.categories, key=lambda category: category.id)
        first_of = {category.name: category.id for category in reversed(categories)}
        self.categories = tuple(dict.fromkeys(category.name for category in categories))
        if more := len(categories) - len(self.categories):
            self.notes.append(f"{more} categories have the name of another. Each name is one class")
        self.category_ids = tuple(first_of[name] for name in self.categories)  # as in the file; COCO's own have gaps
        listed_ids = {image.id for image in content.images}
        self._keep_annotations(content.annotations, categories, listed_ids)

    def _problem(self, name: str) -> str | None:
        path = os.path.join(self.root, name)
        if os.path.isfile(path):
            return why_unreadable(name)
        return "pipes, sockets, devices or folders" if os.path.exists(path) else "missing images"

    def _keep_annotations(self, annotations: list[Annotation], categories: list[Category], listed: set) -> None:
        """As arrays: a million objects would be copied by every loading worker."""
        index_of = {number: index for index, number in enumerate(self.image_ids)}
        label_named = {name: label for label, name in enumerate(self.categories)}
        label_of = {category.id: label_named[category.name] for category in categories}
        entries, boxes, labels, crowds, images = [], [], [], [], []
        for entry, annotation in enumerate(annotations):
            if annotation.image_id not in listed:
                self.boxes_left_out.add("boxes of unknown images", f"annotations[{entry}]")
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
        """Of each image. Raises SourceError if an image's size is neither that of the file nor follows from it."""
        annotated, image = np.unique(self._image_of, return_inverse=True)
        names, sizes = ([column[index] for index in annotated] for column in (self.names, self._sizes))
        headers = read_headers([self.root / name for name in names])
        frames, notes = checked_frames(self.path, names, sizes, headers)
        self.notes += notes
        placed = place_boxes(self._boxes, image, frames)
        boxes = placed.astype(np.float32)
        kept = (boxes[:, :2] < boxes[:, 2:]).all(1)
        outside = (self._boxes[:, 2:] > 0).all(1) & ~(placed[:, :2] < placed[:, 2:]).all(1)
        for reason, wrong in ((NO_AREA, ~kept & ~outside), ("boxes outside of their image", outside)):
            for entry in self._entries[wrong]:
                self.boxes_left_out.add(reason, f"annotations[{entry}]")
        ends = np.searchsorted(self._image_of[kept], np.arange(1, len(self)))
        columns = (boxes[kept], self._labels[kept], self._crowds[kept])
        parts = zip(*(np.split(column, ends) for column in columns), strict=True)
        return [Objects(*map(torch.from_numpy, part)) for part in parts]


def _annotation_files(data: str) -> list[Path]:
    """The file itself, or the `annotations/instances_*.json` of a folder, sorted by name."""
    return sorted(Path(data).glob("annotations/instances_*.json")) if os.path.isdir(data) else [Path(data)]


def _folder(annotations: Path, names: list[str], given: str | Path | None) -> Path:
    """The first folder that holds any of the named images."""
    root, split = annotations.absolute().parent.parent, annotations.stem.split("_", 1)[-1]
    folders = [root / split, root / "images" / split, root / "images", root] if given is None else [Path(given)]
    for folder in folders:
        if folder.is_dir() and any(os.path.isfile(os.path.join(folder, name)) for name in names):
            return folder
    raise SourceError(
        f"data: none of the {len(names)} images that {str(annotations)!r} lists exists "
        f"(looked for {names[0]!r} in {', '.join(map(str, folders))}). Put them into one of these"
    )
