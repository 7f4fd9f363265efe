"""The index of shards in a store: made from their headers, or from .idx files next to them, once for each machine."""

from __future__ import annotations

import hashlib
import io
import json
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import numpy as np
from tqdm import tqdm

from maskco.data.cache import cache_folder, one_at_a_time
from maskco.data.kinds import readable
from maskco.data.sources.base import SourceError
from maskco.data.sources.left_out import LeftOut
from maskco.data.sources.shard_index import DAMAGE, INDEX_VERSION, Index, read_idx, scan, text_of
from maskco.data.store.addresses import redact
from maskco.data.store.blocks import BLOCK
from maskco.data.store.clients import Unavailable
from maskco.data.store.ranges import Ranges, StoredObject
from maskco.data.store.table import LARGEST, UNIT, Members, Table
from maskco.files import write_atomically

AT_ONCE = 32  # shards that are asked after, or indexed, at the same time

Given = TypeVar("Given")
Result = TypeVar("Result")


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
    """The table of all members, and what it lacks. It is made once for all processes of the machine, if missing."""
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
    return table, left_out


def _make_table(folder: Path, shards: list[StoredObject], ranges: Ranges) -> Table:
    paths = _at_once(lambda stored: _index_path(stored, ranges), shards, "indices")
    facts: dict[str, list[Any]] = {"left_out": []}

    def members() -> Iterator[tuple[bytes, Members]]:
        left_out = LeftOut()
        for stored, path in zip(shards, paths, strict=True):
            index = _load(path)
            for reason, count, first in zip(index.reasons, index.counts, index.firsts, strict=True):
                left_out.add(str(reason), f"{stored.name}/{text_of(first)}", int(count))
            if len(index.damage):
                left_out.add(DAMAGE, f"{stored.name} at byte {index.damage[0]}", len(index.damage))
            if len(index.sizes) and max(index.sizes.max(), index.offsets.max() // UNIT) > LARGEST:
                raise SourceError(f"data: {redact(stored.url)!r} holds an image of more than 4 GiB. Leave it out")
            yield stored.name.encode("utf-8", "surrogateescape"), Members(list(index.names), index.offsets, index.sizes)
        facts["left_out"] += [[reason, count, left_out.first[reason]] for reason, count in left_out.items()]

    return Table.write(folder, members(), facts)


def _index_path(stored: StoredObject, ranges: Ranges) -> Path:
    """The file in the cache that holds the shard's index, made if it is not there."""
    key = _digest([str(INDEX_VERSION), *sorted(readable()), stored.key])
    path = cache_folder("indices") / f"{key}.npz"
    with one_at_a_time(path):  # a run on other shards may share this one
        try:
            _load(path)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            index = _idx_beside(stored, ranges) or _scanned(stored, ranges)
            write_atomically(path, lambda file: np.savez(file, **index._asdict()))
    return path


def _scanned(stored: StoredObject, ranges: Ranges) -> Index:
    try:
        return scan(cast(BinaryIO, RangedFile(stored, ranges)), stored.size, redact(stored.url))
    except Unavailable as error:
        raise SourceError(
            f"data: {redact(stored.url)!r} cannot be read: {error}. Start again when the store answers"
        ) from None


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
