"""Pretraining methods, each readable on one page.

`base` has their contract. `maskco.config.METHODS` maps names to them. Their classes can be imported from here as well.
Each is loaded when first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from maskco.config import METHODS, PretrainConfig, find_method
from maskco.errors import ConfigError
from maskco.methods.base import Method, StepOutput

if TYPE_CHECKING:
    from maskco.methods.densecl import DenseCL as DenseCL
    from maskco.methods.maskco import MaskCo as MaskCo
    from maskco.methods.moco_v2 import MoCoV2 as MoCoV2
    from maskco.methods.simclr import SimCLR as SimCLR
    from maskco.nn import Encoder

__all__ = ["METHODS", "Method", "StepOutput", "build_encoder", "build_method"]


def build_method(config: PretrainConfig, *, pretrained: bool | None = None) -> Method:
    """The method that a configuration describes, with fresh weights. `pretrained` overrides the configuration's.

    Raises ConfigError if the encoder cannot be built.
    """
    encoder = build_encoder(config, pretrained=pretrained)
    method: Method = find_method(config.run.method)(encoder, **vars(config.method))
    return method


def build_encoder(config: PretrainConfig, *, pretrained: bool | None = None) -> Encoder:
    """The encoder alone. Raises ConfigError if it cannot be built."""
    from maskco.nn import create_encoder  # loads timm

    try:
        return create_encoder(
            config.run.encoder,
            stage=config.run.stage,
            output_stride=config.run.output_stride,
            image_size=config.views.image_size,
            pretrained=config.run.pretrained if pretrained is None else pretrained,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error


def __getattr__(name: str) -> type[Method]:
    for method, home in METHODS.items():
        if name == (home.rpartition(":")[2] if isinstance(home, str) else home.__name__):
            return find_method(method)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
