"""What one step of a method gives."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from maskco.ops import InfoNCEStats


class StepOutput(NamedTuple):
    """loss: [] with gradient; stats: per query; queries, keys: [Q, D] unit vectors without gradient."""

    loss: Tensor
    stats: InfoNCEStats
    queries: Tensor
    keys: Tensor
