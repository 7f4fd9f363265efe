"""MoCo v2 (Chen et al., arXiv 2003.04297), for comparison: the same parts and views as MaskCo, but no regions.

Whole views are contrasted by their global average. They come from MaskCo's two-view sampling, so they share an area.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskco import ops
from maskco.data.views import Views
from maskco.methods.base import Method, MomentumOptions, StepOutput, contrast_metrics
from maskco.nn import FeatureQueue, forward_in_groups, momentum_copy, shuffled_across_ranks


class MoCoV2(Method):
    """Query view -> encoder -> global average -> projection, against the momentum side's key view.

    It does not use the boxes in the views.
    """

    Options = MomentumOptions
    options: MomentumOptions

    def __init__(self, encoder: str | nn.Module = "resnet50", **options: Any) -> None:
        super().__init__(encoder, **options)
        self.projection = self.options.create_projection(self.encoder.channels)
        self.momentum_encoder = momentum_copy(self.encoder)
        self.momentum_projection = momentum_copy(self.projection)
        self.queue = FeatureQueue(self.options.queue_size, self.options.dim)

    def key_modules(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.encoder, self.momentum_encoder), (self.projection, self.momentum_projection)]

    def forward(self, views: Views) -> StepOutput:
        queries = embed_views(self.encoder(views.query), self.projection)  # [B, D]
        with torch.no_grad():
            keys = self.encode_keys(views)  # [B, D]
        loss, stats = ops.info_nce(
            queries,
            keys,
            self.queue.features,
            valid=self.queue.valid,
            temperature=self.options.temperature,
            return_stats=True,
        )
        return StepOutput(loss, contrast_metrics(stats, queries), {"queue": keys})

    def encode_keys(self, views: Views) -> Tensor:
        """The whole key views as the momentum side sees them: [B, D] unit vectors."""

        def encode(images: Tensor) -> Tensor:
            features = forward_in_groups(self.momentum_encoder, images, self.options.key_group if self.training else 0)
            return embed_views(features, self.momentum_projection)

        shuffled = self.training and self.options.shuffle_keys
        return shuffled_across_ranks(encode, views.key) if shuffled else encode(views.key)


def embed_views(features: Tensor, projection: nn.Module) -> Tensor:
    """Averaged, projected and normalised: features [B, C, h, w] -> [B, D]."""
    return F.normalize(projection(features.mean((-2, -1))).float(), dim=1)
