"""The norm of the whole gradient, and which module holds it when it explodes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from maskco.data.views import Views
from maskco.methods import StepOutput
from maskco.training.monitors.base import Monitor

if TYPE_CHECKING:
    from maskco.training.state import TrainState

SETTLED_STEPS = 100  # before them fp16 looks for a scale that does not overflow
EXPLODED = 1e4  # norm of the whole; sound encoders of ten families stay below 50, batch norms of two images below 5000


class Gradient(Monitor):
    """`grad_norm`: before clipping, the mean over the steps since the last row, without those that fp16 skipped.

    The largest gradient since the last row, or the first that exploded, is kept by parameter, on the device. Its
    modules are examined only if its norm looks wrong.
    """

    def __init__(self, state: TrainState) -> None:
        parameters = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
        order = {parameter: (index, name) for index, (name, parameter) in enumerate(state.method.named_parameters())}
        self.names = [order.get(parameter, (index, "?")) for index, parameter in enumerate(parameters)]
        self.step = 0
        self.skips = state.config.optim.amp == "fp16"  # a step whose gradient overflows
        self.clips = state.config.optim.clip_grad
        self.sum, self.count = torch.zeros(2, 1, device=state.device)  # of norms that are finite
        self.largest = torch.zeros(1, device=state.device)
        self.largest_step = torch.zeros(1, dtype=torch.long, device=state.device)
        self.parts = torch.zeros(len(parameters), device=state.device)  # norms by parameter where it was largest

    def see(self, step: int, outputs: Sequence[StepOutput], norms: Tensor) -> None:
        self.step = step
        norm = torch.linalg.vector_norm(norms)
        finite = norm.isfinite()
        self.sum += torch.where(finite, norm, 0)
        self.count += finite
        larger = (self.largest <= EXPLODED) & ~(norm <= self.largest)  # NaN is larger than any
        if self.skips:
            larger &= finite
        self.largest = torch.where(larger, norm, self.largest)
        self.largest_step = torch.where(larger, step, self.largest_step)
        self.parts = torch.where(larger, norms, self.parts)

    def metrics(self) -> dict[str, float]:
        total, count = self.sum.item(), self.count.item()
        self.exploded, self.stuck = self.cause(int(self.step)), self.skips and not count
        for tensor in (self.sum, self.count, self.largest, self.largest_step, self.parts):
            tensor.zero_()
        return {"grad_norm": total / count} if count else {}

    def warnings(self, step: int, row: Mapping[str, float], views: Views) -> dict[str, str]:
        if self.stuck and step >= SETTLED_STEPS:
            return {
                "overflow": "nothing was learned since the last row of metrics: each step's gradient overflowed in "
                "fp16. Start over with amp bf16 or off"
            }
        if self.exploded is None:
            return {}
        clips, remedy = "", "Start over with a lower lr, more warmup_steps, another encoder, or clip_grad 1"
        if self.clips:
            clips = f"Clipping by clip_grad {self.clips:g} shortens it but cannot correct its direction. "
            remedy = "Start over with a lower lr, more warmup_steps, or another encoder"
        return {"gradient": f"{self.exploded}. {clips}{remedy}"}

    def cause(self, step: int) -> str | None:
        exploded_at = int(self.largest_step)
        if self.largest.item() <= EXPLODED or exploded_at > step:
            return None
        norm = self.parts.cpu().double().norm().item()  # which may exceed what float32 holds
        value = f"its norm was {norm:.2g}" if math.isfinite(norm) else "it was not finite"
        return f"the gradient exploded at step {exploded_at}: {value}, {self._where()}"

    def _where(self) -> str:
        """The module that holds most of the largest gradient. If gradients of several are not finite, it is the one
        nearest to the loss. Backwards from there no gradient can be finite."""
        squares: dict[str, float] = {}
        parts = sorted(zip(self.names, self.parts.cpu().double().square().tolist(), strict=True))
        for (_, name), square in parts:
            module = name.rpartition(".")[0] or name
            squares[module] = squares.get(module, 0.0) + square
        if bad := [module for module, square in squares.items() if not math.isfinite(square)]:
            return f"first in {bad[-1]}"
        most = max(squares, key=squares.__getitem__)
        return f"{squares[most] / sum(squares.values()):.0%} of its square in {most}"

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name).clone() for name in STATE}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in STATE:
            getattr(self, name).copy_(state[name])


STATE = ("sum", "count", "largest", "largest_step", "parts")
