"""Sections of pictures: masked views with their regions, and the regions nearest to some."""

from __future__ import annotations

import torch
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor

from maskco.data.sources.demo import CLASS_NAMES
from maskco.data.views import Views, denormalize, draw_fill, mask_boxes
from maskco.report.nearest import NEIGHBOURS, Nearest
from maskco.report.page import FAINT, GREEN, INK, MARGIN, MUTED, RED, WIDTH, Page
from maskco.report.runs import VIEW_PAIRS
from maskco.view_options import MaskFill

REGION_COLOURS = ("#ffb000", "#3ddbd9", "#ff5fa2", "#9be564", "#b18cff", "#ff7a45")


class ViewPairs:
    side, inner = 1.27, 0.05

    def __init__(
        self, views: list[Views], *, mask_share: float | None, mask_fill: MaskFill = "grey", of: str = ""
    ) -> None:
        """mask_share and mask_fill: as in the run; mask_share None: it masks nothing."""
        masked = mask_share is not None
        self.views, self.masked, self.mask_share, self.mask_fill = views, masked, mask_share, mask_fill
        self.title = ("Masked query views and their key views" if masked else "Query views and their key views") + of
        self.remark = "one colour: one region · its feature is predicted left, found right" if masked else ""
        self.height = self.side + 0.5

    def draw(self, page: Page, top: float) -> None:
        gap = (WIDTH - 2 * MARGIN - VIEW_PAIRS * (2 * self.side + self.inner)) / (VIEW_PAIRS - 1)
        for index, views in enumerate(self.views):
            left = MARGIN + index * (2 * self.side + self.inner + gap)
            query = views.query
            if self.mask_share is not None:
                fill = draw_fill(self.mask_fill, query, generator=torch.Generator())  # not the caller's random numbers
                query = mask_boxes(query[None], views.query_boxes[None], share=self.mask_share, fill=fill)[0]
            for name, image, boxes, x in (
                ("query", query, views.query_boxes, left),
                ("key", views.key, views.key_boxes, left + self.side + self.inner),
            ):
                axes = page.picture(denormalize(image), x, top, self.side, f"{name} view {index}")
                if self.masked:
                    _draw_boxes(axes, boxes)
                page.text(x + self.side / 2, top + self.side + 0.16, name, size=8, color=MUTED, ha="center")


def _draw_boxes(axes: Axes, boxes: Tensor) -> None:
    """Outlines in one colour a region, with a dark rim so that they stand out on any picture."""
    rim = [patheffects.withStroke(linewidth=3.6, foreground="#000000b0")]
    for index, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        colour = REGION_COLOURS[index % len(REGION_COLOURS)]
        box = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=1.8, path_effects=rim)
        axes.add_patch(box)


class NearestRegions:
    gap = 0.06

    def __init__(self, nearest: Nearest, of: str = "") -> None:
        self.nearest = nearest
        self.lines = -(-len(nearest.crops) // 2)  # two blocks a line
        self.block = (WIDTH - 2 * MARGIN - 0.5) / 2
        self.side = (self.block - 0.14 - NEIGHBOURS * self.gap) / (NEIGHBOURS + 1)
        self.height = self.lines * (self.side + 0.36) + 0.2
        self.title = "Nearest regions" + of
        self.remark = f"cosine of pooled features · {nearest.regions:,} regions · "
        if nearest.agreement is None:
            self.remark += "at most one a picture, never the query's own"
        else:
            self.remark += "green: same class as the query"
            self.remark += f" · the nearest is, for {nearest.agreement:.0f} % of all"

    def draw(self, page: Page, top: float) -> None:
        nearest = self.nearest
        for index, crops in enumerate(nearest.crops):
            left = MARGIN + (index % 2) * (self.block + 0.5)
            y = top + 0.16 + (index // 2) * (self.side + 0.36)
            labels = None if nearest.labels is None else nearest.labels[index].tolist()
            name = "query" if labels is None else CLASS_NAMES[labels[0]]
            for place, crop in enumerate(crops):
                frame = INK if place == 0 else FAINT
                if labels is not None and place > 0:
                    frame = GREEN if labels[place] == labels[0] else RED
                x = left + place * (self.side + self.gap) + (0.14 if place else 0)
                what = f"region {index} query" if place == 0 else f"region {index} neighbour {place}"
                page.picture(crop, x, y, self.side, what, frame)
                if place == 0:
                    page.text(x, y - 0.06, name, size=7.5, weight="bold")  # class names may be wider than the crop
                else:
                    similarity = f"{nearest.similarity[index, place - 1]:.2f}"
                    page.text(x + self.side / 2, y - 0.06, similarity, size=7.5, color=MUTED, ha="center")


class Note:
    title = remark = ""
    height = 0.6

    def __init__(self, words: str) -> None:
        self.words = words

    def draw(self, page: Page, top: float) -> None:
        page.text(MARGIN, top + 0.2, self.words, size=9, color=RED, wrap=True)
