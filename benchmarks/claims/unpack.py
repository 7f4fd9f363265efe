"""Files of photographs that pack.py wrote."""

from __future__ import annotations

import lzma
import shutil
import tarfile
import zlib
from pathlib import Path

from maskco.data.cache import one_at_a_time
from maskco.errors import UserError


def unpacked(path: Path, folder: Path) -> Path:
    """The folder, below `folder`, of what such a file holds. It is unpacked once. Raises UserError."""
    status = path.stat()
    made = folder / f"{path.stem}-{status.st_size}-{status.st_mtime_ns}"
    folder.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(made):
        if not made.exists():
            partial = folder / f"{made.name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            try:
                with tarfile.open(path) as archive:
                    archive.extractall(partial, filter="data")
            except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
                raise UserError(f"images: {path} cannot be unpacked ({error}): pack it again") from error
            partial.rename(made)
    return made
