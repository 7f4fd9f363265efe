"""A contact sheet of views: what the network is shown, and what it has to find, before any training.

write_sheet("PHOTOS", ViewConfig(regions=4), "sheet.png")
"""

from __future__ import annotations

import io
import logging
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from maskco.console import printable
from maskco.data.batch_augment import finish
from maskco.data.images import PictureError
from maskco.data.samples import PretrainDataset, seed_from
from maskco.data.sources import open_source
from maskco.data.views import Crop, RawViews, TwoViews, Views, denormalize, draw_fill, mask_boxes
from maskco.errors import ConfigError
from maskco.files import user_path, write_atomically
from maskco.memory import memory_errors, require_memory
from maskco.option_values import LARGEST, Bounds, out_of_bounds, plain
from maskco.view_options import ViewConfig

log = logging.getLogger(__name__)

SUFFIXES = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")
BOUNDS: Bounds = {"count": (1, 1000), "seed": (0, LARGEST), "epoch": (0, LARGEST)}  # smallest and largest value
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


@memory_errors("lower image_size or count")
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
    epoch, in the format that the suffix of `out` says. Returns (name, reason) of pictures that were left out because
    they cannot be used.

    augment: as in `PretrainConfig`, with the CPU as the device.
    Raises SourceError if there are no pictures, and ConfigError if none can be used or `out` cannot be written.
    """
    numbers = SimpleNamespace(count=plain(count), seed=plain(seed), epoch=plain(epoch))
    if wrong := out_of_bounds(numbers, BOUNDS):
        raise ConfigError(wrong)
    out, count, seed, epoch = user_path(out), numbers.count, numbers.seed, numbers.epoch
    if out.suffix.lower() not in SUFFIXES or out.is_dir():
        raise ConfigError(f"out: {out} is no file name of an image: let it end in one of {', '.join(SUFFIXES)}")
    source = open_source(str(data))
    require_memory(f"image_size {config.image_size}", 2 * 3 * 4 * config.image_size**2 * count, "lower it or count")
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
        strips.append((printable(source.name(index)), picture, crops, views))
    if not strips:
        raise ConfigError(
            f"data: none of {len(failures)} pictures can be used (first: {printable(': '.join(failures[0]))})"
        )
    lines = -(-len(strips) // 2)
    height = HEAD + lines * LINE + FOOT
    figure = Figure(figsize=(WIDTH, height), facecolor="white")
    _draw_heading(figure, height, config, len(source), blocks=min(len(strips), 2))
    for place, strip in enumerate(strips):
        left = MARGIN + (place % 2) * (WIDTH - 2 * MARGIN - STRIP)
        _draw_strip(figure, height, left, HEAD + place // 2 * LINE, *strip, config)
    shown = f"seed {seed}, epoch {epoch}: the same views as in a run with these options"
    figure.text(MARGIN / WIDTH, 0.16 / height, shown, size=7.5, color=MUTED)
    _write(figure, out)
    return failures


def _write(figure: Figure, out: Path) -> None:
    kind, buffer = out.suffix[1:].lower(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # names in a script that the font lacks
        try:
            figure.savefig(buffer, format=kind, dpi=DPI)
        except (ValueError, OSError) as error:  # WebP and JPEG have a largest height
            raise ConfigError(
                f"out: the sheet cannot be written as {kind} ({error}): lower count, or take .png"
            ) from error
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, lambda file: file.write(buffer.getvalue()))


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
    fill = draw_fill(config.mask_fill, views.query, generator=torch.Generator())  # not the caller's random numbers
    hidden = mask_boxes(views.query[None], views.query_boxes[None], share=config.mask_share, fill=fill)[0]
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
