"""Prints the rows of an op's benchmark as a table of at most 120 columns, and reads what a benchmark wrote.

python -m benchmarks.table RESULT.json

`benchmarks.tables` puts tables into the pages.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import tyro

from benchmarks.cases import OURS
from maskco.console import one_line_errors
from maskco.errors import ConfigError
from maskco.files import write_atomically

Row = dict[str, Any]
START, END = "<!-- made by benchmarks.tables from {} -->", "<!-- end -->"
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


def ceilings_line(found: dict[str, float]) -> str:
    """What a GPU reaches, see `harness.ceilings`."""
    products = ", ".join(f"{found[f'{kind}_tflops']:g} in {kind}" for kind in ("bf16", "tf32", "float32"))
    return f"a copy reaches {found['copy_gbs']:g} GB/s, cuBLAS's products {products} TFLOP/s"


def with_dtype(row: Row) -> str:
    """The case's name, and the dtype where the name doesn't say it."""
    return row["case"] if row["dtype"] in row["case"] else f"{row['case']}, {row['dtype']}"


def print_case(rows: list[Row]) -> None:
    print(f"\n{with_dtype(rows[0])}\n{'':<25}{COLUMNS}", flush=True)
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
        between = f"{_ms(row['p20_ms'])} – {_ms(row['p80_ms'])}"
        figures = (
            f"{_ms(row['median_ms']):>9} {between:>19} {_number(row['gflops'], 0):>8} {_number(row['peak_mib'], 1):>9}"
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
        on = "" if row["impl"] == OURS else f" against {row['impl']}"
        name = SHORT[target["metric"]] or "ours/this"
        found = f"{name} {target['value']:.3g}, wanted ≤ {target['limit']:.3g}"
        print(f"  missed: {with_dtype(row)}, {PASS[row['pass']]}{on}: {found}")


def read_results(path: Path, *parts: str) -> Row:
    """What a benchmark wrote to a JSON file. Raises OSError, or ConfigError if the file lacks one of its parts."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        if all(part in results for part in parts):
            return results
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} holds no results of a benchmark: {error}") from error
    raise ConfigError(f"{path} holds no results of this benchmark: it needs {', '.join(parts)}")


def check_rows(path: Path, rows: list[Row], *names: str) -> list[Row]:
    """The rows. Raises ConfigError unless each has these entries: they are of another benchmark."""
    if all(isinstance(row, dict) and set(names) <= row.keys() for row in rows):
        return rows
    raise ConfigError(f"{path} holds no results of this benchmark: its rows need {', '.join(names)}")


@dataclass
class Options:
    result: Annotated[Path, tyro.conf.Positional]
    """JSON file written by a benchmark."""


def main() -> None:
    with one_line_errors():
        options = tyro.cli(Options, prog="python -m benchmarks.table")
        result = read_results(options.result, "meta", "rows")
        check_rows(options.result, result["rows"], "case", "dtype", "impl")
        print_heading(result["meta"]["device"], result["meta"]["threads"])
        for _, rows in groupby(result["rows"], key=lambda row: row["case"]):
            print_case(list(rows))
        print_missed(result["rows"])


def over_rows(result: Row) -> str:
    """Markdown: our time over plain torch's for each loss, dtype and C, by N, and the most memory. ✗: a missed target.

    Raises ConfigError if the file holds no cases over N.
    """
    rows = [row for row in result["rows"] if "skipped" not in row and "N" in row.get("at", ())]
    if not rows:
        raise ConfigError("result: the file holds no losses over N. Name one of benchmarks.contrast")
    sizes = sorted({row["at"]["N"] for row in rows})
    head = ["loss", "dtype", "C", *(f"N = {n}" for n in sizes), "MiB beyond gradients"]
    lines = [head, ["---"] * len(head)]
    for key in dict.fromkeys((row["at"]["loss"], row["dtype"], row["at"]["C"]) for row in rows):
        group = [row for row in rows if (row["at"]["loss"], row["dtype"], row["at"]["C"]) == key]
        ratios = {row["at"]["N"]: judged(row["ratio"], row, "ratio") for row in group if row["impl"] == "eager"}
        most = max(
            (row for row in group if row["impl"] == OURS and row["beyond_gradients_mib"] is not None),
            key=lambda row: row["beyond_gradients_mib"],
            default=None,
        )
        memory = "" if most is None else judged(most["beyond_gradients_mib"], most, "beyond_gradients_mib", 1)
        lines.append([*map(str, key), *(ratios.get(n, "") for n in sizes), memory])
    return f"{where(result)}:\n\n{markdown(lines)}"


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table; the second line is the ruler."""
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def where(result: Row) -> str:
    """The device and what else decides about times there."""
    meta = result["meta"]
    with_torch = f"torch {meta['versions']['torch']}"
    if result["rows"][0].get("device") == "cuda":
        return f"{meta['device']}, {with_torch}"
    kept = "freed memory kept" if meta["keep_freed"] else "freed memory returned to the system"
    return f"{meta['device']}, {threads(meta)}, {with_torch}, {kept}"


def threads(meta: Row) -> str:
    return f"{meta['threads']} thread{'s' * (meta['threads'] != 1)}"


def judged(value: float, row: Row, metric: str, digits: int = 2) -> str:
    missed = any(not target["met"] for target in row.get("targets", ()) if target["metric"] == metric)
    return f"{value:.{digits}f}{' ✗' if missed else ''}"


def fill(page: Path, start: str, text: str) -> None:
    """Puts `text` into a page, between the lines `start` and END. Raises ConfigError for a page without them."""
    before, found, rest = page.read_text(encoding="utf-8").partition(start)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise ConfigError(f"docs: {page} lacks the lines {start!r} and {END!r}, between which the table goes")
    filled = f"{before}{start}\n{text}\n{END}{after}"
    write_atomically(page, lambda file: file.write(filled.encode()))


def _target(target: dict[str, Any]) -> str:
    text = f"{SHORT[target['metric']]} ≤ {target['limit']:.3g} {'✓' if target['met'] else '✗'}".strip()
    return text if target["metric"] == "ratio" else f"{text} ({target['value']:.3g})"


def _ms(value: float) -> str:
    return f"{value:.4f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


if __name__ == "__main__":
    main()
