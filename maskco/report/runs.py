"""A run as the report sees it: its options, its method, and images to show it on.

Only this file looks at a run's options and its method.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from maskco.config import PretrainConfig
from maskco.data.images import ImageError
from maskco.data.sources import Source, locate, open_source
from maskco.data.sources.demo import DemoSource, Scene, demo_scenes
from maskco.evaluate.datasets import evenly_spaced
from maskco.evaluate.encoders import digest, scene_size
from maskco.evaluate.features import extract_features
from maskco.files import user_path
from maskco.methods import Method
from maskco.report.page import RUN_COLORS
from maskco.report.views import Sample, read_samples
from maskco.runs.checkpoint import load_run
from maskco.runs.folder import CHANCE, PROBES, folder_of, read_metrics
from maskco.runs.trust import stored_data
from maskco.view_options import MaskOptions

SAMPLES = 3
LARGEST = 1e30  # of a metric that can be drawn
LABELLED_SCENES, IMAGES, REGIONS_AN_IMAGE = 300, 128, 3  # among which regions are compared
RENAMED = {"pictures_per_s": "images_per_s"}  # metrics of earlier versions
SUMMARY = {
    "method": "{}", "encoder": "{}", "mask_head": "mask head {}", "image_size": "{} px", "batch_size": "batch {}",
    "queue_size": "queue {:,}", "dim": "dim {}", "temperature": "τ {:g}", "key_momentum": "momentum {:g}",
    "optimizer": "{}", "lr": "lr {:g}", "seed": "seed {}",
}  # fmt: skip


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
    color: str
    config: PretrainConfig
    method: Method
    step: int
    rows: list[dict[str, Any]] = field(repr=False)
    data: str | None = None  # to show it on, if not its own

    @property
    def options(self) -> dict[str, Any]:
        return self.config.flat()

    @property
    def summary(self) -> str:
        """The options that matter most, in a line."""
        parts = [words.format(self.options[name]) for name, words in SUMMARY.items() if name in self.options]
        if self.masks:
            regions = self.config.views.regions
            parts.insert(3, f"{regions} region{'s' * (regions != 1)} an image")
        return "  ·  ".join(parts)

    @property
    def progress(self) -> str:
        when, last = f"step {self.step:,}", self.rows[-1] if self.rows else {}
        if is_number(last.get("epoch")) and is_number(last.get("seconds")):
            when += f"  ·  epoch {last['epoch']:.4g}  ·  {_duration(last['seconds'])}"
        return when

    @property
    def masks(self) -> MaskOptions | None:
        """How regions of the query views are masked, if the method masks any."""
        return self.config.method if isinstance(self.config.method, MaskOptions) else None

    @cached_property
    def keys(self) -> dict[str, Tensor]:
        """The valid keys [N, D] of each of the method's queues."""
        return {name: queue.features[: int(queue.valid)].float() for name, queue in self.method.queues.items()}

    def chance_of(self, metric: str) -> float | None:
        """Percent that a guess gets right, or None where it is not known. For a probe it is the last logged. For the
        contrast accuracy it is that among all candidates once the queue is full."""
        if metric in PROBES:
            return next(reversed(self.column(metric + CHANCE)[1]), None)
        if metric != "accuracy" or not self.method.queues:
            return None
        local = self.method.other_negatives(self.config.views.regions)
        return 100 / (1 + len(next(iter(self.method.queues.values())).features) + local)

    @cached_property
    def digest(self) -> str:
        run = self.config.run
        return digest(self.method.encoder, run.encoder, run.stage, run.output_stride)

    @property
    def metrics(self) -> list[str]:
        """Names of the logged numbers that can be drawn."""
        return list(dict.fromkeys(name for row in self.rows for name, value in row.items() if is_number(value)))

    def column(self, key: str) -> tuple[list[float], list[float]]:
        """Steps and values of a metric, where it was logged as a number that can be drawn."""
        rows = [row for row in self.rows if is_number(row.get(key))]
        return [row["step"] for row in rows], [row[key] for row in rows]

    def samples(self) -> list[Sample]:
        """Some of the images with their views as the first epoch of training drew them. Raises ValueError."""
        samples, failures = read_samples(self._source(), self.config.views, SAMPLES, seed=self.config.run.seed)
        if not samples:
            raise ValueError(": ".join(failures[0]))
        return samples

    def regions(self) -> Regions:
        """The known boxes of the demo set's test scenes, else boxes drawn at random in the run's own images."""
        size = scene_size(self.config, self.method.encoder)
        labelled = (self.data or self.config.run.data) == "demo"
        if labelled:
            drawn = demo_scenes("test", count=LABELLED_SCENES, image_size=size)
            scenes = [drawn[index] for index in range(len(drawn))]
        else:
            scenes = _scenes(self._source(), size)
        features, labels, _ = extract_features(self.method.encoder, scenes)
        return Regions(scenes, features, labels if labelled else None)

    def _source(self) -> Source:
        """The named images, or else the run's own, if they may be opened. Of the demo set only the first few,
        since drawing all takes seconds."""
        data = self.data or stored_data(self.path, self.config.run.data, f"report {shlex.quote(str(self.path))}")
        return DemoSource(SAMPLES) if data == "demo" else open_source(data)


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
    for path, name, color in zip(paths, names, (RUN_COLORS * len(paths))[: len(paths)], strict=True):
        config, method, step = load_run(path)
        shown = name if names.count(name) == 1 else str(path)
        rows = [{RENAMED.get(name, name): value for name, value in row.items()} for row in read_metrics(path)]
        runs.append(Run(folder_of(path), shown, color, config, method, step, rows, data))
    return runs


def _scenes(source: Source, size: int) -> list[Scene]:
    scenes = []
    for index in evenly_spaced(len(source), IMAGES):
        try:
            image = source[index]
        except ImageError:
            continue  # training has reported it
        image = image if isinstance(image, Tensor) else F.pil_to_tensor(image)
        image = F.center_crop(F.resize(image, [size], antialias=True), [size, size])
        random = torch.rand(REGIONS_AN_IMAGE, 3, generator=torch.Generator().manual_seed(index))
        side = (0.3 + 0.3 * random[:, :1]) * size
        corner = random[:, 1:] * (size - side)
        scenes.append(Scene(image, torch.cat([corner, corner + side], 1), torch.full((REGIONS_AN_IMAGE,), -1)))
    if not scenes:
        raise ValueError("none of them could be read")
    return scenes


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
