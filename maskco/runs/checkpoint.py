"""Checkpoints: one file with everything a run needs to continue."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from maskco.config import REGISTER, PretrainConfig, UnregisteredError
from maskco.errors import UserError, one_line
from maskco.files import partial_name, write_atomically
from maskco.methods import Method, build_method
from maskco.runs.trust import own_file, refuse_source

FORMAT = "maskco run 4"
FORMER = "maskco run 3"  # whose options had no groups, and whose metrics no names
CHECKPOINT = "last.pt"
KEPT = "step-{}.pt"  # a checkpoint that `last.pt` has replaced
BEST = "best.pt"  # that of the best epoch, by what `keep_best` says
LARGE = 1 << 26  # numbers, of 256 MiB


class CheckpointError(UserError):
    """A checkpoint is unreadable, or the file is something else."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """There is no checkpoint."""


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Writes tensors and plain values only, which need no unpickling. Raises OSError if they cannot be written."""
    try:
        write_atomically(Path(path), lambda file: torch.save({"format": FORMAT, **state}, file))
    except RuntimeError as error:  # torch's zip writer, closing after a write that failed, hides why it did
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def kept_checkpoints(run: Path) -> dict[int, Path]:
    """The checkpoints next to a run's last one, by their steps, oldest first."""
    found = ((re.fullmatch(r"step-(\d+)\.pt", path.name), path) for path in run.glob(KEPT.format("*")))
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def keep_checkpoint(path: Path, name: str) -> None:
    """Gives the checkpoint at `path`, which will be replaced, a second name next to it. If that fails
    (OSError), the file that had this name keeps it."""
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


def is_checkpoint(path: Path) -> bool:
    """Whether a file is a checkpoint of a run, of this version or another."""
    if not path.is_file():
        return False
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # as in `read_checkpoint`
        return False
    return isinstance(state, dict) and str(state.get("format")).startswith("maskco run ")


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The state in a checkpoint, on the CPU, read with `weights_only=True`. Raises CheckpointError."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointNotFoundError(f"{path} does not exist. Name the folder of a run that has saved a checkpoint")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files make the zip and pickle readers raise almost anything
        copies = [kept.name for kept in kept_checkpoints(path.parent).values() if kept != path]
        copy = f"Copy {copies[-1]} over it" if copies else "Restore it from a copy"
        raise CheckpointError(
            f"{path} cannot be read: it is damaged or truncated. {copy}, or start over with `overwrite=True`"
        ) from error
    if isinstance(state, dict) and state.get("format") == FORMER:
        state = converted(path, state)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of a maskco run ({FORMAT!r}). Name one, such as RUN/last.pt")
    return state


def converted(path: Path, state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint of the former format as one of this. Raises CheckpointError."""
    try:
        totals = dict(state.get("totals") or {})
        if totals:
            share = torch.tensor([1.0, 100.0, 100.0, 1.0])  # accuracies are in percent now
            totals |= {"names": ["accuracy", "top5", "embedding_std"], "sums": totals["sums"].reshape(-1, 4) * share}
        return {**state, "format": FORMAT, "images": state.get("pictures"), "totals": totals}
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged: {one_line(error)}. Restore it from a copy") from error


def refuse_larger_queues(config: PretrainConfig, weights: dict[str, Any]) -> None:
    """Raises ValueError if the options' queue is large and cannot be in the weights, before it is allocated.

    Own methods may have queues of any size and name, or none.
    """
    size, dim = (getattr(config.method, name, 0) for name in ("queue_size", "dim"))
    if size * dim > max(LARGE, sum(tensor.numel() for tensor in weights.values())):
        raise ValueError(f"queue_size {size} and dim {dim} are more than its weights hold")


def stored_config(path: str | Path, state: dict[str, Any]) -> PretrainConfig:
    """The checked configuration in a checkpoint's state. Raises CheckpointError."""
    try:
        config = PretrainConfig.from_stored(state["config"])
        config.check()
    except UnregisteredError as error:
        raise CheckpointError(f"{path}: {error}. {REGISTER}") from error
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} holds no options of a maskco run: {one_line(error)}. Restore it from a copy"
        ) from error
    return config


def load_run(run: str | Path, *, architecture: str | None = None) -> tuple[PretrainConfig, Method, int]:
    """Configuration, method with its trained weights (on the CPU, in eval mode) and steps done, from a run folder, or
    from one of its checkpoints.

    Args:
        architecture: the run's encoder, to be named again if it is not timm's own (`hf-hub:…`, `local-dir:…`), since
            building it opens what the name says.

    Nothing but the checkpoint is opened, and nothing fetched. Raises CheckpointError or ConfigError.
    """
    run = Path(run)
    path = run if run.is_file() else own_file(run, CHECKPOINT)
    state = read_checkpoint(path)
    config = stored_config(path, state)
    if architecture != config.run.encoder:
        refuse_source(config.run.encoder, str(path), "Name it with `architecture`")
    try:
        step = int(state["step"])
        weights = state["method"]
        with torch.random.fork_rng(devices=[]):
            refuse_larger_queues(config, weights)
            method = build_method(config.without_start())
            method.load_state_dict(weights)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError, RuntimeError, MemoryError) as error:
        if isinstance(error, UserError):
            raise
        raise CheckpointError(
            f"{path} holds weights that its own options do not fit: {one_line(error)}. Restore it from a copy"
        ) from error
    return config, method.eval(), step
