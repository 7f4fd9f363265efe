"""What a pretraining run carries from step to step, and from one process to the one that resumes it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maskco.checkpoint import CHECKPOINT, CheckpointError, read_checkpoint, save_checkpoint
from maskco.config import PretrainConfig, UserError
from maskco.distributed import gather_in_rank_order, rank, share_batch_statistics, world_size
from maskco.methods import StepOutput, build_method


class TrainingError(UserError, RuntimeError):
    """The run cannot go on: the loss is not finite, or most pictures are broken."""


class TrainState:
    """Method, optimizer, scaler, totals and random numbers of a run after `step` steps.

    All ranks hold one, equal but for random numbers, batch norms' running statistics and the totals of their own
    pictures. What waits for other ranks says so: all of them must call it.
    """

    def __init__(self, config: PretrainConfig, pictures: int, device: torch.device, fingerprint: str = "") -> None:
        self.config = config
        self.pictures, self.fingerprint = pictures, fingerprint  # how many, and a hash of their names
        self.device = device
        # channels_last: a tenth to a quarter faster on CPUs, and what tensor cores want
        self.method = build_method(config).to(device, memory_format=torch.channels_last).train()
        if config.batch_norm == "sync":
            share_batch_statistics(self.method)
        self.optimizer = torch.optim.SGD(
            [parameter for parameter in self.method.parameters() if parameter.requires_grad],
            lr=config.lr,
            momentum=config.sgd_momentum,
            weight_decay=config.weight_decay,
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.amp == "fp16")
        self.totals = Totals(device)
        self.broken = BrokenPictures(pictures)
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
        peak = self.config.lr * self.config.batch_size / 256
        warmup = min(self.config.warmup_steps, self.steps - 1)
        if self.step < warmup:
            return peak * (self.step + 1) / warmup
        return peak * (1 + math.cos(math.pi * (self.step - warmup) / (self.steps - warmup))) / 2

    def save(self, path: Path) -> None:
        """Rank 0 writes, but all must call it. Raises TrainingError, and leaves the checkpoint before alone, if loss or
        weights are no longer finite."""
        self.require_finite_loss()
        sums = [parameter.detach().sum(dtype=torch.float32) for parameter in self.method.parameters()]
        if not bool(torch.stack(sums).isfinite().all()):
            raise self._not_finite("the weights are", self.step)
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
            "random": gather_in_rank_order(torch.get_rng_state()[None]),  # a row for each rank
            "random_cuda": gather_in_rank_order(torch.cuda.get_rng_state(self.device)[None])
            if self.device.type == "cuda"
            else None,
        }
        if rank() == 0:
            save_checkpoint(path, state)
        self.saved_step = self.step

    def load(self, path: Path) -> None:
        """Raises CheckpointError if the checkpoint is unreadable, or of a run with other options or pictures.

        It may be of a run with more or fewer ranks: the order of pictures does not depend on their number.
        """
        state = read_checkpoint(path)
        differences = self.config.differences(PretrainConfig.from_dict(state["config"]))
        if differences:
            raise CheckpointError(
                f"{path} is of a run with other options ({'; '.join(differences)}): "
                "leave these as they were, or start another run with another --out"
            )
        if state["pictures"] != self.pictures:
            raise CheckpointError(
                f"{path} is of a run on {state['pictures']} pictures, but {self.config.data} holds {self.pictures}: "
                "put the pictures back as they were, or start another run with another --out"
            )
        if state.get("fingerprint", self.fingerprint) != self.fingerprint:  # checkpoints of old have none
            raise CheckpointError(
                f"{path} is of a run on as many pictures of other names than {self.config.data} holds: "
                "put the pictures back as they were, or start another run with another --out"
            )
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.totals.load_state_dict(state["totals"])
        self.broken.load_state_dict(state["broken"])
        random = state["random"].reshape(-1, len(torch.get_rng_state()))
        if rank() < len(random):  # a rank more than there were keeps the random numbers that it started with
            torch.set_rng_state(random[rank()].clone())
            if self.device.type == "cuda" and state["random_cuda"] is not None:
                random = state["random_cuda"].reshape(len(random), -1)
                torch.cuda.set_rng_state(random[rank()].clone(), self.device)
        self.step = self.saved_step = state["step"]
        self.seconds = state["seconds"]

    def require_finite_loss(self) -> None:
        """Waits for the device and all ranks. Raises TrainingError that names the first step with a loss of NaN or
        infinity."""
        step = self.totals.first_bad_step
        if step:
            raise self._not_finite("the loss is", step)

    def _not_finite(self, what: str, step: int) -> TrainingError:
        path, lr = Path(self.config.out, CHECKPOINT), self.optimizer.param_groups[0]["lr"]
        good = f"the last good checkpoint is {path} (step {self.saved_step})" if self.saved_step else "none was saved"
        return TrainingError(
            f"{what} no longer finite at step {step}, learning rate {lr:.3g}; {good}: "
            "start anew with --overwrite or another --out, and a lower lr, more warmup_steps, or amp bf16 or off"
        )


class Totals:
    """Sums of loss and contrast accuracy since the last row of metrics, on the device, so that adding never waits.

    Each rank adds up what it sees itself; reading the totals waits for all of them.
    """

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(3, device=device)  # of the steps' loss, top-1 and top-5 share
        self.bad_step = torch.zeros((), dtype=torch.long, device=device)  # the first whose loss is not finite, or 0
        self.count = 0
        self.last_loss = math.nan

    def add(self, outputs: Sequence[StepOutput], step: int) -> None:
        """Takes the outputs of one step's micro-batches, which are of one size."""
        loss = torch.stack([output.loss.detach().float() for output in outputs]).mean()
        ranks = torch.cat([output.stats.rank for output in outputs])
        self.sums += torch.stack([loss, (ranks < 1).float().mean(), (ranks < 5).float().mean()])
        bad = (self.bad_step == 0) & ~loss.isfinite()
        self.bad_step += bad * step
        self.count += 1

    @property
    def first_bad_step(self) -> int:
        return min((step for step in gather_in_rank_order(self.bad_step[None]).tolist() if step), default=0)

    def means_and_reset(self) -> dict[str, float]:
        """Mean loss, accuracy and top5 (percent) over all ranks and the steps since the last call."""
        loss, top1, top5 = (gather_in_rank_order(self.sums[None]).mean(0) / max(self.count, 1)).tolist()
        self.sums.zero_()
        self.count, self.last_loss = 0, loss
        return {"loss": loss, "accuracy": 100 * top1, "top5": 100 * top5}

    def state_dict(self) -> dict[str, Tensor | int | float]:
        sums = gather_in_rank_order(self.sums[None]).clone()  # a row for each rank
        return {"sums": sums, "count": self.count, "last_loss": self.last_loss}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        sums = state["sums"].reshape(-1, 3)
        self.sums.copy_(sums[rank()] if len(sums) == world_size() else sums.mean(0))
        self.count, self.last_loss = state["count"], state["last_loss"]


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
