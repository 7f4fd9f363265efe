"""An encoder from a file of weights that another project wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor

from maskco.nn.encoder import Encoder, Source, create_encoder, resolve
from maskco.weights.files import WeightsError
from maskco.weights.names import Candidate, facts_of, fill, find_named, timm_names, whole_model_state


class EncoderFile(NamedTuple):
    encoder: Encoder  # in eval mode
    architecture: str  # as it was named
    source: Source
    taken: Candidate
    facts: dict[str, Any]  # see `maskco.weights.names.load_named`


def load_encoder(
    name: str,
    tensors: Mapping[str, Tensor],
    said: Mapping[str, Any],
    architecture: str | None = None,
    prefix: str | None = None,
) -> EncoderFile:
    """Makes an encoder and fills it.

    Args:
        name: of the file in errors.
        tensors, said: the results of `read_weights`.
        architecture: timm's name for the encoder. None: what the file says (MoCo's does).
        prefix: which of several encoders, see `maskco.weights.names.load_named`.

    Raises WeightsError: an unknown architecture, or tensors of another.
    """
    architecture = architecture or _said(name, said)
    form = _form(said)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            encoder = create_encoder(architecture, **form).eval()
        except ValueError as error:
            raise WeightsError(str(error)) from error
    whole = whole_model_state(architecture)
    names = timm_names(encoder.backbone, whole)
    taken, others = find_named(encoder.backbone, names, tensors, name, whole=whole, prefix=prefix)
    fill(encoder.backbone, taken, tensors, name)
    source = resolve(architecture)
    source = source._replace(
        stage=form.get("stage", source.stage),
        arguments=source.arguments | {k: v for k, v in form.items() if k == "output_stride"},
    )
    return EncoderFile(encoder, architecture, source, taken, facts_of(taken, others, tensors))


def _form(said: Mapping[str, Any]) -> dict[str, Any]:
    """The stage, output stride and image size of a run's encoder, which our own exports say."""
    try:
        options = json.loads(said["maskco"])
        found = {**options["run"], "image_size": options["views"]["image_size"]}
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return {name: found[name] for name in ("stage", "output_stride", "image_size") if type(found.get(name)) is int}


def is_run(said: Mapping[str, Any]) -> bool:
    """Whether a file is a checkpoint of a maskco run, by what `read_weights` says of it."""
    return str(said.get("format")).startswith("maskco run")


def _said(name: str, said: Mapping[str, Any]) -> str:
    """The architecture that a file says it is of, if timm has it built in."""
    architecture = said.get("arch") or said.get("architecture")
    if not isinstance(architecture, str):
        raise WeightsError(f"{name} does not say which architecture it is. Name it, such as `architecture=resnet50`")
    if not timm.is_model(architecture.removeprefix("timm/").split(".")[0]):
        raise WeightsError(
            f"{name} says that its architecture is {architecture!r}, which timm does not have. Name timm's with "
            "`architecture`"
        )
    return architecture
