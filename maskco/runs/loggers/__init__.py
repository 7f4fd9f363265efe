"""Loggers take a run to other tools: TensorBoard always, others by `--log`, see `maskco.config.LOGGERS`.

They follow metrics.jsonl, which is the run's own. When a process starts to write a record, the record gets the rows
that it lacks, and no row twice. So a resumed run continues the same record, with one value for each step.

From Python, no report is drawn at the end of a run. Add one:

    maskco.pretrain(data="PHOTOS", out="RUN", log="wandb")
    add_pictures("RUN", write_report("RUN").png)
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

from maskco.config import LOGGERS, PretrainConfig, find_logger, read_config
from maskco.errors import ConfigError, one_line
from maskco.files import write_atomically
from maskco.runs.folder import LOGGERS_LOCK, METRICS, RECORDS, folder_of, read_metrics
from maskco.runs.loggers.base import Begun, Logger, Past, Row, Status
from maskco.runs.trust import CONFIG, own_file, started_here

__all__ = ["Begun", "Logger", "Loggers", "Past", "Row", "Status", "add_pictures", "check_loggers", "read_records"]

LOCK_SECONDS = 5.0  # to wait for another process that writes the run's records


def check_loggers(names: Sequence[str]) -> None:
    """Raises ConfigError for a logger that does not exist, or whose package is not installed."""
    for name in names:
        if not (package := find_logger(name).package):
            continue
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:  # W&B's folder ./wandb is no package
            raise ConfigError(f"log: {package} is not installed. Run pip install 'maskco[{name}]'")


@dataclass(frozen=True)
class Record:
    """A record of a run, as the run folder names it.

    given: last step of the rows that it was given. None while a process writes it, and after that was killed.
    """

    name: str
    given: int | None = None


def read_records(run: Path) -> dict[str, Record]:
    """A run's records by logger. The run may come from anyone, so anything but plain names is left out."""
    path = own_file(run, RECORDS)
    try:
        stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return {
            logger: Record(record["name"], record["given"] if type(record["given"]) is int else None)
            for logger, record in stored.items()
            if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", record["name"])
        }
    except (OSError, ValueError, RecursionError, AttributeError, KeyError, TypeError):
        return {}


def write_record(run: Path, logger: str, record: Record) -> None:
    records = {**read_records(run), logger: record}
    content = json.dumps({name: asdict(each) for name, each in records.items()}, indent=2) + "\n"
    write_atomically(run / RECORDS, lambda file: file.write(content.encode()))


class Loggers:
    """The loggers of one run. One that fails is reported once, in `say`. The run continues without it.

    Args:
        loggers: by the names that they are reported by.
        say: takes a line for the user.
    """

    def __init__(
        self, run: Path, config: PretrainConfig, loggers: Mapping[str, Logger], say: Callable[[str], None]
    ) -> None:
        self._run, self._config, self._say = run, config, say
        self._loggers = dict(loggers)
        self._records: dict[str, str] = {}  # their names by logger, where there are some
        self._held: dict[str, int] = {}  # the last step of each when it was started
        self._given: dict[str, int] = {}  # and now
        self._lock = FileLock(own_file(run, LOGGERS_LOCK), thread_local=False)

    def begin(self, rows: Sequence[Row], step: int, made: int) -> None:
        """Brings the records up to date.

        Args:
            rows: of the run so far.
            step: steps done.
            made: last step of the rows that were ever made. Those past `step` will be made again.
        """
        for name, logger in list(self._loggers.items()):
            with self._left_alone_if_it_fails(name):
                if name != ALWAYS:
                    check_loggers([name])
                    self._lock.acquire(timeout=LOCK_SECONDS)
                record = read_records(self._run).get(name)
                if record:
                    self._records[name] = record.name
                    self._given[name] = made if record.given is None else record.given
                past = Past(record.name if record else None, self._given.get(name, 0), step)
                begun = logger.begin(self._run, self._config, past)
                self._held[name] = self._given[name] = begun.last_step
                if begun.record:
                    self._records[name] = begun.record
                    write_record(self._run, name, Record(begun.record))
                self._add(name, rows)
                if begun.where:
                    self._say(f"{name}: {begun.where}")

    def add(self, row: Row) -> None:
        for name in list(self._loggers):
            with self._left_alone_if_it_fails(name):
                self._add(name, [row])

    def _add(self, name: str, rows: Sequence[Row]) -> None:
        lacking = [row for row in rows if row["step"] > self._held[name]]
        if lacking:
            self._loggers[name].add(lacking)
            self._given[name] = lacking[-1]["step"]

    def add_picture(self, path: Path, step: int) -> None:
        for name, logger in list(self._loggers.items()):
            with self._left_alone_if_it_fails(name):
                logger.add_picture(path, step)

    def close(self, status: Status) -> None:
        for name, logger in list(self._loggers.items()):
            with self._left_alone_if_it_fails(name):
                del self._loggers[name]
                try:
                    self._settle(name)
                finally:
                    logger.close(status)
        self._lock.release(force=True)

    def _settle(self, name: str) -> None:
        if name in self._records:
            write_record(self._run, name, Record(self._records[name], self._given[name]))

    @contextlib.contextmanager
    def _left_alone_if_it_fails(self, name: str) -> Iterator[None]:
        logger = self._loggers[name]
        try:
            yield
        except Exception as error:  # tools raise anything
            if self._loggers.pop(name, None) is not None:
                with contextlib.suppress(Exception):
                    self._settle(name)
                with contextlib.suppress(Exception):
                    logger.close("failed")
            remedy = "" if name == ALWAYS else ". Resume the run or draw its report to update its record"
            self._say(f"warning: {name} failed and is left alone: {one_line(error)}. {METRICS} has every row{remedy}")


ALWAYS = "tensorboard"


def add_pictures(run: str | Path, *pictures: str | Path, log: str | Sequence[str] | None = None) -> list[str]:
    """Adds PNG files, such as a report's, to the records of a run, and the rows of metrics that they lack.

    Args:
        run: its folder, or a checkpoint in it.
        log: names of loggers, or one. Default: all that have a record of it, if this user started it on this machine.

    Returns lines to show: where the records are, and what failed. Raises ConfigError if the run has no config.json.
    """
    folder = folder_of(run)
    names = [log] if isinstance(log, str) else list(log or ())
    if log is None:
        names = [name for name in read_records(folder) if name in LOGGERS]
    if not names:
        return []
    config = read_config(own_file(folder, CONFIG))
    if log is None and not started_here(folder, config.run.data):
        known = " ".join(sorted(names))
        return [f"not added to records elsewhere, since {folder} was not started by you on this machine: --log {known}"]
    lines: list[str] = []
    rows = read_metrics(folder)
    step = max((row["step"] for row in rows), default=0)
    loggers = Loggers(folder, config, {name: find_logger(name)() for name in names}, lines.append)
    try:
        loggers.begin(rows, step, step)
        for picture in pictures:
            loggers.add_picture(Path(picture), step)
    finally:
        loggers.close(status_of(rows[-1] if rows else {}, config))
    return lines


def status_of(last: Row, config: PretrainConfig) -> Status:
    """Outcome of a run without an error, from its last row."""
    epoch = last.get("epoch", 0)
    return "finished" if isinstance(epoch, (int, float)) and epoch >= config.optim.epochs else "stopped"
