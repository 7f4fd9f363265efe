"""Images in tar shards of an object store, read by ranges, so that data may be larger than the disk.

    RemoteShardSource("s3://bucket/cc3m-{0000..0331}.tar")     # or https, gs, az, hf or ftp, see store/addresses.py

As with local shards, headers are read once, and from then on every image is one read at a known place. Blocks of 1 MiB
around the images are kept in a cache of bounded size. `--shuffle window:N` makes neighbouring images come at about the
same time, so that a block is fetched once an epoch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image

from maskco.data.images import EncodedImage, ImageError
from maskco.data.sources.base import SourceError
from maskco.data.sources.remote_index import look_up, open_table
from maskco.data.sources.shard_index import is_member, text_of
from maskco.data.sources.shards import expand
from maskco.data.store.addresses import redact
from maskco.data.store.blocks import BLOCK
from maskco.data.store.clients import Unavailable
from maskco.data.store.ranges import ONCE, Ranges, StoredObject
from maskco.data.store.read_ahead import Keys, ReadAhead
from maskco.data.store.table import UNIT

SHARDS_IN_A_ROW, IN_A_ROW = 3, 8  # shards, or images, that fail one after the other before the run stops


def open_source(data: str) -> RemoteShardSource:
    return RemoteShardSource(data)


class RemoteShardSource:
    """Every image in the shards of a pattern of addresses, in the order of shards and members. A `Source`.

    Images and left-out members are the same as for local shards. A copy in another process shares cache and index
    with this one.

    Raises SourceError if a shard is missing, cannot be read or is no tar file, or if all hold no image.
    """

    start_method = "forkserver"  # of loading workers: clients of stores do not survive a fork

    def __init__(self, pattern: str, ranges: Ranges | None = None) -> None:
        self.ranges = ranges or Ranges()
        self.shards = look_up(expand(pattern), self.ranges)
        self.table, self.left_out = open_table(self.shards, self.ranges)
        self._failing: set[int] = set()  # shards whose last read failed: they get one try, so that others do not wait
        self._in_a_row: list[int] = []  # the shards of the images that failed since one was read
        if not len(self.table):
            others = "".join(f". Their members were {line}" for line in self.left_out.lines())
            raise SourceError(
                f"data: none of the {len(self.shards)} shards {redact(pattern)!r} holds an image "
                f"(first: {redact(self.shards[0].url)!r}){others}. "
                "Give shards that hold images"
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
            data = self.ranges.read(stored, first - UNIT, first + size, ONCE if shard in self._failing else None)
        except Unavailable as error:
            self._failing.add(shard)
            self._in_a_row.append(shard)
            different = min(SHARDS_IN_A_ROW, len(self.shards))
            if len(self._in_a_row) < IN_A_ROW and (different < 2 or len(set(self._in_a_row)) < different):
                raise ImageError(name, f"the store fails: {error}") from None
            raise SourceError(
                f"data: {redact(stored.url)!r} cannot be read, nor the {len(self._in_a_row) - 1} images before "
                f"({error}). Resume when the store answers"
            ) from None
        self._failing.discard(shard)
        self._in_a_row.clear()
        if not is_member(data[:UNIT], size):  # a stale .idx, or a store that does not detect a changed object
            raise ImageError(name, "its header is not where the index says")
        return EncodedImage(data[UNIT:], name=name)

    def name(self, index: int) -> str:
        return f"{self.shards[self.table.shard_of(index)].name}/{text_of(self.table.name(index))}"

    @property
    def fingerprint(self) -> str:
        """The `maskco.data.sources.fingerprint` of all names, kept with the index."""
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
            f"{self.ranges.cache.limit / 2**30:.1f} GiB. Raise MASKCO_CACHE_GIB, or parts are fetched repeatedly"
        )

    def read_ahead(self, keys: Iterable[Keys]) -> ReadAhead:
        """The same lists of keys. Their blocks are fetched before they are needed."""
        return ReadAhead(self.ranges, keys, self._blocks_of)

    def _blocks_of(self, index: int) -> Iterator[tuple[StoredObject, int]]:
        shard, first, size = self.table.find(index)
        stored = self.shards[shard]
        for number in range((first - UNIT) // BLOCK, -(-min(first + size, stored.size) // BLOCK)):
            yield stored, number
