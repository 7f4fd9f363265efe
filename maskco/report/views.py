"""Masked query views, and their key views."""

from __future__ import annotations

import torch

from maskco.data.views import Views, denormalize, draw_fill, mask_boxes
from maskco.report.page import MARGIN, MUTED, Page, Part, grid, outline
from maskco.view_options import MaskOptions

REGION_COLORS = ("#ffb000", "#3ddbd9", "#ff5fa2", "#9be564", "#b18cff", "#ff7a45")


class ViewPairs(Part):
    inner, gap = 0.05, 0.14

    def __init__(self, views: list[Views], masks: MaskOptions | None, of: str = "") -> None:
        """masks: as in the run. None: it masks no regions, and the views are shown without any."""
        self.views, self.masks = views, masks
        self.title = ("Masked query views" if masks else "Query views") + " and their key views" + of
        self.remark = "one color: one region · its feature is predicted left, found right" if masks else ""
        self.columns, self.width = grid(len(views), 4, self.gap)
        self.side = min(1.27, (self.width - self.inner) / 2)
        self.height = self.side + 0.45

    def draw(self, page: Page, top: float) -> None:
        for index, views in enumerate(self.views):
            left = MARGIN + index * (self.width + self.gap)
            draw_views(page, left, top, self.side, self.inner, views, self.masks, f"view {index}")
            for name, x in (("query", left), ("key", left + self.side + self.inner)):
                page.text(x + self.side / 2, top + self.side + 0.16, name, size=8, color=MUTED, ha="center")


def draw_views(
    page: Page, left: float, top: float, side: float, gap: float, views: Views, masks: MaskOptions | None, label: str
) -> None:
    """One sample's query view as the encoder sees it, and to the right of it the key view.

    masks: what hides the regions, which are then outlined in both views.
    """
    query = views.query
    if masks is not None:
        fill = draw_fill(masks.mask_fill, query, generator=torch.Generator())  # not the caller's random numbers
        query = mask_boxes(query[None], views.query_boxes[None], share=masks.mask_share, fill=fill)[0]
    for name, image, boxes in (("query", query, views.query_boxes), ("key", views.key, views.key_boxes)):
        axes = page.image(denormalize(image), left, top, side, f"{name} {label}")
        if masks is not None:
            outline(axes, boxes, REGION_COLORS)
        left += side + gap
