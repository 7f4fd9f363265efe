"""The contract of a logger: another tool that keeps a record of a run, next to metrics.jsonl.

Imports nothing heavy: a logger imports its tool in `begin`.
"""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from maskco.config import PretrainConfig
from maskco.console import printable
from maskco.provenance import provenance

Row = Mapping[str, Any]  # of metrics.jsonl: numbers by name, "step" among them
Status = Literal["finished", "stopped", "failed"]  # stopped: by a signal, to be resumed


@dataclass(frozen=True)
class Past:
    """The record of a run before `begin`.

    Attributes:
        record: the one that a former process started, if there is one. It may be gone.
        given: last step of the rows that it was given.
        step: steps done. Rows past it, of a process that was killed, are made again.
    """

    record: str | None
    given: int
    step: int


@dataclass(frozen=True)
class Begun:
    """A record that is open.

    Attributes:
        record: its name in the tool, by which a later process continues it. At most 64 letters, digits, - and _.
            Empty if the run folder is enough.
        last_step: of the rows that it holds. Later ones are added, also those that were made before `begin`.
        where: the rest of a line for the log that starts with the logger's name. Empty: there is no line.
    """

    record: str = ""
    last_step: int = 0
    where: str = ""


class Logger(ABC):
    """Takes a run to another tool. Each method may raise anything: the run then continues without this logger."""

    package: ClassVar[str] = ""
    """The package that it imports, and `pip install 'maskco[NAME]'` installs. Empty: it needs none."""

    @abstractmethod
    def begin(self, run: Path, config: PretrainConfig, past: Past) -> Begun:
        """Starts a record, or continues that of the past."""

    @abstractmethod
    def add(self, rows: Sequence[Row]) -> None:
        """Rows in the order of their steps."""

    @abstractmethod
    def add_picture(self, path: Path, step: int) -> None:
        """A PNG file, known by its name without .png."""

    @abstractmethod
    def close(self, status: Status) -> None:
        """Also called after a method that failed, `begin` included."""


def name_of(run: Path) -> str:
    """Name of a run: that of its folder."""
    return printable(run.absolute().name)[:128]  # W&B takes no more


def described(config: PretrainConfig) -> dict[str, Any]:
    """The options by group, and the versions and commit of what runs. Text is printable."""
    return _printable({**config.to_dict(), **provenance()})


def _printable(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _printable(each) for name, each in value.items()}
    return printable(value) if isinstance(value, str) else value


def numbers(row: Row) -> dict[str, float]:
    """The row's numbers by name, without its step."""
    return {name: value for name, value in row.items() if isinstance(value, (int, float)) and name != "step"}


@contextlib.contextmanager
def environment(defaults: Mapping[str, str]) -> Iterator[None]:
    """Context manager that sets those of the environment variables that the user has not set."""
    missing = {name: value for name, value in defaults.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name, None)
