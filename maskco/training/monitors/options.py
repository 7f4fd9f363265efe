"""Options under which a run cannot learn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from maskco.data.views import Views
from maskco.training.monitors.base import Monitor

if TYPE_CHECKING:
    from maskco.training.state import TrainState


class FrozenKeys(Monitor):
    """A momentum side that never moves."""

    def __init__(self, state: TrainState) -> None:
        method = state.method
        self.frozen = bool(method.key_modules()) and getattr(method.options, "key_momentum", None) == 1

    def warnings(self, step: int, row: Mapping[str, float], views: Views) -> dict[str, str]:
        if not self.frozen:
            return {}
        return {
            "momentum": "key_momentum 1 leaves the key side as it started, for good. Choose 0.99 (short runs) to 0.9999"
        }


class MethodsOwn(Monitor):
    """Faults that the method itself finds in its views."""

    def __init__(self, state: TrainState) -> None:
        self.method = state.method

    def warnings(self, step: int, row: Mapping[str, float], views: Views) -> dict[str, str]:
        return self.method.warnings(views)
