"""Draws docs/figures/method.png, the data flow of MaskCo, on a real scene and real views.

python docs/figures/method.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from torch import Tensor

from maskco.data.sources.demo import demo_scenes
from maskco.data.views import Crop, TwoViews, Views, denormalize, draw_fill, mask_boxes
from maskco.report.page import BLUE, FAINT, INK, MUTED, ORANGE
from maskco.view_options import MaskOptions, ViewConfig

OUT = Path(__file__).with_name("method.png")
WIDTH, HEIGHT, DPI = 13.0, 5.9, 120  # inches; axes in the same units, y downwards
SCENE, SEED = 5, 2  # of the demo scenes, one whose views explain themselves
OPTIONS = ViewConfig(
    image_size=128,
    regions=2,
    region_scale=(0.36, 0.44),
    max_region_overlap=0,
    crop_scale=(0.45, 0.8),
    grayscale=0,
    blur=0,
)
MASKS = MaskOptions()
REGIONS = ("#c026d3", "#0d9488")
QUERY_ROW, KEY_ROW = 1.75, 4.25  # middles
OURS = "#b45309"


def views_of_a_scene() -> tuple[Tensor, tuple[Crop, Crop], Views]:
    scene = demo_scenes("train", SCENE + 1, image_size=192)[SCENE].image
    transform = TwoViews(OPTIONS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        crops = transform.crops(*scene.shape[1:])
        torch.manual_seed(SEED)  # crops are what the views draw first
        return scene, crops, transform(scene)


def picture(axes: Axes, image: Tensor, x: float, y: float, side: float, edge: str) -> float:
    """Draws [3, S, S] in [0, 1] around a middle; returns inches a pixel."""
    axes.imshow(
        image.permute(1, 2, 0).clamp(0, 1).numpy(), extent=(x - side / 2, x + side / 2, y + side / 2, y - side / 2)
    )
    axes.add_patch(Rectangle((x - side / 2, y - side / 2), side, side, fill=False, edgecolor=edge, linewidth=1.8))
    return side / image.shape[-1]


def rectangles(axes: Axes, boxes: Tensor, x: float, y: float, side: float, scale: float) -> None:
    for (x1, y1, x2, y2), color in zip(boxes.tolist(), REGIONS, strict=True):
        corner = (x - side / 2 + x1 * scale, y - side / 2 + y1 * scale)
        size = ((x2 - x1) * scale, (y2 - y1) * scale)
        axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=color, linewidth=2))


def part(axes: Axes, x: float, y: float, name: str, color: str, *, ours: str = "", width: float = 1.12) -> None:
    """A box for a module; what of it is ours stands below."""
    shape = FancyBboxPatch((x - width / 2, y - 0.36), width, 0.72, "round,pad=0,rounding_size=0.08")
    shape.set(facecolor=color + "18", edgecolor=color, linewidth=1.5)
    axes.add_patch(shape)
    axes.text(x, y, name, ha="center", va="center", size=9, color=INK)
    axes.text(x, y + 0.44, ours, ha="center", va="top", size=7.2, color=OURS, style="italic")


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], **style: object) -> None:
    look = {"arrowstyle": "-|>", "mutation_scale": 11, "color": INK, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
    axes.add_patch(FancyArrowPatch(start, end, **(look | style)))


def vectors(axes: Axes, x: float, y: float, name: str) -> None:
    """One embedding for each region."""
    for row, color in enumerate(REGIONS):
        for cell in range(5):
            place = (x - 0.4 + 0.16 * cell, y - 0.2 + 0.22 * row)
            shade = (0.35, 0.9, 0.55, 0.75, 0.45)[(cell + 2 * row) % 5]
            axes.add_patch(Rectangle(place, 0.16, 0.16, facecolor=color, alpha=shade, edgecolor="white", linewidth=0.6))
    axes.text(x, y + 0.32, name, ha="center", va="top", size=8, color=MUTED)


def draw() -> Figure:
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    scene, crops, views = views_of_a_scene()

    # the picture, and what each view shows of it
    side, x, y = 1.75, 1.2, 3.0
    scale = picture(axes, scene / 255, x, y, side, FAINT)
    for crop, color in zip(crops, (BLUE, ORANGE), strict=True):
        corner = (x - side / 2 + crop.left * scale, y - side / 2 + crop.top * scale)
        axes.add_patch(
            Rectangle(corner, crop.width * scale, crop.height * scale, fill=False, edgecolor=color, linewidth=2)
        )
    axes.text(x, y - side / 2 - 0.1, "a picture, no labels", ha="center", va="bottom", size=9, color=INK)
    axes.text(x, y + side / 2 + 0.1, "two crops that overlap", ha="center", va="top", size=8, color=MUTED)
    axes.text(x, y + side / 2 + 0.32, "how: ours", ha="center", va="top", size=7.2, color=OURS, style="italic")

    # the views
    fill = draw_fill(MASKS.mask_fill, views.query)
    masked = mask_boxes(views.query[None], views.query_boxes[None], share=MASKS.mask_share, fill=fill)[0]
    rows = (
        (QUERY_ROW, BLUE, "query view, regions masked", masked, views.query_boxes, "regions, share, fill: ours"),
        (KEY_ROW, ORANGE, "key view, whole", views.key, views.key_boxes, ""),
    )
    x, side = 3.35, 1.4
    for y, color, name, view, boxes, ours in rows:
        scale = picture(axes, denormalize(view), x, y, side, color)
        rectangles(axes, boxes, x, y, side, scale)
        axes.text(x, y - side / 2 - 0.08, name, ha="center", va="bottom", size=9, color=INK)
        axes.text(x, y + side / 2 + 0.06, ours, ha="center", va="top", size=7.2, color=OURS, style="italic")
        arrow(axes, (2.15, 3.0 + 0.35 * (1 if y == KEY_ROW else -1)), (x - side / 2 - 0.08, y), color=color)

    # the modules
    stops = (4.95, 6.4, 7.85, 9.25)
    for y, color, names, ours in (
        (
            QUERY_ROW,
            BLUE,
            ("encoder", "mask\nprediction head", "box_pool", "projection"),
            ("", "type, depth: ours", "", "width: ours"),
        ),
        (KEY_ROW, ORANGE, ("momentum\nencoder", "", "box_pool", "momentum\nprojection"), ("", "", "", "")),
    ):
        left = 3.35 + 0.7 + 0.06
        for stop, name, note in zip(stops, names, ours, strict=True):
            if not name:
                continue
            arrow(axes, (left, y), (stop - 0.58, y))
            part(axes, stop, y, name, color, ours=note)
            left = stop + 0.58
        arrow(axes, (left, y), (10.18, y))
    axes.text(6.4, KEY_ROW - 0.1, "(no head: ours)", ha="center", va="bottom", size=7.2, color=OURS, style="italic")
    for stop, tall in ((stops[0], QUERY_ROW + 0.4), (stops[3], QUERY_ROW + 0.66)):
        arrow(axes, (stop, tall), (stop, KEY_ROW - 0.4), linestyle=(0, (4, 3)), color=MUTED, linewidth=1)
        axes.text(stop + 0.08, 3.0, "moving\naverage", ha="left", va="center", size=7.5, color=MUTED)
    axes.text(7.85, QUERY_ROW - 0.45, "mean over each\nregion's box", ha="center", va="bottom", size=7.5, color=MUTED)

    # the contrast
    vectors(axes, 10.65, QUERY_ROW, "queries")
    vectors(axes, 10.65, KEY_ROW, "keys")
    part(axes, 12.1, 3.0, "info_nce", INK, width=1.2)
    arrow(axes, (11.12, QUERY_ROW + 0.05), (11.95, 2.6))
    arrow(axes, (11.12, KEY_ROW - 0.1), (11.95, 3.4))
    axes.text(
        11.35,
        3.0,
        "same region: positive\nother region of\nthe picture: negative",
        ha="right",
        va="center",
        size=7.5,
        color=MUTED,
    )
    for layer in range(6):
        axes.add_patch(Rectangle((11.75, 4.42 + 0.13 * layer), 0.8, 0.1, facecolor="#d5d9e0", edgecolor="none"))
    arrow(axes, (12.3, 4.36), (12.3, 3.4))
    arrow(axes, (11.12, KEY_ROW + 0.1), (11.7, 4.65), color=MUTED, linestyle=(0, (4, 3)), linewidth=1)
    axes.text(12.15, 5.26, "queue: keys of\nearlier pictures", ha="center", va="top", size=8, color=MUTED)
    arrow(axes, (12.1, 2.62), (12.1, 1.75))
    axes.text(12.1, 1.68, "loss", ha="center", va="bottom", size=10, color=INK, weight="bold")

    axes.text(
        0.35,
        0.42,
        "MaskCo: predict the features of a masked region, and find them among others",
        size=13,
        weight="bold",
        color=INK,
    )
    for x, words, color in (
        (0.35, "blue: learns by gradient", BLUE),
        (2.35, "orange: follows as a moving average, no gradient", ORANGE),
        (5.75, "ours: not known of the paper", OURS),
    ):
        axes.text(x, 5.62, words, size=8, color=color)
    axes.set(xlim=(0, WIDTH), ylim=(HEIGHT, 0), aspect="equal")
    axes.set_axis_off()
    return figure


if __name__ == "__main__":
    draw().savefig(OUT, metadata={"Software": None})
    print(OUT)
