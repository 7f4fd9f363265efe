"""Are the paper's claims true of this code? Trains MaskCo, its ablations and MoCo v2, and probes what they learnt.

    python -m benchmarks.claims --pictures cifar10-train.tar.gz --quick             # 2x2 scenes, one seed: minutes
    python -m benchmarks.claims --pictures torchvision:DATA --json results.json     # all of it: hours
    python -m benchmarks.claims --pictures … --ablations --json results.json        # how the settings were chosen
    python -m benchmarks.claims --show results.json                                 # its tables and figure again
    python -m benchmarks.claims --scale large --sets COCO --pictures COCO           # ResNet-50 on real scenes: a GPU

Rows that the file holds already are not computed again, and a run that was interrupted goes on: give the same command.
"""

from __future__ import annotations

import concurrent.futures
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from benchmarks.claims.settings import ABLATIONS, BOUNDS, METHODS, SCALES, SCENES, Scale
from maskco.checkpoint import write_atomically
from maskco.config import UserError

Row = dict[str, Any]


@dataclass
class Options:
    pictures: str = "torchvision:data"
    """CIFAR-10: "torchvision:FOLDER" (downloaded if missing), or a folder or .tar.gz of CLASS/*.jpg or .png. At large
    scale the folder of STL-10 or COCO."""
    scale: Literal["laptop", "large"] = "laptop"
    """Pictures of 32 pixels and a small ResNet; or ResNet-50 at 224 pixels, which has not been run yet."""
    sets: tuple[str, ...] = ()
    """Some of the scale's sets; default: all."""
    methods: tuple[str, ...] = (*METHODS, *BOUNDS)
    seeds: int | None = None
    """Runs of each method on each set, with seeds 0, 1, …; default: 3, of ablations 1."""
    ablations: bool = False
    """Not the comparison on the test parts, but the tries on the 2x2 scenes' validation part."""
    quick: bool = False
    """2x2 scenes and one seed only."""
    folder: Path = Path("runs/claims")
    """Takes the scenes as pictures, and the runs."""
    json: Path | None = None
    """Rows are added to this file; default: results.json in the folder."""
    jobs: int | None = None
    """Runs at a time, each on one thread; default: as many as cores."""
    show: Path | None = None
    """Print the tables of this file and draw its figure beside it; nothing is trained."""


@dataclass(frozen=True)
class Job:
    scale: Scale
    set: str
    method: str
    own: tuple[tuple[str, Any], ...]
    seed: int
    part: str

    @property
    def key(self) -> tuple[Any, ...]:
        return self.scale.name, self.set, self.part, self.method, self.seed

    def run(self, pictures: str, folder: Path) -> Row:
        from benchmarks.claims.run import run
        from benchmarks.claims.sets import open_set

        data = open_set(self.set, pictures, folder / "pictures")
        name = "-".join(map(str, self.key)).replace(" ", "_").replace(",", "")
        return run(self.method, dict(self.own), data, self.scale, self.seed, self.part, folder / name)


def key_of(row: Row) -> tuple[Any, ...]:
    return row["scale"], row["set"], row["part"], row["method"], row["seed"]


def jobs(options: Options) -> Iterator[Job]:
    """Seed by seed, so that an unfinished study has all methods. Raises UserError for names that there are not."""
    scale = SCALES[options.scale]
    entries = ABLATIONS if options.ablations else METHODS | BOUNDS
    sets = (SCENES,) if options.quick or options.ablations else options.sets or scale.sets
    for kind, asked, there in (("sets", sets, scale.sets), ("methods", options.methods, METHODS | BOUNDS)):
        if unknown := [name for name in asked if name not in there]:
            raise UserError(f"{kind}: {unknown[0]!r} is none of {', '.join(there)}")
    for seed in range(options.seeds or (1 if options.quick or options.ablations else 3)):
        for data in sets:
            for method, own in entries.items():
                if options.ablations or method in options.methods:
                    part = "val" if options.ablations else "test"
                    yield Job(scale, data, method, tuple(own.items()), seed, part)


def compute(options: Options, path: Path) -> None:
    """Adds to the file whatever rows are missing, each as soon as it is known."""
    rows = load(path) if path.exists() else []
    known = {key_of(row) for row in rows}
    missing = [job for job in jobs(options) if job.key not in known]
    together = options.jobs or SCALES[options.scale].jobs or os.cpu_count() or 1
    with concurrent.futures.ProcessPoolExecutor(together, multiprocessing.get_context("spawn")) as pool:
        running = [pool.submit(job.run, options.pictures, options.folder) for job in missing]
        try:
            for done in concurrent.futures.as_completed(running):
                rows.append(done.result())
                save(path, rows)
                print(told(rows[-1]), flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def told(row: Row) -> str:
    scores = ", ".join(f"{name} {value:.1f}" for name, value in row["scores"].items())
    return f"{row['set']}, {row['method']}, seed {row['seed']}: {scores} ({row['seconds']:.0f} s)"


def load(path: Path) -> list[Row]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["rows"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} holds no results of this benchmark") from error


def save(path: Path, rows: list[Row]) -> None:
    text = json.dumps({"rows": sorted(rows, key=key_of)}, indent=1) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(text.encode()))


def report(path: Path) -> None:
    from benchmarks.claims.figure import draw
    from benchmarks.claims.table import tables

    rows = load(path)
    print(tables(rows))
    print(f"\nfigure: {draw(rows, path.with_suffix('.png'))}")


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    path = options.show or options.json or options.folder / "results.json"
    try:
        if options.show is None:
            compute(options, path)
        report(path)
    except UserError as error:
        sys.exit(f"benchmarks.claims: {error}")


if __name__ == "__main__":
    main()
