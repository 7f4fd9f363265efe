"""Sets of photographs: COCO's layout with boxes, or class folders with one object a photograph."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from benchmarks.claims.listed import write_list
from benchmarks.claims.names import CALTECH, COCO, VOC, plain
from benchmarks.claims.probe_set import ProbeSet
from benchmarks.claims.unpack import unpacked
from benchmarks.claims.voc_subset import is_devkit, subset
from maskco.data.sources.files import ImageFiles
from maskco.data.sources.voc import MAIN
from maskco.errors import UserError
from maskco.evaluate.datasets import Annotated, LabelledSet, open_labelled

HELD_OUT = 0.2  # of the training images, to choose settings on


def open_photographs(name: str, root: str, folder: Path) -> ProbeSet:
    """Of the part named train a fifth, always the same, becomes the validation part. The other part is the test part.

    Nothing is pretrained on the validation part: settings are chosen by images that no run has seen.

    Args:
        root: what `maskco eval` takes: a folder with COCO's annotations, or with train/CLASS and val/CLASS. Also
            VOCdevkit, of which the subset is made, and a file that pack.py wrote.
        folder: takes the list of the images to pretrain on, and what is made or unpacked.

    Raises UserError.
    """
    found = opened(name, folder_of(name, Path(root), folder))
    for note in found.notes:
        print(f"{name}: {note}", file=sys.stderr)
    order = torch.randperm(len(found.train), generator=torch.Generator().manual_seed(0)).tolist()
    count = max(int(HELD_OUT * len(order)), 1)
    train, val = (found.train.take(sorted(rows)) for rows in (order[count:], order[:count]))
    held = name != COCO  # (COCO's photographs take 100 GB decoded)
    pretrain = write_list(folder, plain(name), *_files(train), held=held)
    return ProbeSet(name, pretrain, train, val, found.test, len(found.classes), balanced=True)


def folder_of(name: str, place: Path, folder: Path) -> Path:
    """The folder of a set: `place`, or below `folder` what is unpacked or made of it. Raises UserError."""
    if place.is_file():
        if not (inside := unpacked(place, folder) / plain(name)).is_dir():
            there = ", ".join(sorted(path.name for path in inside.parent.iterdir())) or "nothing"
            raise UserError(f"images: {place} holds {there}, and no {plain(name)}. Pack it with this set")
        return inside
    if name == VOC and is_devkit(place):
        return subset(place, folder)
    if is_devkit(place):
        raise UserError(f"images: {place} is VOC, not {name}. Name the folder of {name}")
    if (place / MAIN).exists():
        raise UserError(f"images: {place} is one year of VOC. Name the folder above it, VOCdevkit, with both years")
    return place


def opened(name: str, place: Path) -> LabelledSet:
    """The set in a folder. Raises UserError if it is none, has one part only, or has boxes where it should not."""
    found = open_labelled(str(place))
    if found.has_boxes != (name != CALTECH):
        says, needs = ("boxes", "none") if found.has_boxes else ("no boxes", "some")
        raise UserError(f"images: {place} has {says}, and {name} needs {needs}. Name the folder of {name}")
    if found.train.source is found.test.source:
        raise UserError(f"images: {place} has one part only. Name a folder with {name}'s train and val")
    return found


def _files(part: Annotated) -> tuple[Path, list[str]]:
    if not isinstance(part.source, ImageFiles):
        raise UserError("images: photographs must be files in a folder")
    return Path(part.source.root), [part.source.name(index) for index in part.indices]
