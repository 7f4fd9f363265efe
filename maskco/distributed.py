"""The few questions that code asks about other processes. All of it is a no-op without a process group."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else 1


@torch.no_grad()
def gather_in_rank_order(tensor: Tensor) -> Tensor:
    """Rows of all ranks, rank 0's first: [B, ...] -> [world * B, ...], the same on every rank. Carries no gradient.

    Every rank must bring the same shape and dtype. Without a process group the tensor itself comes back.
    """
    if world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)
