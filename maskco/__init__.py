"""Fused ops for contrastive learning (`maskco.ops`), and MaskCo: pretraining by contrastive mask prediction."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from maskco.version import __version__

if TYPE_CHECKING:
    from maskco import nn, ops
    from maskco.methods import MaskCo, MoCoV2
    from maskco.ops._library import build_info
    from maskco.training.loop import pretrain

__all__ = ["MaskCo", "MoCoV2", "__version__", "build_info", "nn", "ops", "pretrain"]

# Imported when asked for: `maskco --help` needs no torch, and the ops need neither torchvision nor timm.
_HOMES = {
    "MaskCo": "maskco.methods",
    "MoCoV2": "maskco.methods",
    "build_info": "maskco.ops._library",
    "pretrain": "maskco.training.loop",
}


def __getattr__(name: str) -> object:
    if name in ("nn", "ops"):
        return importlib.import_module(f"maskco.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'maskco' has no attribute {name!r}")
