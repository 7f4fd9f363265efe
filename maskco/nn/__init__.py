"""Modules that the methods are built from, each usable alone. They need only torch. Encoders also need timm."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from maskco.nn.loss import InfoNCE
from maskco.nn.mask_head import AttentionMaskHead, ConvMaskHead, create_mask_head
from maskco.nn.momentum import forward_in_groups, momentum_copy, momentum_update_, shuffled_across_ranks
from maskco.nn.pair_losses import ClipLoss, SigLipLoss, SupConLoss
from maskco.nn.pooling import BoxPool, MaskedPool
from maskco.nn.projection import ProjectionHead
from maskco.nn.queue import FeatureQueue

if TYPE_CHECKING:
    from maskco.nn.encoder import Encoder, create_encoder

__all__ = [
    "AttentionMaskHead",
    "BoxPool",
    "ClipLoss",
    "ConvMaskHead",
    "Encoder",
    "FeatureQueue",
    "InfoNCE",
    "MaskedPool",
    "ProjectionHead",
    "SigLipLoss",
    "SupConLoss",
    "create_encoder",
    "create_mask_head",
    "forward_in_groups",
    "momentum_copy",
    "momentum_update_",
    "shuffled_across_ranks",
]


def __getattr__(name: str) -> object:
    """Imports encoders on first use, since timm and torchvision take longer to import than torch."""
    if name in ("Encoder", "create_encoder"):
        return getattr(importlib.import_module("maskco.nn.encoder"), name)
    raise AttributeError(f"module 'maskco.nn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), "Encoder", "create_encoder"]
