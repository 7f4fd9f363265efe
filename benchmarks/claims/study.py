"""The study: which runs it takes, several at a time, and the file that keeps their rows."""

from __future__ import annotations

import concurrent.futures
import itertools
import json
import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.claims.names import require_known
from benchmarks.claims.run import Row, run
from benchmarks.claims.sets import open_set, place_of, places_of
from benchmarks.claims.settings import BOUNDS, METHODS, Options, Scale
from benchmarks.claims.tries import tries_of
from maskco.errors import UserError
from maskco.files import write_atomically

SEEDS = 3
KINDS = {"scale": str, "set": str, "part": str, "method": str, "seed": int, "scores": dict}  # what every row has


@dataclass(frozen=True)
class Job:
    scale: Scale
    set: str
    method: str
    own: Options
    seed: int
    part: str

    @property
    def key(self) -> tuple[Any, ...]:
        return self.scale.name, self.set, self.part, self.method, self.seed

    def run(self, pictures: Sequence[str], folder: Path) -> Row:
        data = open_set(self.set, place_of(self.set, pictures), folder / "pictures")
        name = "-".join(map(str, self.key)).replace(" ", "_").replace(",", "")
        return run(self.method, self.own, data, self.scale, self.seed, self.part, folder / name)


def key_of(row: Row) -> tuple[Any, ...]:
    """Of a row what `Job.key` is of its job."""
    return row["scale"], row["set"], row["part"], row["method"], row["seed"]


def comparison(scale: Scale, sets: Sequence[str], methods: Sequence[str], seeds: int) -> Iterator[Job]:
    """Scored on the test parts; seed by seed, so that an unfinished study has all methods. Raises UserError for names
    that there are not."""
    entries = METHODS | BOUNDS
    require_known("sets", sets, (*scale.sets, *scale.more_sets))
    require_known("methods", methods, entries)
    for seed in range(seeds):
        for data in sets:
            for method in methods:
                yield Job(scale, data, method, entries[method], seed, "test")


def ablations(scale: Scale, sets: Sequence[str], methods: Sequence[str], seeds: int) -> Iterator[Job]:
    """Scored on the validation parts; no methods: all tries. Raises UserError for names that there are not."""
    tries = tries_of(scale)
    require_known("sets", sets, (*scale.sets, *scale.more_sets))
    require_known("methods", methods, tries)
    for seed in range(seeds):
        for data in sets:
            for name in methods or tries:
                yield Job(scale, data, name, tries[name], seed, "val")


def compute(jobs: Sequence[Job], pictures: Sequence[str], folder: Path, file: Path, together: int) -> None:
    """Runs whatever jobs the file has no row of, and adds each row as soon as it is known.

    Raises UserError if the file has rows of another scale: one table would mix them.
    """
    rows = load(file) if file.exists() else []
    for row, job in itertools.product(rows, jobs):
        if row["scale"] != job.scale.name:
            raise UserError(f"json: {file} has rows of scale {row['scale']}. Name another file for {job.scale.name}")
    known = {key_of(row) for row in rows}
    missing = [job for job in jobs if job.key not in known]
    places_of([*dict.fromkeys(job.set for job in missing)], pictures)  # refused before anything is trained
    with concurrent.futures.ProcessPoolExecutor(together, multiprocessing.get_context("spawn")) as pool:
        running = [pool.submit(job.run, pictures, folder) for job in missing]
        try:
            for done in concurrent.futures.as_completed(running):
                rows.append(done.result())
                save(file, rows)
                print(told(rows[-1]), flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def told(row: Row) -> str:
    scores = ", ".join(f"{name} {value:.1f}" for name, value in row["scores"].items())
    return f"{row['set']}, {row['method']}, seed {row['seed']}: {scores} ({row['seconds']:.0f} s)"


def load(file: Path) -> list[Row]:
    """Raises UserError for files of other benchmarks, and of older forms."""
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
        fits = all(isinstance(row[name], kind) for row in rows for name, kind in KINDS.items())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} holds no results of this benchmark") from error
    if not fits or not isinstance(rows, list):
        raise UserError(f"{file} holds no results of this benchmark")
    return rows


def save(file: Path, rows: list[Row]) -> None:
    text = json.dumps({"rows": sorted(rows, key=key_of)}, indent=1) + "\n"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, lambda stream: stream.write(text.encode()))
