"""MoCo v2 (Chen et al., arXiv 2003.04297), the fair opponent: the same parts and views as MaskCo, but no regions.

Whole views are contrasted by their global average. They come from MaskCo's two-view sampling, so they share an area.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskco import ops
from maskco.data.views import Views
from maskco.methods.step import StepOutput
from maskco.nn import FeatureQueue, ProjectionHead, forward_in_groups, momentum_copy, momentum_update_
from maskco.nn.encoder import as_encoder


class MoCoV2(nn.Module):
    """Query view -> encoder -> global average -> projection, against the momentum side's key view.

    The arguments mean what they mean for `MaskCo`; the boxes in the views are not looked at.
    """

    def __init__(
        self,
        encoder: str | nn.Module = "resnet50",
        *,
        dim: int = 128,
        hidden: int | None = None,
        queue_size: int = 65536,
        temperature: float = 0.2,
        momentum: float = 0.999,
        key_group: int = 32,
    ) -> None:
        super().__init__()
        self.momentum = momentum
        self.temperature = temperature
        self.key_group = key_group
        self.encoder = as_encoder(encoder)
        self.projection = ProjectionHead(self.encoder.channels, hidden, dim)
        self.momentum_encoder = momentum_copy(self.encoder)
        self.momentum_projection = momentum_copy(self.projection)
        self.queue = FeatureQueue(queue_size, dim)

    def forward(self, views: Views) -> StepOutput:
        """Loss of one batch of B pictures. Only training mode moves the momentum side and the queue."""
        if self.training:
            momentum_update_(self.encoder, self.momentum_encoder, self.momentum)
            momentum_update_(self.projection, self.momentum_projection, self.momentum)
        queries = embed_views(self.encoder(views.query), self.projection)  # [B, D]
        with torch.no_grad():
            features = forward_in_groups(self.momentum_encoder, views.key, self.key_group if self.training else 0)
            keys = embed_views(features, self.momentum_projection)  # [B, D]
        loss, stats = ops.info_nce(
            queries,
            keys,
            self.queue.features,
            valid=self.queue.valid,
            temperature=self.temperature,
            return_stats=True,
        )
        if self.training:
            self.queue.push(keys)  # info_nce made the gradient in its forward pass: this does not change it
        return StepOutput(loss, stats, queries.detach(), keys)


def embed_views(features: Tensor, projection: nn.Module) -> Tensor:
    """Averaged, projected and normalised: features [B, C, h, w] -> [B, D]."""
    return F.normalize(projection(features.mean((-2, -1))).float(), dim=1)
