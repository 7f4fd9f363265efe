"""Images with their masked query views and their key views, of a run's report and of the contact sheet."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from maskco.console import printable
from maskco.data.batch_augment import finish
from maskco.data.images import ImageError
from maskco.data.samples import PretrainDataset, seed_from
from maskco.data.sources import Source
from maskco.data.views import Crop, RawViews, TwoViews, Views, denormalize, draw_fill, mask_boxes
from maskco.evaluate.datasets import evenly_spaced
from maskco.report.page import BLUE, MARGIN, MUTED, ORANGE, Page, Part, grid, shortened
from maskco.view_options import MaskOptions, ViewConfig

REGION_COLORS = ("#ffb000", "#3ddbd9", "#ff5fa2", "#9be564", "#b18cff", "#ff7a45")


class Sample(NamedTuple):
    name: str
    image: Tensor  # [3, H, W] uint8
    crops: tuple[Crop, Crop]  # what the query and the key view show of it
    views: Views


def read_samples(
    source: Source,
    config: ViewConfig,
    count: int,
    *,
    seed: int,
    epoch: int = 0,
    augment: Literal["workers", "device"] = "workers",
) -> tuple[list[Sample], list[tuple[str, str]]]:
    """Images at equal distances in a source, with their views in this epoch of a run of this seed. Also (name, reason)
    of those that cannot be used."""
    transform = TwoViews(config)
    dataset = PretrainDataset(source, transform.raw if augment == "device" else transform, seed)
    samples, failures = [], []
    for index in evenly_spaced(len(dataset), count):
        try:
            image = source[index]
            image = image if isinstance(image, Tensor) else F.pil_to_tensor(image)
            views = finished(dataset.views(epoch, index))
        except ImageError as error:
            failures.append((source.name(index), error.reason))
            continue
        with seed_from(seed, epoch, index):  # crops are what the views draw first
            crops = transform.crops(*image.shape[1:])
        samples.append(Sample(printable(source.name(index)), image, crops, views))
    return samples, failures


def finished(views: Views | RawViews) -> Views:
    """One sample's views, whose colors may still have to be applied, as in a batch."""
    if isinstance(views, Views):
        return views
    batch = finish(RawViews(*(part[None] for part in views)), torch.device("cpu"))
    return Views(*(part[0] for part in batch))


class Samples(Part):
    """So many samples in a row: an image, its query view as the encoder sees it, and its key view.

    masks: options of the masks that hide the regions, which are then outlined in both views, or None.
    """

    gap, between = 0.08, 0.3

    def __init__(self, samples: list[Sample], masks: MaskOptions | None, columns: int, title: str = "") -> None:
        self.samples, self.masks, self.columns, self.title = samples, masks, columns, title
        self.remark = "one color: one region · its feature is predicted left, found right" if masks and title else ""
        self.width = grid(columns, columns, self.between)[1]
        self.side = (self.width - 2 * self.gap) / 3
        self.line = self.side + 0.36
        self.height = -(-len(samples) // columns) * self.line + 0.1

    def draw(self, page: Page, top: float) -> None:
        for index, (name, image, crops, views) in enumerate(self.samples):
            extents = [(crop.left, crop.top, crop.left + crop.width, crop.top + crop.height) for crop in crops]
            query = views.query
            if self.masks is not None:
                fill = draw_fill(self.masks.mask_fill, query, generator=torch.Generator())  # not the caller's numbers
                masks, boxes = self.masks, views.query_boxes[None]
                query = mask_boxes(query[None], boxes, share=masks.mask_share, patch=masks.mask_patch or 1, fill=fill)[
                    0
                ]
            x = MARGIN + index % self.columns * (self.width + self.between)
            y = top + index // self.columns * self.line
            name = shortened(name, int(15 * self.side))
            for label, pixels, boxes, colors, words, color in (
                ("image", image / 255, torch.tensor(extents), (ORANGE, BLUE), name, MUTED),
                ("query view", denormalize(query), views.query_boxes, REGION_COLORS, "query view", ORANGE),
                ("key view", denormalize(views.key), views.key_boxes, REGION_COLORS, "key view", BLUE),
            ):
                shown = page.image(pixels, x, y, self.side, f"{label} {index}")
                if label == "image" or self.masks is not None:
                    shown.outline(boxes, colors)
                page.text(x, y + self.side + 0.15, words, size=7, color=color)
                x += self.side + self.gap
