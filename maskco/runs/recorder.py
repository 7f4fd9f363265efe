"""Writes a run's log and metrics, and passes them to its loggers."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tqdm import tqdm

from maskco.config import PretrainConfig, find_logger
from maskco.files import write_atomically
from maskco.runs.folder import LOG, METRICS, clear_out, read_metrics
from maskco.runs.loggers import ALWAYS, Loggers, status_of
from maskco.runs.loggers.base import Status
from maskco.runs.loggers.tensorboard import TensorBoardLogger
from maskco.runs.trust import CONFIG, SIGNATURE, own_file, sign
from maskco.version import __version__

if TYPE_CHECKING:
    from types import TracebackType


class Recorder:
    """Writes a run's log.txt and metrics.jsonl, and passes rows to its loggers. A context manager.

    A log or metrics that cannot be written stop the run. A logger that fails does not.

    Nothing is written or replaced before `begin`. So a run that fails in its first step leaves no trace, and does not
    change the run that it was to replace.

    Args:
        step: steps already done. Later rows of metrics are dropped, since a resumed run makes them again.
        replace: remove the run that is in `out`.
        check: called before anything is written, when no other process can write any more.
    """

    def __init__(
        self,
        out: Path,
        config: PretrainConfig,
        step: int,
        *,
        replace: bool = False,
        check: Callable[[], object] = lambda: None,
    ) -> None:
        self._out, self._config, self._step, self._replace, self._check = out, config, step, replace, check
        self._begun = False
        self._waiting: list[str] = []  # lines for the log
        self._last_row: dict[str, Any] = {}
        loggers = {ALWAYS: TensorBoardLogger(), **{name: find_logger(name)() for name in config.run.log}}
        self._loggers = Loggers(out, config, loggers, self.say)

    def begin(self) -> None:
        """Makes the folder and its files. Does nothing when called again."""
        if self._begun:
            return
        out = self._out
        out.mkdir(parents=True, exist_ok=True)
        self._check()
        if self._replace:
            clear_out(out)
        signature = sign(self._config.run.data, self._config.run.probe)
        values = {"maskco": __version__, SIGNATURE: signature, **self._config.to_dict()}
        content = json.dumps(values, indent=2) + "\n"
        write_atomically(out / CONFIG, lambda file: file.write(content.encode()))
        made = read_metrics(out)
        rows = [row for row in made if row["step"] <= self._step]
        kept = "".join(json.dumps(row) + "\n" for row in rows)
        write_atomically(out / METRICS, lambda file: file.write(kept.encode()))
        self._metrics = open(own_file(out, METRICS), "a", encoding="utf-8")  # noqa: SIM115
        self._log = open(own_file(out, LOG), "a", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        self._begun = True
        for line in self._waiting:
            append(self._log, line)
        self._last_row = rows[-1] if rows else {}
        self._loggers.begin(rows, self._step, max((row["step"] for row in made), default=0))

    def say(self, text: str, *, show: bool = True) -> None:
        """A line for log.txt and, with `show`, for the terminal, above the progress bar."""
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n"
        if self._begun:
            append(self._log, line)
        else:
            self._waiting.append(line)
        if show:
            tqdm.write(text, file=sys.stderr)

    def add(self, row: dict[str, Any]) -> None:
        """One row of metrics, once the run has started."""
        append(self._metrics, json.dumps(row) + "\n")
        self._last_row = {**self._last_row, **row}
        self._loggers.add(row)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._begun:
            return
        status: Status = "failed" if isinstance(error, Exception) else status_of(self._last_row, self._config)
        # A full disk must not hide the error that it led to.
        passing = contextlib.suppress(OSError) if error is not None else contextlib.nullcontext()
        with passing, contextlib.ExitStack() as closing:  # from the last one to the first
            closing.callback(self._log.close)
            closing.callback(self._metrics.close)
            closing.callback(self._loggers.close, status)
            if error is not None:
                self.say(f"stopped by {type(error).__name__}: {error}", show=False)


def append(file: TextIO, text: str) -> None:
    """Writes at once. Its OSError names the file, which that of a failing write does not."""
    try:
        file.write(text)
        file.flush()
    except OSError as error:
        error.filename = file.name
        raise


class SilentRecorder:
    """A `Recorder` that writes nothing, for all ranks but the first. A context manager."""

    def begin(self) -> None:
        pass

    def say(self, text: str, *, show: bool = True) -> None:
        pass

    def add(self, row: dict[str, Any]) -> None:
        pass

    def __enter__(self) -> SilentRecorder:
        return self

    def __exit__(self, *error: object) -> None:
        pass
