"""What the runs are, and their curves, overlaid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from maskco.config import PretrainConfig
from maskco.report.page import BLUE, INK, MARGIN, MUTED, ORANGE, WIDTH, Page, legend
from maskco.report.runs import Run, is_number


class Header:
    title = remark = ""

    def __init__(self, runs: list[Run]) -> None:
        self.runs = runs
        self.height = 1.35 if len(runs) == 1 else 0.75 + 0.5 * len(runs)

    def draw(self, page: Page, top: float) -> None:
        if len(self.runs) == 1:
            run = self.runs[0]
            page.text(MARGIN, top + 0.72, run.name, weight="bold", size=19)
            page.text(WIDTH - MARGIN, top + 0.72, progress(run), size=10.5, color=MUTED, ha="right")
            page.text(MARGIN, top + 1.02, summary(run.config), size=9, color=MUTED)
            return
        for index, run in enumerate(self.runs):
            y = top + 0.6 + 0.5 * index
            page.text(MARGIN, y, f"■  {run.name}", weight="bold", size=12.5, color=run.colour)
            page.text(WIDTH - MARGIN, y, progress(run), size=9.5, color=MUTED, ha="right")
            page.text(MARGIN + 0.25, y + 0.2, summary(run.config), size=8.5, color=MUTED)


def progress(run: Run) -> str:
    when = f"step {run.step:,}"
    last = run.rows[-1] if run.rows else {}
    if is_number(last.get("epoch")) and is_number(last.get("seconds")):
        when += f"  ·  epoch {last['epoch']:.4g}  ·  {_duration(last['seconds'])}"
    return when


def summary(config: PretrainConfig) -> str:
    parts = [
        config.method, config.encoder, f"{config.image_size} px", f"batch {config.batch_size}",
        f"queue {config.queue_size:,}", f"dim {config.dim}", f"τ {config.temperature:g}",
        f"momentum {config.momentum:g}", f"lr {config.lr:g}", f"seed {config.seed}",
    ]  # fmt: skip
    if config.method == "maskco":
        regions = f"{config.regions} region{'s' * (config.regions != 1)} a picture"
        parts[2:2] = [f"mask head {config.mask_head}", regions]
    return "  ·  ".join(parts)


def chance(config: PretrainConfig) -> float:
    """Per cent of queries that a guess among all candidates gets right, once the queue is full."""
    local = config.regions - 1 if config.method == "maskco" and config.local_negatives else 0
    return 100 / (1 + config.queue_size + local)


class Curves:
    title = "Training"
    remark = "thin: as logged, thick: running mean"
    height = 3.63

    def __init__(self, runs: list[Run]) -> None:
        self.runs = runs

    def draw(self, page: Page, top: float) -> None:
        width, gap = (WIDTH - 2 * MARGIN - 1.2) / 2, 0.75
        lefts = (MARGIN + 0.45, MARGIN + 0.45 + width + gap)
        loss, accuracy = (
            page.axes(left, top + 0.2, width, 2.1, name) for left, name in zip(lefts, ("loss", "accuracy"), strict=True)
        )
        rate, speed = (
            page.axes(left, top + 2.58, width, 0.42, name)
            for left, name in zip(lefts, ("learning rate", "speed"), strict=True)
        )
        loss.set_title("Contrastive loss", loc="left", weight="bold", color=INK)
        accuracy.set_title("Contrast accuracy, %", loc="left", weight="bold", color=INK)
        self._loss_and_accuracy(loss, accuracy)
        for axes, key, words in ((rate, "lr", "learning rate"), (speed, "pictures_per_s", "pictures per second")):
            largest = 1e-12
            for run in self.runs:
                steps, values = run.column(key)
                colour = MUTED if len(self.runs) == 1 else run.colour
                axes.fill_between(steps, 0, values, color=colour, alpha=0.18 / len(self.runs), linewidth=0)
                axes.plot(
                    steps, values, color=colour, linewidth=1, marker="o" if len(steps) == 1 else None, markersize=3
                )
                largest = max([largest, *values])
            axes.set_ylim(0, 1.25 * largest)
            axes.yaxis.set_major_locator(MaxNLocator(1))
            axes.set_title(words, loc="left", fontsize=8, color=MUTED, pad=3)
            axes.set_xlabel("step", fontsize=8, labelpad=1)
        steps = [row["step"] for run in self.runs for row in run.rows]
        first, last = min(steps, default=0), max(steps, default=1)
        for axes in (loss, accuracy, rate, speed):
            axes.set_xlim(*((first, last) if last > first else (last - 1, last + 1)))
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        for axes in (loss, accuracy):
            axes.tick_params(labelbottom=False)
            if not steps:
                axes.text(0.5, 0.5, "no step logged", ha="center", color=MUTED, transform=axes.transAxes)

    def _loss_and_accuracy(self, loss: Axes, accuracy: Axes) -> None:
        single = len(self.runs) == 1
        for run in self.runs:
            _curve(loss, run, "loss", run.colour)
            if single:
                _curve(accuracy, run, "top5", ORANGE, "top-5")
            _curve(accuracy, run, "accuracy", BLUE if single else run.colour, "top-1" if single else run.name)
        chances = sorted({chance(run.config) for run in self.runs})
        for index, value in enumerate(chances):
            label = None if index else "chance " + " and ".join(f"{value:.2g}" for value in chances) + " %"
            accuracy.axhline(value, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label=label)
        accuracy.set_ylim(0, None)
        if any(run.rows for run in self.runs):
            handles, _ = accuracy.get_legend_handles_labels()
            legend(
                accuracy,
                handles=handles if single else handles[-1:],  # the head of the report says which run has which colour
                loc="lower right", bbox_to_anchor=(1, 1), ncols=4, borderaxespad=0.2, handlelength=1.6,
                columnspacing=1.4,
            )  # fmt: skip


def _curve(axes: Axes, run: Run, key: str, colour: str, name: str | None = None) -> None:
    steps, values = run.column(key)
    if len(steps) == 1:
        axes.plot(steps, values, "o", color=colour, markersize=5, label=name)
    elif steps:
        axes.plot(steps, values, color=colour, alpha=0.28, linewidth=0.8)
        axes.plot(steps, smooth(values), color=colour, linewidth=1.8, label=name)


def smooth(values: Sequence[float]) -> np.ndarray:
    """Centred running mean over about a twentieth of the values; at the ends over what there is."""
    window = np.ones(min(len(values), 2 * (len(values) // 40) + 1))
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
