"""Encoders that can be exported: that of a run, or one in a file of weights that another project wrote."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile
from operator import eq
from pathlib import Path
from typing import Any

from torch import Tensor

from maskco.config import PretrainConfig
from maskco.data.views import MEAN, STD
from maskco.errors import UserError
from maskco.files import user_path
from maskco.nn.encoder import resolve
from maskco.runs.checkpoint import is_checkpoint, load_run
from maskco.runs.folder import read_metrics
from maskco.weights.encoder_file import load_encoder
from maskco.weights.files import read_weights
from maskco.weights.names import COUNTERS, choice_line, rest_named, timm_state, whole_model_state

SHOWN = 12  # groups of keys in a card's table; its last section has all


class ExportError(UserError, ValueError):
    """The encoder is not one that the other library has, or cannot be written so."""


@dataclass(frozen=True)
class Origin:
    """An encoder, and the facts of its card about its origin."""

    encoder: str  # timm's name, as the run or the user has it
    tensors: dict[str, Tensor]  # by the names of timm's whole model
    stage: int
    output_stride: int | None
    image_size: int | None  # side in pixels of what it learned from; None: not known
    rows: dict[str, str]  # of the card's table
    title: str  # of the card's last section
    settings: dict[str, Any]  # its content
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    @property
    def name(self) -> str:
        """timm's own name of the architecture, perhaps with a tag, also of an encoder of the hub or a folder."""
        return resolve(self.encoder).architecture

    @property
    def architecture(self) -> str:
        """timm's name without a tag."""
        return self.name.split(".")[0]

    def options(self) -> dict[str, Any]:
        """Arguments of `timm.create_model` next to the name, for a model into which the tensors fit."""
        options = {**resolve(self.encoder).arguments, "num_classes": 0}
        if self.output_stride is not None:
            options["output_stride"] = self.output_stride
        whole = whole_model_state(self.encoder)
        if any(value.shape != whole[name].shape for name, value in self.tensors.items()):
            options["img_size"] = self.image_size  # position embeddings follow the size of the images
        return options

    def missing(self) -> dict[str, Tensor]:
        """Tensors of the whole model that the encoder ends before, in its order, on the meta device."""
        return {name: v for name, v in whole_model_state(self.encoder).items() if name not in self.tensors}


def open_origin(
    source: str | Path,
    architecture: str | None = None,
    prefix: str | None = None,
    *,
    public: bool = False,
    notes: list[str] | None = None,
) -> Origin:
    """The encoder in a run folder, a checkpoint or a file of weights.

    Args:
        architecture: timm's name for the encoder in a file that does not say it. For a run, only if the encoder is not
            timm's own.
        prefix: which of several encoders in a file of weights, see `maskco.weights.names.load_named`.
        public: leave out what describes the user's machine, such as paths.
        notes: gets what the user should know.

    Raises:
        CheckpointError, ConfigError: no usable checkpoint.
        WeightsError: a file that does not fit.
        ExportError: nothing is there, or a prefix or another architecture is named for a run.
    """
    path = user_path(source)
    if not path.exists():
        raise ExportError(f"{path} does not exist. Name a run folder, a checkpoint, or a file of weights")
    if path.is_file() and not is_checkpoint(path):
        return _of_file(path, architecture, prefix, [] if notes is None else notes)
    if prefix is not None:
        raise ExportError(f"prefix: {path} is a run, no file of weights. Leave it out")
    return _of_run(path, architecture, public)


def _of_run(run: Path, architecture: str | None, public: bool) -> Origin:
    config, method, step = load_run(run, architecture=architecture)
    if architecture not in (None, config.run.encoder):
        raise ExportError(f"architecture: {run} is a run of {config.run.encoder}. Leave it out")
    seconds = _seconds(run)
    hours = "" if seconds is None else f", {seconds / 3600:.1f} h"
    data = public_data(config.run.data) if public else config.run.data
    return Origin(
        encoder=config.run.encoder,
        tensors=timm_state(method.encoder.backbone, config.run.encoder),
        stage=config.run.stage,
        output_stride=config.run.output_stride,
        image_size=config.views.image_size,
        rows={
            "pretrained by": f"{config.run.method}, without labels",
            "started from": _start(config, public),
            "data": f"`{data}`" if data else "not named",
            "steps": f"{step:,} of {config.optim.batch_size} images{hours}",
            "views": f"{config.views.image_size} × {config.views.image_size} pixels",
        },
        title="Configuration",
        settings=public_config(config) if public else config.to_dict(),
    )


def _start(config: PretrainConfig, public: bool) -> str:
    if config.run.pretrained:
        return f"timm's weights of {resolve(config.run.encoder).architecture}"
    if config.run.init is None:
        return "fresh weights"
    return "other weights, not named" if public else f"`{config.run.init}`"


def _seconds(run: Path) -> float | None:
    rows = read_metrics(run)
    seconds = rows[-1].get("seconds") if rows and isinstance(rows[-1], dict) else None
    return seconds if isinstance(seconds, (int, float)) else None


def _of_file(path: Path, architecture: str | None, prefix: str | None, notes: list[str]) -> Origin:
    tensors, said = read_weights(path)
    found = load_encoder(str(path), tensors, said, architecture, prefix)
    if choice := choice_line(found.facts):
        notes.append(f"{path.name}: {choice}")
    state = timm_state(found.encoder.backbone, found.architecture)
    whole = whole_model_state(found.architecture)
    is_whole = found.source.stage == -1  # else what follows the map was not trained with it
    rest = rest_named(whole, state, found.taken, tensors) if is_whole else {}
    state |= {name: tensors[called].to(whole[name].dtype) for name, called in rest.items()}
    used = {*found.taken.names.values(), *rest.values()}
    left_out = _grouped(sorted(tensors.keys() - used), found.taken.prefix)
    behind = f" behind `{found.taken.prefix}`" if found.taken.prefix else ""
    digest = _sha256(path)
    return Origin(
        encoder=found.architecture,
        tensors=state,
        stage=found.source.stage,
        output_stride=found.source.arguments.get("output_stride"),
        image_size=found.encoder.image_size,
        rows={
            "weights": f"`{path.name}`, not trained here",
            "SHA-256": f"`{digest}`",
            "taken": f"{len(used)} tensors{behind}",
            "left out": _listed(left_out) or "nothing",
        },
        title="Origin",
        settings={
            "file": path.name,
            "sha256": digest,
            "architecture": found.source.architecture,
            "prefix": found.taken.prefix,
            "taken": len(used),
            "left_out": left_out,
        },
    )


def _grouped(names: Iterable[str], prefix: str) -> dict[str, int]:
    """How many tensors there are below each name that differs from the prefix in its last word."""
    taken = prefix.split(".")
    groups: Counter[str] = Counter()
    for name in names:
        if name.endswith(COUNTERS):
            continue
        words = name.split(".")
        common = sum(1 for _ in takewhile(bool, map(eq, taken, words)))
        groups[".".join(words[: common + 1])] += 1
    return dict(groups)


def _listed(groups: dict[str, int]) -> str:
    shown = [f"`{name}` ({count})" for name, count in [*groups.items()][:SHOWN]]
    return ", ".join(shown) + (f" and {len(groups) - SHOWN} more" if len(groups) > SHOWN else "")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


# --- what may be published ------------------------------------------------------------------------------------------

PUBLIC = ("method", "recipe", "encoder", "stage", "output_stride", "pretrained", "batch_norm", "seed")
"""Options of a run that may be published. Others say how and where it ran on the user's machine."""


def public_data(data: str) -> str | None:
    """The name of a public data set. None for images of the user's own, whose path or address stays unsaid."""
    found = re.match(r"demo$|torchvision:\w+|hf:\w[\w.-]*(/[\w.-]+)?(?=\?|$)", data)
    return found[0] if found else None


def public_config(config: PretrainConfig) -> dict[str, dict[str, Any]]:
    """How the encoder learned, without what describes the user's machine: names of data, paths, devices."""
    groups = config.to_dict()
    groups["run"] = {name: value for name, value in groups["run"].items() if name in PUBLIC}
    groups["run"]["encoder"] = resolve(config.run.encoder).architecture
    return {group: {n: v for n, v in values.items() if not _is_path(v)} for group, values in groups.items()}


def _is_path(value: Any) -> bool:
    """Whether an option, perhaps of a method from outside the package, could be a path or an address."""
    return isinstance(value, str) and any(mark in value for mark in ("/", "\\", "~"))
