"""A contact sheet of views: what the network is shown, and what it has to find, before any training.

write_sheet("PHOTOS", ViewConfig(regions=4), "sheet.png")
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from maskco.config import ConfigError
from maskco.data.batch_colour import finish
from maskco.data.pictures import PictureError
from maskco.data.sources import PretrainDataset, SourceError, open_source, seed_from
from maskco.data.view_config import ViewConfig
from maskco.data.views import Crop, RawViews, TwoViews, Views, denormalize, masked_query

log = logging.getLogger(__name__)

WIDTH, MARGIN, DPI = 13.0, 0.45, 130  # of the sheet, in inches
SIDE, GAP, STRIP, LINE = 1.85, 0.12, 5.79, 2.22  # a view, the space between two, a picture's strip, a line of strips
HEAD, FOOT = 1.68, 0.36
INK, MUTED = "#1f2430", "#6b7280"
QUERY, KEY = "#d97706", "#2563a8"
REGIONS = ("#ffb000", "#3ddbd9", "#ff5fa2", "#9be564", "#b18cff", "#ff7a45")
COLUMNS = (
    ("picture", "and what the views show of it", INK),
    ("query view", "as the encoder sees it", QUERY),
    ("key view", "where their features are found", KEY),
)


def write_sheet(
    data: str | Path,
    config: ViewConfig,
    out: str | Path,
    *,
    count: int = 12,
    seed: int = 0,
    epoch: int = 0,
    augment: Literal["workers", "device"] = "workers",
) -> list[tuple[str, str]]:
    """Draws `count` pictures, spread evenly over the data, with the views that a run of this seed has of them in this
    epoch, as a PNG. Returns (name, reason) of pictures that were left out because they cannot be used.

    augment: as in `PretrainConfig`, with the CPU as the device.
    Raises ConfigError if there are no pictures, or none that can be used.
    """
    if count < 1:
        raise ConfigError(f"count must be at least 1, got {count}")
    try:
        source = open_source(data)
    except SourceError as error:
        raise ConfigError(str(error)) from error
    for line in source.left_out.lines():
        log.warning(line)
    transform = TwoViews(config)
    dataset = PretrainDataset(source, transform.raw if augment == "device" else transform, seed)
    count = min(count, len(dataset))
    strips, failures = [], []
    for index in (step * len(dataset) // count for step in range(count)):
        try:
            picture = source[index]
            picture = picture if isinstance(picture, Tensor) else F.pil_to_tensor(picture)
            views = finished(dataset.views(epoch, index))
        except PictureError as error:
            failures.append((source.name(index), error.reason))
            continue
        with seed_from(seed, epoch, index):  # crops are what the views draw first
            crops = transform.crops(*picture.shape[1:])
        strips.append((source.name(index), picture, crops, views))
    if not strips:
        raise ConfigError(f"data: none of {len(failures)} pictures can be used (first: {': '.join(failures[0])})")
    lines = -(-len(strips) // 2)
    height = HEAD + lines * LINE + FOOT
    figure = Figure(figsize=(WIDTH, height), facecolor="white")
    _draw_heading(figure, height, config, len(source), blocks=min(len(strips), 2))
    for place, strip in enumerate(strips):
        left = MARGIN + (place % 2) * (WIDTH - 2 * MARGIN - STRIP)
        _draw_strip(figure, height, left, HEAD + place // 2 * LINE, *strip, config)
    shown = f"seed {seed}, epoch {epoch}: the same views as in a run with these options"
    figure.text(MARGIN / WIDTH, 0.16 / height, shown, size=7.5, color=MUTED)
    figure.savefig(out, format="png", dpi=DPI)
    return failures


def finished(views: Views | RawViews) -> Views:
    """One sample's views, whose colours may still have to be applied, as in a batch."""
    if isinstance(views, Views):
        return views
    batch = finish(RawViews(*(part[None] for part in views)), torch.device("cpu"))
    return Views(*(part[0] for part in batch))


def _draw_heading(figure: Figure, height: float, config: ViewConfig, pictures: int, blocks: int) -> None:
    def text(x: float, y: float, words: str, **style: Any) -> None:
        figure.text(x / WIDTH, 1 - y / height, words, va="baseline", **style)

    text(MARGIN, 0.5, "What the network sees", size=17, weight="bold", color=INK)
    hidden = f"{config.regions} regions" if config.regions > 1 else "a region"
    explanation = (
        f"{pictures:,} pictures, views of {config.image_size} pixels. With {hidden} of the query view hidden, "
        f"the network predicts the features of what is hidden.",
        "The key view shows the same content, cropped and coloured otherwise; there those features are looked up. "
        "One colour: one region.",
    )
    for line, words in enumerate(explanation):
        text(MARGIN, 0.78 + 0.18 * line, words, size=9, color=MUTED)
    for block in range(blocks):
        for column, (name, what, colour) in enumerate(COLUMNS):
            x = MARGIN + block * (WIDTH - 2 * MARGIN - STRIP) + column * (SIDE + GAP)
            text(x, 1.38, name, size=9.5, weight="bold", color=colour)
            text(x, 1.55, what, size=7, color=MUTED)


def _draw_strip(
    figure: Figure,
    height: float,
    left: float,
    top: float,
    name: str,
    picture: Tensor,
    crops: tuple[Crop, Crop],
    views: Views,
    config: ViewConfig,
) -> None:
    hidden = masked_query(views, share=config.mask_share, fill=config.mask_fill)
    images = (picture / 255, denormalize(hidden), denormalize(views.key))
    for column, image in enumerate(images):
        x = left + column * (SIDE + GAP)
        place = (x / WIDTH, 1 - (top + SIDE) / height, SIDE / WIDTH, SIDE / height)
        axes = figure.add_axes(place, label=f"{name} {COLUMNS[column][0]}")
        rows, columns = image.shape[1:]
        axes.imshow(image.permute(1, 2, 0).numpy(), extent=(0, columns, rows, 0), interpolation="antialiased")
        axes.set_axis_off()
        axes.set_anchor("NW")
        if column == 0:
            for crop, colour in zip(crops, (QUERY, KEY), strict=True):
                _draw_box(axes, crop.left, crop.top, crop.left + crop.width, crop.top + crop.height, colour, 1.6)
        else:
            for region, (x1, y1, x2, y2) in enumerate((views.query_boxes, views.key_boxes)[column - 1].tolist()):
                _draw_box(axes, x1, y1, x2, y2, REGIONS[region % len(REGIONS)], 1.8)
    short = name if len(name) <= 60 else f"…{name[-59:]}"
    figure.text(left / WIDTH, 1 - (top + SIDE + 0.15) / height, short, size=6.5, color=MUTED, parse_math=False)


def _draw_box(axes: Axes, x1: float, y1: float, x2: float, y2: float, colour: str, width: float) -> None:
    outline = [patheffects.withStroke(linewidth=width + 1.4, foreground="#00000090")]
    axes.add_patch(
        Rectangle(
            (x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=width, path_effects=outline,
            joinstyle="miter", clip_on=False,
        )
    )  # fmt: skip
