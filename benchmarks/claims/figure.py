"""The study in one picture: a row of panels for each set, a column for each score, a dot for each seed."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks.claims.probe import NEIGHBOURS, REGION
from benchmarks.claims.settings import (
    ATTENTION,
    DENSECL,
    HIDDEN,
    HIDDEN_NO_HEAD,
    MASKCO,
    METHODS,
    MOCO,
    MOCO_TUNED,
    NO_HEAD,
    SIMCLR,
    SUPERVISED,
    UNTRAINED,
)
from benchmarks.claims.table import collect
from benchmarks.plot import STYLE

COLOURS = {MASKCO: "#0072B2", NO_HEAD: "#56B4E9", ATTENTION: "#009E73", MOCO: "#D55E00", MOCO_TUNED: "#A63603"}
COLOURS |= {HIDDEN: "#CC79A7", HIDDEN_NO_HEAD: "#E0B0CC"}
COLOURS |= {DENSECL: "#E69F00", SIMCLR: "#8C6D31"}
BOUND_COLOUR = "#7F7F7F"


def draw(rows: list[dict[str, Any]], path: Path) -> Path:
    """Writes a PNG of the test parts' scores, or of the validation part's where there are no others."""
    tested = collect(rows)
    sets, part = (tested, "") if tested else (collect(rows, "val"), ", validation part")
    methods = [method for method in METHODS if any(method in scores for scores in sets.values())]
    with plt.rc_context(STYLE):
        size = 10, len(sets) * (0.9 + 0.27 * len(methods))
        figure, axes = plt.subplots(len(sets), 2, figsize=size, squeeze=False, sharey=True, layout="constrained")
        for row, (name, scores) in zip(axes, sets.items(), strict=True):
            for panel, score in zip(row, (REGION, NEIGHBOURS), strict=True):
                _panel(panel, methods, {method: values[score] for method, values in scores.items() if score in values})
                panel.set_title(f"{name}{part}: {score}, %")
        figure.savefig(path)
        plt.close(figure)
    return path


def _panel(axes: Axes, methods: list[str], values: dict[str, list[float]]) -> None:
    """A line for each method, at the same height in all panels, whether it was measured there or not."""
    for height, method in enumerate(methods):
        if method in values:
            colour, own = COLOURS[method], values[method]
            axes.plot([mean(own)] * 2, [height - 0.3, height + 0.3], color=colour, linewidth=2.5)
            axes.scatter(own, [height] * len(own), color=colour, s=16, alpha=0.8, linewidths=0)
    if UNTRAINED in values:
        axes.axvline(mean(values[UNTRAINED]), color=BOUND_COLOUR, linestyle=":", linewidth=1.2)
        place = (mean(values[UNTRAINED]), 0.02)
        axes.annotate(
            " untrained", place, xycoords=("data", "axes fraction"), color=BOUND_COLOUR, fontsize=8, va="bottom"
        )
    if SUPERVISED in values:  # so far away that a line would leave no room for the rest
        text = f"supervised {mean(values[SUPERVISED]):.1f} →"
        axes.text(1, 0.02, text, transform=axes.transAxes, color=BOUND_COLOUR, fontsize=8, ha="right", va="bottom")
    axes.set_yticks(range(len(methods)), methods)
    axes.set_ylim(len(methods) + 0.1, -0.6)
    axes.grid(axis="x", color="#EEEEEE")
    axes.set_axisbelow(True)
