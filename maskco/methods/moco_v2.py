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
from maskco.nn import (
    FeatureQueue,
    ProjectionHead,
    forward_in_groups,
    momentum_copy,
    momentum_update_,
    shuffled_across_ranks,
)
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
        shuffle_keys: bool = True,
    ) -> None:
        super().__init__()
        self.momentum = momentum
        self.temperature = temperature
        self.key_group = key_group
        self.shuffle_keys = shuffle_keys
        self.encoder = as_encoder(encoder)
        self.projection = ProjectionHead(self.encoder.channels, hidden, dim)
        self.momentum_encoder = momentum_copy(self.encoder)
        self.momentum_projection = momentum_copy(self.projection)
        self.queue = FeatureQueue(queue_size, dim)

    def forward(self, views: Views, *, whole_step: bool = True) -> StepOutput:
        """Loss of one batch of B pictures. Only training mode moves the momentum side and the queue.

        `whole_step=False` leaves both to the caller, as in `MaskCo`.
        """
        if self.training and whole_step:
            self.update_momentum_side()
        queries = self.encode_queries(views)  # [B, D]
        with torch.no_grad():
            keys = self.encode_keys(views)  # [B, D]
        loss, stats = ops.info_nce(
            queries,
            keys,
            self.queue.features,
            valid=self.queue.valid,
            temperature=self.temperature,
            return_stats=True,
        )
        if self.training and whole_step:
            self.queue.push(keys)  # info_nce made the gradient in its forward pass: this does not change it
        return StepOutput(loss, stats, queries.detach(), keys)

    def encode_queries(self, views: Views) -> Tensor:
        """The whole query views: [B, D] unit vectors."""
        return embed_views(self.encoder(views.query), self.projection)

    def encode_keys(self, views: Views) -> Tensor:
        """The whole key views as the momentum side sees them: [B, D] unit vectors."""

        def encode(images: Tensor) -> Tensor:
            features = forward_in_groups(self.momentum_encoder, images, self.key_group if self.training else 0)
            return embed_views(features, self.momentum_projection)

        return shuffled_across_ranks(encode, views.key) if self.training and self.shuffle_keys else encode(views.key)

    def update_momentum_side(self) -> None:
        momentum_update_(self.encoder, self.momentum_encoder, self.momentum)
        momentum_update_(self.projection, self.momentum_projection, self.momentum)


def embed_views(features: Tensor, projection: nn.Module) -> Tensor:
    """Averaged, projected and normalised: features [B, C, h, w] -> [B, D]."""
    return F.normalize(projection(features.mean((-2, -1))).float(), dim=1)
