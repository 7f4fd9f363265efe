"""The file that keeps a study's rows. Several studies may add to one file at the same time."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.claims.names import SETS
from maskco.data.cache import one_at_a_time
from maskco.errors import UserError
from maskco.files import write_atomically

Row = dict[str, Any]
KINDS = {"scale": str, "set": str, "part": str, "method": str, "seed": int, "scores": dict}  # what every row has


def key_of(row: Row) -> tuple[Any, ...]:
    """What no two rows of a file share."""
    return row["scale"], row["set"], row["part"], row["method"], row["seed"]


def load(file: Path) -> list[Row]:
    """Raises UserError for files of other benchmarks, of older forms, and with two rows of one run."""
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
        fits = isinstance(rows, list) and all(map(is_row, rows))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{file} holds no results of this benchmark") from error
    if not fits:
        raise UserError(f"{file} holds no results of this benchmark")
    keys = [key_of(row) for row in rows]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise UserError(f"{file} holds two rows of {', '.join(map(str, twice))}. Remove one of them")
    return rows


def is_row(row: Row) -> bool:
    """Raises KeyError or TypeError for most of what is none."""
    return (
        all(isinstance(row[name], kind) for name, kind in KINDS.items())
        and row["set"] in SETS
        and row["part"] in ("val", "test")
        and all(isinstance(score, float) and 0 <= score <= 100 for score in row["scores"].values())
        and isinstance(row.get("options", {}), dict)
        and all(len(point) == 3 for point in row.get("curve", ()))
    )


def add(file: Path, rows: Iterable[Row]) -> None:
    """Adds rows to what the file holds by now. One of the same run is replaced. Raises UserError, OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(file):
        known = load(file) if file.exists() else []
        save(file, [*{key_of(row): row for row in (*known, *rows)}.values()])


def save(file: Path, rows: list[Row]) -> None:
    """Replaces the file."""
    text = json.dumps({"rows": sorted(rows, key=key_of)}, indent=1) + "\n"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, lambda stream: stream.write(text.encode()))
