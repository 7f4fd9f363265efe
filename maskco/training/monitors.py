"""Notices what makes a run learn nothing while its loss looks like any other, and reports it once, with what to do.

A monitor is a class with `look`; `MONITORS` lists them. The loop knows none by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import torch

from maskco.data.views import Views
from maskco.methods import Method

COLLAPSED = 0.05  # of the spread that unit vectors in all directions have
SETTLED_STEPS = 100  # before them embeddings lie close together in sound runs as well


class Monitor(Protocol):
    """Looks at a run when a row of metrics is written, and may wait for the device as that does."""

    def __init__(self, method: Method) -> None: ...

    def look(self, step: int, row: Mapping[str, float], views: Views) -> dict[str, str]:
        """Warnings by a short name.

        Args:
            step: steps done.
            row: loss and metrics since the last look.
            views: some that were learned from.
        """
        ...


class Collapse:
    """All embeddings alike."""

    def __init__(self, method: Method) -> None:
        self.uniform = 1 / math.sqrt(getattr(method.options, "dim", 1))

    def look(self, step: int, row: Mapping[str, float], views: Views) -> dict[str, str]:
        std = row.get("embedding_std", math.inf)
        if step < SETTLED_STEPS or not std < COLLAPSED * self.uniform:
            return {}
        return {
            "collapse": f"the embeddings have collapsed: all queries are alike (std {std:.2g}; spread out they have "
            f"{self.uniform:.2g}); start over with a lower lr, more warmup_steps, or a queue_size that fills sooner"
        }


class DeadQueue:
    """A queue that nobody pushes into, or always the same."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self.sums = self._sums()

    def _sums(self) -> dict[str, torch.Tensor]:
        return {name: q.features.sum(0, dtype=torch.float64) for name, q in self.method.queues.items()}  # [D] each

    def look(self, step: int, row: Mapping[str, float], views: Views) -> dict[str, str]:
        before, self.sums = self.sums, self._sums()
        return {
            name: f"the {name.replace('_', ' ')} is dead: no key in it has changed since the last row of metrics; the "
            "method must push keys after every step, and they must be of new views"
            for name, total in self.sums.items()
            if torch.equal(before[name], total)
        }


class FrozenKeys:
    """A momentum side that never moves."""

    def __init__(self, method: Method) -> None:
        self.frozen = bool(method.key_modules()) and getattr(method.options, "key_momentum", None) == 1

    def look(self, step: int, row: Mapping[str, float], views: Views) -> dict[str, str]:
        if not self.frozen:
            return {}
        return {
            "momentum": "key_momentum 1 leaves the key side as it started, for good; usual is 0.99 (short runs) to "
            "0.9999"
        }


class MethodsOwn:
    """What the method itself finds wrong with its views."""

    def __init__(self, method: Method) -> None:
        self.method = method

    def look(self, step: int, row: Mapping[str, float], views: Views) -> dict[str, str]:
        return self.method.warnings(views)


MONITORS: tuple[type[Monitor], ...] = (Collapse, DeadQueue, FrozenKeys, MethodsOwn)


class Health:
    """All monitors of a run."""

    def __init__(self, method: Method) -> None:
        self.monitors = [monitor(method) for monitor in MONITORS]
        self.reported: set[str] = set()

    def look(self, step: int, row: Mapping[str, float], views: Views) -> list[str]:
        """Warnings that were not given before; see `Monitor.look`."""
        found = {name: text for monitor in self.monitors for name, text in monitor.look(step, row, views).items()}
        new = [text for name, text in found.items() if name not in self.reported]
        self.reported |= found.keys()
        return new
