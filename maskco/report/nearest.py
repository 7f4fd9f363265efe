"""Which regions of other scenes look most like this one to the encoder?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from maskco.evaluate.datasets import cut_out, spread
from maskco.evaluate.errors import EvaluationError
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
    """For some regions, those of other scenes whose features have the largest cosine, at most one a scene.

    Which regions ask does not depend on the answer: the first of each class in turn, each of another scene, or, without
    labels, regions spread evenly over the scenes.

    Raises:
        EvaluationError: only one scene holds any region.
    """
    boxes, scene, labels = found.boxes, found.scene_of, found.labels
    others = len(scene.unique()) - 1
    if others < 1:
        raise EvaluationError("scenes: expected regions in at least two scenes, found one; nothing to compare")
    features = F.normalize(found.features, dim=1)
    similarity = (features @ features.T).masked_fill(scene[:, None] == scene, -2)  # [M, M]

    asking = spread(len(scene), queries) if labels is None else _first_of_each_class(labels, scene)[:queries]
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
