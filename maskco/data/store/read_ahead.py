"""Fetches the blocks that the order needs next, before loading workers ask for them."""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from maskco.data.store.blocks import BLOCK
from maskco.data.store.ranges import Ranges, StoredObject

THREADS = 16  # requests at a time: at 20 ms latency enough for 800 MB/s
AHEAD = 256  # blocks that are fetched before they are needed
IMAGES = 8192  # that are looked at ahead, where their blocks are in the cache already
STRIDE = 4  # lists that are looked at for each one handed on: so the first does not wait for all

Keys = list[tuple[int, int]]  # (epoch, index) of the images of a batch
Block = tuple[StoredObject, int]

log = logging.getLogger(__name__)


class ReadAhead:
    """Passes on lists of keys in their order. Threads fetch the blocks of later lists meanwhile.

    No more than `AHEAD` blocks are fetched ahead, and no more than a quarter of the cache. A fetch that fails is not
    repeated here. The worker that needs the block tries again, and reports the error.

    Args:
        blocks_of: the blocks that hold an image.
    """

    def __init__(self, ranges: Ranges, keys: Iterable[Keys], blocks_of: Callable[[int], Iterable[Block]]) -> None:
        self._ranges, self._keys, self._blocks_of = ranges, keys, blocks_of
        self._most = max(min(AHEAD, ranges.cache.limit // (4 * BLOCK)), 1)
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="read ahead")
        self._under_way: set[tuple[str, int]] = set()

    def __iter__(self) -> Iterator[Keys]:
        waiting: deque[tuple[Keys, int]] = deque()  # lists looked at, and how many blocks each asked for
        blocks = images = 0
        source = iter(self._keys)
        more = True
        while more or waiting:
            for _ in range(STRIDE):
                if not more or (waiting and (blocks >= self._most or images >= IMAGES)):
                    break
                keys = next(source, None)
                if keys is None:
                    more = False
                    break
                asked = self._ask_for(keys)
                waiting.append((keys, asked))
                blocks, images = blocks + asked, images + len(keys)
            if waiting:
                keys, asked = waiting.popleft()
                blocks, images = blocks - asked, images - len(keys)
                yield keys

    def close(self) -> None:
        """Ends the threads. Requests under way are waited for, a timeout at most."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _ask_for(self, keys: Keys) -> int:
        count = 0
        for _, index in keys:
            for stored, number in self._blocks_of(index):
                place = (stored.key, number)
                if place in self._under_way or self._ranges.cache.has(*place):
                    continue
                self._under_way.add(place)
                with contextlib.suppress(RuntimeError):  # closed
                    self._pool.submit(self._fetch, stored, number, place)
                count += 1
        return count

    def _fetch(self, stored: StoredObject, number: int, place: tuple[str, int]) -> None:
        try:
            self._ranges.prefetch(stored, number)
        except Exception as error:
            log.debug("block %d of %s: %s", number, stored.name, error)
        finally:
            self._under_way.discard(place)
