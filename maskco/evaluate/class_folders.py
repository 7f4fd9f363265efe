"""Images sorted into a folder for each class, in parts to learn from and to test on. What could be read in two ways is
refused: a wrong guess would be scored like a right one."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from maskco.data.kinds import readable
from maskco.data.sources.base import FolderSource
from maskco.evaluate.errors import EvaluationError

PARTS = ("train", "val", "test")
_WORDS = {"train": "train|training", "val": "val|valid|validation", "test": "test|testing"}
_MORE = r"[ _-]*(set|data|images?|imgs?|split|part)?[ _-]*\d*"  # as in train_set, val2017


class Part(NamedTuple):
    """The images of one part, and of which class each is."""

    folder: Path
    source: FolderSource
    classes: tuple[str, ...]
    labels: list[int]


def part_of(name: str) -> str | None:
    """Of which part a folder's name speaks ("Train", "validation ", "test_images"), if of any."""
    return next((part for part, words in _WORDS.items() if re.fullmatch(f"({words}){_MORE}", _folded(name))), None)


def read_class_folders(root: Path) -> tuple[list[Part], list[str]]:
    """One part or two, to learn from and to test on in this order, and what to say of the choice.

    Raises:
        EvaluationError: the layout is not one of train/CLASS, val/CLASS (or test/CLASS) and CLASS alone, or ambiguous.
        SourceError: no images.
    """
    folders = _folders(root)
    found: dict[str, Path] = {}
    for folder in folders:
        part = part_of(folder.name)
        if part in found:
            raise EvaluationError(
                f"data: {str(root)!r} holds both {found[part].name!r} and {folder.name!r}: keep one of them as {part}/"
            )
        if part is not None:
            found[part] = folder
    for other in (folder for folder in folders if found and folder not in found.values() and _holds_images(folder)):
        near = next(iter(found.values())).name
        raise EvaluationError(
            f"data: {other.name!r} lies beside {near!r} in {str(root)!r}, so that it is not clear which are classes "
            f"and which parts: move all classes into train/ and val/, or {other.name!r} away"
        )
    names = [part for part in PARTS if part in found]
    parts = [_part(found[name]) for name in names[:2]] or [_part(root)]
    if not names:
        _require_classes(parts[0])
    _require_no_strays(parts)
    told = _told([found[name].name for name in names], "train" in names)
    return parts, told + [f"{part.folder.name}: {line}" for part in parts for line in part.source.left_out.lines()]


def _told(names: list[str], learns_from_train: bool) -> list[str]:
    if len(names) < 2 or (len(names) == 2 and learns_from_train):
        return []
    unused = f"; {names[2]} is not used" if len(names) > 2 else ""
    return [f"learned from {names[0]}, tested on {names[1]}{unused}"]


def _part(folder: Path) -> Part:
    """Every image below `folder`, labelled by the first folder on the way to it."""
    source = FolderSource(folder)
    classes = tuple(each.name for each in _folders(folder))
    if len(classes) < 2:
        raise EvaluationError(
            f"data: expected a folder for each class, or COCO's annotations/instances_….json, in {str(folder)!r}"
        )
    if alike := _alike(classes):
        raise EvaluationError(
            f"data: classes {alike[0]!r} and {alike[1]!r} of {str(folder)!r} differ only in case, spaces or encoding: "
            "merge them, or rename one"
        )
    label_of = {name: label for label, name in enumerate(classes)}
    firsts = [Path(source.name(index)).parts[0] for index in range(len(source))]
    if empty := [name for name in classes if name not in firsts]:
        raise EvaluationError(f"data: class {empty[0]!r} has no picture in {str(folder)!r}")
    if loose := [source.name(i) for i, first in enumerate(firsts) if first not in label_of]:
        raise EvaluationError(
            f"data: {loose[0]!r} lies beside the class folders of {str(folder)!r}: of which class is it?"
        )
    return Part(folder, source, classes, [label_of[first] for first in firsts])


def _require_classes(whole: Part) -> None:
    """Refuses folders that hold the same folders, such as fold1/cat, fold1/dog, fold2/cat, fold2/dog."""
    paths = [Path(whole.source.name(index)).parts for index in range(len(whole.source))]
    inside = {name: {path[1] for path in paths if path[0] == name} for name in whole.classes}
    common = sorted(set.intersection(*inside.values()) - {path[1] for path in paths if len(path) == 2})
    if len(common) > 1:
        raise EvaluationError(
            f"data: {whole.classes[0]!r}, {whole.classes[1]!r} … in {str(whole.folder)!r} all hold {common[0]!r} and "
            f"{common[1]!r}: if these are the classes, name the folders train and val; else move all into train/"
        )


def _require_no_strays(parts: list[Part]) -> None:
    """Refuses a part inside a part. A class may be called "train", if all parts have it and it holds images."""
    for part in parts:
        for name in filter(part_of, part.classes):
            holds_folders = any(len(Path(each).parts) > 2 and Path(each).parts[0] == name for each in part.source.names)
            if holds_folders or len(parts) < 2 or not all(name in each.classes for each in parts):
                raise EvaluationError(
                    f"data: {name!r} among the classes of {str(part.folder)!r} is named as a part: move it out, or "
                    "rename it if it is a class"
                )


def near_class(name: str, classes: Iterable[str]) -> str | None:
    """The class that differs from `name` only in case, spaces or encoding."""
    return next((each for each in classes if _folded(each) == _folded(name)), None)


def _alike(names: Iterable[str]) -> tuple[str, str] | None:
    seen: dict[str, str] = {}
    for name in names:
        if (other := seen.setdefault(_folded(name), name)) != name:
            return other, name
    return None


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", name).strip().casefold()


def _folders(root: Path) -> list[Path]:
    return sorted(each for each in root.iterdir() if each.is_dir() and not each.name.startswith("."))


def _holds_images(folder: Path) -> bool:
    return any(
        os.path.splitext(name)[1].lower() in readable() and not name.startswith(".")
        for _, _, files in os.walk(folder, followlinks=False)
        for name in files
    )
