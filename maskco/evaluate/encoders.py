"""Opens every encoder that one table can compare: our runs, timm's models, other projects' checkpoints.

RUN                    a folder that `maskco pretrain` wrote, or one of its checkpoints
timm:NAME              timm's model with its own weights, which are downloaded (timm:resnet50.a1_in1k picks them)
timm:hf-hub:USER/NAME  a timm model of the hub, or with timm:local-dir:FOLDER of a folder laid out so
untrained:RUN_or_NAME  the same architecture with fresh weights, of a run those of its seed
FILE                   a state dict: torchvision's, timm's, lightly's, MoCo's own .pth.tar with its `module.encoder_q.`

Nothing else is fetched or opened, even if a run or file names it.
"""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch

from maskco.config import PretrainConfig
from maskco.data.views import MEAN, STD
from maskco.evaluate.errors import EvaluationError
from maskco.files import user_path
from maskco.methods import build_method
from maskco.nn.encoder import DownloadError, Encoder, Source, create_encoder, resolve
from maskco.runs.checkpoint import load_run
from maskco.weights.encoder_file import is_run, load_encoder
from maskco.weights.files import read_weights
from maskco.weights.names import choice_line

IMAGE_SIZE = 224  # of encoders that are no run's and take any size


@dataclass
class OpenedEncoder:
    """An encoder, and what is needed to use it and to describe it in a table."""

    name: str  # as the user called it
    encoder: Encoder
    architecture: str  # timm's name, of what a hub or folder holds as well
    stage: int = -1
    output_stride: int | None = None
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    image_size: int | None = None  # side in pixels that suits it; None: it has no opinion
    run: Path | None = None  # folder
    facts: dict[str, Any] = field(default_factory=dict)  # what else a table's file should say: step, file, digest …
    notes: list[str] = field(default_factory=list)  # what a reader of its row should know

    @property
    def digest(self) -> str:
        return digest(self.encoder, self.architecture, self.stage, self.output_stride)

    def place(self, folder: Path) -> str | None:
        """Where a run lies as seen from a folder, which stays true if both are moved. None: it is no run."""
        if self.run is None:
            return None
        kind, _, rest = self.name.partition(":")
        path = user_path(rest if kind == "untrained" else self.name)
        return os.path.relpath(path.resolve(), folder.resolve())


def open_encoder(name: str, architecture: str | None = None, prefix: str | None = None) -> OpenedEncoder:
    """The encoder that `name` means, see the top of this file.

    Args:
        architecture: timm's name for the encoder in a file of weights. None: what the file says (MoCo's does).
        prefix: which of several encoders in a file of weights, see `maskco.weights.names.load_named`.

    Raises:
        EvaluationError: `name` is nothing of all that, or timm does not know the model, or cannot get its weights.
        WeightsError: the file is unreadable, of an unknown architecture, or of another.
        CheckpointError, ConfigError: a damaged run.
    """
    kind, _, rest = name.partition(":")
    if kind == "timm" and rest:
        return _of_timm(name, rest, pretrained=True)
    if kind == "untrained" and rest:
        run = user_path(rest)
        return _of_run(name, run, architecture, trained=False) if run.exists() else _of_timm(name, rest)
    path = user_path(name)
    if path.is_dir():
        return _of_run(name, path, architecture)
    if path.is_file():
        return _of_file(name, path, architecture, prefix)
    hint = f". Did you mean timm:{name}?" if timm.is_model(name.split(".")[0]) else ""
    raise EvaluationError(
        f"encoder {name!r} is neither a run folder, nor a file of weights, nor timm:NAME or untrained:NAME{hint}"
    )


def untrained_of(opened: OpenedEncoder) -> str:
    """The name that means the same architecture with fresh weights."""
    kind, _, rest = opened.name.partition(":")
    return f"untrained:{opened.run or (rest if kind == 'timm' else opened.architecture)}"


def scene_size(config: PretrainConfig, encoder: Encoder) -> int:
    """Side in pixels at which the images of a run's evaluation should be seen.

    Views are enlarged crops, so objects look larger in them than in whole images of the same side. So whole images are
    enlarged by the mean enlargement (Touvron et al., 2019), up to the next multiple of 32. An encoder of fixed input
    size gets that size.
    """
    fixed = getattr(encoder, "image_size", None)
    enlargement = (sum(config.views.crop_scale) / 2) ** -0.5
    return fixed or math.ceil(config.views.image_size * enlargement / 32) * 32


def digest(encoder: Encoder, architecture: str, stage: int, output_stride: int | None) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of all weights: the same for the same encoder, however named."""
    sha = hashlib.sha256(f"{architecture} {stage} {output_stride}".encode())
    for name, value in encoder.state_dict().items():
        sha.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()[:16]


def _of_run(name: str, run: Path, architecture: str | None, *, trained: bool = True) -> OpenedEncoder:
    config, method, step = load_run(run, architecture=architecture)
    encoder = method.encoder
    notes = []
    if not trained:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(config.run.seed)
            encoder = build_method(config.without_start()).encoder.eval()
        if config.run.pretrained or config.run.init:
            began = config.run.init or f"timm's weights (timm:{config.run.encoder})"
            notes = [f"{name}: fresh weights, though the run began with {began}"]
    return OpenedEncoder(
        name=name,
        encoder=encoder,
        architecture=config.run.encoder,
        stage=config.run.stage,
        output_stride=config.run.output_stride,
        image_size=scene_size(config, encoder),
        run=run.parent if run.is_file() else run,
        facts={"method": config.run.method, "step": step} if trained else {"method": "untrained", "step": 0},
        notes=notes,
    )


def _of_timm(name: str, architecture: str, *, pretrained: bool = False) -> OpenedEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            source = resolve(architecture)
            encoder = create_encoder(architecture, pretrained=pretrained).eval()
        except DownloadError as error:
            raise EvaluationError(
                f"the weights of encoder {name!r} could not be downloaded. Go online once, or take "
                f"untrained:{architecture}"
            ) from error
        except ValueError as error:
            raise EvaluationError(str(error)) from error
    opened = _opened(name, encoder, source)
    if pretrained and source.config:
        opened.mean, opened.std = tuple(source.config["mean"]), tuple(source.config["std"])
        weights = architecture if ":" in architecture else f"{source.config.get('tag') or 'default'} weights"
        opened.facts["method"] = f"timm, {weights}"
    return opened


def _opened(name: str, encoder: Encoder, source: Source) -> OpenedEncoder:
    return OpenedEncoder(
        name,
        encoder,
        source.architecture,
        stage=source.stage,
        output_stride=source.arguments.get("output_stride"),
        image_size=encoder.image_size,
        facts={"method": "untrained"},
    )


def _of_file(name: str, path: Path, architecture: str | None, prefix: str | None) -> OpenedEncoder:
    tensors, said = read_weights(path)
    if is_run(said):
        return _of_run(name, path, architecture)
    found = load_encoder(name, tensors, said, architecture, prefix)
    opened = _opened(name, found.encoder, found.source)
    opened.facts = {"method": "file of weights", **found.facts}
    if choice := choice_line(found.facts):
        opened.notes.append(f"{name}: {choice}")
    return opened
