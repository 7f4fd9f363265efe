"""Checkpoints: one file with everything a run needs to go on, replaced in one go so that it is never half there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from maskco.config import PretrainConfig, UserError
from maskco.methods import build_method

FORMAT = "maskco run 1"
CHECKPOINT = "last.pt"


class CheckpointError(UserError):
    """A checkpoint is unreadable, or of something else."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """There is no checkpoint."""


def partial_name(name: str) -> str:
    """What a file is called while `write_atomically` fills it."""
    return f".{name}.partial"


def write_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """`write` fills a file beside `path`, which then takes its place: readers see the old file or the new one."""
    partial = path.with_name(partial_name(path.name))
    with open(partial, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Writes tensors and plain values, nothing that needs unpickling."""
    write_atomically(Path(path), lambda file: torch.save({"format": FORMAT, **state}, file))


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The state in a checkpoint, on the CPU, read with `weights_only=True`. Raises CheckpointError."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointNotFoundError(f"{path} does not exist: name the folder of a run that has saved a checkpoint")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files make the zip and pickle readers raise almost anything
        raise CheckpointError(
            f"{path} cannot be read, damaged or truncated: restore it from a copy, or start again with --overwrite"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of a maskco run ({FORMAT!r})")
    return state


def load_run(run: str | Path) -> tuple[PretrainConfig, nn.Module, int]:
    """Configuration, method with its trained weights (on the CPU, in eval mode) and steps done, from a run folder, or
    from one of its checkpoints.

    Raises CheckpointError or ConfigError.
    """
    run = Path(run)
    state = read_checkpoint(run if run.is_file() else run / CHECKPOINT)
    config = PretrainConfig.from_dict(state["config"])
    with torch.random.fork_rng(devices=[]):
        method = build_method(config, pretrained=False)
    method.load_state_dict(state["method"])
    return config, method.eval(), state["step"]
