"""The cache of blocks: bounded, shared by processes, and never wrong, whatever is killed or damaged."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from maskco.data.store.blocks import BLOCK, HEADER, BlockCache
from maskco.errors import ConfigError

KEY = "00ff" * 8
DATA = np.random.default_rng(0).bytes(BLOCK)


@pytest.fixture
def cache(tmp_path: Path) -> BlockCache:
    return BlockCache(tmp_path / "blocks", 64 * BLOCK)


def test_any_part_of_a_block_comes_back(cache: BlockCache) -> None:
    cache.write(KEY, 3, DATA)
    cache.write(KEY, 4, DATA[:100_001])
    random = np.random.default_rng(1)
    for number, length in ((3, BLOCK), (4, 100_001)):
        for start, stop in [(0, length), (length - 1, length), *np.sort(random.integers(0, length, (20, 2)), axis=1)]:
            if start < stop:
                assert cache.read(KEY, number, start, stop) == DATA[start:stop]
    assert cache.has(KEY, 3) and not cache.has(KEY, 5) and cache.read(KEY, 5, 0, 1) is None
    assert cache.read("0" * 32, 3, 0, 1) is None
    assert pickle.loads(pickle.dumps(cache)).read(KEY, 3, 5, 9) == DATA[5:9]


@pytest.mark.parametrize("where", [0, 9, 20, HEADER.size + 64 + 5, HEADER.size + 64 + 900_000, -1])
def test_a_changed_byte_is_noticed_and_the_block_removed(cache: BlockCache, where: int) -> None:
    cache.write(KEY, 0, DATA)
    content = bytearray(cache.path(KEY, 0).read_bytes())
    content[where] ^= 1
    cache.path(KEY, 0).write_bytes(content)
    assert cache.read(KEY, 0, 0, BLOCK) is None and not cache.has(KEY, 0)


@pytest.mark.parametrize("length", [0, 10, HEADER.size + 64, 70_000, -1])
def test_half_a_block_is_none(cache: BlockCache, length: int) -> None:
    """After a crash of the machine a file may be short, or of zeros."""
    cache.write(KEY, 0, DATA)
    os.truncate(cache.path(KEY, 0), length % (HEADER.size + 64 + BLOCK))
    assert cache.read(KEY, 0, 0, 100) is None
    cache.write(KEY, 0, DATA)
    cache.path(KEY, 0).write_bytes(bytes(HEADER.size + 64 + BLOCK))
    assert cache.read(KEY, 0, 0, 100) is None


def used(cache: BlockCache) -> int:
    return sum(path.stat().st_size for path in cache.folder.glob("??/*"))


def test_the_limit_holds_and_the_least_recently_used_go_first(cache: BlockCache) -> None:
    for number in range(50):
        cache.write(KEY, number, DATA)
        os.utime(cache.path(KEY, number), (1000 + number, 1000 + number))
    assert cache.read(KEY, 0, 0, 10) == DATA[:10], "which makes it the last one used"
    for number in range(50, 80):
        cache.write(KEY, number, DATA)
        assert used(cache) <= cache.limit
    assert cache.has(KEY, 0) and not cache.has(KEY, 1) and all(cache.has(KEY, number) for number in range(50, 80))


def test_another_process_counts_what_is_there(cache: BlockCache, tmp_path: Path) -> None:
    for number in range(60):
        cache.write(KEY, number, DATA)
    BlockCache(tmp_path / "blocks", 20 * BLOCK).write(KEY, 100, DATA)
    assert used(cache) <= 20 * BLOCK


def write_for_ever(cache: BlockCache) -> None:
    for number in range(1 << 30):
        cache.write(KEY, number % 40, DATA)


def test_writers_killed_at_any_moment_leave_no_wrong_block(cache: BlockCache) -> None:
    for round_ in range(6):
        writers = [multiprocessing.get_context("fork").Process(target=write_for_ever, args=(cache,)) for _ in range(2)]
        for writer in writers:
            writer.start()
        time.sleep(0.03 + 0.02 * round_)
        for writer in writers:
            os.kill(writer.pid, signal.SIGKILL)
            writer.join()
        found = [cache.read(KEY, number, 0, BLOCK) for number in range(40)]
        assert all(data is None or data == DATA for data in found) and any(found)
    for partial in cache.folder.glob("??/.*"):
        os.utime(partial, (0, 0))
    cache._sweep()
    assert not list(cache.folder.glob("??/.*"))


def test_one_at_a_time_fetches_a_block(cache: BlockCache) -> None:
    inside, most = [], []

    def fetch() -> None:
        with cache.fetching(KEY, 7):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.01)
            inside.pop()

    threads = [threading.Thread(target=fetch) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 6
    with (
        cache.fetching(KEY, 7) as first,
        cache.fetching(KEY, 8) as other,
        cache.fetching(KEY, 7, seconds=0.02) as second,
    ):
        assert first and other and not second


def test_a_full_disk_is_said_once(cache: BlockCache, monkeypatch, caplog: pytest.LogCaptureFixture) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with caplog.at_level(logging.WARNING):
        for number in range(3):
            cache.write(KEY, number, DATA)
    assert caplog.text.count("keeps no more blocks (No space left on device). Make room") == 1
    assert list(cache.folder.glob("??/.*")) == []


def test_the_size_is_an_environment_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKCO_CACHE", str(tmp_path))
    assert BlockCache().limit == 20 << 30 and BlockCache().folder == tmp_path / "blocks"
    monkeypatch.setenv("MASKCO_CACHE_GIB", "0.5")
    assert BlockCache().limit == 1 << 29
    for wrong in ("much", "0", "-1", "nan"):
        monkeypatch.setenv("MASKCO_CACHE_GIB", wrong)
        with pytest.raises(ConfigError, match="MASKCO_CACHE_GIB must be a number of GiB, at least"):
            BlockCache()
