"""A process that kills itself (-9) at a chosen moment of its run."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any


def kill_after(owner: type, method: str, calls: int, seconds: float) -> None:
    """Kills this process `seconds` after so many calls of a method; at 0, after now."""
    call, timer = getattr(owner, method), threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL))

    def call_and_count(*arguments: Any) -> None:
        nonlocal calls
        call(*arguments)
        calls -= 1
        if calls == 0:
            timer.start()

    setattr(owner, method, call_and_count)
    if calls == 0:
        timer.start()
