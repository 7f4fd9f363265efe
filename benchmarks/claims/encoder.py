"""Encoders that train in minutes on a CPU core, known to timm by name, so that every command of maskco takes them.

All have a pixel for 8 × 8 of the picture. They differ in how much of the picture such a pixel depends on: 55 pixels a
side of NAME's, more than views of objects and of 2×2 scenes have; 23 of NARROW's, hardly more than a large region; 95
of PHOTOS', as many as views of photographs have.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from timm.models.resnet import BasicBlock, ResNet

NAME = "claims_resnet"  # 0.17 million weights, 96 channels
NARROW = "claims_narrow"  # 0.09 million weights, 128 channels
PHOTOS = "claims_photos"  # 0.30 million weights, 128 channels; to be cut at output stride 8
default_cfgs = generate_default_cfgs({NAME: {}, NARROW: {}, PHOTOS: {}})  # timm looks here for weights: there are none


@register_model
def claims_resnet(pretrained: bool = False, **options: Any) -> ResNet:
    """timm's ResNet with a deep stem and two stages of one basic block each, 48 and 96 channels."""
    shape = {"block": BasicBlock, "layers": (1, 1), "channels": (48, 96), "stem_width": 12, "stem_type": "deep"}
    return build_model_with_cfg(ResNet, NAME, pretrained, **shape, **options)


@register_model
def claims_narrow(pretrained: bool = False, **options: Any) -> ByobNet:
    """timm's ByobNet: a 3 × 3 stem, then bottlenecks, of which each looks just a pixel further: two of 64 channels, one
    of 128."""
    stages = [ByoBlockCfg("bottle", depth, width, s=2, br=0.5) for depth, width in ((2, 64), (1, 128))]
    shape = ByoModelCfg(tuple(stages), stem_chs=24, stem_type="3x3", stem_pool="", num_features=0)
    flat = {"flatten_sequential": True}
    return build_model_with_cfg(ByobNet, NARROW, pretrained, model_cfg=shape, feature_cfg=flat, **options)


@register_model
def claims_photos(pretrained: bool = False, **options: Any) -> ByobNet:
    """A ResNet of three basic blocks with 32, 64 and 128 channels. Its stem is one 3 × 3 convolution and a pool, since
    a deep stem would take a third of the time."""
    stages = [ByoBlockCfg("basic", 1, width, s=stride, br=1.0) for width, stride in ((32, 1), (64, 2), (128, 2))]
    shape = ByoModelCfg(tuple(stages), stem_chs=16, stem_type="3x3", stem_pool="maxpool", num_features=0)
    flat = {"flatten_sequential": True}
    return build_model_with_cfg(ByobNet, PHOTOS, pretrained, model_cfg=shape, feature_cfg=flat, **options)
