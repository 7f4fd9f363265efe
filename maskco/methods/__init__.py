"""Pretraining methods, each readable on one page. `METHODS` maps the config's names to them."""

from __future__ import annotations

from typing import Any

from maskco.config import PretrainConfig
from maskco.errors import ConfigError
from maskco.methods.maskco import MaskCo
from maskco.methods.moco_v2 import MoCoV2
from maskco.methods.step import StepOutput
from maskco.nn import create_encoder

Method = MaskCo | MoCoV2
METHODS: dict[str, type[MaskCo] | type[MoCoV2]] = {"maskco": MaskCo, "moco_v2": MoCoV2}

__all__ = ["METHODS", "MaskCo", "Method", "MoCoV2", "StepOutput", "build_method"]


def build_method(config: PretrainConfig, *, pretrained: bool | None = None) -> Method:
    """The method that a configuration describes, with fresh weights. `pretrained` overrides the configuration's.

    Raises ConfigError if the encoder cannot be built.
    """
    try:
        encoder = create_encoder(
            config.encoder,
            stage=config.stage,
            output_stride=config.output_stride,
            image_size=config.image_size,
            pretrained=config.pretrained if pretrained is None else pretrained,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    options: dict[str, Any] = {
        "dim": config.dim,
        "hidden": config.hidden,
        "queue_size": config.queue_size,
        "temperature": config.temperature,
        "momentum": config.momentum,
        "key_group": config.key_group,
        "shuffle_keys": config.shuffle_keys,
    }
    if config.method == "maskco":
        options["mask_head"] = config.mask_head
        options["mask_head_depth"] = config.mask_head_depth
        options["key_head"] = config.key_head
        options["local_negatives"] = config.local_negatives
        options["mask_share"] = config.mask_share
        options["mask_fill"] = config.mask_fill
    return METHODS[config.method](encoder, **options)
