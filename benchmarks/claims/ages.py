"""Does a positive's fresh key give it away? The methods with a queue, which also say how old their negatives are.

A positive is encoded in the step that uses it, its negatives up to a queue's length before. If the key encoder drifts,
a query may find its positive by the drift. The methods `moco_v2_ages` and `maskco_ages` learn what `moco_v2` and
`maskco` learn. They measure three more contrast accuracies, each among one batch's keys: those of this step ("fresh"),
the newest and the oldest of the queue. With a `delay` a positive waits in the queue, so that as many negatives are
older as are newer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maskco import config
from maskco.data.views import Views
from maskco.errors import TrainingError
from maskco.methods.base import Method, MomentumOptions, StepOutput, embedding_std
from maskco.methods.maskco import MaskCo, MaskCoOptions
from maskco.methods.moco_v2 import MoCoV2, embed_views
from maskco.option_values import Natural

AGES = ("accuracy_fresh", "accuracy_newest", "accuracy_oldest")
SHOWN = (0.2, 0.5, 1.0)  # of a run


def register() -> None:
    """Makes the methods known by their names."""
    kinds = (("moco_v2", "MoCo"), ("maskco", "Regions"))
    config.METHODS |= {f"{name}_ages": f"{__name__}:{kind}" for name, kind in kinds}


@dataclass
class MoCoOptions(MomentumOptions):
    delay: Natural = 0
    """Steps that a batch's query views wait for their turn; 0: none."""


@dataclass
class RegionsOptions(MaskCoOptions):
    delay: Natural = 0
    """As of MoCoOptions."""


class _Ages(Method):
    """What both share. The accuracies by age are 0 until the queue is full. An interrupted run goes on without the
    views that were waiting."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.waiting: deque[tuple[Views, Tensor]] = deque()

    def start_step(self, progress: float = 0.0) -> None:
        if progress == 0:
            self.waiting.clear()  # of what the rehearsal before a run left
        super().start_step(progress)

    def forward(self, views: Views) -> StepOutput:
        with torch.no_grad():
            fresh = self.encode_keys(views)  # [N, D]
        views, keys, age = self._turn(views, fresh)
        queries = self.encode_queries(views)  # [N, D]
        images = torch.arange(len(views.query), device=keys.device).repeat_interleave(len(keys) // len(views.query))
        same = images[:, None] == images  # [N, N]: of one image
        positive, queued = (queries * keys).sum(1, keepdim=True), self._queued(queries, age, len(keys))
        logits = torch.cat([positive, *self._others(queries, keys, views), queued], dim=1)
        loss = F.cross_entropy(logits / self.options.temperature, torch.zeros_like(images))
        metrics = {"accuracy": found(positive, logits[:, 1:]), "embedding_std": embedding_std(queries.detach())}
        if not self.options.delay:
            full = self.queue.valid == len(self.queue.features)
            for name, negatives in zip(AGES, (fresh, *self._newest_and_oldest(len(keys))), strict=True):
                accuracy = found(positive, (queries @ negatives.T).masked_fill(same, -torch.inf))
                metrics[name] = torch.where(full, accuracy, 0.0)
        return StepOutput(loss, metrics, {"queue": fresh})

    def _turn(self, views: Views, keys: Tensor) -> tuple[Views, Tensor, int]:
        """The views whose turn it is, their keys, and how many steps ago these were encoded."""
        if not self.training or not self.options.delay:
            return views, keys, 0
        self.waiting.append((views, keys))
        if len(self.waiting) <= self.options.delay:
            return views, keys, 0
        return *self.waiting.popleft(), self.options.delay

    def _queued(self, queries: Tensor, age: int, pushed: int) -> Tensor:
        """Cosine similarities with the queue's keys, [N, K]: −inf where no key is yet, and for a query's own key."""
        size, rows = len(self.queue.features), torch.arange(len(self.queue.features), device=queries.device)
        scores = (queries @ self.queue.features.T).masked_fill(rows >= self.queue.valid, -torch.inf)
        if age:
            if age * pushed > size:
                raise TrainingError(f"delay: {age} steps of {pushed} keys are more than a queue of {size} holds")
            own = (self.queue.cursor[0] - age * pushed + torch.arange(pushed, device=queries.device)) % size
            scores = scores.scatter(1, own[:, None], -torch.inf)
        return scores

    def _newest_and_oldest(self, count: int) -> Iterator[Tensor]:
        """So many keys each, of a queue that is full."""
        for first in (-count, 0):
            rows = torch.arange(first, first + count, device=self.queue.cursor.device)
            yield self.queue.features[(self.queue.cursor[0] + rows) % len(self.queue.features)]

    def _others(self, queries: Tensor, keys: Tensor, views: Views) -> Iterator[Tensor]:
        """Cosine similarities with negatives that are not of the queue: [N, any] each."""
        return iter(())


class MoCo(_Ages, MoCoV2):
    Options = MoCoOptions

    def encode_queries(self, views: Views) -> Tensor:
        return embed_views(self.encoder(views.query), self.projection)


class Regions(_Ages, MaskCo):
    Options = RegionsOptions

    def _others(self, queries: Tensor, keys: Tensor, views: Views) -> Iterator[Tensor]:
        others = self.other_regions(queries, keys, views.key_boxes)  # [N, R - 1, D]
        if others is not None:
            yield (queries[:, None] * others).sum(2)


def found(positive: Tensor, negatives: Tensor) -> Tensor:
    """The share of queries, in percent, whose positive [N, 1] scores higher than all negatives [N, any]."""
    return 100 * (positive.detach() > negatives.detach().amax(1, keepdim=True)).float().mean()


def ages_table(rows: Sequence[dict[str, Any]]) -> str:
    """In Markdown, of the runs that measured it: contrast accuracy by the negatives' age; "" if there is none."""
    lines = ["| contrast accuracy among one batch's keys | step | fresh | newest | oldest |", "|---" * 5 + "|"]
    for row in (row for row in rows if "ages" in row):
        for share in SHOWN:
            step, *values = min(row["ages"], key=lambda point: abs(point[0] - share * row["steps"]))
            cells = " | ".join(f"{value:.1f}" for value in values)
            lines.append(f"| {row['set']}: {row['method']}, seed {row['seed']} | {step} | {cells} |")
    return "\n".join(lines) if len(lines) > 2 else ""
