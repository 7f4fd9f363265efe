"""The optimizer and the learning rate: timm's optimizers by name, parameter groups, schedule, clipping."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any, TypeVar

import timm
import torch
from timm.models import group_parameters
from timm.optim import create_optimizer_v2, list_optimizers
from torch import nn

from maskco.config import OptimOptions
from maskco.errors import ConfigError
from maskco.methods import Method
from maskco.weights.names import timm_names, whole_model_state

T = TypeVar("T")
NAMES = {"sgd": "momentum"}  # timm's "sgd" has Nesterov momentum, MoCo v2's has not
FUSED = ("sgd", "adam", "adamw")  # torch's own, which have a fused kernel


def create_optimizer(method: Method, options: OptimOptions, encoder: str, *, fused: bool) -> torch.optim.Optimizer:
    """The optimizer of what a method learns.

    Args:
        encoder: timm's name of the method's encoder, whose layers `layer_decay` counts.
        fused: on CUDA. It does not wait for the device when fp16 gradients overflow.

    Raises ConfigError for an optimizer that is unknown, not installed, or cannot do what is asked of it.
    """
    name, decay = _filled(options.optimizer, "optimizer"), _filled(options.weight_decay, "weight_decay")
    if name not in (known := list_optimizers()):
        near = difflib.get_close_matches(name.lower(), known, n=1)
        hint = f"Did you mean {near[0]}?" if near else "timm.optim.list_optimizers() lists them"
        raise ConfigError(f"optimizer must be one that timm has, got {name!r}. {hint}")
    extra: dict[str, Any] = {} if options.betas is None else {"betas": options.betas}
    if fused and name in FUSED:
        extra["fused"] = True
    groups = parameter_groups(method, options, encoder)
    try:
        optimizer = create_optimizer_v2(
            groups,
            opt=NAMES.get(name, name),
            lr=_filled(options.lr, "lr"),
            weight_decay=decay,
            momentum=options.optimizer_momentum,
            **extra,
        )
    except (ImportError, AssertionError, TypeError, ValueError, IndexError, RuntimeError) as error:
        reason = "betas are too few for it" if isinstance(error, IndexError) else error or type(error).__name__
        raise ConfigError(f"optimizer {name} cannot be made: {reason}") from error
    if options.betas is not None and "betas" not in optimizer.param_groups[0]:
        raise ConfigError(f"betas are no option of optimizer {name}. Leave them out")
    if getattr(optimizer, "is_second_order", False):
        raise ConfigError(f"optimizer {name} needs second derivatives, which the ops do not have. Choose another")
    if name == "sgd" and fused and options.optimizer_momentum:
        # It does not write its buffers in a step that it skips: not even the first time.
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Takes the state of an optimizer, but keeps its own hyperparameters: they are the options', and may be of another
    device. Raises almost anything if the state is not that of such an optimizer."""
    own = [{name: group[name] for name in (*optimizer.defaults, "lr_scale")} for group in optimizer.param_groups]
    groups = [{k: v for k, v in group.items() if k not in optimizer.defaults} for group in state["param_groups"]]
    for value in (*state["state"].values(), *groups):  # hyperparameters may be text, such as Muon's ns_coefficients
        if wrong := [name for name, item in value.items() if isinstance(item, (str, bytes))]:
            raise TypeError(f"{wrong[0]} of the optimizer is text")
    optimizer.load_state_dict(state)
    for group, values in zip(optimizer.param_groups, own, strict=True):
        group.update(values)


def parameter_groups(method: Method, options: OptimOptions, encoder: str) -> list[dict[str, Any]]:
    """Parameters that are learned, by the weight decay and the share of the learning rate (`lr_scale`) they get."""
    spare = options.optimizer not in ("sgd", NAMES["sgd"]) if options.decay_norms is None else not options.decay_norms
    kept = {f"encoder.backbone.{name}" for name in no_weight_decay(method.encoder.backbone)} if spare else set()
    scales = layer_scales(method, options.layer_decay, encoder) if options.layer_decay is not None else {}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            spared = spare and (parameter.ndim <= 1 or name.endswith(".bias") or name in kept)
            own = 0.0 if spared else _filled(options.weight_decay, "weight_decay")
            groups.setdefault((own, scales.get(name, 1.0)), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "lr_scale": scale}
        for (decay, scale), parameters in groups.items()
    ]


def no_weight_decay(backbone: nn.Module) -> set[str]:
    """Names of parameters that timm's model wants no decay for, such as tokens and position embeddings."""
    model = getattr(backbone, "model", backbone)  # timm's FeatureGetterNet wraps the whole model
    prefix = "" if model is backbone else "model."
    listed: Any = getattr(model, "no_weight_decay", None)
    return {prefix + name for name in listed()} if listed is not None else set()


def layer_scales(method: Method, decay: float, encoder: str) -> dict[str, float]:
    """Share of the learning rate of each parameter of the encoder, by its name in the method.

    timm's `group_matcher` says which layer a parameter belongs to. The last layer and the heads have 1, each layer
    before `decay` times that of the next (Clark et al., arXiv 2003.10555).
    """
    with torch.random.fork_rng(devices=[]):
        names = timm_names(method.encoder.backbone, whole_model_state(encoder))
    with torch.device("meta"):
        whole: Any = timm.create_model(encoder)
    if not hasattr(whole, "group_matcher"):
        raise ConfigError(f"layer_decay: timm does not say which layers {encoder} has. Leave it out")
    layers: Mapping[str, int] = group_parameters(whole, whole.group_matcher(coarse=False), reverse=True)
    used = {own: layers[name] for own, name in names.items() if name in layers}
    last = max(used.values(), default=0)
    return {f"encoder.backbone.{own}": decay ** (last - layer) for own, layer in used.items()}


def learning_rate(options: OptimOptions, step: int, steps: int) -> float:
    """The rate of step `step` of `steps`: a linear warm-up, then a cosine to 0 at the end of the run."""
    peak = _filled(options.lr, "lr") * options.batch_size / 256
    wanted = options.warmup_steps or round((options.warmup_share or 0.0) * steps)
    warmup = min(wanted, steps - 1)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


def _filled(value: T | None, option: str) -> T:
    if value is None:
        raise ConfigError(f"{option} is neither given nor filled in from a recipe. See maskco.training.recipe")
    return value


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


def clip_gradient(
    optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, largest: float | None
) -> torch.Tensor:
    """Scales the whole gradient down to the norm `largest`, if that is not 0. Takes back the scale of fp16.

    Returns the norm before, of each parameter's gradient by itself: [P] in the optimizer's order, 0 without gradient.
    The norm of the whole is that of these. Nothing waits for the device.
    """
    scaler.unscale_(optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = [p.new_zeros(()) if p.grad is None else p.grad for p in parameters]
    norms = torch.stack([norm.float() for norm in torch._foreach_norm(gradients)])
    if largest:
        torch.nn.utils.clip_grads_with_norm_(parameters, largest, torch.linalg.vector_norm(norms))
    return norms
