"""What a call takes in memory at its peak, whoever allocates it: torch or the kernels themselves."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path

import pytest

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _mib(field: str) -> float:
    return int(re.search(rf"{field}:\s+(\d+) kB", STATUS.read_text())[1]) / 1024


def peak_mib(call: Callable[[], object]) -> float:
    """MiB that the resident set grows by at its highest while `call` runs, which has to have run once before."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # so that memory kept from earlier calls counts again
        CLEAR_REFS.write_text("5")  # sets the high-water mark (VmHWM) back to what is resident now
    except (OSError, AttributeError) as error:
        pytest.skip(f"the peak of the resident set cannot be measured here: {error}")
    before = _mib("VmRSS")
    result = call()
    after = _mib("VmHWM")
    del result
    return after - before
