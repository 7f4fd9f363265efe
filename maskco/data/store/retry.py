"""Repeats requests that failed for a passing reason, for a bounded time."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from maskco.data.store.clients import TIMEOUT, Unavailable

Result = TypeVar("Result")
_jitter = random.Random()  # of its own: the caller's random numbers stay as they are


@dataclass(frozen=True)
class Retry:
    """Exponential backoff with full jitter (Brooker 2015): pause n lasts a random part of first * 2ⁿ seconds."""

    tries: int = 8
    first: float = 0.2  # seconds
    longest: float = 10.0
    deadline: float = 90.0  # of all tries together; the last one may overrun it by `timeout`
    timeout: float = TIMEOUT  # of one request

    def __call__(self, attempt: Callable[[], Result]) -> Result:
        """The result of the first attempt that does not raise Unavailable. Raises the last one's."""
        end = time.monotonic() + self.deadline
        for number in range(self.tries):
            try:
                return attempt()
            except Unavailable:
                pause = _jitter.uniform(0, min(self.longest, self.first * 2**number))
                if number + 1 == self.tries or time.monotonic() + pause > end:
                    raise
            time.sleep(pause)
        raise AssertionError("tries is at least 1")
