"""The page that a report is drawn on, and its colours. No pyplot, no global state: a run gives the same bytes."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Protocol

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

WIDTH, MARGIN, DPI = 12.0, 0.6, 140  # the page, in inches
HEADING = 0.42  # inches of a section above its body
INK, MUTED, GREY, FAINT = "#1f2430", "#6b7280", "#a3abb8", "#d5d9e0"
BLUE, ORANGE, GREEN, RED = "#2563a8", "#d97706", "#2f9e5b", "#d2425a"
RUN_COLOURS = (BLUE, ORANGE, "#2f9e8b", "#9b4fb5", "#c2410c", "#4d7c0f", "#be185d", "#0e7490")
STYLE: dict[RcKeyType, Any] = {
    "font.family": "DejaVu Sans", "font.size": 9, "text.color": INK, "axes.labelcolor": MUTED, "axes.edgecolor": FAINT,
    "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#eceef2", "axes.axisbelow": True, "xtick.color": MUTED, "ytick.color": MUTED,
    "xtick.labelsize": 8, "ytick.labelsize": 8,
}  # fmt: skip


class Section(Protocol):
    """A part of the report."""

    title: str
    remark: str
    height: float  # inches of the body, without the heading

    def draw(self, page: Page, top: float) -> None:
        """Draws the body, from `top` inches down."""


class Page:
    """A figure on which places are given in inches from the top left corner."""

    def __init__(self, height: float) -> None:
        self.height = height
        self.figure = Figure(figsize=(WIDTH, height))

    def axes(self, left: float, top: float, width: float, height: float, label: str) -> Axes:
        bottom = self.height - top - height
        place = (left / WIDTH, bottom / self.height, width / WIDTH, height / self.height)
        return self.figure.add_axes(place, label=label)

    def picture(self, image: Tensor, left: float, top: float, side: float, label: str, frame: str = "none") -> Axes:
        """image: [3, S, S] in [0, 1]; boxes drawn on its axes are in its pixels."""
        axes = self.axes(left, top, side, side, label)
        height, width = image.shape[-2:]
        axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="bicubic", extent=(0, width, height, 0))
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
        for spine in axes.spines.values():
            spine.set(visible=frame != "none", edgecolor=frame, linewidth=2.4)
        return axes

    def text(self, left: float, top: float, words: str, **style: Any) -> None:
        self.figure.text(left / WIDTH, 1 - top / self.height, words, **{"va": "baseline", "parse_math": False, **style})

    def heading(self, top: float, words: str, remark: str) -> None:
        self.text(MARGIN, top, words, weight="bold", size=11.5)
        self.text(WIDTH - MARGIN, top, remark, color=MUTED, size=8.5, ha="right")
        self.rule(top + 0.1)

    def rule(self, top: float, left: float = MARGIN, right: float = WIDTH - MARGIN, colour: str = FAINT) -> None:
        y = 1 - top / self.height
        line = matplotlib.lines.Line2D([left / WIDTH, right / WIDTH], [y, y], color=colour, linewidth=0.8)
        self.figure.add_artist(line)


def one_page(sections: list[Section]) -> Figure:
    """All sections below each other, each under its heading, if it has a title."""
    heights = [section.height + (HEADING if section.title else 0) for section in sections]
    page = Page(sum(heights) + 0.25)
    top = 0.0
    for section, height in zip(sections, heights, strict=True):
        if section.title:
            page.heading(top + 0.1, section.title, section.remark)
        section.draw(page, top + height - section.height)
        top += height
    return page.figure


def alone(section: Section) -> Figure:
    """The body of one section."""
    page = Page(section.height)
    section.draw(page, 0.0)
    return page.figure


def legend(axes: Axes, **style: Any) -> None:
    """A legend whose words are shown as they are: names of runs may hold what matplotlib takes for formulas."""
    for text in axes.legend(frameon=False, fontsize=8, **style).get_texts():
        text.set_parse_math(False)


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white")
    return buffer.getvalue()
