"""SimCLR (Chen et al., arXiv 2002.05709): two views of each image in one encoder, contrasted within the batch.

No queue and no momentum encoder. The negatives of a view are all other images' views of the step, of all ranks
together. With `accumulate` they are those of its own part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import nn

from maskco import ops
from maskco.data.views import Views
from maskco.methods.base import Method, ProjectionOptions, StepOutput, contrast_metrics
from maskco.methods.moco_v2 import embed_views
from maskco.nn.ranks import gather_in_rank_order, gather_with_gradient, rank
from maskco.option_values import Between


@dataclass
class SimCLROptions(ProjectionOptions):
    """Options of --method simclr: the paper's recipe (appendix B), for batches of hundreds rather than thousands."""

    defaults: ClassVar[Mapping[str, Any]] = {
        "optimizer": "lars",
        "lr": 0.3,
        "weight_decay": 1e-6,
        "regions": 0,
        "min_overlap": 0.0,
        "crop_scale": (0.08, 1.0),
        "brightness": 0.8,
        "contrast": 0.8,
        "saturation": 0.8,
        "hue": 0.2,
    }

    temperature: Annotated[float, Between(1e-4, 1e4)] = 0.1
    """Logits are cosine similarities divided by this. The paper prefers 0.5 for short runs (its table 5)."""


class SimCLR(Method):
    """Both views -> encoder -> global average -> projection -> NT-Xent.

    The head is the paper's formula, linear, ReLU, linear. (The authors' code adds batch norms to it.)
    """

    Options = SimCLROptions
    options: SimCLROptions

    def __init__(self, encoder: str | nn.Module = "resnet50", **options: Any) -> None:
        super().__init__(encoder, **options)
        self.projection = self.options.create_projection(self.encoder.channels)

    def forward(self, views: Views) -> StepOutput:
        images = torch.cat([views.query, views.key])  # [2B, 3, S, S]
        embeddings = embed_views(self.encoder(images), self.projection)  # [2B, D]
        loss, stats = nt_xent(embeddings, self.options.temperature)
        return StepOutput(loss, contrast_metrics(stats, embeddings), {}, embeddings.detach())


def nt_xent(embeddings: torch.Tensor, temperature: float) -> tuple[torch.Tensor, ops.InfoNCEStats]:
    """The normalised temperature-scaled cross-entropy (equation 1) of unit vectors [2B, D], view i's other one in row
    i + B. The negatives come from all ranks, which bring equal numbers of rows, and carry their gradients back."""
    count = len(embeddings) // 2
    image = torch.arange(count, device=embeddings.device).repeat(2) + rank() * count  # both views' own: no negatives
    loss, stats = ops.info_nce(
        embeddings,
        embeddings.roll(count, 0),
        gather_with_gradient(embeddings),
        query_ids=image,
        queue_ids=gather_in_rank_order(image),
        temperature=temperature,
        return_stats=True,
    )
    return loss, stats
