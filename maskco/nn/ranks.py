"""What ranks tell each other: rows gathered in rank order, and which of them are one's own. Needs torch alone.

Without a process group each function gives back what it got.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from maskco.errors import RankError

T = TypeVar("T")
_alone: ContextVar[bool] = ContextVar("alone", default=False)


def is_distributed() -> bool:
    return not _alone.get() and dist.is_available() and dist.is_initialized()


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    return dist.get_rank() if is_distributed() else 0


@contextmanager
def alone() -> Iterator[None]:
    """Within it this rank works as a single process would, and waits for no other."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def agree(*values: int) -> list[int]:
    """The largest of each value over all ranks, over the CPU: no GPU is waited for."""
    if world_size() == 1:
        return list(values)
    largest = torch.tensor(values, dtype=torch.long)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest.tolist()


def join_lists(part: list[T]) -> list[T]:
    """The lists of all ranks, one behind the other in rank order, over the CPU."""
    if world_size() == 1:
        return part
    parts: list[list[T]] = [[] for _ in range(world_size())]
    dist.all_gather_object(parts, part)
    return [item for part in parts for item in part]


def gather_in_rank_order(tensor: Tensor) -> Tensor:
    """Rows of all ranks, rank 0's first: [B, ...] -> [sum of B, ...], the same on every rank. Carries no gradient.

    Ranks may bring different numbers of rows, or none. Without a process group the tensor itself comes back.

    Raises:
        RankError: on every rank alike, where ranks bring different dtypes or rows of different sizes.
    """
    (rows,) = gather_together(tensor)
    assert rows is not None
    return rows


@torch.no_grad()
def gather_together(*tensors: Tensor | None) -> list[Tensor | None]:
    """`gather_in_rank_order` of several tensors, of which ranks first compare dtypes and shapes, over the CPU.

    A rank that raised before a collective would leave the others waiting in it. So None, for what was not given, goes
    through here too: all ranks must leave out the same.
    """
    if world_size() == 1:
        return list(tensors)
    layouts: list[list[tuple[str, list[int]] | None]] = [[] for _ in range(world_size())]
    own = [None if t is None else (str(t.dtype).removeprefix("torch."), list(t.shape)) for t in tensors]
    dist.all_gather_object(layouts, own)
    gathered: list[Tensor | None] = []
    for tensor, of_ranks in zip(tensors, zip(*layouts, strict=True), strict=True):
        kinds = {None if layout is None else (layout[0], *layout[1][1:], len(layout[1])) for layout in of_ranks}
        if len(kinds) > 1:
            found = ", ".join(
                f"rank {rank} " + ("none" if layout is None else f"{layout[0]} {layout[1]}")
                for rank, layout in enumerate(of_ranks)
            )
            raise RankError(f"ranks bring what does not fit together: {found}; only the number of rows may differ")
        lengths = [layout[1][0] for layout in of_ranks if layout is not None]
        gathered.append(None if tensor is None else _gather_rows(tensor, lengths))
    return gathered


def _gather_rows(tensor: Tensor, lengths: list[int]) -> Tensor:
    """[B, ...] -> [sum of B, ...]; backends want equal shapes, so that shorter parts travel with rows to spare."""
    most = max(lengths)
    if most == 0:
        return tensor
    padded = tensor.contiguous()
    if len(tensor) < most:
        padded = torch.cat([padded, tensor.new_zeros(most - len(tensor), *tensor.shape[1:])])
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])


@torch.no_grad()
def own_rows(tensor: Tensor, lengths: list[int] | None = None) -> Tensor:
    """This rank's share of what `gather_in_rank_order` gave, a view; `lengths`: of all ranks' parts, if not equal."""
    return tensor.split(lengths or len(tensor) // world_size())[rank()]


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """`gather_in_rank_order` that carries gradients: each rank's rows get the sum of all ranks' gradients for them.

    All ranks must run the backward pass, too. With gradients averaged over ranks, as DistributedDataParallel does, the
    mean of the ranks' losses has the gradient that one process with all rows would have.
    """
    return tensor if world_size() == 1 else _Gather.apply(tensor)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.lengths = join_lists([len(tensor)])
        return gather_in_rank_order(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)  # others may hold it too
        dist.all_reduce(gradient)
        return own_rows(gradient, ctx.lengths)
