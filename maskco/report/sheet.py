"""A contact sheet of views: what the network is shown, and what it has to find, before any training.

write_sheet("PHOTOS", ViewConfig(regions=4), "sheet.png")
"""

from __future__ import annotations

import io
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from maskco.console import printable
from maskco.data.batch_augment import finish
from maskco.data.images import PictureError
from maskco.data.samples import PretrainDataset, seed_from
from maskco.data.sources import Source, open_source
from maskco.data.views import Crop, RawViews, TwoViews, Views
from maskco.errors import ConfigError
from maskco.files import user_path, write_atomically
from maskco.memory import memory_errors, require_memory
from maskco.option_values import Between, Natural, Options
from maskco.report.page import BLUE, INK, MARGIN, MUTED, ORANGE, Page, Part, grid, outline
from maskco.report.runs import shortened
from maskco.report.views import draw_views
from maskco.view_options import MaskOptions, ViewConfig

log = logging.getLogger(__name__)

SUFFIXES = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")
GAP = 0.1  # between the views of a strip, in inches
COLUMNS = (
    ("image", "and what the views show of it", INK),
    ("query view", "as the encoder sees it", ORANGE),
    ("key view", "where their features are found", BLUE),
)


@dataclass
class SheetOptions(Options):
    count: Annotated[int, Between(1, 1000)] = 12
    seed: Natural = 0
    epoch: Natural = 0
    augment: Literal["workers", "device"] = "workers"


class Strip(NamedTuple):
    """An image and its views."""

    name: str
    image: Tensor  # [3, H, W] uint8
    crops: tuple[Crop, Crop]  # what the query and the key view show of it
    views: Views


@memory_errors("lower image_size or count")
def write_sheet(
    data: str | Path,
    config: ViewConfig,
    out: str | Path,
    *,
    masks: MaskOptions | None = None,
    count: int = 12,
    seed: int = 0,
    epoch: int = 0,
    augment: Literal["workers", "device"] = "workers",
) -> list[tuple[str, str]]:
    """Draws `count` images, spread evenly over the data, with the views that a run of this seed has of them in this
    epoch, in the format that the suffix of `out` says. Returns (name, reason) of images that were left out because they
    cannot be used.

    Args:
        masks: what hides the regions, by default as in `MaskOptions`.
        augment: as in `PretrainConfig`, with the CPU as the device.

    Raises:
        SourceError: no images.
        ConfigError: an impossible option, no image that can be used, or `out` cannot be written.
    """
    options, masks, out = SheetOptions(count, seed, epoch, augment), masks or MaskOptions(), user_path(out)
    for group in (options, config, masks):
        group.check()
    if out.suffix.lower() not in SUFFIXES or out.is_dir():
        raise ConfigError(f"out: {out} is no file name of an image: let it end in one of {', '.join(SUFFIXES)}")
    source = open_source(str(data))
    needed = 2 * 3 * 4 * config.image_size**2 * options.count
    require_memory(f"image_size {config.image_size}", needed, "lower it or count")
    for line in source.left_out.lines():
        log.warning(line)
    strips, failures = read_strips(source, config, options)
    if not strips:
        raise ConfigError(
            f"data: none of {len(failures)} images can be used (first: {printable(': '.join(failures[0]))})"
        )
    _write(Page([Heading(config, len(source), blocks=min(len(strips), 2)), Strips(strips, masks, options)]), out)
    return failures


def read_strips(source: Source, config: ViewConfig, options: SheetOptions) -> tuple[list[Strip], list[tuple[str, str]]]:
    """Images spread evenly over a source with their views, and (name, reason) of those that cannot be used."""
    transform = TwoViews(config)
    dataset = PretrainDataset(source, transform.raw if options.augment == "device" else transform, options.seed)
    count = min(options.count, len(dataset))
    strips, failures = [], []
    for index in (step * len(dataset) // count for step in range(count)):
        try:
            image = source[index]
            image = image if isinstance(image, Tensor) else F.pil_to_tensor(image)
            views = finished(dataset.views(options.epoch, index))
        except PictureError as error:
            failures.append((source.name(index), error.reason))
            continue
        with seed_from(options.seed, options.epoch, index):  # crops are what the views draw first
            crops = transform.crops(*image.shape[1:])
        strips.append(Strip(printable(source.name(index)), image, crops, views))
    return strips, failures


def finished(views: Views | RawViews) -> Views:
    """One sample's views, whose colors may still have to be applied, as in a batch."""
    if isinstance(views, Views):
        return views
    batch = finish(RawViews(*(part[None] for part in views)), torch.device("cpu"))
    return Views(*(part[0] for part in batch))


class Heading(Part):
    height = 1.68

    def __init__(self, config: ViewConfig, images: int, blocks: int) -> None:
        self.blocks, self.lines = blocks, [f"{images:,} images, views of {config.image_size} pixels."]
        if config.regions:
            hidden = f"{config.regions} regions" if config.regions > 1 else "a region"
            self.lines = [
                f"{self.lines[0]} With {hidden} of the query view hidden, the network predicts the features of what is "
                "hidden.",
                "The key view shows the same content, cropped and colored otherwise; there those features are looked "
                "up. One color: one region.",
            ]

    def draw(self, page: Page, top: float) -> None:
        page.text(MARGIN, top + 0.5, "What the network sees", size=17, weight="bold")
        for line, words in enumerate(self.lines):
            page.text(MARGIN, top + 0.78 + 0.18 * line, words, color=MUTED)
        for block in range(self.blocks):
            for column, (name, what, color) in enumerate(COLUMNS):
                x = MARGIN + block * (Strips.width + Strips.gap) + column * (Strips.side + GAP)
                page.text(x, top + 1.38, name, size=9.5, weight="bold", color=color)
                page.text(x, top + 1.55, what, size=7, color=MUTED)


class Strips(Part):
    """Two strips a line: an image with the outlines of its views, its query view and its key view."""

    gap = 0.4
    width = grid(2, 2, gap)[1]
    side = (width - 2 * GAP) / 3
    line = side + 0.35

    def __init__(self, strips: list[Strip], masks: MaskOptions, options: SheetOptions) -> None:
        self.strips, self.masks = strips, masks
        self.told = f"seed {options.seed}, epoch {options.epoch}: the same views as in a run with these options"
        self.height = -(-len(strips) // 2) * self.line + 0.1

    def draw(self, page: Page, top: float) -> None:
        for place, (name, image, crops, views) in enumerate(self.strips):
            left, y = MARGIN + place % 2 * (self.width + self.gap), top + place // 2 * self.line
            axes = page.image(image / 255, left, y, self.side, f"{name} image")
            shown = [(crop.left, crop.top, crop.left + crop.width, crop.top + crop.height) for crop in crops]
            outline(axes, torch.tensor(shown), (ORANGE, BLUE))
            draw_views(page, left + self.side + GAP, y, self.side, GAP, views, self.masks, f"view of {name}")
            page.text(left, y + self.side + 0.15, shortened(name, 60), size=6.5, color=MUTED)
        page.text(MARGIN, top + self.height, self.told, size=7.5, color=MUTED)


def _write(page: Page, out: Path) -> None:
    kind, buffer = out.suffix[1:].lower(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # names in a script that the font lacks
        try:
            page.save(buffer, kind)
        except (ValueError, OSError) as error:  # WebP and JPEG have a largest height
            raise ConfigError(
                f"out: the sheet cannot be written as {kind} ({error}): lower count, or take .png"
            ) from error
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, lambda file: file.write(buffer.getvalue()))
