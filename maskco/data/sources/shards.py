"""Images in tar shards, as webdataset and img2dataset write them (Conceptual Captions, LAION …).

    ShardSource("shards/cc3m-{0000..0331}.tar")          # or "shards/*.tar", or a single file

Shards are read by index, not as a stream. Headers are scanned once. After that any image is one read at a known place.
So shards behave as a folder does:

- The whole set is shuffled, in the same order for any number of ranks and workers.
- All ranks get equal shares.
- A run resumes at the exact image where it stopped.

A stream with a shuffle buffer has none of this. For shards in a store see remote_shards.py.
"""

from __future__ import annotations

import glob
import hashlib
import logging
import os
import re
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from maskco.data.cache import cache_folder, one_at_a_time
from maskco.data.images import EncodedImage, ImageError
from maskco.data.kinds import readable
from maskco.data.sources.base import SourceError, import_package, is_remote
from maskco.data.sources.left_out import LeftOut
from maskco.data.sources.shard_index import DAMAGE, INDEX_VERSION, Index, scan, text_of
from maskco.data.store.addresses import check_address, redact
from maskco.files import write_atomically

MOST_SHARDS = 1_000_000

log = logging.getLogger(__name__)


def open_source(data: str) -> ShardSource:
    return ShardSource(data)


class ShardSource:
    """Every image in the shards of a pattern, in the order of shards and members. A `Source`.

    A sample has one image: of `1.jpg` and `1.mask.png` the first, see `second_images`. Whatever else is left out is
    counted in `left_out`, as are places where a shard is damaged. Images whose own bytes are damaged raise
    ImageError when read.

    Raises SourceError if there is no such shard, one is no tar file, or all hold no image.
    """

    def __init__(self, pattern: str) -> None:
        self.left_out = LeftOut()
        self.shards = [Path(path) for path in expand(pattern)]
        indices = [_index(shard) for shard in tqdm(self.shards, "indices", delay=2, disable=None)]
        for shard, index in zip(self.shards, indices, strict=True):
            if len(index.damage):
                self.left_out.add(DAMAGE, f"{shard.name} at byte {index.damage[0]}", len(index.damage))
            for reason, count, first in zip(index.reasons, index.counts, index.firsts, strict=True):
                self.left_out.add(str(reason), f"{shard.name}/{text_of(first)}", int(count))
        counts = [len(index.names) for index in indices]
        if not sum(counts):
            others = "".join(f". Their members were {line}" for line in self.left_out.lines())
            raise SourceError(
                f"data: none of the {len(self.shards)} shards {pattern!r} holds an image "
                f"(first: {str(self.shards[0])!r}){others}. "
                "Give shards that hold images"
            )
        self.shard_starts = np.concatenate([[0], np.cumsum(counts)])
        """int64 [shards + 1]: the number of the first image of each shard, then that of all images."""
        self._shard_of = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        self._names, self._offsets, self._sizes = (
            np.concatenate([index[part] for index in indices]) for part in range(3)
        )

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Image.Image:
        return self.open(index).decode()

    def open(self, index: int) -> EncodedImage:
        try:
            with open(self.shards[self._shard_of[index]], "rb") as file:
                file.seek(self._offsets[index])
                return EncodedImage(file.read(self._sizes[index]), name=self.name(index))
        except OSError as error:
            raise ImageError(self.name(index), error.strerror or str(error)) from error

    def name(self, index: int) -> str:
        return f"{self.shards[self._shard_of[index]].name}/{text_of(self._names[index])}"


def expand(pattern: str) -> list[str]:
    """The existing shards of a pattern with braces (`{000..331}`, `{a,b}`) or, if they are local, * and ?."""
    if is_remote(pattern):
        check_address(pattern)
        if "*" in redact(pattern):
            raise SourceError(
                f"data: {redact(pattern)!r} has a *, which is for local shards. Name those of an address by braces"
            )
        return _braces(pattern)
    if os.path.isfile(pattern):
        return [pattern]  # whatever signs are in its name
    found = [path for url in _braces(pattern) for path in (sorted(glob.glob(url)) if glob.has_magic(url) else [url])]
    missing = [path for path in found if not os.path.isfile(path)]
    if missing or not found:
        which = f"{len(missing)} of {len(found)} missing, first {missing[0]!r}" if missing else "nothing fits"
        if missing and os.path.exists(missing[0]):
            which = f"{missing[0]!r} is no regular file"
        raise SourceError(f"data: no such shards {pattern!r} ({which}). Check path and numbers")
    return found


def _braces(pattern: str) -> list[str]:
    if "{" not in pattern:
        return [pattern]
    braceexpand = import_package("braceexpand", "a pattern with braces", "'maskco[shards]'").braceexpand
    count = 1
    for low, high in re.findall(r"\{(-?\d+)\.\.(-?\d+)", pattern):
        count *= abs(int(high) - int(low)) + 1
    if count > MOST_SHARDS:
        raise SourceError(f"data: {redact(pattern)!r} names {count} shards, more than {MOST_SHARDS}. Check its numbers")
    try:
        return list(braceexpand(pattern))
    except ValueError as error:
        raise SourceError(
            f"data: the braces of {redact(pattern)!r} cannot be read: {error}. Write them as {{000..331}} or {{a,b}}"
        ) from error


def _index(shard: Path) -> Index:
    """The shard's index, from the cache if it has been made before and the file has not changed since."""
    status = shard.stat()
    kinds = " ".join(sorted(readable()))  # a package installed since may read more
    key = f"{INDEX_VERSION}\0{kinds}\0{shard.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"
    path = cache_folder("indices") / f"{hashlib.sha256(key.encode(errors='surrogateescape')).hexdigest()[:32]}.npz"
    with one_at_a_time(path):
        if path.exists():
            try:
                with np.load(path, allow_pickle=False) as stored:
                    return Index(*(stored[name] for name in Index._fields))
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                log.warning("the index %s is damaged and made again", path)
        with open(shard, "rb") as file:
            index = scan(file, status.st_size, str(shard))
        write_atomically(path, lambda file: np.savez(file, **index._asdict()))
    return index
