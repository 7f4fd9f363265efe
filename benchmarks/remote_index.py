"""What the index of very many images weighs: on the disk, in a process that uses it, and in time."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from maskco.data.order import WindowShuffle
from maskco.data.store.table import Members, Table

SHARD = 10_000  # images, as img2dataset packs them
SIZE = 50_000  # bytes of an image, about
LOOKUPS = 20_000
WORKERS = 2


def measure_index(members: int) -> list[dict[str, Any]]:
    """Builds a synthetic table and has workers open it at the same time."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        table = Table.write(Path(folder, "table"), shards(members), {"left_out": [], "damage": []})
        row: dict[str, Any] = {"op": "remote index", "case": f"{members:,} images", "write_s": _round(began)}
        size = sum(path.stat().st_size for path in table.folder.iterdir())
        row |= {"bytes": size, "bytes_per_image": round(size / members, 2)}
        spawn = multiprocessing.get_context("spawn")
        queue, gate = spawn.Queue(), spawn.Barrier(WORKERS)
        workers = [spawn.Process(target=use, args=(table, number, queue, gate)) for number in range(WORKERS)]
        for worker in workers:
            worker.start()
        found = [queue.get(timeout=600) for _ in workers]
        for worker in workers:
            worker.join()
        row |= {name: round(float(np.mean([each[name] for each in found])), 3) for name in found[0]}
    began = time.perf_counter()
    order = WindowShuffle(table.starts, 16).epoch(0, 0)
    order.take(members // 2, members // 2 + 256)
    row["order_s"] = _round(began)
    for name, value in row.items():
        print(f"{name:<24} {value:,}" if not isinstance(value, str) else f"{name:<24} {value}")
    return [row]


def shards(members: int) -> Iterator[tuple[bytes, Members]]:
    names = [b"%09d.jpg" % number for number in range(SHARD)]
    sizes = np.random.default_rng(0).integers(SIZE // 2, 2 * SIZE, SHARD)
    padded = 512 * (2 + sizes // 512)
    offsets = np.cumsum(padded) - padded + 512
    for shard, first in enumerate(range(0, members, SHARD)):
        count = min(SHARD, members - first)
        yield b"%05d.tar" % shard, Members(names[:count], offsets[:count], sizes[:count])


def use(table: Table, number: int, queue: Any, gate: Any) -> None:
    """What a loading worker does with it: images at random."""
    before = memory()
    table = Table(table.folder)
    gate.wait()
    opened = memory()
    chosen = np.random.default_rng(number).integers(0, len(table), LOOKUPS).tolist()
    for index in chosen[:100]:
        table.find(index)
    began = time.perf_counter()
    for index in chosen:
        table.find(index)
    seconds = time.perf_counter() - began
    gate.wait()
    used = memory()
    began = time.perf_counter()
    for index in chosen[:1000]:
        table.name(index)
    named = time.perf_counter() - began
    queue.put(
        {
            "lookup_us": 1e6 * seconds / LOOKUPS,
            "name_us": 1e6 * named / 1000,
            "opened_mib": opened["Pss"] - before["Pss"],
            "private_mib": used["Private"] - before["Private"],
            "resident_mib": used["Rss"] - before["Rss"],
        }
    )
    gate.wait()


def memory() -> dict[str, float]:
    """MiB of this process: all its pages, its share of them, and those that no other process has (and wrote)."""
    found = {"Rss": 0.0, "Pss": 0.0, "Private": 0.0}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        name = "Private" if name == "Private_Dirty" else name
        if name in found:
            found[name] += int(rest.split()[0]) / 1024
    return found


def _round(began: float) -> float:
    return round(time.perf_counter() - began, 3)
