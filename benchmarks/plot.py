"""Draws result files: how many times our time the others take, and how time and memory grow.

python -m benchmarks.plot RESULT.json … --out DIR
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.cases import BACKWARD, BOTH, FORWARD, OURS
from benchmarks.table import read_results, with_dtype
from maskco.console import one_line_errors

Row = dict[str, Any]
# Okabe and Ito's palette: told apart by colour-blind readers too
COLOURS = {OURS: "#0072B2", "torch.compile": "#E69F00", "bare products": "#7F7F7F", "one read of features": "#7F7F7F"}
PLAIN = "#D55E00"  # eager code, under whatever name
PEERS = ("#009E73", "#CC79A7", "#56B4E9")
DTYPES = {"float32": ("#0072B2", "o-"), "bfloat16": ("#D55E00", "s-")}
CHANNELS = 512  # of the ratios over N
FASTER = "#EEF6EE"
LIMITS = ("bare products", "one read of features")
INK, FAINT = "#222222", "#DDDDDD"
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": "#999999",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "savefig.facecolor": "white",
    "savefig.dpi": 160,
}


@dataclass
class Options:
    results: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """JSON files written by the benchmarks."""
    out: Path = Path("benchmarks/results")
    """Folder for the pictures."""


def main() -> None:
    with one_line_errors(), plt.rc_context(STYLE):
        options = tyro.cli(Options, prog="python -m benchmarks.plot")
        options.out.mkdir(parents=True, exist_ok=True)
        for path in options.results:
            result = read_results(path, "meta", "rows")
            for name, figure in figures(result["rows"], _conditions(result["meta"])):
                picture = options.out / f"{path.stem}_{name}.png"
                figure.savefig(picture, bbox_inches="tight", pad_inches=0.15)
                plt.close(figure)
                print(f"wrote {picture}")


def _conditions(meta: Row) -> str:
    threads = f"{meta['threads']} thread{'s' * (meta['threads'] != 1)}"
    quick = ", --quick: figures mean little" if meta["quick"] else ""
    kept = ", freed memory kept" if meta.get("keep_freed") else ""
    return f"{meta['device']} ({meta['instruction_set']}), {threads}, torch {meta['versions']['torch']}{kept}{quick}"


def figures(rows: list[Row], conditions: str) -> Iterable[tuple[str, Figure]]:
    """(file name, figure) for all that the rows hold."""
    timed = [row for row in rows if "skipped" not in row]
    stopped = {row["sweep"][0].partition(",")[0]: row["skipped"] for row in rows if "skipped" in row and row["sweep"]}
    if any("at" in row for row in rows):
        drawn = [row for row in timed if row["impl"] == "eager" and row["at"]["C"] == CHANNELS]
        if drawn:
            yield "ratios", ratios_over_rows(drawn, conditions)
        return
    cases = [row for row in timed if row["sweep"] is None]
    if cases:
        yield "ratios", ratio_bars(cases, conditions)
    axes: dict[str, list[str]] = {}
    for row in timed:
        if row["sweep"] is not None:  # "regions, labels" is a column of the figure "regions"
            columns = axes.setdefault(row["sweep"][0].partition(",")[0], [])
            if row["sweep"][0] not in columns:
                columns.append(row["sweep"][0])
    for axis, columns in axes.items():
        reason = f" · ×: the next size {stopped[axis]}" if axis in stopped else ""
        yield f"over_{axis}", scaling(timed, columns, conditions + reason)


def ratio_bars(rows: list[Row], conditions: str) -> Figure:
    """For every case a bar for each other implementation: its time over ours, forward + backward where it has both."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(f"{row['case']}", []).append(row)
    colours = _colours(rows)
    lines: list[tuple[str, Row | None]] = []  # top to bottom: a header for every case, then its bars
    for group in groups.values():
        best = _main_pass(group)
        ours = next((row for row in best if row["impl"] == OURS), None)
        if ours is None or len(best) == 1:
            continue
        lines.append((with_dtype(ours), ours))
        lines += [(row["impl"], row) for row in best if row["impl"] != OURS]

    figure, axes = plt.subplots(figsize=(8.6, 0.24 * len(lines) + 1.1))
    for y, (label, row) in enumerate(lines):
        if row["impl"] == OURS:
            axes.text(-0.34, y, label, transform=axes.get_yaxis_transform(), weight="bold", va="center")
            axes.text(1.01, y, f"{OURS} {_ms(row['median_ms'])}", transform=axes.get_yaxis_transform(),
                      va="center", color=COLOURS[OURS], weight="bold")  # fmt: skip
            continue
        times = 1 / row["ratio"]
        axes.barh(y, times - 1, left=1, height=0.72, color=colours[label], hatch="//" if label in LIMITS else None,
                  edgecolor="white", linewidth=0)  # fmt: skip
        axes.text(-0.01, y, label, transform=axes.get_yaxis_transform(), ha="right", va="center")
        axes.annotate(f"{times:.2g}×" if times < 10 else f"{times:.0f}×", (max(times, 1), y), (4, 0),
                      textcoords="offset points", va="center", color=INK)  # fmt: skip
        axes.text(1.01, y, _ms(row["median_ms"]), transform=axes.get_yaxis_transform(), va="center")
    axes.axvline(1, color=COLOURS[OURS], linewidth=1.6)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="x", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_ylim(len(lines) - 0.4, -0.8)
    axes.margins(x=0.12)
    axes.set_xlabel(f"time of the other / time of {OURS}, {_pass_text(rows)} (right of the line: {OURS} is faster)")
    place = {"xycoords": ("axes fraction", "axes fraction"), "textcoords": "offset points", "va": "bottom"}
    title = f"{rows[0]['op']} beside other implementations"
    axes.annotate(title, (-0.34, 1), (0, 24), weight="bold", size=12, **place)
    axes.annotate(conditions, (-0.34, 1), (0, 8), size=9, color="#555555", **place)
    return figure


def ratios_over_rows(rows: list[Row], conditions: str) -> Figure:
    """A panel for each loss: our time over plain torch's, whose rows these are, against N; a line for each dtype."""
    losses = list(dict.fromkeys(row["at"]["loss"] for row in rows))
    sizes = sorted({row["at"]["N"] for row in rows})
    figure, grid = plt.subplots(1, len(losses), figsize=(8.6, 3.5), sharey=True, squeeze=False)
    for axes, loss in zip(grid[0], losses, strict=True):
        for dtype, (colour, marker) in DTYPES.items():
            line = [row for row in rows if (row["at"]["loss"], row["dtype"]) == (loss, dtype)]
            points = sorted((row["at"]["N"], row["ratio"]) for row in line)
            if points:
                axes.plot(*zip(*points, strict=True), marker, color=colour, label=dtype, markersize=5, linewidth=2)
        axes.axhline(1, color=INK, linewidth=1.4, zorder=1)
        axes.set_title("info_nce in batch" if loss == "info_nce" else f"{loss}_loss", weight="bold", size=11)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(sizes, [f"{size}" for size in sizes], rotation=60, ha="right", rotation_mode="anchor")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.grid(color=FAINT, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set_xlabel("N")
    first = grid[0][0]
    low, high = first.get_ylim()
    low, high = min(low, 0.45), max(high, 1.3)
    first.set_ylim(low, high)
    first.set_ylabel("time / time of plain torch")
    for axes in grid[0]:
        axes.axhspan(low, 1, color=FASTER, zorder=0)
    first.annotate(f"{OURS} is faster", (0.04, low), (0, 5), first.get_yaxis_transform(),
                   textcoords="offset points", color="#447744", va="bottom")  # fmt: skip
    figure.legend(*first.get_legend_handles_labels(), loc="upper right", ncols=2, frameon=False,
                  bbox_to_anchor=(0.99, 1.015), fontsize=10)  # fmt: skip
    figure.subplots_adjust(0.07, 0.22, 0.985, 0.77, 0.08)
    title = f"forward + backward with all gradients, C = {CHANNELS}"
    figure.suptitle(title, x=0.012, y=0.99, ha="left", va="top", weight="bold", size=12)
    figure.text(0.012, 0.915, conditions, size=9, color="#555555", va="top")
    return figure


def scaling(rows: list[Row], columns: list[str], conditions: str) -> Figure:
    """Time (above or left) and peak memory against the swept size, log-log; one column of panels for each sweep."""
    metrics = {"median_ms": "forward + backward, ms", "peak_mib": "peak memory above inputs, MiB"}
    wide = len(columns) == 1
    shape = (1, 2) if wide else (2, len(columns))
    size = (10, 4.2) if wide else (4.1 * len(columns) + 1, 7.6)
    figure, grid = plt.subplots(*shape, figsize=size, squeeze=False, sharey=False if wide else "row")
    ends: dict[Axes, dict[str, tuple[float, float]]] = {}
    for index, column in enumerate(columns):
        swept = [row for row in rows if row["sweep"] is not None and row["sweep"][0] == column]
        for panel, (metric, label) in enumerate(metrics.items()):
            axes = grid[0][panel] if wide else grid[panel][index]
            ends[axes] = _curves(axes, _main_pass(swept), metric, _colours(rows))
            axes.set_ylabel(label if wide or index == 0 else "")
            axes.set_xlabel(column.partition(",")[0] + (" of an image" if column.startswith("regions") else ""))
            if not wide and panel == 0:
                axes.set_title(column.partition(", ")[2], weight="bold", size=10)
    for axes, lines in ends.items():  # limits that panels share are known now
        _finish(axes, lines, _colours(rows))
    figure.subplots_adjust(0.07, 0.12 if wide else 0.08, 0.88 if wide else 0.9, 0.83 if wide else 0.87, 0.5, 0.25)
    title = f"{rows[0]['op']}: {_fixed(rows, columns[0])}"
    figure.suptitle(title, x=0.012, y=0.99, ha="left", va="top", weight="bold", size=12)
    figure.text(0.012, 0.925 if wide else 0.955, conditions, size=9, color="#555555", va="top")
    return figure


def _curves(axes: Axes, rows: list[Row], metric: str, colours: dict[str, str]) -> dict[str, tuple[float, float]]:
    """One line for each implementation; returns where each ends."""
    ends: dict[str, tuple[float, float]] = {}
    for name in dict.fromkeys(row["impl"] for row in rows):
        points = sorted((row["sweep"][1], row[metric]) for row in rows if row["impl"] == name and row[metric])
        if not points:
            continue
        style = {"linestyle": "--", "linewidth": 1.4} if name in LIMITS else {"marker": "o", "linewidth": 2}
        axes.plot(*zip(*points, strict=True), color=colours[name], markersize=4.5, **style)
        ends[name] = points[-1]
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    sizes = sorted({row["sweep"][1] for row in rows})
    axes.set_xticks(sizes)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _size(value)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(color=FAINT, linewidth=0.8)
    axes.set_xlim(sizes[0] / 1.15, sizes[-1] * 1.15)
    return ends


def _finish(axes: Axes, ends: dict[str, tuple[float, float]], colours: dict[str, str]) -> None:
    """Limits of at least a decade, round ticks, names at the right edge, crosses where larger cases were skipped."""
    low, high = map(math.log, axes.get_ylim())
    missing = max(0.0, math.log(10) - (high - low))
    low, high = low - missing / 2, high + missing / 2
    axes.set_ylim(math.exp(low), math.exp(high))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high - low < math.log(300) else (1,)))
    largest = axes.get_xticks()[-1]
    at = math.inf
    edge = axes.get_yaxis_transform()
    # one below another, in the order that the lines would have there
    for name, (x, y) in sorted(ends.items(), key=lambda item: item[1][1] / item[1][0], reverse=True):
        if x < largest:
            axes.plot(x, y, "x", color=colours[name], markersize=9, markeredgewidth=2)
        at = min(math.log(y * largest / x), high, at - (high - low) * 0.065)
        axes.annotate(name, (1.0, math.exp(at)), (5, 0), edge, textcoords="offset points", va="center",
                      color=colours[name], size=9, weight="bold" if name == OURS else "normal")  # fmt: skip


def _main_pass(rows: list[Row]) -> list[Row]:
    """Forward + backward, where the cases have a backward pass; forward otherwise."""
    training = any(row["pass"] == BACKWARD or row["sweep"] is not None for row in rows)
    return [row for row in rows if row["pass"] == (BOTH if training else FORWARD)]


def _pass_text(rows: list[Row]) -> str:
    return "forward + backward" if any(row["pass"] == BOTH for row in rows) else "one push"


def _fixed(rows: list[Row], column: str) -> str:
    """The case's name without what is swept, and its dtype."""
    row = next(row for row in rows if row["sweep"] is not None and row["sweep"][0] == column)
    axis, value = row["sweep"]
    name = row["case"].partition(", over ")[0]
    name = name.partition(", ")[2] if axis.startswith("regions") else name.replace(f"{axis}={value} ", "")
    return f"{name}, {row['dtype']}"


def _colours(rows: list[Row]) -> dict[str, str]:
    """Ours, compiled code and limits have their own colours; so has eager code, which follows ours in every case."""
    names = list(dict.fromkeys(row["impl"] for row in rows))
    found = {name: COLOURS[name] for name in names if name in COLOURS}
    plain = {"eager", "roi_align + mean", "einsum", "one-hot einsum"}
    found |= {name: PLAIN for name in names if name in plain}
    others = [name for name in names if name not in found]
    return found | {name: PEERS[i % len(PEERS)] for i, name in enumerate(others)}


def _ms(value: float) -> str:
    return f"{value:.3f} ms" if value < 1 else f"{value:.1f} ms" if value < 100 else f"{value:.0f} ms"


def _size(value: float) -> str:
    exponent = round(math.log2(value))
    return f"$2^{{{exponent}}}$" if value >= 1024 else f"{value:g}"


if __name__ == "__main__":
    main()
