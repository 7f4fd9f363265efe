"""The study's rows as tables: mean ± standard deviation over seeds."""

from __future__ import annotations

from collections import defaultdict
from statistics import mean, stdev
from typing import Any

from benchmarks.claims.settings import BOUNDS, METHODS

Row = dict[str, Any]
Scores = dict[str, dict[str, list[float]]]  # method -> score's name -> of each seed


def collect(rows: list[Row], part: str = "test") -> dict[str, Scores]:
    """By set and method, the methods in the order of settings.py."""
    found: dict[str, Scores] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for row in sorted(rows, key=lambda row: row["seed"]):
        if row["part"] == part:
            for name, value in row["scores"].items():
                found[row["set"]][row["method"]][name].append(value)
    order = [*METHODS, *BOUNDS]
    return {
        data: dict(sorted(scores.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))
        for data, scores in found.items()
    }


def spread(values: list[float]) -> str:
    return f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def tables(rows: list[Row]) -> str:
    """In Markdown, one for each set, and one of the tries on the validation part."""
    blocks = []
    for part, title in (("test", "{}, test part"), ("val", "{}, validation part: how the settings were chosen")):
        for data, scores in collect(rows, part).items():
            columns = list(dict.fromkeys(name for row in scores.values() for name in row))
            lines = [f"| {title.format(data)} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
            for method, values in scores.items():
                cells = (spread(values[name]) if name in values else "" for name in columns)
                lines.append(f"| {method} | {' | '.join(cells)} |")
            blocks.append("\n".join(lines))
    return "\n\n".join(blocks)
