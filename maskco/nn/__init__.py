"""Parts that the methods are made of, each usable alone."""

from __future__ import annotations

from maskco.nn.encoder import Encoder, create_encoder
from maskco.nn.loss import InfoNCE
from maskco.nn.mask_head import AttentionMaskHead, ConvMaskHead, create_mask_head
from maskco.nn.momentum import forward_in_groups, momentum_copy, momentum_update_, shuffled_across_ranks
from maskco.nn.pooling import BoxPool, MaskedPool
from maskco.nn.projection import ProjectionHead
from maskco.nn.queue import FeatureQueue

__all__ = [
    "AttentionMaskHead",
    "BoxPool",
    "ConvMaskHead",
    "Encoder",
    "FeatureQueue",
    "InfoNCE",
    "MaskedPool",
    "ProjectionHead",
    "create_encoder",
    "create_mask_head",
    "forward_in_groups",
    "momentum_copy",
    "momentum_update_",
    "shuffled_across_ranks",
]
