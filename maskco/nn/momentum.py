"""The momentum (key) side: a slow copy of the online modules, and how a batch goes through it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def momentum_copy(module: Module) -> Module:
    """A copy with equal values whose parameters take no gradient."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def momentum_update_(online: nn.Module, target: nn.Module, momentum: float) -> None:
    """target ← momentum · target + (1 − momentum) · online, over all parameters, in place.

    Buffers are left alone: in MoCo, and here, the key side's batch norms keep running statistics of their own batches,
    which are whole views while the query side's are masked ones.
    """
    targets, onlines = list(target.parameters()), list(online.parameters())
    if len(targets) != len(onlines):
        raise ValueError(
            f"online has {len(onlines)} parameters and target {len(targets)}; make target by momentum_copy"
        )
    if targets:
        torch._foreach_lerp_(targets, onlines, 1 - momentum)


def forward_in_groups(forward: Callable[[Tensor], Tensor], images: Tensor, group_size: int) -> Tensor:
    """`forward(images)`, but in shuffled groups of about `group_size` pictures that share no batch statistics.

    A query and its key in the same batch give each other away through the batch norms' statistics. MoCo shuffles keys
    between its GPUs (32 pictures on each) so that key and query are normalised in different company; this is the same
    on one device. `group_size` 0, or a batch smaller than two groups: one group.
    """
    groups = len(images) // group_size if group_size else 1
    if groups < 2:
        return forward(images)
    order = torch.randperm(len(images), device=images.device)
    outputs = torch.cat([forward(group) for group in images[order].tensor_split(groups)])
    return outputs[order.argsort()]
