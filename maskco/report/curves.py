"""Names and options of the runs, and overlaid curves of all metrics that they logged."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from maskco.report.page import MARGIN, MUTED, ORANGE, WIDTH, Page, Part, shortened
from maskco.report.runs import Run
from maskco.runs.folder import CHANCE, KNN, PROBES, REGION_KNN

CURVES = {
    "loss": "Loss", "accuracy": "Contrast accuracy, %", "top5": "Top-5 contrast accuracy, %",
    REGION_KNN: "Probe: region kNN accuracy, %", KNN: "Probe: kNN accuracy, %",
}  # fmt: skip
STRIPS = {
    "lr": "learning rate", "images_per_s": "images per second", "grad_norm": "gradient norm",
    "embedding_std": "deviation of embeddings", "effective_rank": "effective rank of embeddings",
}  # fmt: skip
NOT_DRAWN = ("step", "epoch", "seconds")
KNOWN = CURVES | STRIPS
MOST = 24  # metrics that are drawn


class Header(Part):
    def __init__(self, runs: list[Run]) -> None:
        self.runs = runs
        self.height = 1.35 if len(runs) == 1 else 0.75 + 0.5 * len(runs)

    def draw(self, page: Page, top: float) -> None:
        if len(self.runs) == 1:
            run = self.runs[0]
            page.text(MARGIN, top + 0.72, run.name, weight="bold", size=19)
            page.text(WIDTH - MARGIN, top + 0.72, run.progress, size=10.5, color=MUTED, ha="right")
            page.text(MARGIN, top + 1.02, run.summary, size=8.5, color=MUTED)
            return
        for index, run in enumerate(self.runs):
            y = top + 0.6 + 0.5 * index
            page.text(MARGIN, y, f"■  {run.name}", weight="bold", size=12.5, color=run.color)
            page.text(WIDTH - MARGIN, y, run.progress, size=9.5, color=MUTED, ha="right")
            page.text(MARGIN + 0.25, y + 0.2, run.summary, size=8.5, color=MUTED)

    def html(self) -> str:
        lines = [
            f'<p><span class="run" style="color:{run.color}">■ {escape(run.name)}</span> &nbsp; {escape(run.progress)}'
            f'<br><span class="muted">{escape(run.summary)}</span></p>'
            for run in self.runs
        ]
        return "".join(lines) + self._options()

    def _options(self) -> str:
        """All options of one run, or those in which several runs differ."""
        one, values = len(self.runs) == 1, [run.options for run in self.runs]
        rows = {
            name: [str(of.get(name, "–")) for of in values] for name in dict.fromkeys(n for of in values for n in of)
        }
        lines = "".join(
            f"<tr><td>{name}</td>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
            for name, cells in rows.items()
            if one or len(set(cells)) > 1
        )
        words = "all options" if one else "options that differ"
        head = "".join(f"<th>{escape(run.name)}</th>" for run in self.runs)
        table = f"<table><tr><th></th>{head}</tr>{lines}</table>"
        return f'<details><summary>{words}</summary><div class="wide">{table}</div></details>'


class Curves(Part):
    """A panel for every metric in the runs' rows, known ones first, and strips for what accompanies training."""

    title, remark = "Training", "thin: as logged, thick: running mean"
    panel, strip = 2.65, 1.12  # inches from one row of them to the next

    def __init__(self, runs: list[Run]) -> None:
        self.runs = runs
        found = ["loss", *(name for run in runs for name in run.metrics)]
        drawn_beside = [name + CHANCE for name in PROBES]
        names = [name for name in dict.fromkeys([*KNOWN, *found]) if name in found]
        names = [name for name in names if name not in NOT_DRAWN and name not in drawn_beside][:MOST]
        self.strips = [name for name in names if kind(name)[1] in STRIPS]
        beside = {top5_of(name) for name in names}
        self.panels = [name for name in names if name not in beside and name not in self.strips]
        self.first_strip = self.panel * -(-len(self.panels) // 2)
        self.height = self.first_strip + self.strip * -(-len(self.strips) // 4)

    def draw(self, page: Page, top: float) -> None:
        drawn = page.panels(self.panels, top + 0.2, 2.1, 2, self.panel)
        for axes, name in zip(drawn, self.panels, strict=True):
            self._panel(axes, name)
        strips = page.panels(self.strips, top + self.first_strip + 0.2, 0.42, 4, self.strip)
        for axes, name in zip(strips, self.strips, strict=True):
            self._strip(axes, name)
        steps = [row["step"] for run in self.runs for row in run.rows]
        first, last = min(steps, default=0), max(steps, default=1)
        for axes in (*drawn, *strips):
            axes.set_xlim(*((first, last) if last > first else (last - 1, last + 1)))
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if not steps:
            drawn[0].text(0.5, 0.5, "no step logged", ha="center", color=MUTED, transform=drawn[0].transAxes)

    def _panel(self, axes: Axes, name: str) -> None:
        one, top5 = len(self.runs) == 1, top5_of(name)
        axes.set_title(words(name))
        for run in self.runs:
            if one and top5:
                _curve(axes, run, top5, ORANGE, "top-5")
            _curve(axes, run, name, run.color, "top-1" if one and top5 else None)  # the head of the report names runs
        if top5:
            axes.set_ylim(0, None)
        chances = sorted({value for run in self.runs if (value := run.chance_of(name)) is not None})
        for index, value in enumerate(chances):
            label = None if index else "chance " + " and ".join(f"{value:.2g}" for value in chances) + " %"
            axes.axhline(value, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label=label)
        if axes.get_legend_handles_labels()[0]:
            style: dict[str, Any] = {"ncols": 4, "borderaxespad": 0.2, "handlelength": 1.6, "columnspacing": 1.4}
            axes.legend(loc="lower right", bbox_to_anchor=(1, 1), **style)

    def _strip(self, axes: Axes, name: str) -> None:
        largest = 1e-12
        for run in self.runs:
            steps, values = run.column(name)
            color = MUTED if len(self.runs) == 1 else run.color
            axes.fill_between(steps, 0, values, color=color, alpha=0.18 / len(self.runs), linewidth=0)
            axes.plot(steps, values, color=color, linewidth=1, marker="o" if len(steps) == 1 else None, markersize=3)
            largest = max([largest, *values])
        axes.set_ylim(0, 1.25 * largest)
        axes.yaxis.set_major_locator(MaxNLocator(1))
        axes.set_title(words(name), fontsize=8, weight="normal", color=MUTED, pad=3)
        axes.set_xlabel("step")


def kind(name: str) -> tuple[str, str]:
    """A metric's name in two parts, a prefix and the known metric: dense_, accuracy."""
    known = next((known for known in KNOWN if name == known or name.endswith(f"_{known}")), name)
    return name.removesuffix(known), known


def top5_of(name: str) -> str | None:
    """The top-5 accuracy that is drawn in the panel of an accuracy."""
    prefix, known = kind(name)
    return prefix + "top5" if known == "accuracy" else None


def words(name: str) -> str:
    prefix, known = kind(name)
    of = f" ({shortened(prefix.replace('_', ' ').strip(), 20)})" if prefix else ""
    return KNOWN.get(known, shortened(known.replace("_", " "))) + of


def _curve(axes: Axes, run: Run, key: str, color: str, label: str | None) -> None:
    steps, values = run.column(key)
    if len(steps) == 1:
        axes.plot(steps, values, "o", color=color, markersize=5, label=label)
    elif steps:
        axes.plot(steps, values, color=color, alpha=0.28, linewidth=0.8)
        axes.plot(steps, smooth(values), color=color, linewidth=1.8, label=label)


def smooth(values: Sequence[float]) -> np.ndarray:
    """Centered running mean over about a twentieth of the values. At the ends it takes fewer."""
    window = np.ones(min(len(values), 2 * (len(values) // 40) + 1))
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")
