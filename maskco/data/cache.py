"""The cache of downloads and indices of data sets: $MASKCO_CACHE, or maskco/ in the user's cache folder."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path

from filelock import FileLock


def cache_folder(name: str) -> Path:
    """The cache's folder of this name, made if missing. Raises OSError."""
    user = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        folder = Path(os.environ.get("MASKCO_CACHE") or Path(user, "maskco"), name).expanduser()
    except RuntimeError as error:
        raise OSError("no home folder is known. Set MASKCO_CACHE") from error
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def one_at_a_time(path: Path) -> AbstractContextManager[object]:
    """Processes that share the file system pass here one by one: several ranks need a download once."""
    return FileLock(path.with_name(f".{path.name}.lock"))
