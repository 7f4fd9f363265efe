"""Puts the tables of benchmarks/results into the pages, between their marks.

    python -m benchmarks.tables

Into benchmarks/README.md the losses over all pairs on the CPU, all that was measured on a GPU, and the paper's claims
on photographs. Into docs/results/claims.md the claims on scenes. Into README.md the GPUs' names, and two small tables
of summaries.py. Where a file is missing, the pages say that nothing was measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import tyro

from benchmarks import summaries
from benchmarks.cases import BOTH, FORWARD, OURS
from benchmarks.table import START, Row, ceilings_line, fill, markdown, over_rows, read_results, where
from maskco.console import one_line_errors

ROOT = Path(__file__).resolve().parent.parent
ON_CPU = START.format("benchmarks/results/contrast_cpu_kept.json")
ON_CUDA = START.format("benchmarks/results/*_cuda.json")
PHOTOGRAPHS = "claims_photos.json"
ON_PHOTOGRAPHS = START.format(f"benchmarks/results/{PHOTOGRAPHS}")
SPEED = START.format("benchmarks/results/*_cpu.json")
CLAIMS = START.format("benchmarks/results/claims*.json")
ON_SCENES = START.format("benchmarks/results/claims.json")
NOTHING = "Nothing has been timed on a GPU yet."
NO_PHOTOGRAPHS = "Nothing has been measured on photographs yet."


@dataclass
class Options:
    root: Path = ROOT
    """Folder with README.md, benchmarks/ and docs/."""


def main() -> None:
    with one_line_errors():
        options = tyro.cli(Options, prog="python -m benchmarks.tables")
        update(options.root)


def update(root: Path) -> None:
    """Raises ConfigError for a page without the marks, or a file that holds no results."""
    results = root / "benchmarks/results"
    page = root / "benchmarks/README.md"
    found = on_gpu(results)
    fill(page, ON_CPU, over_rows(read_results(results / "contrast_cpu_kept.json", "meta", "rows")))
    fill(page, ON_CUDA, details(found))
    fill(page, ON_PHOTOGRAPHS, photographs(results / PHOTOGRAPHS))
    fill(root / "docs/results/claims.md", ON_SCENES, claims(results / "claims.json"))
    fill(root / "README.md", ON_CUDA, summary(found))
    fill(root / "README.md", SPEED, summaries.speed(results))
    fill(root / "README.md", CLAIMS, summaries.claims(results))


def photographs(path: Path) -> str:
    return claims(path) if path.exists() else NO_PHOTOGRAPHS


def claims(path: Path) -> str:
    if not path.exists():
        return summaries.NOT_MEASURED
    from benchmarks.claims.study import load  # imports timm and scikit-learn, which other tables do not need
    from benchmarks.claims.table import report

    return report(load(path))


def on_gpu(results: Path) -> dict[str, Row]:
    """What was measured on a GPU, by benchmark."""
    paths = {name: results / f"{name}_cuda.json" for name in TABLES}
    return {name: read_results(path, "meta", "rows") for name, path in paths.items() if path.exists()}


def summary(found: dict[str, Row]) -> str:
    if not found:
        return NOTHING
    devices = sorted({result["meta"]["device"] for result in found.values()})
    names = ", ".join(f"`{name}`" for name in found)
    return f"Measured on {', '.join(devices)}: {names}. [The tables](benchmarks/README.md#on-a-gpu) have the figures."


def details(found: dict[str, Row]) -> str:
    """Markdown: for each file the GPU, what it reaches, and a table."""
    return "\n\n".join(_section(name, result) for name, result in found.items()) or NOTHING


def _section(name: str, result: Row) -> str:
    return f"**{name}**. On this GPU {ceilings_line(result['meta']['ceilings'])}.\n\n{TABLES[name](result)}"


def _cases(result: Row) -> str:
    """A line for each case: forward and backward where it has both."""
    lines = [["case", "pass", "maskco, ms", "others, ms (ours/this)"], ["---"] * 4]
    timed = [row for row in result["rows"] if "skipped" not in row]
    for (case, dtype), group in groupby(timed, key=lambda row: (row["case"], row["dtype"])):
        rows = list(group)
        main = BOTH if any(row["pass"] == BOTH and row["impl"] == OURS for row in rows) else FORWARD
        times = {row["impl"]: row for row in rows if row["pass"] == main}
        others = [f"{name} {row['median_ms']:.4g} ({row['ratio']:.2f})" for name, row in times.items() if name != OURS]
        title = case if dtype in case else f"{case}, {dtype}"
        lines.append([title, main, f"{times[OURS]['median_ms']:.4g}", ", ".join(others)])
    return f"{where(result)}:\n\n{markdown(lines)}"


def _parts(result: Row) -> str:
    """A line for each group of the step's parts."""
    lines = [["part", "ms", "share of the step"], ["---"] * 3]
    groups = [row for row in result["rows"] if "group" in row]
    lines += [[row["group"], f"{row['median_ms']:.4g}", f"{row['share']:.1%}"] for row in groups]
    case = f"{result['rows'][0]['case']}, {result['rows'][0]['dtype']}"
    return f"{where(result)}, {case}:\n\n{markdown(lines)}"


def _counters(result: Row) -> str:
    """A line for each launch."""
    metrics = list(dict.fromkeys(name for row in result["rows"] for name in row["figures"]))
    lines = [["kernel", "dtype", "grid", *metrics], ["---"] * (3 + len(metrics))]
    for row in result["rows"]:
        figures = [f"{row['figures'][name]:.4g}" if name in row["figures"] else "" for name in metrics]
        lines.append([row["kernel"], row["dtype"], row["grid"], *figures])
    return f"{where(result)}:\n\n{markdown(lines)}"


TABLES: dict[str, Callable[[Row], str]] = {
    "info_nce": _cases,
    "contrast": over_rows,
    "region_pool": _cases,
    "queue": _cases,
    "train_step": _parts,
    "counters": _counters,
}


if __name__ == "__main__":
    main()
