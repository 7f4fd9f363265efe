"""The study in one picture: a row of panels for each score, a panel for each set, a dot for each seed."""

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
    HIDDEN,
    HIDDEN_NO_HEAD,
    MASKCO,
    METHODS,
    MOCO,
    NO_HEAD,
    SUPERVISED,
    UNTRAINED,
)
from benchmarks.claims.table import collect
from benchmarks.plot import STYLE

COLOURS = {MASKCO: "#0072B2", NO_HEAD: "#56B4E9", ATTENTION: "#009E73", MOCO: "#D55E00"}
COLOURS |= {HIDDEN: "#CC79A7", HIDDEN_NO_HEAD: "#E0B0CC"}
BOUND_COLOUR = "#7F7F7F"


def draw(rows: list[dict[str, Any]], path: Path) -> Path:
    """Writes a PNG of the test parts' scores."""
    sets = collect(rows) or collect(rows, "val")
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            2, len(sets), figsize=(2.9 * len(sets) + 1.6, 4.6), squeeze=False, sharey=True, layout="constrained"
        )
        for row, score in zip(axes, (REGION, NEIGHBOURS), strict=True):
            for panel, (name, scores) in zip(row, sets.items(), strict=True):
                _panel(panel, {method: values[score] for method, values in scores.items()})
                panel.set_xlabel(f"{score}, %")
                if panel in axes[0]:
                    panel.set_title(name)
        figure.savefig(path)
        plt.close(figure)
    return path


def _panel(axes: Axes, values: dict[str, list[float]]) -> None:
    methods = [method for method in METHODS if method in values]
    for height, method in enumerate(methods):
        colour, own = COLOURS[method], values[method]
        axes.plot([mean(own)] * 2, [height - 0.3, height + 0.3], color=colour, linewidth=2.5)
        axes.scatter(own, [height] * len(own), color=colour, s=16, alpha=0.8, linewidths=0)
    for bound, style in ((UNTRAINED, ":"), (SUPERVISED, "--")):
        if bound in values:
            axes.axvline(mean(values[bound]), color=BOUND_COLOUR, linestyle=style, linewidth=1.2)
            axes.annotate(
                bound, (mean(values[bound]), 1), xycoords=("data", "axes fraction"), color=BOUND_COLOUR,
                fontsize=7.5, rotation=90, ha="right", va="top",
            )  # fmt: skip
    axes.set_yticks(range(len(methods)), methods)
    axes.set_ylim(len(methods) - 0.4, -0.6)
    axes.grid(axis="x", color="#EEEEEE")
    axes.set_axisbelow(True)
