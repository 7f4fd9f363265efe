"""Reports too little memory in one line: in advance, where that is possible, or when an allocation fails."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from maskco.errors import ConfigError, UserError

# What torch says on the CPU, where it has no type of error for this.
CPU_REFUSALS = ("DefaultCPUAllocator", "Storage size calculation overflowed", "integer multiplication overflow")


class OutOfMemory(UserError, MemoryError):
    """The machine, or the GPU, has too little memory for the request."""


@contextmanager
def memory_errors(advice: str) -> Iterator[None]:
    """Context manager or decorator that raises OutOfMemory in place of Python's, NumPy's and torch's own errors.

    Args:
        advice: a remedy, such as "lower batch_size".
    """
    try:
        yield
    except UserError:
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise OutOfMemory(f"out of memory{_asked(error)}. {_sentence(advice)}") from error
    except RuntimeError as error:
        if not any(refusal in str(error) for refusal in CPU_REFUSALS):
            raise
        raise OutOfMemory(f"out of memory{_asked(error)}. {_sentence(advice)}") from error


def require_memory(what: str, size: float, advice: str) -> None:
    """Raises ConfigError if `size` bytes exceed the machine's memory. A system that promises more than it has would
    kill the process when they are used."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > total:
        raise ConfigError(
            f"{what} would take {_readable(size)} of memory, the machine has {_readable(total)}. {_sentence(advice)}"
        )


def _sentence(advice: str) -> str:
    return advice[:1].upper() + advice[1:]


def _asked(error: BaseException) -> str:
    found = re.search(
        r"ried to allocate ([\d.]+ [KMGT]?i?B|\d+ bytes)|Unable to allocate ([\d.]+ [KMGTPE]?iB)", str(error)
    )
    if not found:
        return ""
    amount = found[1] or found[2]
    return f" ({_readable(int(amount.split()[0])) if 'bytes' in amount else amount} were asked for at once)"


def _readable(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} EB"
