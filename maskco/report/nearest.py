"""Regions of other scenes that are nearest to a region, by the encoder's features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from maskco.data.sources.demo import CLASS_NAMES
from maskco.evaluate.datasets import cut_out, evenly_spaced
from maskco.evaluate.errors import EvaluationError
from maskco.report.page import FAINT, GREEN, INK, MARGIN, MUTED, RED, WIDTH, Page, Part
from maskco.report.runs import Regions

QUERIES, NEIGHBOURS = 6, 6
CROP = 96  # pixels


@dataclass(frozen=True)
class Nearest:
    """Query regions and the regions of other scenes that are nearest to them, one a scene."""

    crops: Tensor  # [Q, 1 + K, 3, 96, 96] in [0, 1]; the query comes first
    similarity: Tensor  # [Q, K] cosine
    labels: Tensor | None  # [Q, 1 + K] int64; None: no labels are known
    regions: int  # how many were searched
    agreement: float | None  # per cent of all regions whose nearest one has their label


def nearest_regions(found: Regions, *, queries: int = QUERIES, neighbours: int = NEIGHBOURS) -> Nearest:
    """For some regions, those of other scenes with the largest cosine of features, at most one a scene.

    The choice of query regions does not depend on the answers. They are the first of each class in turn, each of
    another scene. Without labels they are regions at equal distances in the scenes.

    Raises:
        EvaluationError: only one scene holds any region.
    """
    boxes, scene, labels = found.boxes, found.scene_of, found.labels
    others = len(scene.unique()) - 1
    if others < 1:
        raise EvaluationError("scenes: expected regions in at least two scenes, found one. There is nothing to compare")
    features = F.normalize(found.features, dim=1)
    similarity = (features @ features.T).masked_fill(scene[:, None] == scene, -2)  # [M, M]

    asking = evenly_spaced(len(scene), queries) if labels is None else _first_of_each_class(labels, scene)[:queries]
    shown = []
    for region in asking:
        best: dict[int, int] = {}  # scene -> its nearest region, nearest scene first
        for other in similarity[region].argsort(descending=True, stable=True).tolist():
            best.setdefault(int(scene[other]), other)
            if len(best) == min(neighbours, others):
                break
        shown.append([region, *best.values()])
    chosen = torch.tensor(shown)  # [Q, 1 + K]
    crops = [cut_out(found.scenes[int(scene[i])].image, boxes[i], CROP) for i in chosen.flatten().tolist()]
    return Nearest(
        crops=torch.stack(crops).unflatten(0, chosen.shape),
        similarity=similarity[chosen[:, :1], chosen[:, 1:]],
        labels=None if labels is None else labels[chosen],
        regions=len(scene),
        agreement=None if labels is None else 100 * float((labels[similarity.argmax(1)] == labels).double().mean()),
    )


def _first_of_each_class(labels: Tensor, scene: Tensor) -> list[int]:
    chosen: list[int] = []
    for label in labels.unique().tolist():
        own = (labels == label) & ~torch.isin(scene, scene[chosen])
        chosen += own.nonzero().flatten().tolist()[:1]
    return chosen


class NearestRegions(Part):
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
            self.remark += "at most one an image, never the query's own"
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
            page.image(crops[0], left, y, self.side, f"region {index} query", INK)
            page.text(left, y - 0.06, name, size=7.5, weight="bold")  # class names may be wider than the crop
            for place, crop in enumerate(crops[1:], 1):
                frame = FAINT if labels is None else GREEN if labels[place] == labels[0] else RED
                x = left + 0.14 + place * (self.side + self.gap)
                page.image(crop, x, y, self.side, f"region {index} neighbour {place}", frame)
                similarity = f"{nearest.similarity[index, place - 1]:.2f}"
                page.text(x + self.side / 2, y - 0.06, similarity, size=7.5, color=MUTED, ha="center")
