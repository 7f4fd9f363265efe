"""Queues that stand still, and losses that only follow them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from maskco.data.views import Views
from maskco.methods import StepOutput
from maskco.training.monitors.base import Monitor

if TYPE_CHECKING:
    from maskco.training.state import TrainState

LEARNED, GAIN = 0.1, 0.02  # nats by which a loss must be below that of guessing, or continue falling below it
ABOVE_CHANCE, ABOVE_ANY = 3.0, 0.5  # times chance, and per cent, from which on contrast accuracy is no chance
PATIENCE = 300  # steps without either, while the learning rate does not rise


class DeadQueue(Monitor):
    """A queue that gets no keys, or always the same ones."""

    def __init__(self, state: TrainState) -> None:
        self.method = state.method
        self.sums = self._sums()

    def _sums(self) -> dict[str, Tensor]:
        return {name: q.features.sum(0, dtype=torch.float64) for name, q in self.method.queues.items()}  # [D] each

    def warnings(self, step: int, row: Mapping[str, float], views: Views) -> dict[str, str]:
        before, self.sums = self.sums, self._sums()
        return {
            name: f"the {name.replace('_', ' ')} is dead: no key in it has changed since the last row of metrics. "
            "The method must push keys of new views after every step"
            for name, total in self.sums.items()
            if torch.equal(before[name], total)
        }


class QueueFollowed(Monitor):
    """A loss that only follows the queue.

    Guessing among n negatives has the loss log(1 + n), which rises while the queue fills. The gap between this and the
    loss is a lower bound on the information between a query and its key (van den Oord et al., arXiv 1807.03748, eq. 6).
    A run without a gap, and with an accuracy of chance, learns nothing, however its loss moves.
    """

    def __init__(self, state: TrainState) -> None:
        self.queue = next(iter(state.method.queues.values()), None)
        self.others = state.method.other_negatives(state.config.views.regions)
        self.valid = self.sum = torch.zeros((), device=state.device)  # keys before the step; log(1 + negatives) summed
        self.count = 0
        self.lr, self.most = math.inf, 0.0  # of the last row; nats by which the loss was below when it last gained some
        self.learned = 0  # the last step at which it learned, or had not started to

    def see(self, step: int, outputs: Sequence[StepOutput], norms: Tensor) -> None:
        if self.queue is not None:
            self.sum = self.sum + (self.valid + self.others).log1p()
            self.count += 1
            self.valid = self.queue.valid.float()  # a copy: those of the next step

    def warnings(self, step: int, row: Mapping[str, float], views: Views) -> dict[str, str]:
        if self.queue is None or "accuracy" not in row:
            return {}
        guessed = self.sum.item() / max(self.count, 1)
        self.sum, self.count = torch.zeros_like(self.sum), 0
        chance = 100 * math.exp(-guessed)
        known = guessed - row["loss"]
        gains, rises = known > self.most + GAIN, row["lr"] > self.lr
        self.most, self.lr = known if gains else self.most, row["lr"]
        right = row["accuracy"] > max(ABOVE_CHANCE * chance, ABOVE_ANY)
        if known > LEARNED or right or gains or rises or not self.learned:
            self.learned = step
        if step - self.learned < PATIENCE:
            return {}
        return {
            "followed": f"the loss only follows the queue: {row['loss']:.2f} is no better than guessing among "
            f"{math.exp(guessed):,.0f} keys ({guessed:.2f}), and {row['accuracy']:.2g}% of queries find their key "
            f"(chance {chance:.2g}%). Start over with another lr, a lower temperature, or views that share more "
            "(crop_scale, min_overlap)"
        }
