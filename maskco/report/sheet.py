"""A contact sheet of views: the network's input, and the regions it has to find, before any training.

write_sheet("PHOTOS", ViewConfig(regions=4), "sheet.png")
"""

from __future__ import annotations

import io
import logging
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from maskco.console import printable
from maskco.data.sources import open_source
from maskco.devices import check_caller
from maskco.errors import ConfigError
from maskco.files import user_path, write_atomically
from maskco.memory import memory_errors, require_memory
from maskco.option_values import Between, Natural, Options
from maskco.report.page import MARGIN, MUTED, Note, Page, Part
from maskco.report.views import Samples, read_samples
from maskco.view_options import MaskOptions, ViewConfig

log = logging.getLogger(__name__)

SUFFIXES = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")


@dataclass
class SheetOptions(Options):
    count: Annotated[int, Between(1, 1000)] = 12
    seed: Natural = 0
    epoch: Natural = 0
    augment: Literal["workers", "device"] = "workers"


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
    overwrite: bool = False,
) -> list[tuple[str, str]]:
    """Draws `count` images, at equal distances in the data, with their views in this epoch of a run of this seed.

    The suffix of `out` chooses the format. Returns (name, reason) of images that cannot be used and were left out.

    Args:
        masks: options of the masks that hide the regions, by default those of `MaskOptions`.
        augment: as in `PretrainConfig`, with the CPU as the device.
        overwrite: replace `out` if it exists.

    Raises:
        SourceError: there are no images.
        ConfigError: an impossible option, no image that can be used, or `out` exists or cannot be written.
    """
    check_caller()
    options, masks, out = SheetOptions(count, seed, epoch, augment), masks or MaskOptions(), user_path(out)
    for group in (options, config, masks):
        group.check()
    if out.suffix.lower() not in SUFFIXES or out.is_dir():
        raise ConfigError(f"out: {out} is no file name of an image. Let it end in one of {', '.join(SUFFIXES)}")
    if os.path.lexists(out) and not overwrite:
        raise ConfigError(f"out: {out} exists. Name another file, or replace it with `overwrite=True`")
    needed = 2 * 3 * 4 * config.image_size**2 * options.count
    require_memory(f"image_size {config.image_size}", needed, "lower it or count")
    source = open_source(str(data))
    for line in source.left_out.lines():
        log.warning(line)
    samples, failures = read_samples(
        source, config, options.count, seed=options.seed, epoch=options.epoch, augment=options.augment
    )
    if not samples:
        raise ConfigError(
            f"data: none of {len(failures)} images can be used (first: {printable(': '.join(failures[0]))})"
        )
    caption = f"seed {options.seed}, epoch {options.epoch}: the same views as in a run with these options"
    heading = Heading(_explanation(config, len(source)))
    _write(Page([heading, Samples(samples, masks if config.regions else None, 2), Note(caption)]), out)
    return failures


def _explanation(config: ViewConfig, images: int) -> str:
    shown = f"{images:,} images, views of {config.image_size} pixels. Orange: the query view. Blue: the key view."
    if not config.regions:
        return shown
    hidden = f"{config.regions} regions" if config.regions > 1 else "a region"
    return (
        f"{shown}\nWith {hidden} of the query view hidden, the network predicts the features of what is hidden. "
        "They are looked up in the key view. One color: one region."
    )


class Heading(Part):
    height = 1.25

    def __init__(self, words: str) -> None:
        self.words = words

    def draw(self, page: Page, top: float) -> None:
        page.text(MARGIN, top + 0.5, "What the network sees", size=17, weight="bold")
        page.text(MARGIN, top + 0.65, self.words, color=MUTED, va="top", linespacing=1.4)


def _write(page: Page, out: Path) -> None:
    kind, buffer = out.suffix[1:].lower(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # names in a script that the font lacks
        try:
            page.save(buffer, kind)
        except (ValueError, OSError) as error:  # WebP and JPEG have a largest height
            raise ConfigError(
                f"out: the sheet cannot be written as {kind} ({error}). Lower count, or take .png"
            ) from error
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, lambda file: file.write(buffer.getvalue()))
