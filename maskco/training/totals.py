"""Sums of a run between two rows of metrics, and over its epochs."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from maskco.errors import TrainingError
from maskco.methods import StepOutput
from maskco.nn import FeatureQueue
from maskco.nn.ranks import gather_in_rank_order, rank, world_size
from maskco.runs.checkpoint import BEST
from maskco.runs.folder import PROBES


class Totals:
    """Sums of the loss and of a method's metrics since the last row, on the device, so that adding never waits.

    Each rank adds up its own. Reading the totals waits for all of them.
    """

    def __init__(self, device: torch.device) -> None:
        self.names: list[str] = []  # of the metrics, known from the first step on
        self.sums = torch.zeros(1, device=device)  # of the steps' loss, then of each metric
        self.bad_step = torch.zeros((), dtype=torch.long, device=device)  # the first whose loss is not finite, or 0
        self.count = 0
        self.last_loss = math.nan

    def add(self, outputs: Sequence[StepOutput], step: int) -> None:
        """Takes the outputs of one step's micro-batches, which are of one size."""
        if self.names != list(outputs[0].metrics):  # the first step, or a checkpoint of a method with other metrics
            self.names = list(outputs[0].metrics)
            self.sums = torch.zeros(1 + len(self.names), device=self.sums.device)
            self.count = 0
        values = [[output.loss.detach(), *(output.metrics[name] for name in self.names)] for output in outputs]
        means = torch.stack([torch.stack([value.float() for value in row]) for row in values]).mean(0)
        self.sums += means
        self.bad_step += ((self.bad_step == 0) & ~means[0].isfinite()) * step
        self.count += 1

    @property
    def first_bad_step(self) -> int:
        return min((step for step in gather_in_rank_order(self.bad_step[None]).tolist() if step), default=0)

    def means_and_reset(self) -> dict[str, float]:
        """The mean loss and metrics over all ranks and the steps since the last call."""
        means = (gather_in_rank_order(self.sums[None]).mean(0) / max(self.count, 1)).tolist()
        self.sums.zero_()
        self.count, self.last_loss = 0, means[0]
        return dict(zip(["loss", *self.names], means, strict=True))

    def state_dict(self) -> dict[str, Any]:
        sums = gather_in_rank_order(self.sums[None]).clone()  # a row for each rank
        return {"names": list(self.names), "sums": sums, "count": self.count, "last_loss": self.last_loss}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.names = list(map(str, state["names"]))
        sums = state["sums"].reshape(-1, 1 + len(self.names))
        self.sums = (sums[rank()] if len(sums) == world_size() else sums.mean(0)).to(self.sums)
        self.count, self.last_loss = int(state["count"]), float(state["last_loss"])


class BestEpoch:
    """Finds the best epoch: that with the lowest mean loss, or with `by` "probe" that with the highest probe score.

    The probe scores regions, if its data have boxes, else whole images. By loss, an epoch that starts before all queues
    are full does not count, since a key is easier to find among fewer negatives. The probe does not depend on queues.
    """

    def __init__(self, by: str, queues: Collection[FeatureQueue]) -> None:
        self.by_probe, self.queues = by == "probe", queues
        self.cost, self.step = math.inf, 0  # of the best, and the step it ended with: its loss, or minus its score
        self.score = ""  # what that is the score of
        self.sum, self.count = 0.0, 0  # of the epoch under way
        self.counts = not queues

    def add(self, loss: float, steps: int) -> None:
        """Takes the mean loss of some steps of one epoch."""
        self.sum += loss * steps
        self.count += steps

    def end_epoch(self, step: int, row: Mapping[str, float]) -> None:
        """Takes the row of the epoch's last step. Waits for the device."""
        if self.by_probe:
            found = [(-row[name], words) for name, words in PROBES.items() if name in row][:1]
        else:
            found = [(self.sum / max(self.count, 1), "")] if self.counts else []
        for cost, score in found:
            if cost < self.cost:
                self.cost, self.step, self.score = cost, step, score
        self.sum, self.count = 0.0, 0
        self.counts = all(int(queue.valid) == len(queue.features) for queue in self.queues)

    def line(self, steps_per_epoch: int) -> str:
        if not self.step:
            return f"no {BEST}: no epoch {'was probed' if self.by_probe else 'that started with full queues has ended'}"
        loss, accuracy = f"lowest mean loss, {self.cost:.3f}", f"highest {self.score} accuracy, {-self.cost:.1f}%"
        return f"{BEST} is of epoch {self.step // steps_per_epoch}, with the {accuracy if self.by_probe else loss}"

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("cost", "step", "score", "sum", "count", "counts")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        cost = state["cost"] if "cost" in state else state["loss"]  # what earlier versions called it
        self.cost, self.step, self.score = float(cost), int(state["step"]), str(state.get("score", ""))
        self.sum, self.count, self.counts = float(state["sum"]), int(state["count"]), bool(state["counts"])


class BrokenImages:
    """Counts images that cannot be used, and gives up when they are more than half."""

    SURE = 1000  # tries after which their share among all tries can be believed

    def __init__(self, images: int) -> None:
        self.images = images
        self.names: set[str] = set()
        self.tried = self.failed = 0

    def __len__(self) -> int:
        return len(self.names)

    def add(self, used: int, failures: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Takes the failures of one step's batch, and returns those of images that did not fail before."""
        new = {name: reason for name, reason in failures if name not in self.names}
        self.names.update(new)
        self.tried += used + len(failures)
        self.failed += len(failures)
        return list(new.items())

    def require_few(self) -> None:
        """Raises TrainingError if more than half of the images, or of very many tries, failed."""
        if 2 * len(self.names) > self.images:
            share = f"{len(self.names)} of {self.images} images"
        elif self.tried >= self.SURE and 2 * self.failed > self.tried:
            share = f"{self.failed} of {self.tried} images tried"
        else:
            return
        raise TrainingError(
            f"more than half of the data cannot be used ({share}). See log.txt. Repair the images and continue with "
            "`resume=True`, or remove them and start over with `overwrite=True`"
        )

    def state_dict(self) -> dict[str, Any]:
        return {"names": sorted(self.names), "tried": self.tried, "failed": self.failed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.names = set(map(str, state["names"]))
        self.tried, self.failed = int(state["tried"]), int(state["failed"])
