"""Times implementations round robin, so that their ratios come from the same minutes of the same machine."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from functools import lru_cache
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


@lru_cache
def flusher(device: torch.device) -> Callable[[], Any]:
    """Empties the device's L2 cache by writing twice its size; on the CPU it does nothing.

    Behind a call of its own kind, a call would find its inputs in the L2 cache, as in no training step. The write is
    queued before the first event, so it is not timed. While the GPU writes, the host enqueues the call, which hides
    some of the launch. CUDA's events resolve about half a microsecond. A call whose kernels take less than the host
    needs to enqueue them reads as the host's time.
    """
    if device.type == "cpu":
        return lambda: None
    size = 2 * torch.cuda.get_device_properties(device).L2_cache_size
    return torch.empty(size, dtype=torch.uint8, device=device).zero_


class _Sampler:
    """One implementation; a sample is the mean over enough calls to drown the noise of clock and scheduler."""

    def __init__(self, passes: Passes, device: torch.device, wanted: set[str], sample_ms: float) -> None:
        self.passes = passes
        self.mark, self.elapsed = clock(device)
        self.flush = flusher(device)
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
            calls = []
            for _ in range(forward_calls):
                self.flush()
                start = self.mark()
                self.passes.forward()
                calls.append((start, self.mark()))
            found[FORWARD] = sum(self.elapsed(start, end) for start, end in calls) / forward_calls
        if self.training:
            marks = []
            for _ in range(training_calls):
                self.flush()
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
    best = dict.fromkeys(candidates, math.inf)
    for _ in range(rounds + 1):  # the first round warms up
        for name, run in candidates.items():
            best[name] = min(best[name], best_ms(run, device, 1))
    return min(best, key=best.__getitem__)


def best_ms(call: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """ms of the fastest of some calls."""
    mark, elapsed = clock(device)
    flush = flusher(device)
    best = math.inf
    for _ in range(repeats):
        flush()
        start = mark()
        call()
        best = min(best, elapsed(start, mark()))
    return best
