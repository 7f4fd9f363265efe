"""The contract of a monitor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from maskco.data.views import Views
from maskco.methods import StepOutput

if TYPE_CHECKING:
    from maskco.training.state import TrainState


class Monitor:
    """Watches a run, and changes nothing in it. A subclass overrides what it needs.

    All ranks have the same monitors, and call them at the same steps with the same gradient and row.
    """

    def __init__(self, state: TrainState) -> None:
        """Before the run writes anything or loads a checkpoint. Raises UserError for impossible options."""

    def lines(self) -> list[str]:
        """Lines for the log before the first step."""
        return []

    def see(self, step: int, outputs: Sequence[StepOutput], norms: Tensor) -> None:
        """After each step. Must not wait for the device.

        Args:
            step: steps done, this one included.
            outputs: of the step's micro-batches on this rank. Their keys have been pushed.
            norms: of each parameter's gradient before clipping, [P] in the optimizer's order.
        """

    def metrics(self) -> dict[str, float]:
        """Values to add to the row of this step, after `see`. May wait for the device, and for other ranks."""
        return {}

    def warnings(self, step: int, row: Mapping[str, float], views: Views) -> dict[str, str]:
        """Warnings by a short name, after `metrics`. May wait for the device.

        Args:
            step: steps done.
            row: loss and metrics since the last row.
            views: some that were learned from.
        """
        return {}

    def cause(self, step: int) -> str | None:
        """A possible reason for values that are not finite, from the steps since the last row up to this one."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values that the rows of a resumed run need. All ranks call it."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes the result of `state_dict`. Raises almost anything if it is damaged."""
