"""A run as the report sees it: what it was told to do, what it learned, and pictures to show that on."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as pictures

from maskco.config import PretrainConfig
from maskco.data.images import PictureError
from maskco.data.samples import PretrainDataset
from maskco.data.sources import Source, locate, open_source
from maskco.data.sources.demo import DemoSource, Scene, demo_scenes
from maskco.data.views import TwoViews, Views
from maskco.evaluate.datasets import spread
from maskco.evaluate.encoders import scene_size
from maskco.evaluate.features import extract_features
from maskco.files import user_path
from maskco.methods import Method
from maskco.report.page import RUN_COLOURS
from maskco.runs.checkpoint import load_run
from maskco.runs.folder import folder_of, read_metrics
from maskco.runs.trust import stored_data

VIEW_PAIRS = 4
LARGEST = 1e30  # of a metric that can be drawn
LABELLED_SCENES, PICTURES, REGIONS_A_PICTURE = 300, 128, 3  # among which regions are compared


@dataclass
class Regions:
    """Regions of some scenes with the encoder's features of them."""

    scenes: list[Scene]
    features: Tensor  # [M, C]
    labels: Tensor | None  # [M]; None: nothing is known of them

    @property
    def boxes(self) -> Tensor:
        return torch.cat([scene.boxes for scene in self.scenes])  # [M, 4]

    @property
    def scene_of(self) -> Tensor:
        counts = torch.tensor([len(scene.boxes) for scene in self.scenes])
        return torch.arange(len(self.scenes)).repeat_interleave(counts)  # [M]


@dataclass
class Run:
    path: Path
    name: str
    colour: str
    config: PretrainConfig
    method: Method
    step: int
    rows: list[dict[str, Any]] = field(repr=False)
    data: str | None = None  # to show it on, if not its own

    def column(self, key: str) -> tuple[list[float], list[float]]:
        """Steps and values of a metric, where it was logged as a number that can be drawn."""
        rows = [row for row in self.rows if is_number(row.get(key))]
        return [row["step"] for row in rows], [row[key] for row in rows]

    def views(self, count: int = VIEW_PAIRS) -> list[Views]:
        """Views as the first epoch of training drew them, of pictures spread evenly over the source."""
        dataset = PretrainDataset(self._source(), TwoViews(self.config.view_config()), self.config.seed)
        return [cast(Views, dataset[(0, index)].views) for index in spread(len(dataset), count)]  # TwoViews' own kind

    def regions(self) -> Regions:
        """Of the demo set the known boxes of test scenes, else boxes drawn at random in the run's own pictures."""
        size = scene_size(self.config, self.method.encoder)
        labelled = (self.data or self.config.data) == "demo"
        if labelled:
            drawn = demo_scenes("test", count=LABELLED_SCENES, image_size=size)
            scenes = [drawn[index] for index in range(len(drawn))]
        else:
            scenes = _scenes(self._source(), size)
        features, labels, _ = extract_features(self.method.encoder, scenes)
        return Regions(scenes, features, labels if labelled else None)

    def _source(self) -> Source:
        """The pictures that were named, or else the run's own, if they may be opened. Of the demo set only the first
        few, since drawing all takes seconds."""
        data = self.data or stored_data(self.path, self.config.data, f"report {shlex.quote(str(self.path))}")
        return DemoSource(VIEW_PAIRS) if data == "demo" else open_source(data)


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -LARGEST < value < LARGEST


def read_runs(paths: list[str | Path], data: str | Path | None = None) -> list[Run]:
    """Raises CheckpointError if a folder holds no checkpoint, or a damaged one, and SourceError if the data that are
    named cannot be opened."""
    if data is not None:
        data = locate(str(data))
        open_source(data)
    runs = []
    paths = [user_path(path) for path in paths]
    names = [folder_of(path).resolve().name for path in paths]
    for path, name, colour in zip(paths, names, (RUN_COLOURS * len(paths))[: len(paths)], strict=True):
        config, method, step = load_run(path)
        shown = name if names.count(name) == 1 else str(path)
        runs.append(Run(folder_of(path), shown, colour, config, method, step, read_metrics(path), data))
    return runs


def _scenes(source: Source, size: int) -> list[Scene]:
    scenes = []
    for index in spread(len(source), PICTURES):
        try:
            picture = source[index]
        except PictureError:
            continue  # training has reported it
        picture = picture if isinstance(picture, Tensor) else pictures.pil_to_tensor(picture)
        picture = pictures.center_crop(pictures.resize(picture, [size], antialias=True), [size, size])
        random = torch.rand(REGIONS_A_PICTURE, 3, generator=torch.Generator().manual_seed(index))
        side = (0.3 + 0.3 * random[:, :1]) * size
        corner = random[:, 1:] * (size - side)
        scenes.append(Scene(picture, torch.cat([corner, corner + side], 1), torch.full((REGIONS_A_PICTURE,), -1)))
    if not scenes:
        raise ValueError("none of them could be read")
    return scenes
