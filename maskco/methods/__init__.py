"""Pretraining methods, each readable on one page. `METHODS` maps the config's names to them."""

from __future__ import annotations

from maskco.methods.maskco import MaskCo
from maskco.methods.moco_v2 import MoCoV2
from maskco.methods.step import StepOutput

METHODS = {"maskco": MaskCo, "moco_v2": MoCoV2}

__all__ = ["METHODS", "MaskCo", "MoCoV2", "StepOutput"]
