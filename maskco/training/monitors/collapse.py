"""Deviation and effective rank of embeddings, and whether they have collapsed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from maskco import ops
from maskco.data.views import Views
from maskco.methods import StepOutput
from maskco.nn.embeddings import effective_rank
from maskco.nn.ranks import gather_in_rank_order
from maskco.training.monitors.base import Monitor

if TYPE_CHECKING:
    from maskco.training.state import TrainState

COLLAPSED = 0.05  # of the deviation that unit vectors in all directions have
FEW_DIMENSIONS = 0.02  # share of the dimensions
SETTLED_STEPS = 100  # before them embeddings lie close together in sound runs as well
ROWS_A_DIMENSION, MOST_ROWS = 8, 1024  # that the effective rank is taken over


class Collapse(Monitor):
    """`effective_rank`: RankMe of the newest keys of each queue, always of the same number once there are enough.

    Without a queue it is that of the newest `StepOutput.embeddings`, for which this monitor has a ring of its own.
    """

    def __init__(self, state: TrainState) -> None:
        self.uniform = 1 / math.sqrt(getattr(state.method.options, "dim", 1))
        self.device = state.device
        self.rings = {
            f"{name.removesuffix('queue').rstrip('_')}_effective_rank".lstrip("_"): (queue.features, queue.cursor)
            for name, queue in state.method.queues.items()
        }
        self.own = not self.rings
        self.sizes: dict[str, tuple[int, int]] = {}  # of the last row, rows and dimensions

    def see(self, step: int, outputs: Sequence[StepOutput], norms: Tensor) -> None:
        parts = [output.embeddings for output in outputs if output.embeddings is not None]
        if not self.own or not parts:
            return
        embeddings = gather_in_rank_order(torch.cat(parts).float())  # [B, D]
        if not self.rings:
            self._make_ring(embeddings.shape[1])
        ops.queue_push_(*self.rings["effective_rank"], embeddings)

    def _make_ring(self, dim: int) -> None:
        features = torch.zeros(rows_for(dim), dim, device=self.device)
        self.rings["effective_rank"] = features, torch.zeros(2, dtype=torch.long, device=self.device)

    def metrics(self) -> dict[str, float]:
        ranks = {}
        for name, (features, cursor) in self.rings.items():
            keys = newest(features, cursor, rows_for(features.shape[1]))
            self.sizes[name] = (len(keys), keys.shape[1])
            if len(keys) > 1 and math.isfinite(rank := effective_rank(keys)):
                ranks[name] = rank
        return ranks

    def warnings(self, step: int, row: Mapping[str, float], views: Views) -> dict[str, str]:
        if step < SETTLED_STEPS:
            return {}
        found = {}
        remedy = "Start over with a lower lr, more warmup, or a queue_size that fills sooner"
        std = row.get("embedding_std", math.inf)
        if std < COLLAPSED * self.uniform:
            found["collapse"] = (
                f"the embeddings have collapsed: all queries are alike (std {std:.2g}, in all directions "
                f"it would be {self.uniform:.2g}). {remedy}"
            )
        for name, (rows, dim) in self.sizes.items():
            low = 1 + FEW_DIMENSIONS * (min(rows, dim) - 1)
            if rows >= 2 * dim and row.get(name, math.inf) < low:
                of = name.removesuffix("effective_rank").replace("_", " ")
                found[name] = (
                    f"the {of}embeddings have collapsed into few dimensions: their effective rank is {row[name]:.1f} "
                    f"of {dim}. {remedy}, a higher temperature, or views that differ more"
                )
        return found

    def state_dict(self) -> dict[str, Any]:
        if not self.own or not self.rings:
            return {}  # the queues are the method's
        features, cursor = self.rings["effective_rank"]
        return {"features": features.clone(), "cursor": cursor.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._make_ring(state["features"].shape[1])
        for own, stored in zip(self.rings["effective_rank"], (state["features"], state["cursor"]), strict=True):
            own.copy_(stored)


def rows_for(dim: int) -> int:
    """Enough rows for a rank of so many dimensions, but few enough to take it at every row of metrics."""
    return min(ROWS_A_DIMENSION * dim, MOST_ROWS)


def newest(features: Tensor, cursor: Tensor, count: int) -> Tensor:
    """The last `count` rows that were pushed into a ring [K, D], or all if there are fewer. Waits for the device."""
    following, valid = cursor.tolist()
    indices = (following - 1 - torch.arange(min(count, valid), device=features.device)) % len(features)
    return features[indices]
