"""Fused ops for contrastive learning (`maskco.ops`), and pretraining with MaskCo (contrastive mask prediction)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from maskco.version import __version__

if TYPE_CHECKING:
    from maskco import nn, ops
    from maskco.methods import DenseCL, MaskCo, MoCoV2, SimCLR
    from maskco.ops._library import build_info
    from maskco.runs.checkpoint import load_run
    from maskco.training.loop import pretrain

__all__ = [
    "DenseCL",
    "MaskCo",
    "MoCoV2",
    "SimCLR",
    "__version__",
    "build_info",
    "load_run",
    "nn",
    "ops",
    "pretrain",
]

# Imported when asked for: `maskco --help` needs no torch, and the ops need neither torchvision nor timm.
_HOMES = {
    "DenseCL": "maskco.methods",
    "MaskCo": "maskco.methods",
    "MoCoV2": "maskco.methods",
    "SimCLR": "maskco.methods",
    "build_info": "maskco.ops._library",
    "load_run": "maskco.runs.checkpoint",
    "pretrain": "maskco.training.loop",
}


def __getattr__(name: str) -> object:
    if name in ("nn", "ops"):
        return importlib.import_module(f"maskco.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'maskco' has no attribute {name!r}")
