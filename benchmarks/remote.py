"""Images per second from shards in a store, next to the same shards on the local disk.

    python -m benchmarks.remote --json benchmarks/results/remote_cpu.json
    python -m benchmarks.remote --members 100000000 --json benchmarks/results/remote_index.json

A server on this machine (range_server.py) stands for the store, with a latency and a bandwidth. All rows read the same
JPEGs in the same order and draw the same views. A rate is that of the last two thirds of an epoch, so that neither the
start of workers nor what was fetched during it counts.
"""

from __future__ import annotations

import io
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import tyro
from PIL import Image

from benchmarks import harness
from benchmarks.remote_index import measure_index
from maskco.console import one_line_errors
from maskco.data.loading import Loading
from maskco.data.order import WindowShuffle
from maskco.data.samples import EpochBatches, PretrainDataset
from maskco.data.sources.remote_shards import RemoteShardSource
from maskco.data.sources.shards import ShardSource
from maskco.data.store import read_ahead
from maskco.data.store.blocks import BlockCache
from maskco.data.store.ranges import Ranges
from maskco.data.views import TwoViews, ViewConfig
from maskco.errors import ConfigError
from maskco.option_values import Between

LOCAL, COPIED, WARM = "local shards", "shards copied first", "ranges, warm cache"
COLD, ALONE = "ranges, cold cache", "ranges, cold cache, no read-ahead"
TARGETS = {WARM: 0.9, COLD: 0.8}  # of the rate from local shards
BATCH = 16
AHEAD = 32  # blocks: a third of the data, so that the rest is fetched while it is measured
Row = harness.Row
Source = ShardSource | RemoteShardSource


@dataclass
class Options:
    images: int = 2400
    """JPEGs of 640 × 480 pixels and about 50 kB, in shards of 200."""
    image_size: int = 224
    workers: tuple[int, ...] = (1, 2, 4)
    repeats: int = 3
    """Epochs of each row, whose median is reported."""
    window: int = 4
    """Shards that the order draws from at a time."""
    latency_ms: float = 20.0
    mb_per_s: float = 100.0
    """Bandwidth of the server, 10⁶ bytes per second."""
    members: int = 0
    """Measure the index of so many images instead: its size, the memory of a process that uses it, and look-ups."""
    json: Path | None = None
    """Write the rows here."""


def make_shards(root: Path, images: int) -> int:
    """Shards of 200 images as img2dataset writes them. Returns the number of shards."""
    random = np.random.default_rng(0)
    count = -(-images // 200)
    for shard in range(count):
        with tarfile.open(root / f"{shard:05}.tar", "w") as tar:
            for number in range(min(200, images - 200 * shard)):
                low = random.integers(0, 256, (30, 40, 3), dtype=np.uint8)
                pixels = np.asarray(Image.fromarray(low).resize((640, 480), Image.Resampling.BICUBIC)).astype(np.int16)
                pixels += random.integers(-6, 7, pixels.shape, dtype=np.int16)
                file = io.BytesIO()
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "jpeg", quality=85)
                for kind, data in (("jpg", file.getvalue()), ("json", b"{}" * 300)):
                    member = tarfile.TarInfo(f"{shard:05}{number:04}.{kind}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return count


@contextmanager
def serving(folder: Path, options: Options) -> Iterator[str]:
    """The address of a server of the folder, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.range_server", str(folder)]
    command += ["--latency-ms", str(options.latency_ms), "--mb-per-s", str(options.mb_per_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
        finally:
            server.kill()


class Figures(NamedTuple):
    images_per_s: float
    main_mib: float  # of the training process; of pages that n processes share, an nth
    worker_mib: float  # of one worker


def rate(source: Source, options: Options, workers: int) -> Figures:
    """Draws an epoch's views."""
    transform = TwoViews(ViewConfig(image_size=options.image_size))
    order = WindowShuffle(source.shard_starts, options.window)
    batches = EpochBatches(len(source), BATCH, 0, 0, order=order)
    first = len(batches) // 3
    with Loading(PretrainDataset(source, transform), batches, workers=workers, pin_memory=False) as loading:
        for number, batch in enumerate(loading):
            if batch.failures:
                raise ConfigError(f"an image cannot be used: {batch.failures[0]}")
            if number == first:
                began = time.perf_counter()
            if number == len(batches) - 2:
                memory = [pss(process.pid) for process in loading._processes]
        seconds = time.perf_counter() - began
    return Figures(BATCH * (len(batches) - 1 - first) / seconds, pss(os.getpid()), float(np.mean(memory or [0.0])))


def pss(process: int) -> float:
    """MiB of a process, with its share of shared pages; Linux only, else 0."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def measure(options: Options) -> list[Row]:
    read_ahead.AHEAD = AHEAD
    case = f"{options.images} images, {options.latency_ms:g} ms, {options.mb_per_s:g} MB/s"
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "shards")
        root.mkdir()
        count = make_shards(root, options.images)
        total = sum(path.stat().st_size for path in root.iterdir())
        os.environ["MASKCO_CACHE"] = str(Path(folder, "cache"))
        pattern = f"{{00000..{count - 1:05}}}.tar"
        with serving(root, options) as address:
            began = time.perf_counter()
            for path in sorted(root.iterdir()):
                with urllib.request.urlopen(f"{address}/{path.name}") as answer:
                    answer.read()
            copying = time.perf_counter() - began

            def remote(name: str) -> RemoteShardSource:
                """Its index is there, as from a second epoch on; blocks are in a cache of this name."""
                return RemoteShardSource(f"{address}/{pattern}", Ranges(BlockCache(Path(folder, name), 4 << 30)))

            remote("index")
            for workers in options.workers:
                found: dict[str, list[Figures]] = {name: [] for name in (LOCAL, COPIED, COLD, WARM, ALONE)}
                for repeat in range(options.repeats):
                    local = rate(ShardSource(f"{root}/{pattern}"), options, workers)
                    whole = options.images / (copying + options.images / local.images_per_s)
                    cold, alone = remote(f"cold {workers} {repeat}"), remote(f"alone {workers} {repeat}")
                    alone.read_ahead = None  # type: ignore[method-assign, assignment]
                    found[LOCAL].append(local)
                    found[COPIED].append(local._replace(images_per_s=whole))
                    found[COLD].append(rate(cold, options, workers))
                    found[WARM].append(rate(cold, options, workers))
                    found[ALONE].append(rate(alone, options, workers))
                for name in found:
                    rows.append(row_of(case, workers, name, found[name], found[LOCAL]))
                    show(rows[-1])
    for row in rows:
        row["set_mb"] = round(total / 1e6)
    return rows


def row_of(case: str, workers: int, name: str, figures: list[Figures], local: list[Figures]) -> Row:
    """Medians. Each repeat is compared with the local rate of the same minute."""
    images, main, worker = np.median(figures, axis=0)
    ratios = [mine.images_per_s / other.images_per_s for mine, other in zip(figures, local, strict=True)]
    row: Row = {"op": "remote", "case": case, "device": "cpu", "workers": workers, "impl": name}
    row |= {"images_per_s": round(images, 1), "of_local": round(float(np.median(ratios)), 3)}
    row |= {"main_mib": round(main), "worker_mib": round(worker), "repeats": len(figures)}
    if name in TARGETS:
        row["targets"] = [{"metric": "of_local", "limit": TARGETS[name], "met": row["of_local"] >= TARGETS[name]}]
    return row


def show(row: Row) -> None:
    target = "".join(f"  ≥ {t['limit']:g} {'✓' if t['met'] else '✗'}" for t in row.get("targets", ()))
    print(
        f"{row['workers']} workers  {row['impl']:<34} {row['images_per_s']:>8.1f} images/s {row['of_local']:>7.3f} "
        f"of local {row['main_mib']:>6} MiB + {row['worker_mib']} a worker{target}",
        flush=True,
    )


def main() -> None:
    with one_line_errors():
        options = tyro.cli(Options, prog="python -m benchmarks.remote")
        for name, bounds in {
            "images": Between(600, 10**6),
            "repeats": Between(1, 99),
            "members": Between(0, 10**10),
        }.items():
            if wanted := bounds.refuse(getattr(options, name)):
                raise ConfigError(f"{name} must be {wanted}, got {getattr(options, name)}")
        torch.set_num_threads(1)
        rows = measure_index(options.members) if options.members else measure(options)
        meta = harness.metadata(harness.Options(repeats=1))
        meta["peak_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        if options.json is not None:
            harness.write_results(options.json, meta, rows)


if __name__ == "__main__":
    main()
