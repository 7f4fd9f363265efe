"""Where downloads and indices of data sets are kept: $MASKCO_CACHE, or maskco/ in the user's cache folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_folder(name: str) -> Path:
    """The cache's folder of this name, made if missing."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.environ.get("MASKCO_CACHE") or user / "maskco", name).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Processes that share the file system pass here one by one: several ranks need a download once."""
    with open(path.with_name(f".{path.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # closing the file lets go of it
        yield
