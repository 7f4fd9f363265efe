"""Which regions of other scenes look most like this one to the encoder?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskco.data.demo import Scene
from maskco.evaluate import region_features
from maskco.probes import EvaluationError

QUERIES, NEIGHBOURS = 6, 6


@dataclass(frozen=True)
class Nearest:
    """Query regions and the regions of other scenes that are nearest to them, one a scene."""

    crops: Tensor  # [Q, 1 + K, 3, 96, 96] in [0, 1]; the query comes first
    similarity: Tensor  # [Q, K] cosine
    labels: Tensor | None  # [Q, 1 + K] int64; None: no labels are known
    regions: int  # how many were searched
    agreement: float | None  # per cent of all regions whose nearest one has their label


def nearest_regions(
    encoder: nn.Module,
    scenes: Sequence[Scene],
    *,
    labelled: bool,
    queries: int = QUERIES,
    neighbours: int = NEIGHBOURS,
) -> Nearest:
    """For some regions, those of other scenes whose pooled features have the largest cosine, at most one a scene.

    Which regions ask does not depend on the answer: the first of each class in turn, each of another scene, or, without
    labels, regions spread evenly over the scenes.

    Args:
        scenes: pictures of one size; the labels are looked at only if `labelled`.

    Raises:
        EvaluationError: the scenes hold no boxes, or only one scene holds any.
    """
    features, labels = region_features(encoder, scenes)
    boxes = torch.cat([s.boxes for s in scenes])  # [M, 4]
    scene = torch.arange(len(scenes)).repeat_interleave(torch.tensor([len(s.boxes) for s in scenes]))  # [M]
    others = len(scene.unique()) - 1
    if others < 1:
        raise EvaluationError("scenes: expected regions in at least two scenes, found one; nothing to compare")
    features = F.normalize(features, dim=1)
    similarity = (features @ features.T).masked_fill(scene[:, None] == scene, -2)  # [M, M]

    asking = _first_of_each_class(labels, scene)[:queries] if labelled else spread(len(scene), queries)
    shown = []
    for region in asking:
        best: dict[int, int] = {}  # scene -> its nearest region, nearest scene first
        for other in similarity[region].argsort(descending=True, stable=True).tolist():
            best.setdefault(int(scene[other]), other)
            if len(best) == min(neighbours, others):
                break
        shown.append([region, *best.values()])
    chosen = torch.tensor(shown)  # [Q, 1 + K]
    crops = torch.stack([_crop(scenes[int(scene[i])].image, boxes[i]) for i in chosen.flatten().tolist()])
    agreement = 100 * float((labels[similarity.argmax(1)] == labels).double().mean())
    return Nearest(
        crops=crops.unflatten(0, chosen.shape),
        similarity=similarity[chosen[:, :1], chosen[:, 1:]],
        labels=labels[chosen] if labelled else None,
        regions=len(scene),
        agreement=agreement if labelled else None,
    )


def spread(length: int, count: int) -> list[int]:
    """`count` indices, or all if there are fewer, evenly over 0 … length - 1."""
    count = min(length, count)
    return [i * length // count for i in range(count)]


def _first_of_each_class(labels: Tensor, scene: Tensor) -> list[int]:
    chosen: list[int] = []
    for label in labels.unique().tolist():
        own = (labels == label) & ~torch.isin(scene, scene[chosen])
        chosen += own.nonzero().flatten().tolist()[:1]
    return chosen


def _crop(image: Tensor, box: Tensor, size: int = 96, context: float = 1.15) -> Tensor:
    """A square around the box, so that nothing is distorted: uint8 [3, H, W] -> [3, size, size] in [0, 1]."""
    height, width = image.shape[-2:]
    x1, y1, x2, y2 = box.tolist()
    side = context * max(x2 - x1, y2 - y1)
    theta = torch.tensor([[side / width, 0, (x1 + x2) / width - 1], [0, side / height, (y1 + y2) / height - 1]])
    grid = F.affine_grid(theta[None], [1, 3, size, size], align_corners=False)
    return F.grid_sample(image[None] / 255, grid, padding_mode="border", align_corners=False)[0].clamp(0, 1)
