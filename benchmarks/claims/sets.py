"""The data sets: what is pretrained on, without labels, and the labelled scenes that features are judged by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor
from torch.utils.data import Dataset, Subset
from torchvision.transforms.v2.functional import pil_to_tensor

from benchmarks.claims.encoder import NARROW
from benchmarks.claims.pictures import Mosaics, load_pictures
from maskco.data.sources.demo import CLASS_NAMES, Scene, demo_scenes
from maskco.evaluate.datasets import open_labelled


@dataclass(frozen=True)
class ProbeSet:
    """`val` is what settings are chosen on; `test` is looked at once, when they are."""

    name: str
    pretrain: str  # what --data takes
    train: Sequence[Scene]
    val: Sequence[Scene]
    test: Sequence[Scene]
    classes: int
    view: int  # pixels a side of the views in pretraining: such that objects are seen as large as by the probe
    probed: int | None = None  # pixels a side of what is probed; None: scenes are of one size, and taken as they are
    options: dict[str, Any] = field(default_factory=dict)  # of maskco.pretrain, for all methods alike


OBJECTS, SCENES, SCENES_3, DEMO, STL10, COCO = "objects", "scenes 2x2", "scenes 3x3", "demo scenes", "STL-10", "COCO"
NARROW_SCENES = "scenes 2x2, narrow encoder"  # the same scenes, but an encoder that cannot look around a mask
TILES = {OBJECTS: 1, SCENES: 2, NARROW_SCENES: 2, SCENES_3: 3}
VIEW = {OBJECTS: 32, SCENES: 48, NARROW_SCENES: 48, SCENES_3: 72, DEMO: 64}
FRAMES = 16000  # scenes to pretrain on; of pictures of one object twice as many, each seen half as often
PROBED = {"train": 12000, "val": 5000, "test": 10000}  # regions, about
QUICK = 20  # times fewer of all
DEMO_COLOURS = {"hue": 0.5, "grayscale": 0.5}  # see demo_config: there colour tells which item it is, never its class


def open_set(name: str, pictures: str, folder: Path, *, quick: bool = False) -> ProbeSet:
    """The set of that name.

    Args:
        pictures: of STL-10 torchvision's folder, of COCO one in its layout, else what `load_pictures` takes.
        folder: takes the scenes to pretrain on.
        quick: a twentieth of it.

    Raises UserError.
    """
    fewer = QUICK if quick else 1
    if name == STL10:
        return _stl10(pictures)
    if name == COCO:
        return _coco(pictures)
    if name == DEMO:
        train, test = demo_scenes("train", 2500 // fewer), demo_scenes("test", 1000 // fewer)
        held = len(train) // 5
        parts = Subset(train, range(held, len(train))), Subset(train, range(held)), test
        return ProbeSet(name, "demo", *parts, len(CLASS_NAMES), VIEW[name], options=DEMO_COLOURS)
    tiles, parts = TILES[name], load_pictures(pictures)
    frames = Mosaics(parts.train, tiles, (FRAMES if tiles > 1 else 2 * FRAMES) // fewer, seed=1)
    scenes, *_ = name.split(",")
    file = folder / f"{scenes.replace(' ', '-')}-{len(frames)}.npy"
    frames.write(file)
    probed = {
        part: Mosaics(getattr(parts, part), tiles, count // tiles**2 // fewer, seed=2) for part, count in PROBED.items()
    }
    options = {"encoder": NARROW} if name == NARROW_SCENES else {}
    classes = int(parts.train.labels.max()) + 1
    return ProbeSet(name, str(file), **probed, classes=classes, view=VIEW[name], options=options)


def _stl10(root: str) -> ProbeSet:
    train, test = (_Whole(torchvision.datasets.STL10(root, part, download=True)) for part in ("train", "test"))
    held = len(train) // 5
    parts = Subset(train, range(held, len(train))), Subset(train, range(held)), test
    return ProbeSet(STL10, f"torchvision:STL10?root={root}&split=unlabeled", *parts, 10, view=224, probed=224)


class _Whole(Dataset):
    """Pictures of one class each, as scenes of one box."""

    def __init__(self, pictures: Dataset) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Scene:
        picture, label = self.pictures[index]
        image: Tensor = pil_to_tensor(picture)
        whole = torch.tensor([[0.0, 0.0, image.shape[2], image.shape[1]]])
        return Scene(image, whole, torch.tensor([label]))


def _coco(root: str) -> ProbeSet:
    found = open_labelled(root)
    held = len(found.train) // 10
    parts = found.train.take(range(held, len(found.train))), found.train.take(range(held)), found.test
    return ProbeSet(COCO, root, *parts, len(found.classes), view=224, probed=448)
