"""The rows of an evaluation: one for each encoder and task, printed as a table and kept in a JSON file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from maskco.evaluate.errors import EvaluationError
from maskco.files import write_atomically

EVALUATION = "evaluation.json"
WITHOUT_EFFECT = ("data", "architecture", "prefix", "device", "workers")  # on scores, or said elsewhere in a row
TASKS = ("knn", "linear", "regions", "detection")


@dataclass(frozen=True)
class Row:
    """Scores of one encoder at one task, with the origin of the figures."""

    task: str
    data: str
    encoder: str  # as the user called it
    architecture: str
    scores: dict[str, float]  # per cent, by what a table's head calls them
    details: dict[str, Any] = field(default_factory=dict)  # settings, counts, versions …: plain JSON values

    @property
    def key(self) -> tuple[str, ...]:
        """A newer row takes the place of an older one with the same key."""
        return *self.protocol, "untrained" * self.untrained, self.place or self.encoder

    @property
    def protocol(self) -> tuple[str, ...]:
        """Equal for rows whose encoders were evaluated in the same way on the same data."""
        conditions = sorted(f"{name} {value}" for name, value in self.conditions.items())
        return self.task, self.data, self.data_place, *conditions

    @property
    def data_place(self) -> str:
        """Where the data lie, since many folders share a name. As the user typed it in files of earlier versions."""
        return str(self.details.get("settings", {}).get("data", ""))

    @property
    def conditions(self) -> dict[str, Any]:
        """The settings that change scores."""
        settings = self.details.get("settings", {}) | {"image_size": self.details.get("image_size")}
        return {name: value for name, value in settings.items() if name not in WITHOUT_EFFECT and value is not None}

    @property
    def untrained(self) -> bool:
        return self.encoder.startswith("untrained:")

    @property
    def place(self) -> str | None:
        """Of a run or its checkpoint, as seen from the folder of the file. None: no run's, or of an earlier version."""
        return self.details.get("place")


def format_table(rows: Sequence[Row]) -> str:
    """Rows of one task on one data set, the columns as wide as they need to be."""
    columns = list(dict.fromkeys(name for row in rows for name in row.scores))
    cells = [["encoder", *columns]]
    cells += [[row.encoder, *(f"{row.scores[c]:.1f}" if c in row.scores else "" for c in columns)] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in cells
    ]
    return "\n".join([lines[0], "─" * len(lines[0]), *lines[1:]])


def save_rows(path: Path, rows: Sequence[Row]) -> None:
    """Adds rows to a file of them, in place of those with the same keys. Raises EvaluationError for another file."""
    kept = {row.key: row for row in (load_rows(path) if path.exists() else [])} | {row.key: row for row in rows}
    content = json.dumps({"rows": [asdict(row) for row in kept.values()]}, indent=2) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(content.encode()))


def load_rows(path: Path) -> list[Row]:
    """The rows in a file of them. Raises EvaluationError if it is another file, or damaged."""
    try:
        return [_row(values) for values in json.loads(path.read_text(encoding="utf-8"))["rows"]]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise EvaluationError(
            f"{path} is no file of evaluations by this version. Move it away, or name another"
        ) from error


def _row(values: dict[str, Any]) -> Row:
    """Raises TypeError or ValueError unless all values are of their fields' types."""
    row = Row(**values)
    texts = (row.task, row.data, row.encoder, row.architecture)
    if row.task not in TASKS or not all(isinstance(text, str) for text in texts):
        raise ValueError("expected a known task, and text")
    if not isinstance(row.scores, dict) or not isinstance(row.details, dict) or not row.scores.keys() - {"chance"}:
        raise ValueError("expected scores and details by name")
    if not all(isinstance(score, (int, float)) and not isinstance(score, bool) for score in row.scores.values()):
        raise ValueError("expected scores in numbers")
    if not isinstance(row.place, (str, type(None))):
        raise ValueError("expected a place in text")
    if not isinstance(row.details.get("settings", {}), dict):
        raise ValueError("expected settings by name")
    notes = row.details.get("notes", [])
    if not isinstance(notes, (list, tuple)) or not all(isinstance(note, str) for note in notes):
        raise ValueError("expected notes in text")
    return row
