"""The study: which runs it takes, and how several are made at a time."""

from __future__ import annotations

import concurrent.futures
import hashlib
import itertools
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.claims.names import require_known
from benchmarks.claims.row_file import Row, add, key_of, load
from benchmarks.claims.run import run
from benchmarks.claims.sets import open_set, place_of, places_of
from benchmarks.claims.settings import BOUNDS, METHODS, Options, Scale
from benchmarks.claims.tries import tries_of
from maskco.errors import UserError, one_line

SEEDS = 3


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
        """`key_of` its row."""
        return self.scale.name, self.set, self.part, self.method, self.seed

    @property
    def name(self) -> str:
        return "-".join(map(str, self.key)).replace(" ", "_").replace(",", "")

    def is_done(self, row: Row | None, file: Path) -> bool:
        """Raises UserError if the row was made with other options."""
        if row is None:
            return False
        theirs, ours = row.get("options", {}), json.loads(json.dumps(self.own))
        if other := [name for name, value in ours.items() if name in theirs and theirs[name] != value]:
            raise UserError(
                f"json: {file} has a row of {', '.join(map(str, self.key))} with another {', '.join(other)}. Remove "
                "this row, or name another file"
            )
        return True

    def run(self, pictures: Sequence[str], folder: Path) -> Row:
        """Trains in a folder of its own, whose name depends on images and options: others start afresh."""
        data = open_set(self.set, place_of(self.set, pictures), folder / "pictures")
        what = repr((data.pretrain, self.scale, sorted(self.own.items()))).encode()
        place = folder / f"{self.name}-{hashlib.sha256(what).hexdigest()[:8]}"
        return run(self.method, self.own, data, self.scale, self.seed, self.part, place)


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
    """Runs whatever jobs the file has no row of, and adds each row as soon as it is known. A job that fails does not
    end the others.

    Raises UserError if jobs failed, or if the file has rows of another scale, since one table would mix them, or of
    other options than a job's.
    """
    rows = load(file) if file.exists() else []
    known = {key_of(row): row for row in rows}
    for row, job in itertools.product(rows, jobs):
        if row["scale"] != job.scale.name:
            raise UserError(f"json: {file} has rows of scale {row['scale']}. Name another file for {job.scale.name}")
    missing = {job.key: job for job in jobs if not job.is_done(known.get(job.key), file)}
    if not missing:
        return
    places_of([*dict.fromkeys(job.set for job in missing.values())], pictures)
    add(file, ())  # whatever is refused is refused before anything is trained
    failed: list[BaseException] = []
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(together, context, initializer=_end_with_the_study) as pool:
        running = {pool.submit(job.run, pictures, folder): job for job in missing.values()}
        try:
            for done in concurrent.futures.as_completed(running):
                if error := done.exception():
                    failed.append(error)
                    print(f"{running[done].name} failed: {one_line(error)}", file=sys.stderr, flush=True)
                else:
                    add(file, [done.result()])
                    print(told(done.result()), flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    for error in failed:  # one that is our fault with its traceback
        if not isinstance(error, (UserError, BrokenProcessPool)):
            raise error
    if failed:
        raise UserError(f"{len(failed)} of {len(running)} runs failed, see above. Then give the same command again")


def _end_with_the_study() -> None:
    """Of a worker: a run saves itself and ends if the study is killed, however that happens."""
    study = multiprocessing.parent_process()
    assert study is not None

    def watch() -> None:
        study.join()
        while True:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)  # (a run takes the second signal for an order to drop everything)

    threading.Thread(target=watch, daemon=True).start()


def told(row: Row) -> str:
    scores = ", ".join(f"{name} {value:.1f}" for name, value in row["scores"].items())
    return f"{row['set']}, {row['method']}, seed {row['seed']}: {scores} ({row['seconds']:.0f} s)"
