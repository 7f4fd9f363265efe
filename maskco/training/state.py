"""What a pretraining run carries from step to step, and from one process to the one that resumes it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maskco.config import PretrainConfig
from maskco.errors import ConfigError, TrainingError, UserError, one_line
from maskco.methods import StepOutput, build_method
from maskco.nn import FeatureQueue
from maskco.nn.ranks import gather_in_rank_order, rank, world_size
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
from maskco.training.monitors import spread


class TrainState:
    """Method, optimizer, scaler, totals and random numbers of a run after `step` steps.

    All ranks hold one, equal but for random numbers, batch norms' running statistics and the totals of their own
    pictures. What waits for other ranks says so: all of them must call it.
    """

    def __init__(
        self,
        config: PretrainConfig,
        pictures: int,
        device: torch.device,
        fingerprint: str = "",
        *,
        from_checkpoint: bool = False,
    ) -> None:
        """from_checkpoint: `load` follows, so that weights to start from need not be fetched."""
        self.config = config
        self.pictures, self.fingerprint = pictures, fingerprint  # how many, and a hash of their names
        self.device = device
        # channels_last: a tenth to a quarter faster on CPUs, and what tensor cores want
        try:
            method = build_method(config.without_start() if from_checkpoint else config).to(device)
        except (MemoryError, RuntimeError) as error:  # torch has no type of its own for a CPU without memory
            if isinstance(error, UserError):
                raise
            raise ConfigError(
                f"the method cannot be built with queue_size {config.queue_size}, dim {config.dim}, hidden "
                f"{config.hidden} and mask_head_depth {config.mask_head_depth}: {one_line(error)}"
            ) from error
        self.method = method.to(memory_format=torch.channels_last).train()
        if config.batch_norm == "sync":
            share_batch_statistics(self.method)
        if config.compile:  # in place: parameters keep their names
            self.method.encoder.compile()
            self.method.momentum_encoder.compile()
        self.optimizer = create_optimizer(self.method, config, fused=device.type == "cuda")
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.amp == "fp16")
        self.totals = Totals(device)
        self.broken = BrokenPictures(pictures)
        self.best = BestEpoch()
        self.step = 0
        self.saved_step: int | None = None
        self.seconds = 0.0  # of training, all processes of this run together

    @property
    def steps_per_epoch(self) -> int:
        return self.pictures // self.config.batch_size

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.config.epochs * self.steps_per_epoch

    @property
    def lr(self) -> float:
        """The next step's learning rate: a linear warm-up, then a cosine to 0 at the end of the run."""
        return self._lr_after(self.step)

    def _lr_after(self, step: int) -> float:
        peak = self.config.lr * self.config.batch_size / 256
        warmup = min(self.config.warmup_steps, self.steps - 1)
        if step < warmup:
            return peak * (step + 1) / warmup
        return peak * (1 + math.cos(math.pi * (step - warmup) / (self.steps - warmup))) / 2

    def save(self, path: Path) -> None:
        """Rank 0 writes, but all must call it. Raises TrainingError, and leaves the checkpoint before alone, if loss or
        state are no longer finite, or if it cannot be written."""
        self.require_finite_loss()
        state = {
            "config": self.config.to_dict(),
            "pictures": self.pictures,
            "fingerprint": self.fingerprint,
            "step": self.step,
            "seconds": self.seconds,
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "totals": self.totals.state_dict(),
            "broken": self.broken.state_dict(),
            "best": self.best.state_dict(),
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
            raise self._not_finite(f"{bad[0]} is", self.step)
        try:
            if self.config.keep > 1 and self.saved_step and path.exists():
                keep_checkpoint(path, KEPT.format(self.saved_step))
            save_checkpoint(path, state)
        except OSError as error:
            raise TrainingError(
                f"step {self.step} could not be saved ({error.strerror}); {self._last_good}: make room, then --resume"
            ) from error
        # Those of later steps are of a run that was put back to an earlier one: for its owner to remove.
        older = [kept for step, kept in kept_checkpoints(path.parent).items() if step < self.step]
        for kept in older[: max(len(older) - (self.config.keep - 1), 0)]:
            kept.unlink()

    def _keep_if_best(self, path: Path) -> None:
        if self.config.keep_best and self.best.step == self.step:
            try:
                keep_checkpoint(path, BEST)
            except OSError as error:
                raise TrainingError(
                    f"step {self.step} could not be kept as {BEST} ({error.strerror}), but {path} is whole: "
                    "make room, then --resume"
                ) from error

    def load(self, path: Path) -> None:
        """Raises CheckpointError if the checkpoint is unreadable, or of a run with other options or pictures.

        It may be of a run with more or fewer ranks: the order of pictures does not depend on their number. The data may
        be elsewhere than they were, if there are as many images of the same names.
        """
        state = read_checkpoint(path)
        config = stored_config(path, state)
        differences = self.config.differences(config)
        if differences:
            raise CheckpointError(
                f"{path} is of a run with other options ({'; '.join(differences)}): "
                "leave these as they were, or start another run with another --out"
            )
        if state.get("pictures") != self.pictures:
            raise CheckpointError(
                f"{path} is of a run on {state.get('pictures')} pictures, but {self.config.data} holds "
                f"{self.pictures}: put the pictures back as they were, or start another run with another --out"
            )
        if state.get("fingerprint") != self.fingerprint:
            raise CheckpointError(
                f"{path} is of a run on as many pictures of other names than {self.config.data} holds: "
                "put the pictures back as they were, or start another run with another --out"
            )
        bad = not_finite({name: state.get(name) for name in ("method", "optimizer")})
        if bad:
            more = f" (as do {len(bad) - 1} more)" if len(bad) > 1 else ""
            raise CheckpointError(
                f"{path} cannot be gone on from: {bad[0]} holds NaN or infinity{more}; put an earlier checkpoint in "
                "its place, or start anew with --overwrite"
            )
        try:
            self._take(state)
        except (KeyError, TypeError, AttributeError, ValueError, IndexError, RuntimeError) as error:
            raise CheckpointError(
                f"{path} cannot be gone on from: {one_line(error)}; put an earlier checkpoint in its place, or start "
                "anew with --overwrite"
            ) from error
        if rank() == 0:
            self._keep_if_best(path)  # the run may have been killed just before it did

    def _take(self, state: dict[str, Any]) -> None:
        """Raises almost anything if the state is incomplete or not what it should be."""
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.optimizer.param_groups[0]["fused"] = self.device.type == "cuda"  # the checkpoint may be of another device
        self.scaler.load_state_dict(state["scaler"])
        self.totals.load_state_dict(state["totals"])
        self.broken.load_state_dict(state["broken"])
        self.best.load_state_dict(state["best"])
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
            raise self._not_finite("the loss is", step)

    def _not_finite(self, what: str, step: int) -> TrainingError:
        lr = self._lr_after(max(step - 1, 0))
        return TrainingError(
            f"{what} no longer finite at step {step}, learning rate {lr:.3g}; {self._last_good}: "
            "start anew with --overwrite or another --out, and a lower lr, more warmup_steps, or amp bf16 or off"
        )

    @property
    def _last_good(self) -> str:
        if not self.saved_step:
            return "no checkpoint was saved before"
        return f"the last good checkpoint is {Path(self.config.out, CHECKPOINT)} (step {self.saved_step})"


def create_optimizer(method: nn.Module, config: PretrainConfig, *, fused: bool) -> torch.optim.SGD:
    """SGD over what the method learns. `fused` asks the device nothing when fp16 gradients overflow."""
    learned = [parameter for parameter in method.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(
        learned, lr=config.lr, momentum=config.sgd_momentum, weight_decay=config.weight_decay, fused=fused
    )
    if fused and config.sgd_momentum:  # it does not write its buffers in a step that it skips: not even the first time
        for parameter in learned:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


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


class Totals:
    """Sums of loss, contrast accuracy and the embeddings' spread since the last row of metrics, on the device, so that
    adding never waits.

    Each rank adds up what it sees itself; reading the totals waits for all of them.
    """

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(4, device=device)  # of the steps' loss, top-1 share, top-5 share, and spread
        self.bad_step = torch.zeros((), dtype=torch.long, device=device)  # the first whose loss is not finite, or 0
        self.count = 0
        self.last_loss = math.nan

    def add(self, outputs: Sequence[StepOutput], step: int) -> None:
        """Takes the outputs of one step's micro-batches, which are of one size."""
        loss = torch.stack([output.loss.detach().float() for output in outputs]).mean()
        ranks = torch.cat([output.stats.rank for output in outputs])
        queries = torch.cat([output.queries for output in outputs])
        self.sums += torch.stack([loss, (ranks < 1).float().mean(), (ranks < 5).float().mean(), spread(queries)])
        bad = (self.bad_step == 0) & ~loss.isfinite()
        self.bad_step += bad * step
        self.count += 1

    @property
    def first_bad_step(self) -> int:
        return min((step for step in gather_in_rank_order(self.bad_step[None]).tolist() if step), default=0)

    def means_and_reset(self) -> dict[str, float]:
        """Mean loss, accuracy and top5 (percent), and embedding_std (of one rank's queries; spread out it is 1/√dim),
        over all ranks and the steps since the last call."""
        loss, top1, top5, std = (gather_in_rank_order(self.sums[None]).mean(0) / max(self.count, 1)).tolist()
        self.sums.zero_()
        self.count, self.last_loss = 0, loss
        return {"loss": loss, "accuracy": 100 * top1, "top5": 100 * top5, "embedding_std": std}

    def state_dict(self) -> dict[str, Tensor | int | float]:
        sums = gather_in_rank_order(self.sums[None]).clone()  # a row for each rank
        return {"sums": sums, "count": self.count, "last_loss": self.last_loss}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        sums = state["sums"].reshape(-1, len(self.sums))
        self.sums.copy_(sums[rank()] if len(sums) == world_size() else sums.mean(0))
        self.count, self.last_loss = state["count"], state["last_loss"]


class BestEpoch:
    """Finds the epoch with the lowest mean loss. One that begins before the queue is full does not count: from fewer
    negatives a key is easier to tell."""

    def __init__(self) -> None:
        self.loss, self.step = math.inf, 0  # of the best, and the step it ended with
        self.sum, self.count = 0.0, 0  # of the epoch under way
        self.counts = False

    def add(self, loss: float, steps: int) -> None:
        """Takes the mean loss of some steps of one epoch."""
        self.sum += loss * steps
        self.count += steps

    def end_epoch(self, step: int, queue: FeatureQueue) -> None:
        """Waits for the device."""
        mean = self.sum / max(self.count, 1)
        if self.counts and mean < self.loss:
            self.loss, self.step = mean, step
        self.sum, self.count = 0.0, 0
        self.counts = int(queue.valid) == len(queue.features)

    def told(self, steps_per_epoch: int) -> str:
        if not self.step:
            return f"no {BEST}: no epoch that began with a full queue has ended"
        return f"{BEST} is of epoch {self.step // steps_per_epoch}, with the lowest mean loss, {self.loss:.3f}"

    def state_dict(self) -> dict[str, Any]:
        return vars(self).copy()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class BrokenPictures:
    """Counts pictures that cannot be used, and gives up when they are more than half."""

    SURE = 1000  # tries after which their share among all tries can be believed

    def __init__(self, pictures: int) -> None:
        self.pictures = pictures
        self.names: set[str] = set()
        self.tried = self.failed = 0

    def __len__(self) -> int:
        return len(self.names)

    def add(self, used: int, failures: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Takes the failures of one step's batch, and returns those of pictures that did not fail before."""
        new = {name: reason for name, reason in failures if name not in self.names}
        self.names.update(new)
        self.tried += used + len(failures)
        self.failed += len(failures)
        return list(new.items())

    def require_few(self) -> None:
        """Raises TrainingError if more than half of the pictures, or of very many tries, failed."""
        if 2 * len(self.names) > self.pictures:
            share = f"{len(self.names)} of {self.pictures} pictures"
        elif self.tried >= self.SURE and 2 * self.failed > self.tried:
            share = f"{self.failed} of {self.tried} pictures tried"
        else:
            return
        raise TrainingError(
            f"more than half of the data cannot be used ({share}): see log.txt; mend the pictures and --resume, "
            "or remove them and start anew with --overwrite"
        )

    def state_dict(self) -> dict[str, Any]:
        return {"names": sorted(self.names), "tried": self.tried, "failed": self.failed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.names = set(state["names"])
        self.tried, self.failed = state["tried"], state["failed"]
