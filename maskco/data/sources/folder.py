"""A folder: every image below it. With labels, if the images are sorted into a folder for each class.

A layout that could be read in two ways is refused, since scores would not reveal a wrong guess.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from maskco.data.kinds import readable
from maskco.data.sources.base import SourceError
from maskco.data.sources.files import FolderSource, require_folder
from maskco.data.sources.labelled import (
    LabelledData,
    LabelledPart,
    Wanted,
    folded,
    notes_on_parts,
    part_of,
    parts_among,
)


class Part(NamedTuple):
    """The images of one part, and the class of each."""

    folder: Path
    source: FolderSource
    classes: tuple[str, ...]
    labels: list[int]


def open_source(data: str) -> FolderSource:
    return FolderSource(data)


def open_labelled(data: str, wanted: Wanted) -> LabelledData:
    """The images below a folder by class, in one part or two.

    Raises SourceError if there are no images, or if the layout is ambiguous or not one of train/CLASS, val/CLASS (or
    test/CLASS) and CLASS alone.
    """
    root = Path(data)
    require_folder(root)
    folders = _folders(root)
    remedy = "Keep one of them, and move the other away"
    named = parts_among([folder.name for folder in folders], str(root), remedy)
    found = {part: root / name for part, name in named.items()}
    for other in (folder for folder in folders if found and folder not in found.values() and _holds_images(folder)):
        near = next(iter(found.values())).name
        raise SourceError(
            f"data: {other.name!r} lies next to {near!r} in {str(root)!r}, so that it is not clear which are classes "
            f"and which parts. Move all classes into train/ and val/, or {other.name!r} away"
        )
    parts = [_part(folder) for folder in list(found.values())[:2]] or [_part(root)]
    if not found:
        _require_classes(parts[0])
    _require_no_strays(parts)
    classes = parts[0].classes
    if len(parts) > 1 and (unknown := sorted(set(parts[1].classes) - set(classes))):
        alike = _near_class(unknown[0], classes)
        raise SourceError(
            f"data: class {unknown[0]!r} of {str(parts[1].folder)!r} has no folder in {str(parts[0].folder)!r}"
            + (f", which has {alike!r}. Rename one of them" if alike else ". Add it there, or remove the class")
        )
    labelled = tuple(_labelled(part, classes) for part in parts)
    return LabelledData(root.resolve().name, classes, labelled, notes_on_parts(named))


def _labelled(part: Part, classes: tuple[str, ...]) -> LabelledPart:
    label_of = {name: label for label, name in enumerate(classes)}
    labels = torch.tensor([label_of[part.classes[label]] for label in part.labels])
    return LabelledPart(part.folder.name, part.source, labels[:, None])


def _part(folder: Path) -> Part:
    """Every image below `folder`, labelled by the first folder on the way to it."""
    source = FolderSource(folder)
    classes = tuple(each.name for each in _folders(folder))
    if len(classes) < 2:
        raise SourceError(
            f"data: expected a folder for each class, or COCO's annotations/instances_….json, in {str(folder)!r}. "
            "Sort the images into a folder for each class"
        )
    if alike := _alike(classes):
        raise SourceError(
            f"data: classes {alike[0]!r} and {alike[1]!r} of {str(folder)!r} differ only in case, spaces or encoding. "
            "Merge them, or rename one"
        )
    label_of = {name: label for label, name in enumerate(classes)}
    firsts = [Path(source.name(index)).parts[0] for index in range(len(source))]
    if empty := [name for name in classes if name not in firsts]:
        raise SourceError(f"data: class {empty[0]!r} has no image in {str(folder)!r}. Add one, or remove its folder")
    if loose := [source.name(i) for i, first in enumerate(firsts) if first not in label_of]:
        raise SourceError(
            f"data: {loose[0]!r} lies next to the class folders of {str(folder)!r}. Move it into one of them"
        )
    return Part(folder, source, classes, [label_of[first] for first in firsts])


def _require_classes(whole: Part) -> None:
    """Refuses folders that hold the same folders, such as fold1/cat, fold1/dog, fold2/cat, fold2/dog."""
    paths = [Path(whole.source.name(index)).parts for index in range(len(whole.source))]
    inside = {name: {path[1] for path in paths if path[0] == name} for name in whole.classes}
    common = sorted(set.intersection(*inside.values()) - {path[1] for path in paths if len(path) == 2})
    if len(common) > 1:
        raise SourceError(
            f"data: {whole.classes[0]!r}, {whole.classes[1]!r} … in {str(whole.folder)!r} all hold {common[0]!r} and "
            f"{common[1]!r}. If these are the classes, name the folders train and val. Else move all into train/"
        )


def _require_no_strays(parts: list[Part]) -> None:
    """Refuses a part inside a part. A class may be called "train", if all parts have it and it holds images."""
    for part in parts:
        for name in filter(part_of, part.classes):
            holds_folders = any(len(Path(each).parts) > 2 and Path(each).parts[0] == name for each in part.source.names)
            if holds_folders or len(parts) < 2 or not all(name in each.classes for each in parts):
                raise SourceError(
                    f"data: {name!r} among the classes of {str(part.folder)!r} is named as a part. Move it out, or "
                    "rename it if it is a class"
                )


def _near_class(name: str, classes: Iterable[str]) -> str | None:
    """The class that differs from `name` only in case, spaces or encoding."""
    return next((each for each in classes if folded(each) == folded(name)), None)


def _alike(names: Iterable[str]) -> tuple[str, str] | None:
    seen: dict[str, str] = {}
    for name in names:
        if (other := seen.setdefault(folded(name), name)) != name:
            return other, name
    return None


def _folders(root: Path) -> list[Path]:
    return sorted(each for each in root.iterdir() if each.is_dir() and not each.name.startswith("."))


def _holds_images(folder: Path) -> bool:
    return any(
        os.path.splitext(name)[1].lower() in readable() and not name.startswith(".")
        for _, _, files in os.walk(folder, followlinks=False)
        for name in files
    )
