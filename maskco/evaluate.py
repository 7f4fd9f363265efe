"""How much do the encoder's features say about the regions of a scene?

The features of a region are the encoder's feature map, pooled over the region's box. A linear probe and a weighted
nearest-neighbour vote classify them. Both are run on the trained encoder and on the encoder the run began with, so the
difference is what the training gave.

The protocol is ours. To keep the comparison fair, the BatchNorm running statistics of *both* encoders are estimated
anew on the training scenes: an untrained encoder has none (mean 0, variance 1), which would make it look worse than it
is, and a trained one has those of masked and augmented views.
"""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

import maskco
from maskco.checkpoint import load_run, write_atomically
from maskco.config import PretrainConfig
from maskco.data.demo import Scene, demo_scenes
from maskco.data.views import MEAN, STD
from maskco.methods import build_method
from maskco.ops import box_pool
from maskco.probes import EvaluationError, knn_accuracy, linear_probe

KINDS = {"regions": "linear probe", "knn": "20-NN vote"}


class Score(NamedTuple):
    trained: float  # per cent
    untrained: float

    @property
    def difference(self) -> float:
        return self.trained - self.untrained


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate_run` found; `str()` gives the table."""

    run: str
    data: str
    method: str
    encoder: str
    step: int
    image_size: int
    channels: int
    scenes: tuple[int, int]  # train, test
    regions: tuple[int, int]
    chance: float  # per cent: always guessing the most frequent class of the training regions
    scores: dict[str, Score]

    def __str__(self) -> str:
        title = f"regions of {self.data}, {self.image_size} px"
        lines = [f"{title:<34}{'trained':>10}{'untrained':>12}{'difference':>13}"]
        lines.append("─" * len(lines[0]))
        for kind, score in self.scores.items():
            name = f"{KINDS[kind]}, top-1 %"
            lines.append(f"{name:<34}{score.trained:>10.1f}{score.untrained:>12.1f}{score.difference:>+13.1f}")
        lines.append(f"{'chance (most frequent class)':<34}{self.chance:>10.1f}{self.chance:>12.1f}")
        lines.append("─" * len(lines[0]))
        lines.append(f"{self.method} {self.encoder}, step {self.step}, {self.channels} features a region")
        for part, scenes, regions in zip(("train", "test"), self.scenes, self.regions, strict=True):
            lines.append(f"{part:<5} {regions:>6} regions of {scenes} scenes")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        scores = {kind: {**score._asdict(), "difference": score.difference} for kind, score in self.scores.items()}
        return {**asdict(self), "scores": scores}


# --- features -------------------------------------------------------------------------------------------------------


def region_features(
    encoder: nn.Module,
    scenes: Sequence[Scene],
    *,
    image_size: int | None = None,
    batch_size: int = 128,
    progress: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Pools the encoder's feature map over the known boxes of scenes.

    Args:
        encoder: maps normalised pictures [B, 3, H, W] to [B, C, h, w] and has `.stride`; used in eval mode, without
            gradients, on the device of its parameters, and left in the mode it was in.
        scenes: `.image` [3, H, W] uint8, `.boxes` [n, 4] (xyxy, pixels), `.labels` [n] int64, each.
        image_size: side in pixels to which every picture is resized, boxes along; None takes them as they are, and then
            all must have one size.
        progress: the words before a progress bar; None shows no bar.

    Returns:
        features [M, C] float32 and labels [M] int64 of all M regions, scene by scene, on the CPU.

    Raises:
        EvaluationError: no scenes, scenes without any box, or pictures of several sizes without `image_size`.
    """
    device = next(encoder.parameters()).device
    features, labels = [], []
    with _modes(encoder), torch.no_grad():
        encoder.eval()
        for images, boxes, batch_labels in _batches(scenes, image_size, batch_size, progress):
            maps = encoder(images.to(device))  # [B, C, h, w]
            pooled = box_pool(maps, [b.to(device, maps.dtype) for b in boxes], spatial_scale=1 / encoder.stride)
            features.append(pooled.float().cpu())
            labels += batch_labels
    if not features or sum(map(len, features)) == 0:
        raise EvaluationError(
            f"scenes: expected labelled boxes, found none in {len(scenes)} scenes; pass scenes with boxes"
        )
    return torch.cat(features), torch.cat(labels)


def reestimate_batch_norm(
    encoder: nn.Module,
    scenes: Sequence[Scene],
    *,
    image_size: int | None = None,
    batch_size: int = 64,
    limit: int = 256,
) -> None:
    """Replaces the running statistics of every BatchNorm layer, in place, by their mean over the batches of `scenes`.

    At most `limit` scenes are used. All else of the encoder stays as it is; other layers run as in evaluation.
    """
    layers = [layer for layer in encoder.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    count = min(len(scenes), limit)
    count -= count % batch_size if count > batch_size else 0  # a short last batch would weigh as much as a full one
    momentum = [layer.momentum for layer in layers]
    device = next(encoder.parameters()).device
    with _modes(encoder), torch.no_grad():
        encoder.eval()
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # a plain mean over the batches
            layer.train()
        for images, _, _ in _batches([scenes[i] for i in range(count)], image_size, batch_size) if layers else []:
            encoder(images.to(device))
    for layer, value in zip(layers, momentum, strict=True):
        layer.momentum = value


def _batches(
    scenes: Sequence[Scene], image_size: int | None, batch_size: int, progress: str | None = None
) -> Iterator[tuple[Tensor, list[Tensor], list[Tensor]]]:
    """Normalised pictures [B, 3, H, W] float32, with one tensor of boxes and one of labels a picture."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    starts = range(0, len(scenes), batch_size)
    hidden = None if progress else True  # None: shown on a terminal only
    for start in tqdm(starts, desc=progress, disable=hidden, leave=False):
        images, boxes, labels = [], [], []
        for index in range(start, min(start + batch_size, len(scenes))):
            scene = scenes[index]
            image, height, width = scene.image.float(), *scene.image.shape[-2:]
            if image_size is not None and (height, width) != (image_size, image_size):
                image = F.interpolate(image[None], size=(image_size, image_size), mode="bilinear", antialias=True)[0]
                boxes.append(scene.boxes.float() * torch.tensor([image_size / width, image_size / height] * 2))
            else:
                boxes.append(scene.boxes.float())
            images.append((image / 255 - mean) / std)
            labels.append(scene.labels)
        if len({image.shape for image in images}) > 1:
            raise EvaluationError(
                "scenes: expected pictures of one size, found several; pass image_size to resize them"
            )
        yield torch.stack(images), boxes, labels


@contextmanager
def _modes(module: nn.Module) -> Iterator[None]:
    """Every submodule leaves in the training or eval mode it came with (a frozen BatchNorm stays frozen)."""
    before = [(part, part.training) for part in module.modules()]
    try:
        yield
    finally:
        for part, training in before:
            part.training = training


def scene_size(config: PretrainConfig, encoder: nn.Module) -> int:
    """Side in pixels at which the pictures of a run's evaluation should be seen.

    Views are enlarged crops, so objects look larger in them than in whole pictures of the same side. Whole pictures are
    therefore taken larger, by the mean enlargement (Touvron et al., 2019), up to the next multiple of 32; an encoder of
    fixed input size gets that.
    """
    fixed = getattr(encoder, "image_size", None)
    enlargement = (sum(config.crop_scale) / 2) ** -0.5
    return fixed or math.ceil(config.image_size * enlargement / 32) * 32


# --- a whole run ----------------------------------------------------------------------------------------------------


def evaluate_run(
    run: str | Path,
    *,
    data: str | tuple[Sequence[Scene], Sequence[Scene]] = "demo",
    kinds: Sequence[str] = ("regions", "knn"),
    train_scenes: int = 2000,
    test_scenes: int = 1000,
    device: str | torch.device = "cpu",
    verbose: bool = True,
) -> Evaluation:
    """Evaluates a run's encoder beside the same encoder untrained, and writes RUN/evaluation.json.

    The untrained one is what the run began with: the same architecture made after the same `torch.manual_seed`.

    Args:
        run: the folder that `maskco pretrain` wrote.
        data: "demo" (scenes of items that no training scene shows), or your own (train scenes, test scenes).
        kinds: "regions" (linear probe), "knn" (20 neighbours, τ = 0.07).
        train_scenes, test_scenes: how many demo scenes to use.
        verbose: show progress and print the table.

    Raises:
        CheckpointError: `run` holds no checkpoint, or a damaged one.
        EvaluationError: unknown `data` or `kinds`, or scenes without boxes.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise EvaluationError(f"kinds: expected some of {', '.join(KINDS)}, got {', '.join(unknown) or 'none'}")
    if isinstance(data, str) and data != "demo":
        raise EvaluationError(f"data: expected 'demo' or a pair of labelled scenes (train, test), got {data!r}")
    config, method, step = load_run(run)
    size = scene_size(config, method.encoder)
    if isinstance(data, str):
        train = demo_scenes("train", count=train_scenes, image_size=size)
        test = demo_scenes("test", count=test_scenes, image_size=size)
    else:
        train, test = data
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(config.seed)
        untrained = build_method(config).encoder

    found: dict[str, dict[str, float]] = {kind: {} for kind in kinds}
    for name, encoder in (("trained", method.encoder), ("untrained", untrained)):
        encoder.to(device)
        reestimate_batch_norm(encoder, train, image_size=size)
        parts = []
        for part, scenes in (("train", train), ("test", test)):
            progress = f"{name} encoder, {part} scenes" if verbose else None
            parts.append(region_features(encoder, scenes, image_size=size, progress=progress))
        (train_x, train_y), (test_x, test_y) = parts
        for kind in kinds:
            if kind == "regions":
                found[kind][name] = linear_probe(train_x, train_y, test_x, test_y).accuracy
            else:
                found[kind][name] = knn_accuracy(train_x, train_y, test_x, test_y, k=min(20, len(train_x)))

    result = Evaluation(
        run=str(run),
        data="demo scenes" if isinstance(data, str) else "own scenes",
        method=config.method,
        encoder=config.encoder,
        step=step,
        image_size=size,
        channels=train_x.shape[1],
        scenes=(len(train), len(test)),
        regions=(len(train_x), len(test_x)),
        chance=100 * float((test_y == train_y.mode().values).double().mean()),
        scores={kind: Score(**found[kind]) for kind in kinds},
    )
    content = json.dumps({**result.to_json(), **_provenance(config, device)}, indent=2) + "\n"
    write_atomically(Path(run) / "evaluation.json", lambda file: file.write(content.encode()))
    if verbose:
        print(result)
    return result


def _provenance(config: PretrainConfig, device: str | torch.device) -> dict[str, Any]:
    """What it takes to know later where the figures come from."""
    settings = json.dumps(config.to_dict(), sort_keys=True)
    return {
        "config_sha256": hashlib.sha256(settings.encode()).hexdigest(),
        "device": str(device),
        "versions": {"maskco": maskco.__version__, "torch": torch.__version__, "timm": version("timm")},
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The commit of the source tree this file is tracked in, "-dirty" if changed; None for an installed package."""
    here = Path(__file__).resolve()
    try:
        for command in (["ls-files", "--error-unmatch", here.name], ["describe", "--always", "--dirty", "--abbrev=12"]):
            done = subprocess.run(["git", *command], cwd=here.parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
