"""Monitors watch a run: they add metrics to its rows, and detect runs that learn nothing though the loss looks normal.

A warning is given once, with its cause and what to do.

A monitor is a class in a file of this folder, and an entry in `MONITORS`. The loop knows none by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from maskco.data.views import Views
from maskco.methods import StepOutput
from maskco.training.monitors.base import Monitor
from maskco.training.monitors.collapse import Collapse
from maskco.training.monitors.gradient import Gradient
from maskco.training.monitors.options import FrozenKeys, MethodsOwn
from maskco.training.monitors.probe import Probe
from maskco.training.monitors.queues import DeadQueue, QueueFollowed

if TYPE_CHECKING:
    from maskco.training.state import TrainState

MONITORS: list[type[Monitor]] = [Gradient, Collapse, DeadQueue, QueueFollowed, FrozenKeys, MethodsOwn, Probe]


class Monitors:
    """All monitors of a run. `Monitor` explains the calls."""

    def __init__(self, state: TrainState) -> None:
        self.all = [monitor(state) for monitor in MONITORS]
        self.warned: set[str] = set()

    def lines(self) -> list[str]:
        return [line for monitor in self.all for line in monitor.lines()]

    def see(self, step: int, outputs: Sequence[StepOutput], norms: Tensor) -> None:
        for monitor in self.all:
            monitor.see(step, outputs, norms)

    def metrics(self) -> dict[str, float]:
        return {name: value for monitor in self.all for name, value in monitor.metrics().items()}

    def warnings(self, step: int, row: Mapping[str, float], views: Views) -> list[str]:
        """Those that this process has not given before."""
        found = {name: text for each in self.all for name, text in each.warnings(step, row, views).items()}
        new = [text for name, text in found.items() if name not in self.warned]
        self.warned |= found.keys()
        return new

    def causes(self, step: int) -> str:
        """Possible reasons for values that are not finite, up to this step, as sentences, or ""."""
        causes = (monitor.cause(step) for monitor in self.all)
        return "".join(f" {cause[0].upper()}{cause[1:]}." for cause in causes if cause)

    def state_dict(self) -> dict[str, Any]:
        states = {type(monitor).__name__: monitor.state_dict() for monitor in self.all}
        return {name: state for name, state in states.items() if state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """A monitor that the checkpoint lacks starts from its initial state."""
        for monitor in self.all:
            if own := state.get(type(monitor).__name__):
                monitor.load_state_dict(own)
