"""Signals that end a run after its current step."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from maskco.nn.ranks import world_size

STOPPING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")  # Windows lacks the last two; Slurm sends any that its user names


class StopSignals:
    """Notes SIGINT, SIGTERM, SIGHUP and SIGUSR1 in `signal` instead of dying of them.

    - After a SIGINT or SIGTERM, the next one of either has its usual effect. With several ranks it is noted too, since
      the scheduler may send the first and torchrun the second. torchrun kills in the end.
    - SIGHUP and SIGUSR1 may come more than once, from a closing terminal for example.
    - A SIGHUP that was ignored, as under nohup, stays ignored.
    """

    signal: int | None = None

    def __enter__(self) -> StopSignals:
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            numbers = [getattr(signal, name) for name in STOPPING if hasattr(signal, name)]
            hang_up = getattr(signal, "SIGHUP", None)
            if hang_up and signal.getsignal(hang_up) == signal.SIG_IGN:
                numbers.remove(hang_up)
            self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        if world_size() == 1 and number in (signal.SIGINT, signal.SIGTERM):
            self._restore(signal.SIGINT, signal.SIGTERM)

    def _restore(self, *numbers: int) -> None:
        for number in numbers:
            signal.signal(number, self._before[number])

    def __exit__(self, *error: object) -> None:
        self._restore(*self._before)
