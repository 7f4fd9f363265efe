"""The folder of a run: who may write into it, and its log, metrics and TensorBoard files."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tqdm import tqdm

import maskco
from maskco.checkpoint import BEST, CHECKPOINT, KEPT, kept_checkpoints
from maskco.config import ConfigError, PretrainConfig, read_config
from maskco.files import partial_name, user_path, write_atomically

if TYPE_CHECKING:
    from types import TracebackType

CONFIG, METRICS, LOG, TENSORBOARD = "config.json", "metrics.jsonl", "log.txt", "tensorboard"
WRITTEN_ATOMICALLY = (CONFIG, METRICS, CHECKPOINT, BEST, "evaluation.json", "report.html", "report.png")
PARTIALS = tuple(partial_name(name) for name in WRITTEN_ATOMICALLY)
OWN_FILES = (*WRITTEN_ATOMICALLY, *PARTIALS, LOG, TENSORBOARD, "detectors")


def check_out(out: Path, *, resume: bool, overwrite: bool) -> None:
    """Raises ConfigError if a run must not be written to `out`. Changes nothing."""
    if resume and overwrite:
        raise ConfigError("resume and overwrite exclude each other: keep one")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out: {out} is a file; name a folder for the run")
    if not out.exists() or all(path.name in PARTIALS for path in out.iterdir()):
        return
    if not (out / CONFIG).is_file():
        raise ConfigError(f"out: {out} holds other files and no maskco run; name a new or empty folder")
    read_config(out / CONFIG)
    if not resume and not overwrite:
        raise ConfigError(f"out: {out} holds a run already; continue it with --resume, or replace it with --overwrite")


def clear_out(out: Path) -> None:
    """Removes a run's own files, and nothing else that lies beside them."""
    half_kept = out.glob(partial_name(KEPT.format("*")))
    for path in [*(out / name for name in OWN_FILES), *kept_checkpoints(out).values(), *half_kept]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


class Recorder:
    """Writes a run's log.txt, metrics.jsonl and TensorBoard events. A context manager.

    Args:
        step: steps already done; rows of metrics past them, which a resumed run makes again, are dropped.
    """

    def __init__(self, out: Path, config: PretrainConfig, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        out.mkdir(parents=True, exist_ok=True)
        values = json.dumps({"maskco": maskco.__version__, **config.to_dict()}, indent=2) + "\n"
        write_atomically(out / CONFIG, lambda file: file.write(values.encode()))
        kept = "".join(json.dumps(row) + "\n" for row in read_metrics(out) if row["step"] <= step)
        write_atomically(out / METRICS, lambda file: file.write(kept.encode()))
        self._metrics = open(out / METRICS, "a", encoding="utf-8")  # noqa: SIM115
        self._log = open(out / LOG, "a", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        self._tensorboard = SummaryWriter(str(out / TENSORBOARD), purge_step=step + 1)

    def say(self, text: str, *, show: bool = True) -> None:
        """A line for log.txt and, with `show`, for the terminal, above the progress bar."""
        append(self._log, f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
        if show:
            tqdm.write(text, file=sys.stderr)

    def add(self, row: dict[str, Any]) -> None:
        """One row of metrics."""
        append(self._metrics, json.dumps(row) + "\n")
        for name, value in row.items():
            if name != "step":
                self._tensorboard.add_scalar(name, value, row["step"])

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A full disk must not hide the error that it led to.
        with contextlib.suppress(OSError) if error is not None else contextlib.nullcontext():
            if error is not None:
                self.say(f"stopped by {type(error).__name__}: {error}", show=False)
            self._metrics.close()
            self._log.close()
            self._tensorboard.close()


def append(file: TextIO, text: str) -> None:
    """Writes at once. An OSError says which file it was, which that of a failing write does not by itself."""
    try:
        file.write(text)
        file.flush()
    except OSError as error:
        error.filename = file.name
        raise


class SilentRecorder:
    """Takes what a `Recorder` takes and writes nothing: all ranks but the first have one. A context manager."""

    def say(self, text: str, *, show: bool = True) -> None:
        pass

    def add(self, row: dict[str, Any]) -> None:
        pass

    def __enter__(self) -> SilentRecorder:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def folder_of(run: str | Path) -> Path:
    """The folder of a run that is named by it, or by a checkpoint in it."""
    path = user_path(run)
    return path.parent if path.is_file() else path


def read_metrics(run: str | Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl; a last line that was cut off while it was written is left out."""
    path = folder_of(run) / METRICS
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows
