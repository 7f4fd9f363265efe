"""The folder of a run: checks before a run writes into it, and its files."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from maskco.config import read_config
from maskco.errors import ConfigError
from maskco.files import partial_name, user_path
from maskco.runs.checkpoint import BEST, CHECKPOINT, KEPT, is_checkpoint, kept_checkpoints
from maskco.runs.trust import CONFIG, own_file

METRICS, LOG, TENSORBOARD = "metrics.jsonl", "log.txt", "tensorboard"
RECORDS, LOGGERS_LOCK = "loggers.json", ".loggers.lock"  # the names of its records in other tools, see loggers/
RUN_LOCK = ".run.lock"  # held while a process writes the run, see RunLock
WRITTEN_ATOMICALLY = (CONFIG, METRICS, CHECKPOINT, BEST, RECORDS, "evaluation.json", "report.html", "report.png")
PARTIALS = tuple(partial_name(name) for name in WRITTEN_ATOMICALLY)
OWN_FILES = (*WRITTEN_ATOMICALLY, *PARTIALS, LOG, LOGGERS_LOCK, TENSORBOARD, "detectors")
KNN, REGION_KNN = "probe_knn", "probe_regions"  # metrics of the online probe
PROBES = {REGION_KNN: "region kNN", KNN: "kNN"}  # the one that `keep_best` goes by, if it is there, comes first
CHANCE = "_chance"  # what is behind a metric's name in the name of what chance scores
METRICS_OF_OURS = {"step", "epoch", "loss", "lr", "seconds"}  # what every row has, and no method may call its own


def check_out(out: Path, *, resume: bool, overwrite: bool) -> None:
    """Raises ConfigError if a run must not be written to `out`. Changes nothing."""
    if resume and overwrite:
        raise ConfigError("resume: it cannot be combined with `overwrite=True`. Keep one of them")
    if os.path.lexists(out) and not out.is_dir():
        what = "a file" if out.exists() else "a link to nothing"
        raise ConfigError(f"out: {out} is {what}. Name a folder for the run")
    existing = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"out: {existing} cannot be written to. Name another folder, or change its permissions")
    if not out.exists() or all(path.name in (*PARTIALS, RUN_LOCK) for path in out.iterdir()):
        return
    if not _is_run(out):
        raise ConfigError(f"out: {out} holds other files and no maskco run. Name a new or empty folder")
    if overwrite:
        return
    if resume:
        for name in OWN_FILES:
            own_file(out, name)
        read_config(out / CONFIG)
        copies = [*(path.name for path in kept_checkpoints(out).values()), *([BEST] if (out / BEST).exists() else [])]
        if copies and not (out / CHECKPOINT).exists():
            raise ConfigError(
                f"out: {out} has lost its {CHECKPOINT}. Copy {copies[-1]} to it, or start over with `overwrite=True`"
            )
    elif not never_began(out):
        raise ConfigError(
            f"out: {out} holds a run already. Continue it with `resume=True`, or replace it with `overwrite=True`"
        )


def nothing_to_resume(out: Path) -> ConfigError:
    """The error for a folder without a config.json that should be resumed without naming data."""
    if out.is_file():
        return ConfigError(f"out: {out} is a file. Name the folder of the run")
    if (out / CHECKPOINT).exists():
        return ConfigError(f"out: {out} has lost its {CONFIG}. Restore it, or start over with `overwrite=True`")
    return ConfigError(f"out: {out} holds no run to resume. Check the folder, or name `data` to start one")


class RunLock:
    """Keeps other processes from writing to a run's folder, from `take` to `release`.

    A POSIX lock: it goes with its process, however that ends, and loading workers do not inherit it. A file that is
    left has no meaning.
    """

    def __init__(self, out: Path) -> None:
        self._out, self._file = out, -1

    def take(self) -> None:
        """Does nothing when called again. Raises ConfigError if another process has the lock."""
        path = own_file(self._out, RUN_LOCK)
        while self._file < 0:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                os.close(file)
                raise ConfigError(
                    f"out: {self._out} is being written by another process. Wait for it, or choose another folder"
                ) from error
            except OSError:  # the file system has no locks
                pass
            if os.fstat(file).st_nlink:
                self._file = file
            else:  # another process released and removed it meanwhile
                os.close(file)

    def release(self) -> None:
        if self._file >= 0:
            (self._out / RUN_LOCK).unlink(missing_ok=True)
            os.close(self._file)
            self._file = -1


def never_began(out: Path) -> bool:
    """Whether our run was started here, but made no row of metrics and saved no checkpoint."""
    kept = any((out / name).exists() for name in (CHECKPOINT, BEST)) or kept_checkpoints(out)
    return _names_maskco(out / CONFIG) and not kept and not read_metrics(out)


def _is_run(out: Path) -> bool:
    """Whether a folder is our run. Its config.json may be damaged, so other signs count too."""
    if _names_maskco(out / CONFIG):
        return True
    if any(row.keys() >= METRICS_OF_OURS for row in read_metrics(out)) or _first_line(out / LOG):
        return True
    return any(is_checkpoint(path) for path in (out / CHECKPOINT, *kept_checkpoints(out).values()))


def _names_maskco(config: Path) -> bool:
    try:
        return "maskco" in json.loads(config.read_text(encoding="utf-8")) if config.is_file() else False
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def _first_line(log: Path) -> bool:
    """Whether a log starts as ours do."""
    if not log.is_file():
        return False
    with open(log, encoding="utf-8", errors="replace") as file:
        return re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \w+ with ", file.readline(200)) is not None


def clear_out(out: Path) -> None:
    """Removes a run's own files, and nothing else in the folder."""
    half_kept = out.glob(partial_name(KEPT.format("*")))
    for path in [*(out / name for name in OWN_FILES), *kept_checkpoints(out).values(), *half_kept]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def folder_of(run: str | Path) -> Path:
    """The folder of a run that is named by it, or by a checkpoint in it."""
    path = user_path(run)
    return path.parent if path.is_file() else path


def read_metrics(run: str | Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl that say at which step they were made. Others are left out, such as a last line
    that was cut off while it was written."""
    path = own_file(folder_of(run), METRICS)
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and type(row.get("step")) is int and 0 <= row["step"] < 1 << 53:
            rows.append(row)
    return rows
