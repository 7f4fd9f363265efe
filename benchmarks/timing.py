"""Times implementations round robin, so that their ratios come from the same minutes of the same machine."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from benchmarks.cases import BACKWARD, BOTH, FORWARD, Passes

T = TypeVar("T")
Mark = Callable[[], Any]
Elapsed = Callable[[Any, Any], float]
LONG_MS = 1000.0  # calls as long as this need no second one to warm up
ENOUGH_MS = 10_000.0  # a case is sampled about this long at most, but FEWEST times
FEWEST = 3


def clock(device: torch.device) -> tuple[Mark, Elapsed]:
    """(mark, elapsed): `elapsed(mark(), mark())` in ms; on CUDA by events, which don't wait until they are read."""
    if device.type == "cpu":
        return time.perf_counter_ns, lambda start, end: (end - start) / 1e6

    def mark() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def elapsed(start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        end.synchronize()
        return start.elapsed_time(end)

    return mark, elapsed


class _Sampler:
    """One implementation; a sample is the mean over enough calls to drown the noise of clock and scheduler."""

    def __init__(self, passes: Passes, device: torch.device, wanted: set[str], sample_ms: float) -> None:
        self.passes = passes
        self.mark, self.elapsed = clock(device)
        self.forward = FORWARD in wanted and passes.forward is not None
        self.training = BOTH in wanted and passes.training is not None
        self.samples: dict[str, list[float]] = {}
        for _ in range(2):  # warms up: allocators, thread pools, torch.compile
            once = self._sample(1, 1)
            if once and min(once.values()) > LONG_MS:
                break
        self.calls = [min(1000, math.ceil(sample_ms / max(once[p], 1e-3))) if p in once else 0 for p in (FORWARD, BOTH)]
        self.round_ms = sum(calls * once[p] for calls, p in zip(self.calls, (FORWARD, BOTH), strict=True) if calls)

    def sample(self) -> None:
        for name, ms in self._sample(*self.calls).items():
            self.samples.setdefault(name, []).append(ms)

    def _sample(self, forward_calls: int, training_calls: int) -> dict[str, float]:
        found = {}
        if self.forward:
            start = self.mark()
            for _ in range(forward_calls):
                self.passes.forward()
            found[FORWARD] = self.elapsed(start, self.mark()) / forward_calls
        if self.training:
            marks = []
            for _ in range(training_calls):
                start = self.mark()
                result = self.passes.training()
                between = self.mark()
                if self.passes.backward is not None:
                    self.passes.backward(result)
                marks.append((start, between, self.mark()))
                del result  # or else two steps' memory is held at once
            found[BOTH] = sum(self.elapsed(start, end) for start, _, end in marks) / training_calls
            if self.passes.backward is not None:
                found[BACKWARD] = sum(self.elapsed(between, end) for _, between, end in marks) / training_calls
        return found


def time_passes(
    implementations: dict[str, Passes], device: torch.device, wanted: set[str], repeats: int, sample_ms: float
) -> tuple[dict[tuple[str, str], list[float]], dict[str, str]]:
    """ms of every repeat by (implementation, wanted pass), and by implementation why it could not run."""
    samplers: dict[str, _Sampler] = {}
    failed: dict[str, str] = {}
    for name, passes in implementations.items():
        try:
            samplers[name] = _Sampler(passes, device, wanted, sample_ms)
        except Exception as error:  # a peer or torch.compile that fails here is a result, not a reason to stop
            failed[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
    round_ms = sum(sampler.round_ms for sampler in samplers.values())
    repeats = min(repeats, max(FEWEST, int(ENOUGH_MS / max(round_ms, 1e-3))))
    gc.collect()
    gc.disable()
    try:
        for _ in range(repeats):
            for sampler in samplers.values():
                sampler.sample()
    finally:
        gc.enable()
    times = {
        (name, each): ms for name, sampler in samplers.items() for each, ms in sampler.samples.items() if each in wanted
    }
    return times, failed


def fastest(candidates: dict[T, Callable[[], Any]], device: torch.device, rounds: int = 2) -> T:
    """The candidate with the shortest run; for limit lines, which shall be as low as they can be."""
    mark, elapsed = clock(device)
    best = dict.fromkeys(candidates, math.inf)
    for _ in range(rounds + 1):  # the first round warms up
        for name, run in candidates.items():
            start = mark()
            run()
            best[name] = min(best[name], elapsed(start, mark()))
    return min(best, key=best.__getitem__)
