"""Prints the rows of a benchmark as a table of at most 120 columns, and reads what it wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.cases import OURS
from maskco.errors import ConfigError

Row = dict[str, Any]
COLUMNS = f"{'pass':<7} {'ms':>9} {'p20 – p80':>19} {'GFLOP/s':>8} {'peak MiB':>9} {'ours/this':>9}  target"
SHORT = {
    "ratio": "",
    "peak_mib": "peak",
    "peak_ratio": "peak ratio",
    "beyond_gradients_mib": "beyond grads",
    "of forward": "of fwd",
    "of forward+backward": "of both",
}
PASS = {"forward": "fwd", "backward": "bwd", "forward+backward": "both"}


def print_heading(device: str, threads: int) -> None:
    print(f"{device}, {threads} thread{'s' * (threads != 1)}; median time and peak memory above the inputs")


def print_case(name: str, rows: list[Row]) -> None:
    print(f"\n{name}, {rows[0]['dtype']}\n{'':<25}{COLUMNS}", flush=True)
    previous = ""
    notes: dict[str, str] = {}
    for row in rows:
        label = row["impl"] if row["impl"] != previous else ""
        previous = row["impl"]
        if "skipped" in row:
            print(f"{label:<24} not run: {row['skipped']}"[:120])
            continue
        if row["note"]:
            notes[row["impl"]] = row["note"]
        spread = f"{_ms(row['p20_ms'])} – {_ms(row['p80_ms'])}"
        figures = (
            f"{_ms(row['median_ms']):>9} {spread:>19} {_number(row['gflops'], 0):>8} {_number(row['peak_mib'], 1):>9}"
        )
        ratio = None if row["impl"] == OURS else row["ratio"]
        targets = ", ".join(_target(t) for t in row.get("targets", ()))
        print(f"{label:<24} {PASS[row['pass']]:<7} {figures} {_number(ratio, 3):>9}  {targets}".rstrip())
    for implementation, note in notes.items():
        print(f"  {implementation}: {note}")


def print_missed(rows: list[Row]) -> None:
    """How many targets were met, and each that was missed."""
    judged = [(row, target) for row in rows for target in row.get("targets", ())]
    if not judged:
        return
    missed = [(row, target) for row, target in judged if not target["met"]]
    print(f"\n{len(judged) - len(missed)} of {len(judged)} targets met")
    for row, target in missed:
        case = row["case"] if row["dtype"] in row["case"] else f"{row['case']}, {row['dtype']}"
        on = "" if row["impl"] == OURS else f" against {row['impl']}"
        name = SHORT[target["metric"]] or "ours/this"
        print(f"  missed: {case}, {PASS[row['pass']]}{on}: {name} {target['value']:.3g}, wanted ≤ {target['limit']:.3g}")


def read_results(path: Path, *parts: str) -> Row:
    """What a benchmark wrote to a JSON file. Raises OSError, or ConfigError if the file lacks one of its parts."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        if all(part in results for part in parts):
            return results
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} holds no results of a benchmark: {error}") from error
    raise ConfigError(f"{path} holds no results of this benchmark: it needs {', '.join(parts)}")


def _target(target: dict[str, Any]) -> str:
    text = f"{SHORT[target['metric']]} ≤ {target['limit']:.3g} {'✓' if target['met'] else '✗'}".strip()
    return text if target["metric"] == "ratio" else f"{text} ({target['value']:.3g})"


def _ms(value: float) -> str:
    return f"{value:.4f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
