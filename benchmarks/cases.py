"""What an op's file declares: cases, the implementations that are compared in each, and targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Inputs = dict[str, Any]
OURS = "maskco"
Suites = tuple[Literal["full", "quick"], ...]
FULL: Suites = ("full",)
ALSO_QUICK: Suites = ("full", "quick")
ONLY_QUICK: Suites = ("quick",)  # small
FORWARD, BACKWARD, BOTH = "forward", "backward", "forward+backward"


class Passes(NamedTuple):
    """One implementation, its inputs bound; what it can't do, or does nothing for, is None."""

    forward: Callable[[], Any] | None  # as in evaluation: no gradient will be asked for
    training: Callable[[], Any] | None = None  # the forward pass of a training step …
    backward: Callable[[Any], Any] | None = None  # … and the backward pass, given what `training` returned
    note: str = ""  # what was only known now, such as the best tile size


@dataclass(frozen=True)
class Implementation:
    name: str
    build: Callable[[Inputs], Passes]
    note: str = ""  # where its work differs from ours
    agrees: Literal["gradients", "result", ""] = "gradients"  # what is compared with ours before anything is timed
    memory: bool = True  # its peak is measured
    flops: bool = True  # it does the case's operations
    only_on: str | None = None  # "cuda": left out elsewhere
    skip: str = ""  # why it isn't run, said in the results


@dataclass(frozen=True)
class Target:
    """An upper limit for a row of the table; holds for the CPU and the case's own dtype.

    `metric`: "ratio" (our time / this implementation's), "peak_ratio" (the same for memory), "peak_mib",
    "beyond_gradients_mib" (the peak without the gradients' own size), or "of forward", "of forward+backward" (this
    pass's time as a share of that one's).
    """

    limit: float
    implementation: str = OURS
    metric: str = "ratio"
    on: str = BOTH


@dataclass(frozen=True)
class Case:
    name: str
    make_inputs: Callable[[torch.device, torch.dtype], Inputs]  # the same values at every call
    implementations: Sequence[Implementation]
    dtype: torch.dtype = torch.float32
    flops: dict[str, float] = field(default_factory=dict)  # pass → operations that the pass can't do without
    targets: Sequence[Target] = ()
    sweep: tuple[str, int] | None = None  # (axis of a scaling plot, value on it); only forward + backward is timed
    suites: Suites = FULL
    passes: Sequence[str] = (FORWARD, BACKWARD, BOTH)  # what is measured
    at: dict[str, Any] = field(default_factory=dict)  # the case in numbers and words, for tables and plots


def differentiable(
    function: Callable[..., Tensor], wrt: Sequence[str], *, compile: bool = False
) -> Callable[[Inputs], Passes]:
    """Passes of `function(**inputs) -> Tensor`, with gradients of the inputs named by `wrt`.

    A result that is no scalar takes its upstream gradient from inputs["grad_output"].
    """

    def build(inputs: Inputs) -> Passes:
        arguments = dict(inputs)
        upstream = arguments.pop("grad_output", None)
        leaves = {name: arguments[name].detach().requires_grad_() for name in wrt}
        called = torch.compile(function, dynamic=False) if compile else function

        def training() -> Tensor:
            return called(**(arguments | leaves))

        def forward() -> Tensor:
            with torch.no_grad():
                return called(**arguments)

        def backward(result: Tensor) -> tuple[Tensor, ...]:
            return torch.autograd.grad(result, tuple(leaves.values()), upstream)

        return Passes(forward, training, backward)

    return build
