"""What the mask head is worth: scores with it less those without, of runs that differ in nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.claims.names import COMPARED, PHOTOGRAPHS
from benchmarks.claims.probe import NEIGHBOURS, REGION
from benchmarks.plot import STYLE

COLOURS = {REGION: "#0072B2", NEIGHBOURS: "#D55E00"}


@dataclass(frozen=True)
class Pair:
    """A regime, and by how much the scores of its runs with a head lead those without, seed by seed."""

    set: str
    part: str
    title: str  # the method with the head
    options: dict[str, Any]
    leads: tuple[dict[str, float], ...]  # of each seed that both have, by score

    def mean(self, score: str) -> float:
        return mean(lead[score] for lead in self.leads)


def head_worth(rows: Sequence[dict[str, Any]]) -> list[Pair]:
    """Of photographs, by set, part and the options that two runs share."""
    found: dict[tuple[Any, ...], dict[int, dict[str, dict[str, Any]]]] = {}
    for row in rows:
        options = row.get("options", {})
        scored = row["set"] in PHOTOGRAPHS and {REGION, NEIGHBOURS} <= row["scores"].keys()
        if scored and options.get("method") == "maskco":
            shared = {name: value for name, value in options.items() if name not in ("mask_head", "seed")}
            key = row["set"], row["part"], repr(sorted(shared.items()))
            seeds = found.setdefault(key, {})
            seeds.setdefault(row["seed"], {})[options.get("mask_head", "conv")] = row
    pairs = []
    for (data, part, _), seeds in sorted(found.items()):
        both = [each for _, each in sorted(seeds.items()) if {"conv", "none"} <= each.keys()]
        leads = tuple(
            {score: each["conv"]["scores"][score] - each["none"]["scores"][score] for score in (REGION, NEIGHBOURS)}
            for each in both
        )
        if leads:
            pairs.append(Pair(data, part, both[0]["conv"]["method"], both[0]["conv"]["options"], leads))
    return pairs


def worth_table(pairs: Sequence[Pair]) -> str:
    """In Markdown, a line for each regime, sorted by what is hidden of a region; "" if there is none."""
    if not pairs:
        return ""
    lines = [
        "| what the head is worth, points | part | mask share | region scale | regions | seeds | linear | kNN |",
        "|---" * 8 + "|",
    ]
    for pair in sorted(pairs, key=lambda pair: (pair.set, pair.part, pair.options["mask_share"])):
        own = pair.options
        low, high = own["region_scale"]
        lines.append(
            f"| {pair.set}: {pair.title} | {pair.part} | {own['mask_share']:g} | {low:g} to {high:g} "
            f"| {own['regions']} | {len(pair.leads)} | {pair.mean(REGION):+.1f} | {pair.mean(NEIGHBOURS):+.1f} |"
        )
    return "\n".join([*lines, "", COMPARED])


def draw_head(pairs: Sequence[Pair], path: Path) -> Path:
    """A PNG: the worth over the share of a region that is hidden; a panel for each set and part. A line joins the
    most that differ in this share alone. Single points are the others."""
    panels = list(dict.fromkeys((pair.set, pair.part) for pair in pairs))
    with plt.rc_context(STYLE):
        size = max(5 * len(panels), 6), 4.0
        figure, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False, sharey=True, layout="constrained")
        for axis, panel in zip(axes[0], panels, strict=True):
            here = [pair for pair in pairs if (pair.set, pair.part) == panel]
            here.sort(key=lambda pair: pair.options["mask_share"])
            (usual, _), *_ = Counter(map(but_the_share, here)).most_common(1)
            for own, marks, others in (
                ([pair for pair in here if but_the_share(pair) == usual], "o-", ""),
                ([pair for pair in here if but_the_share(pair) != usual], "x", ", other regions or encoders"),
            ):
                for score, colour in COLOURS.items() if own else ():
                    shares, leads = [p.options["mask_share"] for p in own], [p.mean(score) for p in own]
                    axis.plot(shares, leads, marks, color=colour, label=score + others)
            axis.axhline(0, color="#7F7F7F", linewidth=0.8)
            seeds = sorted({len(pair.leads) for pair in here})
            part = {"val": "validation"}.get(panel[1], panel[1])
            axis.set_title(f"{panel[0]}, {part} part, seeds: {' or '.join(map(str, seeds))}")
            axis.set_xlabel("mask share")
        axes[0, 0].set_ylabel("what the head is worth, points")
        entries = {line.get_label(): line for axis in axes[0] for line in axis.get_lines()[:-1]}  # (the last one is 0)
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=4, fontsize=8)
        figure.savefig(path)
        plt.close(figure)
    return path


def but_the_share(pair: Pair) -> str:
    """What the runs of a line have in common."""
    return repr(sorted((name, value) for name, value in pair.options.items() if name not in ("mask_share", "seed")))
