"""Fused ops for contrastive learning (`maskco.ops`), and MaskCo: pretraining by contrastive mask prediction."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from maskco import ops
from maskco._ext import build_info

if TYPE_CHECKING:
    from maskco.methods import MaskCo, MoCoV2
    from maskco.train import pretrain

__version__ = "0.1.0"
__all__ = ["MaskCo", "MoCoV2", "build_info", "ops", "pretrain"]

# The ops need torch alone; the method and the loop, which bring torchvision and timm, are imported when asked for.
_LAZY = {"MaskCo": "maskco.methods", "MoCoV2": "maskco.methods", "pretrain": "maskco.train"}


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'maskco' has no attribute {name!r}")
