"""A cache of blocks on the local disk, which all ranks and loading workers of a machine share.

A block is one file: a header, then up to 1 MiB of an object. The header has a checksum for every 64 KiB, so a reader
of one image checks no more than it needs. Blocks get their name when they are whole. After a crash of the machine a
block may still be damaged, since nothing waits for the disk. Then its checksum differs, and it is fetched again.

There is no common state but the files, so a process may be killed at any moment. The least recently used blocks go
first. The time of a file is that of its last use, to the minute.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import logging
import math
import os
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from maskco.data.cache import cache_folder
from maskco.errors import ConfigError

BLOCK = 1 << 20  # bytes of an object
PIECE = 1 << 16  # bytes for one checksum
MAGIC = b"maskco b"
HEADER = struct.Struct("<8sII")  # magic, bytes of the object, checksum of the checksums
LOCKS = 4096  # two blocks share one by chance: then one waits for the other
LOCK_SECONDS = 30.0  # after which a block is fetched twice rather than waited for
RECENT = 60.0  # seconds in which a second use is not noted
LEFT_BEHIND = 600.0  # seconds after which a partial file is of a process that was killed
SIZE = "MASKCO_CACHE_GIB"

log = logging.getLogger(__name__)


class BlockCache:
    """Blocks by key and number.

    Args:
        folder: made if missing. By default `blocks` in the cache folder.
        limit: bytes, by default $MASKCO_CACHE_GIB GiB, or 20. It is held to within what is written at the moment.
    """

    def __init__(self, folder: Path | None = None, limit: int | None = None) -> None:
        self.folder = folder or cache_folder("blocks")
        self.limit = _limit() if limit is None else limit
        self._written = self.limit  # bytes since this process last looked at the size: so the first write looks
        self._full = False
        self._numbers = itertools.count()
        (self.folder / "locks").mkdir(parents=True, exist_ok=True)

    def __reduce__(self) -> tuple[type[BlockCache], tuple[Path, int]]:
        return BlockCache, (self.folder, self.limit)

    def path(self, key: str, number: int) -> Path:
        return self.folder / key[:2] / f"{key}-{number:x}"

    def has(self, key: str, number: int) -> bool:
        return os.path.exists(self.path(key, number))

    def read(self, key: str, number: int, start: int, stop: int) -> bytes | None:
        """The bytes start … stop - 1 of a block. None if it is absent. A damaged one is removed."""
        path = self.path(key, number)
        try:
            file = os.open(path, os.O_RDONLY)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return None
            raise
        try:
            data = _checked(file, start, stop)
            if data is not None:
                if time.time() - os.fstat(file).st_mtime > RECENT:
                    with contextlib.suppress(OSError):  # of another user
                        os.utime(file)
                return data
        finally:
            os.close(file)
        log.debug("%s is damaged and fetched again", path)
        path.unlink(missing_ok=True)
        return None

    def write(self, key: str, number: int, data: bytes) -> None:
        """Keeps a block. If the disk is full or cannot be written to, a warning says so once, and nothing is kept."""
        path = self.path(key, number)
        partial = path.with_name(f".{os.getpid()}-{threading.get_ident()}-{next(self._numbers)}")
        pieces = range(0, len(data), PIECE)
        view = memoryview(data)
        sums = struct.pack(f"<{len(pieces)}I", *(zlib.crc32(view[at : at + PIECE]) for at in pieces))
        try:
            path.parent.mkdir(exist_ok=True)
            with open(partial, "xb") as file:
                file.write(HEADER.pack(MAGIC, len(data), zlib.crc32(sums)) + sums)
                file.write(data)
            os.replace(partial, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            if not self._full:
                log.warning("the cache %s keeps no more blocks (%s). Make room", self.folder, error.strerror)
            self._full = True
            return
        self._written += len(data)
        if self._written >= self.limit // 128:
            self._written = 0
            self._sweep()

    @contextmanager
    def fetching(self, key: str, number: int, seconds: float = LOCK_SECONDS) -> Iterator[bool]:
        """Only one process or thread of the machine at a time fetches a block. The lock ends with its process.

        Yields whether nobody else does: after so many seconds of waiting the block may enter with False.
        """
        file = os.open(self.folder / "locks" / f"{(int(key[:8], 16) + number) % LOCKS:03x}", os.O_RDWR | os.O_CREAT)
        end = time.monotonic() + seconds
        try:
            while not (alone := _locked(file)) and time.monotonic() < end:
                time.sleep(0.005)
            yield alone
        finally:
            os.close(file)

    def _sweep(self) -> None:
        """Removes the least recently used blocks until a tenth of the limit is free."""
        with open(self.folder / "locks" / "sweep", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return  # another process is at it
            found: list[tuple[float, int, str]] = []
            now = time.time()
            for folder in os.scandir(self.folder):
                if not folder.is_dir() or folder.name == "locks":
                    continue
                for entry in os.scandir(folder.path):
                    with contextlib.suppress(OSError):
                        status = entry.stat()
                        if entry.name.startswith("."):
                            if now - status.st_mtime > LEFT_BEHIND:
                                os.unlink(entry.path)
                            continue
                        found.append((status.st_mtime, status.st_size, entry.path))
            total = sum(size for _, size, _ in found)
            if total <= self.limit - self.limit // 64:
                return
            for _, size, path in sorted(found):
                if total <= self.limit - self.limit // 10:
                    break
                with contextlib.suppress(OSError):
                    os.unlink(path)
                total -= size


def _checked(file: int, start: int, stop: int) -> bytes | None:
    """The part of an open block, or None if the block is damaged."""
    size = os.fstat(file).st_size
    first = os.pread(file, HEADER.size + 4 * (BLOCK // PIECE), 0)
    if len(first) < HEADER.size:
        return None
    magic, length, of_sums = HEADER.unpack_from(first)
    count = -(-length // PIECE)
    begin = HEADER.size + 4 * count
    sums = first[HEADER.size : begin]
    if magic != MAGIC or length > BLOCK or size != begin + length or zlib.crc32(sums) != of_sums or stop > length:
        return None
    low, high = start // PIECE, -(-stop // PIECE)
    data = os.pread(file, min(high * PIECE, length) - low * PIECE, begin + low * PIECE)
    view = memoryview(data)
    for piece in range(low, high):
        at = (piece - low) * PIECE
        if zlib.crc32(view[at : at + PIECE]) != struct.unpack_from("<I", sums, 4 * piece)[0]:
            return None
    part = data[start - low * PIECE : stop - low * PIECE]
    return part if len(part) == stop - start else None


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)  # else a file system without locks
    return True


def _limit() -> int:
    text = os.environ.get(SIZE, "20")
    try:
        size = float(text)
    except ValueError:
        size = math.nan
    if not 0.05 <= size <= 1e6:
        raise ConfigError(f"{SIZE} must be a number of GiB, at least 0.05, got {text!r}")
    return int(size * (1 << 30))
