"""What every set of the benchmark is, whatever its images are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from maskco.data.sources.demo import Scene


@dataclass(frozen=True)
class ProbeSet:
    """`val` is what settings are chosen on; `test` is looked at once, when they are."""

    name: str
    pretrain: str  # what --data takes
    train: Sequence[Scene]
    val: Sequence[Scene]
    test: Sequence[Scene]
    classes: int
    view: int | None = None  # pixels a side of the views in pretraining: such that objects are seen as large as by the
    # probe; None: the scale says
    probed: int | None = None  # pixels a side of what is probed; None: the scale says, or scenes are taken as they are
    options: dict[str, Any] = field(default_factory=dict)  # of maskco.pretrain, for all methods alike
    balanced: bool = False  # regions are scored by the mean over classes, since some are much more frequent
