"""Labelled pictures of one object each, and scenes put together from them, whose boxes and classes are known."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from maskco.data.cache import one_at_a_time
from maskco.data.sources.demo import Scene
from maskco.errors import UserError
from maskco.files import write_atomically

SIDE = 32  # pixels of an object, CIFAR-10's


class Pictures(NamedTuple):
    images: Tensor  # uint8 [N, 3, SIDE, SIDE]
    labels: Tensor  # int64 [N]

    def part(self, rows: slice) -> Pictures:
        return Pictures(self.images[rows], self.labels[rows])


class Parts(NamedTuple):
    """Seven tenths, a tenth (settings are chosen on it) and a fifth: no scene shows pictures of two parts."""

    train: Pictures
    val: Pictures
    test: Pictures


def load_pictures(source: str) -> Parts:
    """All pictures of `source`, shuffled (always alike) and split.

    Args:
        source: "torchvision:ROOT" for torchvision's CIFAR-10 in ROOT (its training part; downloaded if missing), or a
            folder, or .tar(.gz) of one, with CLASS/*.jpg or .png of 32 pixels a side anywhere below.

    Raises UserError if there are none, or of another size.
    """
    if source.startswith("torchvision:"):
        from torchvision.datasets import CIFAR10

        found = CIFAR10(source.partition(":")[2] or ".", train=True, download=True)
        images, labels = found.data, torch.tensor(found.targets)
    else:
        files = {name: content for name, content in _files(Path(source)) if name.endswith((".jpg", ".png"))}
        classes = sorted({name.split("/")[-2] for name in files if "/" in name})
        if len(classes) < 2:
            raise UserError(f"images: {source!r} must hold CLASS/*.jpg or .png of two classes or more")
        names = sorted(name for name in files if "/" in name)
        pictures = [np.asarray(Image.open(io.BytesIO(files[name])).convert("RGB")) for name in names]
        for name, picture in zip(names, pictures, strict=True):
            if picture.shape != (SIDE, SIDE, 3):
                raise UserError(f"images: {name} in {source!r} is not {SIDE}x{SIDE} pixels. Resize all images to that")
        images = np.stack(pictures)
        labels = torch.tensor([classes.index(name.split("/")[-2]) for name in names])
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    everything = Pictures(torch.from_numpy(images).permute(0, 3, 1, 2)[order].contiguous(), labels[order])
    val, test = len(order) // 10, 3 * len(order) // 10
    return Parts(everything.part(slice(test, None)), everything.part(slice(val)), everything.part(slice(val, test)))


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        for file in path.rglob("*.*"):
            yield str(file.relative_to(path)), file.read_bytes()
    elif path.is_file():
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile():
                    yield member.name, archive.extractfile(member).read()
    else:
        raise UserError(f"images: there is no {path}. See python -m benchmarks.claims --help")


class Mosaics(Dataset):
    """`count` scenes of tiles × tiles pictures, edge to edge, each drawn at random; with `tiles` 1 the pictures
    themselves, in their order."""

    def __init__(self, pictures: Pictures, tiles: int, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        if tiles == 1:
            self.chosen = torch.arange(min(count, len(pictures.labels))).view(-1, 1, 1)
        else:
            self.chosen = torch.randint(len(pictures.labels), (count, tiles, tiles), generator=generator)
        self.pictures = pictures
        corners = SIDE * torch.cartesian_prod(torch.arange(tiles), torch.arange(tiles)).flip(1)  # x, y; row by row
        self.boxes = torch.cat([corners, corners + SIDE], dim=1).float()  # [tiles², 4]

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> Scene:
        chosen = self.chosen[index]  # [tiles, tiles]
        side = SIDE * len(chosen)
        image = self.pictures.images[chosen].permute(2, 0, 3, 1, 4).reshape(3, side, side)
        return Scene(image, self.boxes, self.pictures.labels[chosen].flatten())

    def write(self, path: Path) -> None:
        """All scenes as a NumPy array [N, H, W, 3], which `--data` takes; a file that is there is left alone."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(path):
            if not path.exists():
                frames = np.stack([self[index].image.permute(1, 2, 0).numpy() for index in range(len(self))])
                write_atomically(path, lambda file: np.save(file, frames))
