"""Reads through the cache: once from the store, tried again for a bounded time, and never another object's bytes."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from faulty_store import QUICK, FaultyStore, faulty_store
from maskco.data.sources import SourceError
from maskco.data.store.blocks import BLOCK, BlockCache
from maskco.data.store.clients import Unavailable
from maskco.data.store.ranges import Changed, Ranges
from maskco.data.store.read_ahead import AHEAD, ReadAhead
from maskco.data.store.retry import Retry

pytest.importorskip("obstore")

CONTENT = np.random.default_rng(0).bytes(5 * BLOCK + 77)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultyStore]:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "a").write_bytes(CONTENT)
    with faulty_store(tmp_path / "store") as server:
        yield server


@pytest.fixture
def ranges(tmp_path: Path) -> Ranges:
    return Ranges(BlockCache(tmp_path / "blocks", 1 << 30), QUICK)


def test_every_byte_is_fetched_once(server: FaultyStore, ranges: Ranges) -> None:
    stored = ranges.stat(f"{server.address}/a")
    assert stored.size == len(CONTENT) and stored.name == "a" and server.requests == 1
    for start, stop in [(0, 10), (BLOCK - 5, BLOCK + 5), (5 * BLOCK + 70, 5 * BLOCK + 77), (0, len(CONTENT))]:
        assert ranges.read(stored, start, stop) == CONTENT[start:stop]
    assert server.requests == 1 + 6


@pytest.mark.parametrize("fault", ["503", "429", "500", "close", "short", "slow"])
def test_what_may_pass_is_tried_again(server: FaultyStore, ranges: Ranges, fault: str) -> None:
    stored = ranges.stat(f"{server.address}/a")
    faults = iter([fault])
    server.fault = lambda path: next(faults, "")
    assert ranges.read(stored, 5, 900) == CONTENT[5:900] and len(server.seen) == 3


def test_tries_are_bounded_in_number_and_time(server: FaultyStore, ranges: Ranges) -> None:
    stored = ranges.stat(f"{server.address}/a")
    server.fault = lambda path: "503"
    ranges.retry = Retry(tries=4, first=0.001)
    with pytest.raises(Unavailable, match="503"):
        ranges.read(stored, 0, 5)
    assert len(server.seen) == 1 + 4
    ranges.retry = Retry(tries=1000, first=0.01, longest=0.02, deadline=0.3)
    began = time.monotonic()
    with pytest.raises(Unavailable):
        ranges.read(stored, 0, 5)
    assert 0.1 < time.monotonic() - began < 2


def test_pauses_double_with_full_jitter_and_leave_the_callers_random_numbers_alone(monkeypatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)

    def fails() -> None:
        raise Unavailable("no")

    random.seed(1)
    expected = random.random()
    random.seed(1)
    for _ in range(200):
        with pytest.raises(Unavailable):
            Retry(tries=6, first=1, longest=4, deadline=1e9)(fails)
    assert random.random() == expected
    by_number = np.array(pauses).reshape(200, 5)
    assert (by_number <= [1, 2, 4, 4, 4]).all() and np.allclose(by_number.mean(0), [0.5, 1, 2, 2, 2], rtol=0.2)


def test_another_tag_is_another_object(server: FaultyStore, ranges: Ranges) -> None:
    stored = ranges.stat(f"{server.address}/a")
    ranges.read(stored, 0, 10)
    server.tags["a"] = '"new"'
    assert ranges.read(stored, 3, 10) == CONTENT[3:10], "what is kept is still the old object's"
    with pytest.raises(Changed, match=r"'http://127.0.0.1:\d+/a' was changed during the run"):
        ranges.read(stored, BLOCK, BLOCK + 5)
    new = ranges.stat(f"{server.address}/a")
    assert new.key != stored.key and ranges.read(new, BLOCK, BLOCK + 5) == CONTENT[BLOCK : BLOCK + 5]


def test_an_object_that_is_gone_is_not_asked_for_again(server: FaultyStore, ranges: Ranges, tmp_path: Path) -> None:
    stored = ranges.stat(f"{server.address}/a")
    (tmp_path / "store" / "a").unlink()
    with pytest.raises(SourceError, match="there is no such object"):
        ranges.read(stored, 0, 5)
    assert len(server.seen) == 2


def test_a_server_without_ranges_is_refused(server: FaultyStore, ranges: Ranges) -> None:
    class Whole(server.RequestHandlerClass):
        def send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
            super().send(200, CONTENT, {"ETag": headers["ETag"]})

    server.RequestHandlerClass = Whole
    with pytest.raises(SourceError, match=r"sends no ranges of bytes .*\. Copy the shards here"):
        ranges.stat(f"{server.address}/a")


def test_read_ahead_keeps_the_order_and_fetches_before_it_is_asked(server: FaultyStore, ranges: Ranges) -> None:
    stored = ranges.stat(f"{server.address}/a")
    keys = [[(0, 2 * i), (0, 2 * i + 1)] for i in range(3)]
    ahead = ReadAhead(ranges, keys, lambda index: [(stored, index)])
    found = iter(ahead)
    assert next(found) == keys[0]
    deadline = time.monotonic() + 5
    while not all(ranges.cache.has(stored.key, number) for number in range(6)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.requests == 7 and list(found) == keys[1:]
    ahead.close()


def test_read_ahead_is_bounded(server: FaultyStore, ranges: Ranges) -> None:
    """Of an endless order it looks at no more than so many blocks, or so many images whose blocks are there."""
    stored = ranges.stat(f"{server.address}/a")
    looked: list[int] = []
    server.fault = lambda path: "503"

    def numbers(index: int):
        looked.append(index)
        return [(stored, index)]

    ahead = ReadAhead(ranges, ([(0, step)] for step in range(1 << 30)), numbers)
    ahead._under_way = Nothing()
    found = iter(ahead)
    for step in range(400):
        assert next(found) == [(0, step)]
    assert AHEAD - 1 <= len(looked) - 400 <= AHEAD + 4
    ahead.close()
    ranges.cache.limit = 40 * BLOCK
    assert ReadAhead(ranges, [], numbers)._most == 10


class Nothing(set):
    """No block is ever under way."""

    def __contains__(self, item: object) -> bool:
        return False


@pytest.mark.slow
def test_importing_maskco_imports_no_client() -> None:
    code = (
        "import sys, maskco, maskco.data.sources.remote_shards\n"
        "assert not {'obstore', 'boto3', 'aiohttp', 's3fs'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
