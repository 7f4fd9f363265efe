"""Notices what makes a run learn nothing while its loss looks like any other, and says it once, with what to do."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from maskco.config import PretrainConfig
from maskco.data.views import Views, mask_boxes
from maskco.methods import Method

COLLAPSED = 0.05  # of the spread that unit vectors in all directions have
HIDDEN = 0.9  # of the query views' pixels
SETTLED_STEPS = 100  # before them embeddings lie close together in sound runs as well


def spread(embeddings: Tensor) -> Tensor:
    """Standard deviation of unit vectors [N, D] over N, averaged over D: 0-d float32. Near 1/√D where they point
    everywhere, 0 where they are all the same (Chen & He, arXiv 2011.10566, section 4.1)."""
    return embeddings.float().std(0, correction=0).mean()


class Health:
    """Looks at a run when a row of metrics is written, and waits for the device as these do."""

    def __init__(self, config: PretrainConfig, method: Method) -> None:
        self.config = config
        self.queue = method.queue
        self.queue_sum = self._queue_sum()
        self.told: set[str] = set()

    def look(self, step: int, embedding_std: float, views: Views) -> list[str]:
        """Warnings that were not given before.

        Args:
            step: steps done.
            embedding_std: `spread` of the queries in the steps since the last look.
            views: some that were learned from.
        """
        found = {}
        uniform = 1 / math.sqrt(self.config.dim)
        if step >= SETTLED_STEPS and embedding_std < COLLAPSED * uniform:
            found["collapse"] = (
                f"the embeddings have collapsed: all queries are alike (std {embedding_std:.2g}; spread out they have "
                f"{uniform:.2g}); start anew with a lower lr, more warmup_steps, or a queue_size that fills sooner"
            )
        before, self.queue_sum = self.queue_sum, self._queue_sum()
        if torch.equal(before, self.queue_sum):
            found["queue"] = (
                "the queue is dead: no key in it has changed since the last row of metrics; the method must push keys "
                "after every step, and they must be of new views"
            )
        if self.config.momentum == 1:
            found["momentum"] = (
                "momentum 1 leaves the key side as it began, for good; usual is 0.99 (short runs) to 0.9999"
            )
        hidden = self._hidden(views) if self.config.method == "maskco" else 0
        if hidden > HIDDEN:
            found["mask"] = (
                f"the masks cover {hidden:.0%} of the query views, which leaves nothing to predict from: start anew "
                "with fewer regions, or a smaller region_scale"
            )
        new = [text for name, text in found.items() if name not in self.told]
        self.told |= found.keys()
        return new

    def _queue_sum(self) -> Tensor:
        return self.queue.features.sum(0, dtype=torch.float64)  # [D]

    def _hidden(self, views: Views) -> float:
        """Share of the query views' pixels that the masks cover."""
        canvas = torch.zeros_like(views.query[:, :1])
        return mask_boxes(canvas, views.query_boxes, share=self.config.mask_share, fill=1.0).mean().item()
