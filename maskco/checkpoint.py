"""Checkpoints: one file with everything a run needs to go on."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from maskco.config import PretrainConfig, UserError
from maskco.files import partial_name, write_atomically
from maskco.methods import Method, build_method

FORMAT = "maskco run 3"
CHECKPOINT = "last.pt"
KEPT = "step-{}.pt"  # a checkpoint that `last.pt` has replaced
BEST = "best.pt"  # that of the epoch with the lowest mean loss


class CheckpointError(UserError):
    """A checkpoint is unreadable, or of something else."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """There is no checkpoint."""


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Writes tensors and plain values, nothing that needs unpickling. Raises OSError if they cannot be written."""
    try:
        write_atomically(Path(path), lambda file: torch.save({"format": FORMAT, **state}, file))
    except RuntimeError as error:  # torch's zip writer, closing after a write that failed, hides why it did
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def kept_checkpoints(run: Path) -> dict[int, Path]:
    """The checkpoints beside a run's last one, by their steps, oldest first."""
    found = ((re.fullmatch(r"step-(\d+)\.pt", path.name), path) for path in run.glob(KEPT.format("*")))
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def keep_checkpoint(path: Path, name: str) -> None:
    """Gives the checkpoint at `path`, which will be replaced, a second name beside it. If that fails
    (OSError), what had the name before has it still."""
    kept = path.with_name(name)
    if kept.exists() and kept.samefile(path):
        return
    partial = path.with_name(partial_name(name))
    partial.unlink(missing_ok=True)
    try:
        os.link(path, partial)
    except OSError:  # a file system without links
        with open(path, "rb") as source:
            write_atomically(kept, lambda file: shutil.copyfileobj(source, file))
    else:
        os.replace(partial, kept)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The state in a checkpoint, on the CPU, read with `weights_only=True`. Raises CheckpointError."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointNotFoundError(f"{path} does not exist: name the folder of a run that has saved a checkpoint")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files make the zip and pickle readers raise almost anything
        copies = [kept.name for kept in kept_checkpoints(path.parent).values() if kept != path]
        copy = f"copy {copies[-1]} over it" if copies else "restore it from a copy"
        raise CheckpointError(
            f"{path} cannot be read, damaged or truncated: {copy}, or start again with --overwrite"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of a maskco run ({FORMAT!r})")
    return state


def load_run(run: str | Path, *, architecture: str | None = None) -> tuple[PretrainConfig, Method, int]:
    """Configuration, method with its trained weights (on the CPU, in eval mode) and steps done, from a run folder, or
    from one of its checkpoints.

    Args:
        architecture: the run's encoder, which has to be named here where timm would fetch or open something to build it
            ("hf-hub:…", "local-dir:…"): what a run folder says is not enough for that.

    Raises CheckpointError or ConfigError.
    """
    run = Path(run)
    state = read_checkpoint(run if run.is_file() else run / CHECKPOINT)
    config = PretrainConfig.from_dict(state["config"])
    if ":" in str(config.encoder) and config.encoder != architecture:
        raise CheckpointError(
            f"{run} is of encoder {config.encoder!r}, which is not fetched or opened because a run says so: to "
            "evaluate it, name it with --architecture"
        )
    with torch.random.fork_rng(devices=[]):
        method = build_method(config, pretrained=False)
    method.load_state_dict(state["method"])
    return config, method.eval(), state["step"]
