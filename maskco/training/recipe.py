"""Chooses the recipe for an encoder by its layers, and fills in a run's options from it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from maskco.config import PretrainConfig
from maskco.errors import ConfigError
from maskco.methods import build_encoder
from maskco.nn.patches import patch_embedding
from maskco.recipes import AUTO, MOCO_V2, RECIPES

LAYER_NORMS = ("layernorm", "rmsnorm", "simplenorm", "groupnorm1")  # in names of their classes


def with_recipe(config: PretrainConfig) -> PretrainConfig:
    """The configuration with values from its recipe, and from the encoder, filled in.

    It does not change if all values are given, as in stored runs.
    Raises ConfigError for an encoder that cannot be built, or that the recipe is not for.
    """
    given, recipe = config.flat(), config.optim.recipe
    if recipe != AUTO and not any(option in given and given[option] is None for option in (*MOCO_V2, "mask_patch")):
        return config
    with torch.random.fork_rng(devices=[]):
        encoder = build_encoder(config, pretrained=False)
    parts, patches = parts_of(encoder), patch_embedding(encoder)
    if recipe == AUTO:
        recipe = "moco_v3" if attends_or_layer_normalises(parts) else "moco_v2"
    elif recipe == "moco_v2" and attends_or_layer_normalises(parts):
        raise ConfigError(
            f"recipe moco_v2 is for batch norms, and encoder {config.run.encoder} is made of {parts_line(parts)}. "
            "Leave it out, or take moco_v3 with `optimizer=sgd` and an lr of your own"
        )
    if config.optim.freeze_patch_embedding and patches is None:
        raise ConfigError(f"freeze_patch_embedding: {config.run.encoder} embeds no patches. Leave it out")
    config = config.filled(recipe)
    own: dict[str, Any] = {}
    if given["freeze_patch_embedding"] is None and (patches is None or patches.side != encoder.stride):
        own["freeze_patch_embedding"] = False  # MoCo v3's are a ViT's, as coarse as its map; finer ones must learn
    if "mask_patch" in given and given["mask_patch"] is None:
        own["mask_patch"] = patches.side if patches else 1
    return config.replace(**own)


def recipe_line(config: PretrainConfig, encoder: nn.Module) -> str:
    """One line: a run's recipe, why it suits the encoder, and the values that it comes to."""
    values = config.flat()
    options = [option for option in (*MOCO_V2, "mask_patch") if option in values]
    if values["warmup_steps"]:
        options[options.index("warmup_share")] = "warmup_steps"
    line = ", ".join(f"{option} {_written(values[option])}" for option in options)
    usual = {**RECIPES[config.optim.recipe], **config.method.defaults}
    if values["optimizer"] != usual["optimizer"] and values["lr"] == usual["lr"]:
        line += f". This lr is for {usual['optimizer']}. Give one for {values['optimizer']}"
    return f"recipe {config.optim.recipe} ({config.run.encoder} is made of {parts_line(parts_of(encoder))}): {line}"


def parts_of(encoder: nn.Module) -> dict[str, int]:
    """How many modules of each kind an encoder has, as far as recipes distinguish them."""
    counts = {"BatchNorm": 0, "LayerNorm": 0, "attention": 0}
    for module in encoder.modules():
        name = type(module).__name__.lower()
        counts["BatchNorm"] += isinstance(module, _BatchNorm)
        counts["LayerNorm"] += any(norm in name for norm in LAYER_NORMS)
        counts["attention"] += "attention" in name  # timm spells channels' and others' gates "attn"
    return {kind: count for kind, count in counts.items() if count}


def attends_or_layer_normalises(parts: dict[str, int]) -> bool:
    """Whether an encoder is one of those that SGD trains badly. Some batch-normed ones have a LayerNorm in a gate."""
    return "attention" in parts or parts.get("LayerNorm", 0) > parts.get("BatchNorm", 0)


def parts_line(parts: dict[str, int]) -> str:
    return " and ".join(parts) or "neither norms nor attention"


def freeze_patch_embedding(encoder: nn.Module) -> None:
    """The projection of patches stays as it starts: it learns little and starts the spikes (MoCo v3, section 4)."""
    found = patch_embedding(encoder)
    if found is not None:
        found.projection.requires_grad_(False)


def _written(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
