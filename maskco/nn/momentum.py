"""The momentum (key) side: a slow copy of the online modules, and its forward passes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from maskco.nn.ranks import gather_in_rank_order, join_lists, own_rows, world_size

Module = TypeVar("Module", bound=nn.Module)


def momentum_copy(module: Module) -> Module:
    """A deep copy of a module whose parameters require no gradient."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def momentum_update_(online: nn.Module, target: nn.Module, momentum: float) -> None:
    """MoCo's momentum update (EMA): moves the target's parameters towards the online ones, in place.

    Equivalent plain torch, where this function makes one call for all parameters::

        for p, q in zip(target.parameters(), online.parameters()):
            p.mul_(momentum).add_(q, alpha=1 - momentum)

    Buffers do not change. In MoCo, and here, the key side's batch norms keep running statistics of their own batches.
    In MaskCo these are whole views, and the query side's are masked views.

    Args:
        online: the module that learns.
        target: its `momentum_copy`.
        momentum: 0 copies the online parameters, 1 changes nothing. MoCo's is 0.999.

    Raises:
        ValueError: the modules differ in the number of their parameters, or in one's shape or dtype.
    """
    targets: list[Tensor] = list(target.parameters())
    onlines: list[Tensor] = list(online.parameters())
    if len(targets) != len(onlines):
        raise ValueError(
            f"online has {len(onlines)} parameters and target {len(targets)}. Make target by momentum_copy"
        )
    for (name, old), new in zip(target.named_parameters(), onlines, strict=True):
        if old.shape != new.shape or old.dtype != new.dtype:  # (lerp would broadcast)
            raise ValueError(
                f"target's {name} is {list(old.shape)}, {old.dtype}, but online's is {list(new.shape)}, {new.dtype}. "
                "Make target by momentum_copy"
            )
    if targets:
        torch._foreach_lerp_(targets, onlines, 1 - momentum)


def forward_in_groups(forward: Callable[[Tensor], Tensor], images: Tensor, group_size: int) -> Tensor:
    """`forward(images)`, but in shuffled groups of about `group_size` images that share no batch statistics.

    If a query and its key are in the same batch, batch statistics leak which key belongs to it. MoCo shuffles keys
    between its GPUs, with 32 images on each. Key and query are then normalised with different images. This function
    does the same on one device. `shuffled_across_ranks` is for several devices.

    Args:
        forward: [b, ...] → [b, ...], called once for each group.
        images: [B, ...].
        group_size: images of a group. 0, or more than half of B, makes one group.

    Returns:
        [B, ...] in the order of the images.
    """
    groups = len(images) // group_size if group_size else 1
    if groups < 2:
        return forward(images)
    order = torch.randperm(len(images), device=images.device)
    outputs = torch.cat([forward(group) for group in images[order].tensor_split(groups)])
    return outputs[order.argsort()]


@torch.no_grad()
def shuffled_across_ranks(forward: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """`forward(*inputs)`, but each rank computes rows drawn from all ranks. Outputs return to the rank of their input.

    This is MoCo's shuffled batch norm (He et al., arXiv 1911.05722, section 3.3). A key is normalised with other images
    than its query, even if a rank has too few images for groups. All inputs and outputs are sent between ranks.

    Args:
        inputs: [B, ...] each. Memory formats are kept. B may differ between ranks, but not between inputs.
        forward: gives [B, ...] without gradient. On one rank it is called with the inputs themselves.

    Returns:
        [B, ...] in the order of this rank's inputs.
    """
    if world_size() == 1:
        return forward(*inputs)
    lengths = join_lists([len(inputs[0])])  # of all ranks
    order = torch.randperm(sum(lengths), device=inputs[0].device)
    dist.broadcast(order, 0)  # ranks draw different random numbers
    mine = own_rows(order, lengths)
    outputs = forward(*(torch.empty_like(rows).copy_(gather_in_rank_order(rows)[mine]) for rows in inputs))
    return gather_in_rank_order(outputs)[own_rows(order.argsort(), lengths)]
