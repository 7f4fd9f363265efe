"""The page of the report and of the contact sheet: parts below each other, each drawn once, on one figure.

report.png is the figure, and report.html shows the same pixels part by part. No pyplot, no global state: a run gives
the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Any, BinaryIO

import matplotlib
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import BboxImage
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.transforms import Affine2D, Bbox, Transform, TransformedBbox
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

WIDTH, MARGIN, DPI = 12.0, 0.6, 140  # the page, in inches
HEADING = 0.45  # inches of a part above its body
INK, MUTED, GREY, FAINT = "#1f2430", "#6b7280", "#a3abb8", "#d5d9e0"
BLUE, ORANGE, GREEN, RED = "#2563a8", "#d97706", "#2f9e5b", "#d2425a"
RUN_COLORS = (BLUE, ORANGE, "#2f9e8b", "#9b4fb5", "#c2410c", "#4d7c0f", "#be185d", "#0e7490")
STYLE: dict[RcKeyType, Any] = {
    "font.family": "DejaVu Sans", "font.size": 9, "text.color": INK, "axes.labelcolor": MUTED, "axes.edgecolor": FAINT,
    "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlecolor": INK,
    "axes.labelsize": 8, "axes.labelpad": 1, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#eceef2", "axes.axisbelow": True, "xtick.color": MUTED, "ytick.color": MUTED,
    "xtick.labelsize": 8, "ytick.labelsize": 8,
    "legend.fontsize": 8, "legend.framealpha": 0.85, "legend.edgecolor": "none",
    "text.parse_math": False,  # names may hold what matplotlib takes for formulas
}  # fmt: skip


class Part:
    """A part of a page, with a heading if it has a title."""

    title = remark = ""
    height: float  # inches of the body, below the heading

    def draw(self, page: Page, top: float) -> None:
        """Draws the body, from `top` inches down."""
        raise NotImplementedError

    def html(self) -> str:
        """The body as text for report.html, which shows the drawn body if there is none."""
        return ""


class Note(Part):
    """A line about missing parts, and why they are missing."""

    height = 0.4

    def __init__(self, words: str, title: str = "", color: str = MUTED) -> None:
        self.words, self.title, self.color = words, title, color

    def draw(self, page: Page, top: float) -> None:
        page.text(MARGIN, top + 0.2, self.words, size=9, color=self.color, wrap=True)

    def html(self) -> str:
        return f'<p style="color:{self.color}">{escape(self.words)}</p>'


@dataclass(frozen=True)
class PlacedImage:
    """An image on a page, on which boxes are drawn."""

    figure: Figure
    to_page: Transform  # of pixels of the image
    label: str

    def outline(self, boxes: Tensor, colors: Sequence[str]) -> None:
        """Outlines boxes [R, 4] in the colors in turn, with a dark rim so that they stand out on any image."""
        rim = [patheffects.withStroke(linewidth=3.4, foreground="#000000a0")]
        for index, box in enumerate(boxes.tolist()):
            style = {"edgecolor": colors[index % len(colors)], "linewidth": 1.8, "path_effects": rim}
            self.add_box(box, f"box {index} of {self.label}", **style)

    def add_box(self, box: Sequence[float], label: str, **style: Any) -> None:
        x1, y1, x2, y2 = box
        style |= {"transform": self.to_page, "label": label, "fill": False, "joinstyle": "miter"}
        self.figure.add_artist(Rectangle((x1, y1), x2 - x1, y2 - y1, **style))


class Page:
    """A figure with parts on it. Places are given in inches from the top left corner."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts
        heights = [part.height + (HEADING if part.title else 0) for part in parts]
        self.height = sum(heights) + 0.25
        self.figure = Figure(figsize=(WIDTH, self.height), dpi=DPI, facecolor="white")
        top = 0.0
        with matplotlib.rc_context(STYLE):
            for part, height in zip(parts, heights, strict=True):
                if part.title:
                    self._heading(top + 0.14, part.title, part.remark)
                top += height
                part.draw(self, top - part.height)

    @cached_property
    def pixels(self) -> np.ndarray:
        """The drawn page: uint8 [H, W, 3]."""
        canvas = FigureCanvasAgg(self.figure)
        with matplotlib.rc_context(STYLE):  # ticks are made only now
            canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3]

    def bodies(self) -> Iterator[tuple[Part, np.ndarray]]:
        """Each part with the pixels of its body."""
        top = 0.0
        for part in self.parts:
            top += HEADING if part.title else 0
            yield part, self.pixels[round(top * DPI) : round((top + part.height) * DPI)]
            top += part.height

    def save(self, file: BinaryIO, kind: str) -> None:
        """Writes the page in a format of matplotlib's: "png", "pdf" … Raises ValueError or OSError if it cannot."""
        with matplotlib.rc_context(STYLE):
            self.figure.savefig(file, format=kind)

    def axes(self, left: float, top: float, width: float, height: float, label: str) -> Axes:
        bottom = self.height - top - height
        place = (left / WIDTH, bottom / self.height, width / WIDTH, height / self.height)
        return self.figure.add_axes(place, label=label)

    def panels(self, labels: Sequence[str], top: float, height: float, most: int, pitch: float = 0.0) -> list[Axes]:
        """Axes with room for their tick labels, at most `most` in a row, rows `pitch` inches apart."""
        columns, width = grid(len(labels), most, 0.3)
        places = [(MARGIN + 0.45 + i % columns * (width + 0.3), top + i // columns * pitch) for i in range(len(labels))]
        return [self.axes(*at, width - 0.45, height, label) for at, label in zip(places, labels, strict=True)]

    def image(
        self, image: Tensor, left: float, top: float, side: float, label: str, frame: str | None = None
    ) -> PlacedImage:
        """image: [3, H, W] in [0, 1], shown in the upper left of a square. It is no Axes, which would take ten times as
        long to make as the image to draw."""
        height, width = image.shape[-2:]
        scale = side / max(height, width)  # inches a pixel
        in_figure = Affine2D().scale(scale).translate(left, top).scale(1 / WIDTH, -1 / self.height).translate(0, 1)
        to_page = in_figure + self.figure.transFigure
        kernel = "bicubic" if scale * DPI >= 1 else "antialiased"
        area = TransformedBbox(Bbox.from_extents(0, height, width, 0), to_page)
        artist = BboxImage(area, interpolation=kernel, origin="lower", label=label)
        artist.set_data(image.permute(1, 2, 0).numpy())
        self.figure.add_artist(artist)
        placed = PlacedImage(self.figure, to_page, label)
        if frame is not None:
            placed.add_box((0, 0, width, height), f"frame of {label}", edgecolor=frame, linewidth=2.4)
        return placed

    def text(self, left: float, top: float, words: str, **style: Any) -> None:
        self.figure.text(left / WIDTH, 1 - top / self.height, words, **{"va": "baseline", **style})

    def _heading(self, top: float, words: str, remark: str) -> None:
        self.text(MARGIN, top, words, weight="bold", size=11.5)
        self.text(WIDTH - MARGIN, top, remark, color=MUTED, size=8.5, ha="right")
        y = 1 - (top + 0.1) / self.height
        rule = Line2D([MARGIN / WIDTH, 1 - MARGIN / WIDTH], [y, y], color=FAINT, linewidth=0.8)
        self.figure.add_artist(rule)


def grid(count: int, most: int, gap: float) -> tuple[int, float]:
    """Columns, at most `most`, that fill rows most evenly, and the width of a cell between two gaps."""
    columns = max(1, -(-count // max(1, -(-count // most))))
    return columns, (WIDTH - 2 * MARGIN - gap * (columns - 1)) / columns


def shortened(name: str, most: int = 40) -> str:
    return name if len(name) <= most else "…" + name[1 - most :]


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", dpi=(DPI, DPI))
    return buffer.getvalue()
