"""The losses over all pairs, each with its reference, and cases of both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from contrast_cases import unit
from maskco.ops import clip_loss, reference, siglip_loss, supcon_loss
from tolerance import assert_as_good_as


@dataclass(frozen=True)
class Loss:
    op: Callable
    reference: Callable  # with the op's arguments; -> losses [N], and the stats
    features: tuple[str, ...]
    scalars: tuple[str, ...]
    stats: tuple[str, ...] = ()


def clip_reference(image, text, *, temperature=0.07, logit_scale=None, **options):
    scale = 1 / temperature if logit_scale is None else logit_scale
    return reference.clip_loss(image, text, scale=scale, **options)


def siglip_reference(image, text, *, logit_scale, logit_bias, offset=0):
    return (reference.siglip_loss(image, text, scale=logit_scale, bias=logit_bias, offset=offset),)


CLIP_STATS = ("image_lse", "text_lse", "positive_logit", "image_rank", "text_rank")
CLIP = Loss(clip_loss, clip_reference, ("image", "text"), ("logit_scale",), CLIP_STATS)
SIGLIP = Loss(siglip_loss, siglip_reference, ("image", "text"), ("logit_scale", "logit_bias"))
SUPCON_STATS = ("lse", "positive_logit", "positives")
SUPCON = Loss(supcon_loss, reference.supcon_loss, ("query", "keys"), ("temperature",), SUPCON_STATS)
SUPCON_SELF = Loss(supcon_loss, reference.supcon_loss, ("query",), ("temperature",), SUPCON_STATS)
LOSSES = {"clip": CLIP, "siglip": SIGLIP, "supcon": SUPCON, "supcon of one batch": SUPCON_SELF}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


def make(
    loss: Loss,
    n: int = 9,
    c: int = 20,
    k: int = 14,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    **options: Any,
) -> dict:
    """Arguments of the op: unit features, scales of 1 / 0.2. Options replace or add arguments."""
    k = n if loss is CLIP else k
    case: dict[str, Any] = {name: unit(rows, c, dtype=dtype) for name, rows in zip(loss.features, (n, k), strict=False)}
    case |= {name: 0.2 if name == "temperature" else 5.0 for name in loss.scalars}
    if "logit_bias" in case:
        case["logit_bias"] = -1.5
    if loss.op is supcon_loss:
        case["query_labels"] = torch.randint(0, 5, (n,)) * 2**33 + 7  # the low halves say nothing
        if loss is SUPCON:
            case["key_labels"] = torch.randint(0, 5, (k,)) * 2**33 + 7
    case |= options
    return {name: value.to(device) if torch.is_tensor(value) else value for name, value in case.items()}


def run(function: Callable, loss: Loss, case: dict, grad: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
    """Losses and stats, and gradients of a weighted sum of the losses; `function`: the op or its reference."""
    case = {
        name: value.detach().clone().requires_grad_(name in grad)
        if torch.is_tensor(value) and value.is_floating_point()
        else value
        for name, value in case.items()
    }
    if function is loss.op:
        options = {"return_stats": True} if loss.stats else {}
        found = function(**case, reduction="none", **options)
        values = (found[0], *found[1]) if loss.stats else (found,)
    else:
        values = function(**case)
    result = dict(zip(("loss", *loss.stats), values, strict=True))
    if grad:
        weights = torch.linspace(0.5, 2, len(result["loss"])).to(result["loss"])
        grads = torch.autograd.grad((result["loss"] * weights).sum(), [case[name] for name in grad])
        result |= {f"grad_{name}": g for name, g in zip(grad, grads, strict=True)}
    return result


def wide(case: dict) -> dict:
    return {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in case.items()}


def check(loss: Loss, case: dict, grad: tuple[str, ...] | None = None) -> None:
    """The op, plain torch in the same dtype, and plain torch in float64 on the same rounded inputs."""
    dtype = case[loss.features[0]].dtype
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    device = case[loss.features[0]].device
    case = case | {name: torch.tensor(case[name], dtype=sums, device=device) for name in loss.scalars if name in case}
    grad = (*loss.features, *(name for name in loss.scalars if name in case)) if grad is None else grad
    actual, same, truth = (
        run(loss.op, loss, case, grad),
        run(loss.reference, loss, case, grad),
        run(loss.reference, loss, wide(case), grad),
    )
    for name, value in actual.items():
        if name in ("image_rank", "text_rank"):
            assert ((value - truth[name]).abs() <= _close_calls(case, name == "text_rank")).all(), name
        elif value.dtype == torch.int64:
            assert torch.equal(value, truth[name]), name
        else:
            assert_as_good_as(value, same[name], truth[name], value.dtype, name)


def _close_calls(case: dict, transposed: bool) -> torch.Tensor:
    """Of each row, or column, the logits so near to that of the pair that float32 may order them otherwise."""
    logits = case["image"].double() @ case["text"].double().T
    logits = logits.T if transposed else logits
    near = (logits - logits.diagonal()[:, None]).abs() < 4 * torch.finfo(torch.float32).eps
    return (near.sum(1) - 1).clamp_min(0)
