"""A ResNet that trains in minutes on a CPU core, known to timm by name, so that every command of maskco takes it."""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, register_model
from timm.models.resnet import BasicBlock, ResNet

NAME = "claims_resnet"  # 0.25 million weights; 96 channels, a pixel for 8 × 8 of the picture


@register_model
def claims_resnet(pretrained: bool = False, **options: Any) -> ResNet:
    """timm's ResNet with a deep stem and two stages of one basic block each, 48 and 96 channels."""
    shape = {"block": BasicBlock, "layers": (1, 1), "channels": (48, 96), "stem_width": 12, "stem_type": "deep"}
    return build_model_with_cfg(ResNet, NAME, pretrained, **shape, **options)
