"""Files as users name them, and files that are replaced atomically."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def user_path(path: str | Path) -> Path:
    """The path with ~ replaced by a home folder. If no such user exists it stays as it is, and opening it fails."""
    return Path(os.path.expanduser(path))


def partial_name(name: str) -> str:
    """Name of a file while `write_atomically` fills it."""
    return f".{name}.partial"


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """`write` fills a file next to `path`, which then replaces it. Readers see the old file or the new one.

    If it fails, the old file is untouched, and the new one is removed. A link at `path` is replaced, never followed.
    """
    partial = path.with_name(partial_name(path.name))
    partial.unlink(missing_ok=True)  # of a process that was killed, or a link
    try:
        with open(partial, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error  # writing and flushing name no file
        raise
