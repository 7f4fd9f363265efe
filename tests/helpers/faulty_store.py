"""A web server that fails as stores do, and shards to put on it."""

from __future__ import annotations

import io
import random
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.range_server import RangeHandler, RangeServer
from maskco.data.store.retry import Retry

QUICK = Retry(tries=12, first=0.002, longest=0.02, deadline=20, timeout=0.5)  # for a server in the same machine
FAULTS = ("503", "429", "close", "short", "slow")


class FaultyStore(RangeServer):
    """`fault(path)` says how the next answer fails: one of FAULTS, another status, or "" if it does not."""

    def __init__(self, root: Path, fault: Callable[[str], str] = lambda path: "") -> None:
        super().__init__(root)
        self.RequestHandlerClass = FaultyHandler
        self.fault = fault
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.tags: dict[str, str] = {}  # by name: in place of the file's own

    def tag(self, path: Path) -> str:
        return self.tags.get(path.name, super().tag(path))


class FaultyHandler(RangeHandler):
    server: FaultyStore

    def do_GET(self) -> None:
        self.server.seen.append((self.path, dict(self.headers)))
        self.fault = self.server.fault(self.path)
        if self.fault.isdecimal():
            return self.refuse(int(self.fault))
        if self.fault == "slow":
            time.sleep(1.0)
        super().do_GET()

    def send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        if self.fault == "short" and len(data) > 1:
            data = data[:-1]
        if self.fault == "close" and len(data) > 1:
            super().send(status, data[: len(data) // 2], {**headers, "Content-Length": str(len(data))})
            self.close_connection = True
            return
        super().send(status, data, headers)


class RandomFaults:
    """The given share of answers fail, of any kind but the slow."""

    def __init__(self, seed: int, share: float = 0.2) -> None:
        self._random, self._share = random.Random(seed), share

    def __call__(self, path: str) -> str:
        return self._random.choice(FAULTS[:-1]) if self._random.random() < self._share else ""


@contextmanager
def faulty_store(root: Path, fault: Callable[[str], str] = lambda path: "") -> Iterator[FaultyStore]:
    with FaultyStore(root, fault) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def jpeg(seed: int, size: tuple[int, int] = (60, 50)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(file, "jpeg")
    return file.getvalue()


def pack(path: Path, members: dict[str, bytes]) -> None:
    """A shard of these members."""
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def make_shards(root: Path, shards: int = 4, images: int = 5, filler: int = 0) -> str:
    """Shards 0.tar, 1.tar … of small images, each followed by a text of `filler` bytes; their pattern below a root."""
    root.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        members: dict[str, bytes] = {}
        for image in range(images):
            key = f"{shard:03}{image:05}"
            members[f"{key}.jpg"] = jpeg(int(key))
            if filler:
                members[f"{key}.txt"] = np.random.default_rng(int(key)).bytes(filler)
        pack(root / f"{shard}.tar", members)
    return f"{{0..{shards - 1}}}.tar"
