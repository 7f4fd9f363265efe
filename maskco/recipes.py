"""Recipes for kinds of encoders: values of options that a run leaves to its `recipe`. Imports nothing.

A recipe is an entry in `RECIPES`. All entries have the same options, whose own default is None: the recipe's.
"""

from __future__ import annotations

from typing import Any

AUTO = "auto"
MOCO_V2: dict[str, Any] = {  # Chen et al., arXiv 2003.04297: for encoders with batch norms
    "optimizer": "sgd",
    "lr": 0.03,
    "weight_decay": 1e-4,
    "warmup_share": 0.0,
    "clip_grad": 0.0,
    "freeze_patch_embedding": False,
    "projection": "moco_v2",
}
MOCO_V3: dict[str, Any] = {  # Chen et al., arXiv 2104.02057, table 1 and section 4: for LayerNorm and attention
    "optimizer": "adamw",
    "lr": 5e-4,  # DINO's (arXiv 2104.14294); MoCo v3's 1.5e-4 is for batches of 4096
    "weight_decay": 0.1,
    "warmup_share": 40 / 300,
    "clip_grad": 1.0,  # ours: the paper freezes the patch embedding against spikes, which other stems lack
    "freeze_patch_embedding": True,
    "projection": "moco_v3",
}
RECIPES: dict[str, dict[str, Any]] = {"moco_v2": MOCO_V2, "moco_v3": MOCO_V3}
