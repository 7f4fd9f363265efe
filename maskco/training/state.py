"""State of a pretraining run, from step to step, and from one process to the one that resumes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maskco.config import PretrainConfig
from maskco.errors import ConfigError, TrainingError, UserError, one_line
from maskco.methods import build_method
from maskco.methods.base import encoders
from maskco.nn.ranks import gather_in_rank_order, rank
from maskco.runs.checkpoint import (
    BEST,
    CHECKPOINT,
    KEPT,
    CheckpointError,
    keep_checkpoint,
    kept_checkpoints,
    read_checkpoint,
    save_checkpoint,
    stored_config,
)
from maskco.training.distributed import share_batch_statistics
from maskco.training.monitors import Monitors
from maskco.training.optim import create_optimizer, learning_rate, load_optimizer
from maskco.training.recipe import freeze_patch_embedding
from maskco.training.totals import BestEpoch, BrokenImages, Totals


class TrainState:
    """Method, optimizer, scaler, totals and random numbers of a run after `step` steps.

    All ranks hold one, equal but for random numbers, batch norms' running statistics and the totals of their own
    images. Methods that wait for other ranks say so. All ranks must call them.
    """

    def __init__(
        self,
        config: PretrainConfig,
        images: int,
        device: torch.device,
        fingerprint: str = "",
        *,
        from_checkpoint: bool = False,
    ) -> None:
        """from_checkpoint: `load` follows, so that weights to start from need not be fetched."""
        self.config = config
        self.images, self.fingerprint = images, fingerprint  # how many, and a hash of their names
        self.device = device
        # channels_last: a tenth to a quarter faster on CPUs, and what tensor cores want
        try:
            method = build_method(config.without_start() if from_checkpoint else config).to(device)
        except (MemoryError, RuntimeError) as error:  # torch has no type of its own for a CPU without memory
            if isinstance(error, UserError):
                raise
            options = ", ".join(f"{name} {value}" for name, value in vars(config.method).items())
            raise ConfigError(
                f"the method cannot be built with {options}: {one_line(error).rstrip('.')}. Choose smaller values, "
                "or a smaller `encoder`"
            ) from error
        self.method = method.to(memory_format=torch.channels_last).train()
        if config.optim.freeze_patch_embedding:
            freeze_patch_embedding(self.method.encoder)
        if config.run.batch_norm == "sync":
            share_batch_statistics(self.method)
        if config.run.compile:  # in place: parameters keep their names
            for encoder in encoders(self.method):
                encoder.compile()
        self.optimizer = create_optimizer(self.method, config.optim, config.run.encoder, fused=device.type == "cuda")
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.optim.amp == "fp16")
        self.totals = Totals(device)
        self.broken = BrokenImages(images)
        self.best = BestEpoch(config.run.keep_best, self.method.queues.values())
        self.step = 0
        self.saved_step: int | None = None
        self.seconds = 0.0  # of training, all processes of this run together
        self.monitors = Monitors(self)

    @property
    def steps_per_epoch(self) -> int:
        return self.images // self.config.optim.batch_size

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.config.optim.epochs * self.steps_per_epoch

    @property
    def lr(self) -> float:
        """The next step's learning rate: a linear warm-up, then a cosine to 0 at the end of the run."""
        return learning_rate(self.config.optim, self.step, self.steps)

    def save(self, path: Path) -> None:
        """Rank 0 writes, but all must call it. Raises TrainingError, and leaves the checkpoint before alone, if loss or
        state are no longer finite, or if it cannot be written."""
        self.require_finite_loss()
        state = {
            "config": self.config.to_dict(),
            "images": self.images,
            "fingerprint": self.fingerprint,
            "step": self.step,
            "seconds": self.seconds,
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "totals": self.totals.state_dict(),
            "broken": self.broken.state_dict(),
            "best": self.best.state_dict(),
            "monitors": self.monitors.state_dict(),
            "random": gather_in_rank_order(torch.get_rng_state()[None]),  # a row for each rank
            "random_cuda": gather_in_rank_order(torch.cuda.get_rng_state(self.device)[None])
            if self.device.type == "cuda"
            else None,
        }
        if rank() == 0:
            self._write(path, state)
            self._keep_if_best(path)
        self.saved_step = self.step

    def _write(self, path: Path, state: dict[str, Any]) -> None:
        bad = not_finite({"method": state["method"], "optimizer": state["optimizer"]})
        if bad:
            raise self._not_finite(f"{bad[0]} is", self.step, self.monitors.causes(self.step))
        try:
            if self.config.run.keep > 1 and self.saved_step and path.exists():
                keep_checkpoint(path, KEPT.format(self.saved_step))
            save_checkpoint(path, state)
        except OSError as error:
            raise TrainingError(
                f"step {self.step} could not be saved ({error.strerror}). {self._last_good}. "
                "Free some space, then continue with `resume=True`"
            ) from error
        # Those of later steps are of a run that was put back to an earlier one: for its owner to remove.
        older = [kept for step, kept in kept_checkpoints(path.parent).items() if step < self.step]
        for kept in older[: max(len(older) - (self.config.run.keep - 1), 0)]:
            kept.unlink()

    def _keep_if_best(self, path: Path) -> None:
        if self.config.run.keep_best != "off" and self.best.step == self.step:
            try:
                keep_checkpoint(path, BEST)
            except OSError as error:
                raise TrainingError(
                    f"step {self.step} could not be kept as {BEST} ({error.strerror}), but {path} is whole. "
                    "Free some space, then continue with `resume=True`"
                ) from error

    def load(self, path: Path) -> None:
        """Raises CheckpointError if the checkpoint is unreadable, of a run with other options or images, or past this
        run's end.

        It may be of a run with more or fewer ranks: the order of images does not depend on their number. The data may
        have moved, if there are as many images of the same names.
        """
        state = read_checkpoint(path)
        config = stored_config(path, state)
        differences = config.differences(self.config)
        if differences:
            raise CheckpointError(
                f"cannot resume from {path}: its run has other options ({'; '.join(differences)}). "
                "Leave these as they were, or start another run with another `out`"
            )
        if state.get("images") != self.images:
            raise CheckpointError(
                f"cannot resume from {path}: its run has {state.get('images')} images, but {self.config.run.data} has "
                f"{self.images}. Restore the images, or start another run with another `out`"
            )
        if state.get("fingerprint") != self.fingerprint:
            raise CheckpointError(
                f"cannot resume from {path}: its run has as many images of other names or content than "
                f"{self.config.run.data} holds. Restore the images, or start another run with another `out`"
            )
        bad = not_finite({name: state.get(name) for name in ("method", "optimizer")})
        if bad:
            more = f" and {len(bad) - 1} more tensors contain" if len(bad) > 1 else " contains"
            raise CheckpointError(
                f"cannot resume from {path}: {bad[0]}{more} NaN or Inf. Restore an earlier checkpoint, or start over "
                "with `overwrite=True`"
            )
        try:
            self._take(state)
        except (KeyError, TypeError, AttributeError, ValueError, IndexError, RuntimeError) as error:
            raise CheckpointError(
                f"cannot resume from {path}: {one_line(error)}. Restore an earlier checkpoint, or start over with "
                "`overwrite=True`"
            ) from error
        if self.step > self.steps:
            epochs, least = self.config.optim.epochs, -(-self.step // self.steps_per_epoch)
            raise CheckpointError(
                f"cannot resume from {path}: its run has done {self.step} steps, and `epochs={epochs}` ends after "
                f"{self.steps}. Leave out `epochs`, or take {least} or more"
            )
        if rank() == 0:
            self._keep_if_best(path)  # the run may have been killed just before it did

    def _take(self, state: dict[str, Any]) -> None:
        """Raises almost anything if the state is incomplete or not what it should be."""
        self.method.load_state_dict(state["method"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.totals.load_state_dict(state["totals"])
        self.broken.load_state_dict(state["broken"])
        self.best.load_state_dict(state["best"])
        self.monitors.load_state_dict(state.get("monitors", {}))  # (earlier versions had none)
        random = state["random"].reshape(-1, len(torch.get_rng_state()))
        if rank() < len(random):  # a rank more than there were keeps the random numbers that it started with
            torch.set_rng_state(random[rank()].clone())
            if self.device.type == "cuda" and state["random_cuda"] is not None:
                random = state["random_cuda"].reshape(len(random), -1)
                torch.cuda.set_rng_state(random[rank()].clone(), self.device)
        if not isinstance(state["step"], int) or state["step"] < 0:
            raise ValueError(f"step is {state['step']!r}")
        self.step = self.saved_step = state["step"]
        self.seconds = float(state["seconds"])

    def require_finite_loss(self) -> None:
        """Waits for the device and all ranks. Raises TrainingError that names the first step with a loss of NaN or
        infinity."""
        step = self.totals.first_bad_step
        if step:
            raise self._not_finite("the loss is", step, self.monitors.causes(step - 1))

    def _not_finite(self, what: str, step: int, causes: str) -> TrainingError:
        lr = learning_rate(self.config.optim, max(step - 1, 0), self.steps)
        return TrainingError(
            f"{what} no longer finite at step {step}, learning rate {lr:.3g}.{causes} {self._last_good}. Start over "
            "with `overwrite=True` or another `out`, and a lower `lr`, more `warmup_steps`, or `amp` bf16 or off"
        )

    @property
    def _last_good(self) -> str:
        if not self.saved_step:
            return "No checkpoint was saved before"
        return f"The last good checkpoint is {Path(self.config.run.out, CHECKPOINT)} (step {self.saved_step})"


def not_finite(state: dict[str, Any]) -> list[str]:
    """The names of those tensors, anywhere in a nested state, that hold NaN or infinity. Waits for the device once."""
    found = {name: tensor for name, tensor in named_tensors(state) if tensor.is_floating_point()}
    finite = torch.stack([tensor.isfinite().all() for tensor in found.values()]).tolist() if found else []
    return [name for name, fine in zip(found, finite, strict=True) if not fine]


def named_tensors(state: object, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(state, Tensor):
        yield name, state
    elif isinstance(state, dict):
        for key, value in state.items():
            yield from named_tensors(value, f"{name}.{key}" if name else str(key))
