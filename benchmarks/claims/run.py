"""One row of the study: a method trained on one set with one seed, and what its encoder is good for."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

import benchmarks.claims.encoder
import benchmarks.claims.listed  # noqa: F401 (tells maskco its name)
from benchmarks.claims.ages import AGES, register
from benchmarks.claims.probe import probe
from benchmarks.claims.probe_set import ProbeSet
from benchmarks.claims.row_file import Row
from benchmarks.claims.settings import SUPERVISED, UNTRAINED, Scale
from maskco.config import PretrainConfig
from maskco.data.memory import keep_freed_memory
from maskco.data.sources.demo import Scene
from maskco.data.views import MEAN, STD
from maskco.errors import UserError
from maskco.evaluate.features import Input, fit
from maskco.methods import build_method
from maskco.ops import box_pool
from maskco.provenance import device_name, provenance
from maskco.recipes import MOCO_V2
from maskco.runs.checkpoint import load_run
from maskco.runs.folder import METRICS
from maskco.training.loop import train
from maskco.training.start import open_images, resolve

POINTS = 20  # of the curve of a run, besides the ends of epochs


def run(method: str, own: dict[str, Any], data: ProbeSet, scale: Scale, seed: int, part: str, folder: Path) -> Row:
    """Trains (or goes on where an interrupted run in `folder` stopped), probes, and tells.

    Args:
        method: what the row is called; UNTRAINED and SUPERVISED are no runs of maskco.
        own: the method's options, beside the scale's.
        part: "val" or "test".

    Raises UserError.
    """
    options = options_of(own, data, scale, seed)
    log_every = max(scale.steps // POINTS, 1)
    config = resolve(PretrainConfig.of(data=data.pretrain, out=str(folder), log_every=log_every, **options))
    torch.set_num_threads(config.run.threads)
    keep_freed_memory()
    started, told = time.monotonic(), {}
    if method == UNTRAINED:
        encoder = fresh(config)
    elif method == SUPERVISED:
        encoder = supervised(fresh(config).to(config.run.device), data, scale, seed)
        told["steps"] = scale.steps
    else:
        encoder, told = pretrained(config, scale.steps, folder)
    told["seconds"] = round(told.get("seconds", time.monotonic() - started))
    encoder, side = encoder.to(config.run.device), data.probed or scale.probed
    scores = probe(encoder, data.train, getattr(data, part), data.classes, side, balanced=data.balanced)
    row = {"scale": scale.name, "set": data.name, "method": method, "seed": seed, "part": part, "scores": scores}
    return row | told | {"options": options, "device": device_name(torch.device(config.run.device))} | provenance()


def options_of(own: dict[str, Any], data: ProbeSet, scale: Scale, seed: int) -> dict[str, Any]:
    """Of a run: those of the scale that the method has, then the set's and the method's own."""
    view = {} if data.view is None else {"image_size": data.view}
    register()
    shared = {"seed": seed, "batch_size": scale.batch_size} | scale.options | view | data.options
    known = PretrainConfig.of(method=own.get("method", PretrainConfig.of().run.method)).flat()
    return {name: value for name, value in shared.items() if name in known} | own


def fresh(config: PretrainConfig) -> nn.Module:
    """The encoder that a run with this configuration begins with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        return build_method(config).encoder


def pretrained(config: PretrainConfig, steps: int, folder: Path) -> tuple[nn.Module, Row]:
    """The encoder that `maskco pretrain` with these options leaves, and what its log says in the end."""
    epochs = max(round(steps * config.optim.batch_size / len(open_images(config))), 1)
    done = train(config.replace(epochs=epochs), resume=True)
    if done.interrupted:
        raise UserError(f"{folder} was interrupted: the same command goes on with it")
    rows = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    told = {"steps": done.steps, "contrast_accuracy": rows[-1]["accuracy"], "seconds": rows[-1]["seconds"]}
    told["effective_rank"] = rows[-1].get("effective_rank")
    told["curve"] = [[row["step"], row["accuracy"], row.get("effective_rank")] for row in rows]
    if AGES[0] in rows[-1]:
        told["ages"] = [[row["step"], *(row[name] for name in AGES)] for row in rows]
    return load_run(folder)[1].encoder, told


def supervised(encoder: nn.Module, data: ProbeSet, scale: Scale, seed: int) -> nn.Module:
    """Trained on the classes of the very regions that the probe learns from: as many pictures, the same optimizer, and
    views that are flipped, or shifted by up to four pixels, a batch at a time. Photographs are squeezed into squares,
    as by the probe."""
    torch.manual_seed(seed)
    device = next(encoder.parameters()).device
    classifier = nn.Linear(encoder.channels, data.classes).to(device)
    learned = [*encoder.to(memory_format=torch.channels_last).train().parameters(), *classifier.parameters()]
    lr = scale.options.get("lr", MOCO_V2["lr"]) * scale.batch_size / 256
    decay = scale.options.get("weight_decay", MOCO_V2["weight_decay"])
    optimizer = torch.optim.SGD(learned, lr, momentum=0.9, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, scale.steps)
    order = torch.randint(len(data.train), (scale.steps * scale.batch_size,)).tolist()
    form = Input(data.probed or scale.probed)
    loader = DataLoader(Subset(Fitted(data.train, form), order), scale.batch_size, collate_fn=list)
    for scenes in loader:
        images, boxes = shifted_and_flipped(scenes)
        features = encoder(images.to(device, memory_format=torch.channels_last))
        pooled = box_pool(features, [part.to(device) for part in boxes], spatial_scale=1 / encoder.stride)
        labels = torch.cat([scene.labels for scene in scenes]).to(device)
        optimizer.zero_grad()
        F.cross_entropy(classifier(pooled), labels).backward()
        optimizer.step()
        schedule.step()
    return encoder


class Fitted(Dataset):
    """Scenes at the size at which the probe sees them."""

    def __init__(self, scenes: Sequence[Scene], form: Input) -> None:
        self.scenes, self.form = scenes, form

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Scene:
        image, boxes, labels = self.scenes[index]
        return Scene(*fit(image, boxes, self.form), labels)


def shifted_and_flipped(scenes: list[Scene]) -> tuple[Tensor, list[Tensor]]:
    """Normalised pictures [B, 3, S, S] with their boxes, all of a batch moved alike."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    images = (torch.stack([scene.image for scene in scenes]) / 255 - mean) / std
    across, down = torch.randint(-4, 5, (2,)).tolist()
    images = F.pad(images, (4 + across, 4 - across, 4 + down, 4 - down))[..., 4:-4, 4:-4]
    boxes = [scene.boxes + torch.tensor((across, down, across, down)) for scene in scenes]
    if torch.rand(()) < 0.5:
        width = images.shape[-1]
        images = images.flip(-1)
        boxes = [torch.stack((width - b[:, 2], b[:, 1], width - b[:, 0], b[:, 3]), dim=1) for b in boxes]
    return images, boxes
