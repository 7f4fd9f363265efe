"""Images in tar shards of an object store, read by ranges: training on more than the disk holds.

    RemoteShardSource("s3://bucket/cc3m-{0000..0331}.tar")     # or https, gs, az, hf or ftp, see store/addresses.py

As with local shards, headers are read once, and from then on every image is one read at a known place. Blocks of 1 MiB
around the images are kept in a cache of bounded size. `--shuffle window:N` makes neighbouring images come at about the
same time, so that a block is fetched once an epoch.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import numpy as np
from PIL import Image
from tqdm import tqdm

from maskco.data.cache import cache_folder, one_at_a_time
from maskco.data.images import EncodedImage, ImageError
from maskco.data.kinds import readable
from maskco.data.sources.base import SourceError
from maskco.data.sources.left_out import LeftOut
from maskco.data.sources.shard_index import INDEX_VERSION, Index, is_member, read_idx, scan, text_of
from maskco.data.sources.shards import expand
from maskco.data.store.addresses import redact
from maskco.data.store.blocks import BLOCK
from maskco.data.store.clients import Unavailable
from maskco.data.store.ranges import Ranges, StoredObject
from maskco.data.store.read_ahead import Keys, ReadAhead
from maskco.data.store.table import LARGEST, UNIT, Members, Table
from maskco.files import write_atomically

AT_ONCE = 32  # shards that are asked after, or indexed, at the same time
IN_A_ROW = 3  # images that may fail one after the other before the run stops

Given = TypeVar("Given")
Result = TypeVar("Result")
log = logging.getLogger(__name__)


def open_source(data: str) -> RemoteShardSource:
    return RemoteShardSource(data)


class RemoteShardSource:
    """Every image in the shards of a pattern of addresses, in the order of shards and members; a `Source`.

    What is an image, and what is left out, is as for local shards. A copy in another process shares cache and index
    with this one.

    Raises SourceError if a shard is missing, cannot be read or is no tar file, or if all hold no image.
    """

    start_method = "forkserver"  # of loading workers: clients of stores do not survive a fork

    def __init__(self, pattern: str, ranges: Ranges | None = None) -> None:
        self.ranges = ranges or Ranges()
        self.shards = look_up(expand(pattern), self.ranges)
        self.table, self.left_out = open_table(self.shards, self.ranges)
        self._failed = 0  # images in a row
        if not len(self.table):
            others = "".join(f"; {line}" for line in self.left_out.lines())
            raise SourceError(
                f"data: none of the {len(self.shards)} shards {redact(pattern)!r} holds an image "
                f"(first: {redact(self.shards[0].url)!r}){others}"
            )

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Image.Image:
        return self.open(index).decode()

    def open(self, index: int) -> EncodedImage:
        """Raises ImageError if the image cannot be read, and SourceError if its shard has changed, or if no image can
        be read any more."""
        name = self.name(index)
        shard, first, size = self.table.find(index)
        stored = self.shards[shard]
        if first + size > stored.size:
            raise ImageError(name, "the shard ends before its last byte")
        try:
            data = self.ranges.read(stored, first - UNIT, first + size)
        except Unavailable as error:
            self._failed += 1
            if self._failed < IN_A_ROW:
                raise ImageError(name, f"the store fails: {error}") from None
            raise SourceError(
                f"data: {redact(stored.url)!r} cannot be read, nor {IN_A_ROW - 1} images before ({error}): resume when "
                "the store answers"
            ) from None
        self._failed = 0
        if not is_member(data[:UNIT], size):  # a stale .idx, or a store that does not tell a changed object
            raise ImageError(name, "its header is not where the index says")
        return EncodedImage(data[UNIT:], name=name)

    def name(self, index: int) -> str:
        return f"{self.shards[self.table.shard_of(index)].name}/{text_of(self.table.name(index))}"

    @property
    def fingerprint(self) -> str:
        """What `maskco.data.sources.fingerprint` computes from all names, kept with the index."""
        return self.table.facts["digest"]

    @property
    def shard_starts(self) -> np.ndarray:
        """int64 [shards + 1]: the number of the first image of each shard, then that of all images."""
        return self.table.starts

    def window_note(self, shards: int | None) -> str | None:
        """A warning if so many shards (None: all) do not fit into the cache: their blocks are fetched repeatedly."""
        shards = min(shards or len(self.shards), len(self.shards))
        size = sum(stored.size for stored in self.shards) * shards / len(self.shards)
        if size <= 0.8 * self.ranges.cache.limit:
            return None
        return (
            f"warning: the order draws from {shards} shards at a time, {size / 2**30:.1f} GiB, and the cache may hold "
            f"{self.ranges.cache.limit / 2**30:.1f}: raise MASKCO_CACHE_GIB, or parts are fetched repeatedly"
        )

    def read_ahead(self, keys: Iterable[Keys]) -> ReadAhead:
        """The same lists of keys, whose blocks are fetched before they are needed."""
        return ReadAhead(self.ranges, keys, self._blocks_of)

    def _blocks_of(self, index: int) -> Iterator[tuple[StoredObject, int]]:
        shard, first, size = self.table.find(index)
        stored = self.shards[shard]
        for number in range((first - UNIT) // BLOCK, -(-min(first + size, stored.size) // BLOCK)):
            yield stored, number


def look_up(urls: list[str], ranges: Ranges) -> list[StoredObject]:
    """The shards as the store has them now. Processes of a machine that ask at the same time ask once."""
    asked = time.time()
    path = cache_folder("indices") / f"{_digest(urls)}.shards.json"
    with one_at_a_time(path):
        if path.exists() and path.stat().st_mtime >= asked:  # another rank was asking while this one waited
            stats = json.loads(path.read_text(encoding="utf-8"))
            return [StoredObject(url, *stat) for url, stat in zip(urls, stats, strict=True)]
        found = _at_once(ranges.stat, urls, "shards")
        text = json.dumps([stored[1:] for stored in found]).encode()  # sizes and tags alone: addresses may be secret
        write_atomically(path, lambda file: file.write(text))
    return found


def open_table(shards: list[StoredObject], ranges: Ranges) -> tuple[Table, LeftOut]:
    """The table of all members, made if it is not there, once for all processes of the machine; and what it lacks."""
    key = _digest([str(INDEX_VERSION), *sorted(readable()), *(f"{stored.key} {stored.name}" for stored in shards)])
    folder = cache_folder("tables") / key
    with one_at_a_time(folder):
        try:
            table = Table(folder)
        except (OSError, ValueError, KeyError):
            table = _make_table(folder, shards, ranges)
    left_out = LeftOut()
    for reason, count, first in table.facts["left_out"]:
        left_out.add(reason, first, count)
    for name, places in table.facts["damage"]:
        log.warning("%s is damaged at byte %s", name, places)
    return table, left_out


def _make_table(folder: Path, shards: list[StoredObject], ranges: Ranges) -> Table:
    paths = _at_once(lambda stored: _index_path(stored, ranges), shards, "indices")
    left_out, damage = LeftOut(), []

    def members() -> Iterator[tuple[bytes, Members]]:
        for stored, path in zip(shards, paths, strict=True):
            index = _load(path)
            for reason, count, first in zip(index.reasons, index.counts, index.firsts, strict=True):
                left_out.add(str(reason), f"{stored.name}/{text_of(first)}", int(count))
            if len(index.damage):
                damage.append([stored.name, ", ".join(map(str, index.damage[:3]))])
            if len(index.sizes) and max(index.sizes.max(), index.offsets.max() // UNIT) > LARGEST:
                raise SourceError(f"data: {redact(stored.url)!r} holds an image of more than 4 GiB: leave it out")
            yield stored.name.encode("utf-8", "surrogateescape"), Members(list(index.names), index.offsets, index.sizes)

    facts: dict[str, Any] = {"left_out": [], "damage": damage}

    def counted() -> Iterator[tuple[bytes, Members]]:
        yield from members()
        facts["left_out"] += [[reason, count, left_out.first[reason]] for reason, count in left_out.items()]

    return Table.write(folder, counted(), facts)


def _index_path(stored: StoredObject, ranges: Ranges) -> Path:
    """The file in the cache that holds the shard's index, made if it is not there."""
    key = _digest([str(INDEX_VERSION), *sorted(readable()), stored.key])
    path = cache_folder("indices") / f"{key}.npz"
    try:
        _load(path)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        index = _idx_beside(stored, ranges)
        if index is None:
            try:
                index = scan(cast(BinaryIO, RangedFile(stored, ranges)), stored.size, redact(stored.url))
            except Unavailable as error:
                raise SourceError(f"data: {redact(stored.url)!r} cannot be read: {error}") from None
        write_atomically(path, lambda file: np.savez(file, **index._asdict()))
    return path


def _idx_beside(stored: StoredObject, ranges: Ranges) -> Index | None:
    """The index in the .idx next to a shard, if there is one that fits."""
    before, tar, query = stored.url.rpartition(".tar")
    if not tar:
        return None
    try:
        beside = ranges.stat(f"{before}.idx{query}")
        return read_idx(ranges.read(beside, 0, beside.size), stored.size)
    except (SourceError, Unavailable):  # most often there is none, which some stores call forbidden
        return None


class RangedFile(io.RawIOBase):
    """An object as a file to read from, by whole blocks."""

    def __init__(self, stored: StoredObject, ranges: Ranges) -> None:
        self._stored, self._ranges = stored, ranges
        self._at, self._number, self._block = 0, -1, b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._stored.size}[whence]
        return self._at

    def readinto(self, buffer) -> int:
        count = 0
        while count < len(buffer) and self._at < self._stored.size:
            number = self._at // BLOCK
            first = number * BLOCK
            if number != self._number:
                self._block = self._ranges.read(self._stored, first, min(first + BLOCK, self._stored.size))
                self._number = number
            part = self._block[self._at - first :][: len(buffer) - count]
            buffer[count : count + len(part)] = part
            self._at, count = self._at + len(part), count + len(part)
        return count


def _at_once(work: Callable[[Given], Result], given: list[Given], shown: str) -> list[Result]:
    """The results of many calls that wait for a store. The first error ends them."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        results = [pool.submit(work, each) for each in given]
        try:
            return [result.result() for result in tqdm(results, shown, delay=2, disable=None)]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _load(path: Path) -> Index:
    with np.load(path, allow_pickle=False) as stored:
        return Index(*(stored[name] for name in Index._fields))


def _digest(parts: list[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()[:32]
