"""The data sets: what is pretrained on, without labels, and the labelled scenes that features are judged by."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
import torchvision
from torch import Tensor
from torch.utils.data import Dataset, Subset
from torchvision.transforms.v2.functional import pil_to_tensor

from benchmarks.claims.encoder import NARROW
from benchmarks.claims.names import DEMO, NARROW_SCENES, OBJECTS, PHOTOGRAPHS, SCENES, SCENES_3, SETS, STL10, plain
from benchmarks.claims.photographs import open_photographs
from benchmarks.claims.pictures import Mosaics, load_pictures
from benchmarks.claims.probe_set import ProbeSet
from maskco.data.sources.demo import CLASS_NAMES, Scene, demo_scenes
from maskco.errors import UserError

TILES = {OBJECTS: 1, SCENES: 2, NARROW_SCENES: 2, SCENES_3: 3}
VIEW = {OBJECTS: 32, SCENES: 48, NARROW_SCENES: 48, SCENES_3: 72, DEMO: 64}
FRAMES = 16000  # scenes to pretrain on; of pictures of one object twice as many, each seen half as often
PROBED = {"train": 12000, "val": 5000, "test": 10000}  # regions, about
DATA = "data"  # the folder of images where none is named
QUICK = 20  # times fewer of all
DEMO_COLOURS = {"hue": 0.5, "grayscale": 0.5}  # see demo_config: there colour tells which item it is, never its class


def place_of(name: str, given: Sequence[str]) -> str:
    """Where the images of a set are: by the last of `given` that is "SET=PLACE", else by the last that names no set.
    Below a folder for all, a set of photographs may have a folder of its own name.

    Raises UserError.
    """
    known, for_all, own = {plain(each) for each in SETS}, "", ""
    for entry in given:
        one, equals, place = entry.partition("=")
        if not equals or plain(one) not in known:
            for_all = entry
        elif plain(one) == plain(name):
            own = place
    if name not in PHOTOGRAPHS:
        return own or for_all or f"torchvision:{DATA}"
    below = Path(for_all or DATA) / plain(name)
    place = own or (for_all if for_all and not below.is_dir() else str(below))
    if not Path(place).exists():
        raise UserError(
            f"images: {place} holds no photographs of {name}. Name their folder with --images {plain(name)}=FOLDER"
        )
    return place


def places_of(names: Sequence[str], given: Sequence[str]) -> dict[str, str]:
    """`place_of` each set. Raises UserError, also if one folder would be two sets of photographs."""
    places = {name: place_of(name, given) for name in names}
    folders: dict[Path, str] = {}
    for name, place in places.items():
        if name in PHOTOGRAPHS and Path(place).is_dir():
            other = folders.setdefault(Path(place).resolve(), name)
            if other != name:
                raise UserError(
                    f"images: {place} cannot be {other} and {name}. Name a folder for each with "
                    f"--images {plain(other)}=FOLDER {plain(name)}=FOLDER"
                )
    return places


def open_set(name: str, pictures: str, folder: Path, *, quick: bool = False) -> ProbeSet:
    """The set of that name.

    Args:
        pictures: of STL-10 torchvision's folder, of photographs what `open_photographs` takes, else what
            `load_pictures` takes.
        folder: takes the scenes, or the list of photographs, to pretrain on.
        quick: a twentieth of scenes.

    Raises UserError.
    """
    fewer = QUICK if quick else 1
    if name == STL10:
        return _stl10(pictures)
    if name in PHOTOGRAPHS:
        return open_photographs(name, pictures, folder)
    if name == DEMO:
        train, test = demo_scenes("train", 2500 // fewer), demo_scenes("test", 1000 // fewer)
        held = len(train) // 5
        parts = Subset(train, range(held, len(train))), Subset(train, range(held)), test
        return ProbeSet(name, "demo", *parts, len(CLASS_NAMES), VIEW[name], options=DEMO_COLOURS)
    tiles, parts = TILES[name], load_pictures(pictures)
    frames = Mosaics(parts.train, tiles, (FRAMES if tiles > 1 else 2 * FRAMES) // fewer, seed=1)
    scenes, *_ = name.split(",")
    what = hashlib.sha256(parts.train.images.numpy()).hexdigest()[:8]  # other pictures are other scenes
    file = folder / f"{scenes.replace(' ', '-')}-{len(frames)}-{what}.npy"
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
