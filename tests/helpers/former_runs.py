"""Runs as they were stored before options had groups and metrics names (checkpoints "maskco run 3")."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from maskco.config import PretrainConfig
from maskco.runs.checkpoint import read_checkpoint

RENAMED = {"momentum": "key_momentum", "sgd_momentum": "optimizer_momentum", "min_picture_side": "min_image_side"}
OF_RECIPES = ("recipe", "warmup_share", "freeze_patch_embedding", "projection", "mask_patch")
OF_PROBES = ("probe", "probe_every", "probe_images")
NEW = ("optimizer", "betas", "decay_norms", "layer_decay", "clip_grad", *OF_PROBES, *OF_RECIPES)


def former_options(config: PretrainConfig) -> dict[str, Any]:
    """All of one level, MaskCo's for any method."""
    values = {**PretrainConfig.of().flat(), **config.flat()}
    for old, new in RENAMED.items():
        values[old] = values.pop(new)
    values["keep_best"] = values["keep_best"] != "off"
    return {name: value for name, value in values.items() if name not in NEW}


def make_former(run: Path) -> None:
    """Rewrites a run of this version."""
    state = read_checkpoint(run / "last.pt")
    config = PretrainConfig.from_stored(state["config"])
    values = {n: list(v) if isinstance(v, tuple) else v for n, v in former_options(config).items()}
    totals = dict(state["totals"])
    assert totals.pop("names") == ["accuracy", "top5", "embedding_std"]
    totals["sums"] = totals["sums"] / torch.tensor([1.0, 100.0, 100.0, 1.0])
    del state["monitors"], state["best"]["score"]
    state["best"]["loss"] = state["best"].pop("cost")
    state |= {"format": "maskco run 3", "config": values, "pictures": state.pop("images"), "totals": totals}
    for group in state["optimizer"]["param_groups"]:
        del group["lr_scale"]
    torch.save(state, run / "last.pt")
    stored = json.loads((run / "config.json").read_text())
    kept = {name: stored[name] for name in ("maskco", "signature")}
    (run / "config.json").write_text(json.dumps({**kept, **values}))


def without_recipe(values: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Options in groups (`PretrainConfig.to_dict`) as they were stored before there were recipes."""
    kept = {group: {n: v for n, v in of.items() if n not in OF_RECIPES} for group, of in values.items()}
    kept["optim"]["clip_grad"] = kept["optim"]["clip_grad"] or None
    return kept
