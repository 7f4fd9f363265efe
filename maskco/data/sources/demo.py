"""The built-in demo set: scenes of several pieces of clothing on textured ground, with known boxes and labels.

    scenes = demo_scenes("test", count=1000)
    image, boxes, labels = scenes[0]

Items are Fashion-MNIST's, grounds photographs of brick, grass and gravel or made-up patterns (sources: demo_assets).
Color, shading, size, tilt, ground and light are drawn at random for each scene. So only shape separates the classes,
and an untrained network's colors and textures are not enough. Train and test scenes share no item.
"""

from __future__ import annotations

import math
from functools import lru_cache
from importlib.resources import files
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import grid_sample, pad
from torch.utils.data import Dataset

from maskco.data.sources.labelled import LabelledData, LabelledPart, Wanted
from maskco.data.sources.left_out import LeftOut

CLASS_NAMES = (
    "T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
SPLITS = ("train", "test")
IMAGE_SIZE = 96  # a crop of about half the area is a 64-pixel view at the scene's own resolution
COUNTS = {"train": 4000, "test": 1000}
MIN_ITEMS, MAX_ITEMS = 3, 6
ITEM_SIDE = 28  # pixels of an item as stored


class Scene(NamedTuple):
    image: Tensor  # uint8 [3, S, S]
    boxes: Tensor  # float32 [n, 4]: x1, y1, x2, y2 in pixels, tight around each item
    labels: Tensor  # int64 [n]: index into CLASS_NAMES, all different within a scene


class LabelledScenes(Dataset[Scene]):
    """Scenes 0 … count-1 of one split, all drawn when the object is made (about a millisecond each) and held as uint8.

    A scene depends on split, index and image_size only. Raises ValueError for an unknown split or a count below 1.
    """

    def __init__(self, split: str = "train", count: int | None = None, image_size: int = IMAGE_SIZE) -> None:
        if split not in SPLITS:
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        count = COUNTS[split] if count is None else count
        if count < 1 or image_size < 16:
            raise ValueError(f"count must be at least 1 and image_size at least 16, got {count} and {image_size}")
        self.split = split
        self.images = torch.empty(count, 3, image_size, image_size, dtype=torch.uint8)
        self.boxes: list[Tensor] = []
        self.labels: list[Tensor] = []
        for index in range(count):
            self.images[index], boxes, labels = _draw(_Layout.random(split, index), split, image_size)
            self.boxes.append(boxes)
            self.labels.append(labels)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Scene:
        return Scene(self.images[index], self.boxes[index], self.labels[index])


def demo_scenes(split: str = "train", count: int | None = None, image_size: int = IMAGE_SIZE) -> LabelledScenes:
    """The first `count` scenes of a split (by default 4000 of train, 1000 of test), `image_size` pixels a side."""
    return LabelledScenes(split, count, image_size)


class DemoSource:
    """Scenes as images without labels, by default all train scenes. A `maskco.data.sources.Source`."""

    def __init__(self, count: int | None = None, *, scenes: LabelledScenes | None = None) -> None:
        scenes = demo_scenes("train", count) if scenes is None else scenes
        self.images, self.split, self.left_out = scenes.images, scenes.split, LeftOut()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]

    def name(self, index: int) -> str:
        return f"demo/{self.split}/{index}"


def open_source(data: str) -> DemoSource:
    return DemoSource()


def open_labelled(data: str, wanted: Wanted) -> LabelledData:
    """2000 scenes to learn from and 1000 to test on, or as many as are wanted."""
    parts = []
    for split, count in (("train", wanted.train or 2000), ("test", wanted.test or 1000)):
        scenes = demo_scenes(split, count, wanted.image_size)
        source = DemoSource(scenes=scenes)
        parts.append(LabelledPart(split, source, scenes.labels, scenes.boxes, in_memory=True))
    return LabelledData("demo scenes", CLASS_NAMES, tuple(parts))


@lru_cache
def _picture(name: str) -> np.ndarray:
    with (files("maskco.data.sources") / "demo_assets" / name).open("rb") as file, Image.open(file) as image:
        return np.asarray(image)


@lru_cache
def _items(split: str) -> Tensor:
    """float32 [10, per class, 2, 28, 28] in [0, 1]: brightness times opacity, and opacity."""
    sheet = _picture(f"items_{split}.png")
    side = ITEM_SIDE
    tiles = (
        sheet.reshape(-1, side, sheet.shape[1] // side, side).swapaxes(1, 2).reshape(len(CLASS_NAMES), -1, side, side)
    )
    grey = torch.from_numpy(tiles / 255).float()
    # Dark cloth is opaque too, only the empty surround is not; grey comes already multiplied, as it is 0 there.
    return torch.stack((grey, (grey * 12).clamp(max=1)), dim=2)


@lru_cache
def _textures() -> Tensor:
    """float32 [5, 1, 256, 256] of mean 0.5: three photographs, clouds and stripes."""
    noise = np.random.default_rng(0)
    clouds = np.zeros((256, 256), np.float32)
    for octave in range(1, 7):
        coarse = Image.fromarray(noise.standard_normal((2**octave + 1, 2**octave + 1)).astype(np.float32))
        clouds += np.asarray(coarse.resize((256, 256), Image.Resampling.BICUBIC)) / 1.6**octave
    stripes = np.sin(np.linspace(0, 40 * math.pi, 256))[None] + 0.7 * clouds
    bank = [*(_picture(f"{name}.png").astype(np.float32) for name in ("brick", "grass", "gravel")), clouds, stripes]
    standardised = [np.clip(0.5 + 0.2 * (texture - texture.mean()) / texture.std(), 0, 1) for texture in bank]
    return torch.from_numpy(np.stack(standardised)[:, None].astype(np.float32))


class _Layout(NamedTuple):
    """All that is random about one scene, independent of its size in pixels. Lengths are shares of the scene's side."""

    items: np.ndarray  # [n] which item of its class
    labels: np.ndarray  # int64 [n]
    centres: np.ndarray  # [n, 2] x, y
    sides: np.ndarray  # [n]
    tilts: np.ndarray  # [n] radians
    mirrored: np.ndarray  # [n] -1 or 1
    colors: np.ndarray  # [n, 2, 3] RGB of the darkest and of the brightest part, either of which may be the lighter
    ground: int
    ground_place: np.ndarray  # [4] x, y, side in the texture's [-1, 1], turn in radians
    ground_colors: np.ndarray  # [2, 3]
    light: np.ndarray  # [2] change of brightness from the centre to the right and to the lower border

    @staticmethod
    def random(split: str, index: int) -> _Layout:
        random = np.random.default_rng((SPLITS.index(split), index))
        n = int(random.integers(MIN_ITEMS, MAX_ITEMS + 1))
        labels = random.permutation(len(CLASS_NAMES))[:n]
        columns, rows = (2, 2) if n <= 4 else ((3, 2) if random.random() < 0.5 else (2, 3))
        cells = random.permutation(columns * rows)[:n]
        u = random.random((n, 10))
        sides = (0.7 + 0.35 * u[:, 0]) * (0.48 if n <= 4 else 0.37)
        centres = (np.stack((cells % columns, cells // columns), 1) + 0.5) / (columns, rows) + 0.1 * (u[:, 1:3] - 0.5)
        bright = _rgb(u[:, 5], 0.25 + 0.65 * u[:, 6], 0.65 + 0.35 * u[:, 7])
        dark = bright * (0.1 + 0.3 * u[:, 8:9])
        v = random.random(13)
        return _Layout(
            items=random.integers(_items(split).shape[1], size=n),
            labels=labels,
            centres=np.clip(centres, sides[:, None] / 2, 1 - sides[:, None] / 2),
            sides=sides,
            tilts=0.6 * (u[:, 3] - 0.5),
            mirrored=np.where(u[:, 4] < 0.5, -1.0, 1.0),
            colors=np.where(u[:, 9, None, None] < 0.5, np.stack((dark, bright), 1), np.stack((bright, dark), 1)),
            ground=int(v[0] * len(_textures())),
            ground_place=np.array([v[1] - 0.5, v[2] - 0.5, 0.25 + 0.25 * v[3], 2 * math.pi * v[4]]),
            ground_colors=_rgb(v[5] + np.array([0, 0.2]) * v[6], 0.1 + 0.4 * v[7:9], np.sort(0.15 + 0.75 * v[9:11])),
            light=0.5 * (v[11:] - 0.5),
        )


def _draw(layout: _Layout, split: str, size: int) -> Scene:
    canvas = _draw_ground(layout, size)
    # Each item is drawn in a window that just holds the largest of them, tilted, and lies inside the scene.
    window = min(math.ceil(1.3 * layout.sides.max() * size), size)
    corners = np.clip(np.rint(layout.centres * size - window / 2), 0, size - window).astype(np.int64)  # [n, 2] x, y
    cos, sin = np.cos(layout.tilts) / layout.sides, np.sin(layout.tilts) / layout.sides
    # From where a pixel is relative to the window's middle, in [-1, 1], to where it is in the item, in [-1, 1].
    x, y = (2 * (layout.centres * size - corners) / window - 1).T
    across = np.stack((cos, sin, -cos * x - sin * y), 1) * layout.mirrored[:, None]
    down = np.stack((-sin, cos, sin * x - cos * y), 1)
    transforms = np.stack((across, down), 1) * (window / size)
    layers = _sample(_items(split)[layout.labels, layout.items], transforms, window)  # [n, 2, P, P]
    opacity = layers[:, 1]
    # color x opacity = dark x opacity + (bright - dark) x grey x opacity, and grey comes multiplied by opacity.
    dark, bright = torch.from_numpy(layout.colors).float()[..., None, None].unbind(1)  # each [n, 3, 1, 1]
    inks = (dark * layers[:, 1:]).addcmul_(bright - dark, layers[:, :1])  # [n, 3, P, P]
    below, beside = max(round(size / 48), 1), max(round(size / 96), 1)
    shadow = pad(opacity, (beside, -beside, below, -below))
    kept = (1 - 0.35 * shadow) * (1 - opacity)  # of what lies below
    for (left, top), ink, keep in zip(corners.tolist(), inks, kept, strict=True):
        canvas[:, top : top + window, left : left + window].mul_(keep).add_(ink)
    image = canvas.clamp_(0, 1).mul_(255).round_().to(torch.uint8)
    boxes = _extents(opacity) + torch.from_numpy(corners).repeat(1, 2)
    return Scene(image, boxes, torch.from_numpy(layout.labels))


def _draw_ground(layout: _Layout, size: int) -> Tensor:
    """float32 [3, size, size]: a tinted, unevenly lit piece of texture."""
    x, y, side, turn = layout.ground_place
    cos, sin = math.cos(turn) * side, math.sin(turn) * side
    grey = _sample(_textures()[layout.ground, None], np.array([[[cos, -sin, x], [sin, cos, y]]]), size)[0]  # [1, S, S]
    dark, bright = torch.from_numpy(layout.ground_colors).float()[..., None, None]
    to_right, to_bottom = layout.light.tolist()
    ramp = torch.linspace(-1, 1, size)
    return torch.lerp(dark, bright, grey).mul_(1 + to_right * ramp + to_bottom * ramp[:, None])


def _sample(pictures: Tensor, transforms: np.ndarray, size: int) -> Tensor:
    """images [n, C, h, w] under affine transforms [n, 2, 3] of the coordinates -> [n, C, size, size]."""
    a, b, c = torch.from_numpy(transforms).float()[..., None, None].unbind(2)  # each [n, 2, 1, 1]
    steps = (torch.arange(size) * 2 + 1) / size - 1
    # The same as affine_grid, which takes several times longer.
    grid = torch.stack((a * steps + (b * steps[:, None] + c)).unbind(1), dim=-1)  # [n, size, size, 2]
    return grid_sample(pictures, grid, align_corners=False)


def _extents(opacity: Tensor) -> Tensor:
    """Opacity [n, H, W] -> the tight boxes [n, 4] around what is more than half opaque."""
    columns, rows = (opacity.amax(1) > 0.5).int(), (opacity.amax(2) > 0.5).int()
    ends = (columns.argmax(1), rows.argmax(1), *(line.shape[1] - line.flip(1).argmax(1) for line in (columns, rows)))
    return torch.stack(ends, dim=1).float()


def _rgb(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """HSV, all in [0, 1] but any turn of hue, to RGB in a last dimension of 3."""
    k = (np.array([5, 3, 1]) + 6 * hue[:, None]) % 6
    return value[:, None] * (1 - saturation[:, None] * np.clip(np.minimum(k, 4 - k), 0, 1))
