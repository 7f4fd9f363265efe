"""Sets of photographs: COCO's layout with boxes, or class folders with one object a photograph."""

from __future__ import annotations

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
from maskco.evaluate.datasets import Annotated, open_labelled

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
    place = Path(root)
    place = unpacked(place, folder) / plain(name) if place.is_file() else benchmarked(name, place, folder)
    found = open_labelled(str(place))
    if found.has_boxes != (name != CALTECH):
        says, needs = ("boxes", "none") if found.has_boxes else ("no boxes", "some")
        raise UserError(f"images: {place} has {says}, and {name} needs {needs}. Name the folder of {name}")
    order = torch.randperm(len(found.train), generator=torch.Generator().manual_seed(0)).tolist()
    count = max(int(HELD_OUT * len(order)), 1)
    train, val = (found.train.take(sorted(rows)) for rows in (order[count:], order[:count]))
    held = name != COCO  # (COCO's photographs take 100 GB decoded)
    pretrain = write_list(folder, plain(name), *_files(train), held=held)
    return ProbeSet(name, pretrain, train, val, found.test, len(found.classes), balanced=True)


def benchmarked(name: str, place: Path, folder: Path) -> Path:
    """The folder of a set: `place`, or the subset of VOC, which is made below `folder`. Raises UserError."""
    if name == VOC and is_devkit(place):
        return subset(place, folder)
    if name == VOC and (place / MAIN).exists():
        raise UserError(f"images: {place} is one year of VOC. Name the folder above it, VOCdevkit, with both years")
    return place


def _files(part: Annotated) -> tuple[Path, list[str]]:
    if not isinstance(part.source, ImageFiles):
        raise UserError("images: photographs must be files in a folder")
    return Path(part.source.root), [part.source.name(index) for index in part.indices]
