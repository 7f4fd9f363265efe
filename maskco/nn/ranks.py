"""Collectives between ranks: rows gathered in rank order, and each rank's share of them. Needs only torch.

Without a process group each function returns its input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from maskco.errors import RankError, one_line

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
    """A context in which this rank works as a single process, and waits for no other rank."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def agree(*values: int) -> list[int]:
    """The maximum of each value over all ranks. It goes over the CPU, so no rank waits for a GPU."""
    if world_size() == 1:
        return list(values)
    largest = torch.tensor(values, dtype=torch.long)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest.tolist()


def join_lists(part: list[T]) -> list[T]:
    """The lists of all ranks, concatenated in rank order. They go over the CPU."""
    if world_size() == 1:
        return part
    parts: list[list[T]] = [[] for _ in range(world_size())]
    dist.all_gather_object(parts, part)
    return [item for part in parts for item in part]


def gather_in_rank_order(tensor: Tensor) -> Tensor:
    """Gathers the rows of all ranks, rank 0's first: [B, ...] -> [sum of B, ...]. No gradient flows.

    The result is the same on every rank. Ranks may have different numbers of rows, or none. Without a process group the
    result is the tensor itself.

    Raises:
        RankError: dtypes or row sizes differ between ranks. All ranks raise it.
    """
    (rows,) = gather_together(lambda: [tensor])
    assert rows is not None
    return rows


@torch.no_grad()
def gather_together(check: Callable[[], Sequence[Tensor | None]]) -> list[Tensor | None]:
    """`gather_in_rank_order` of the several tensors that `check` gives, after ranks have compared them: see `compare`.

    Missing arguments are compared too, as None. All ranks must leave out the same ones.
    """
    if world_size() == 1:
        return list(check())
    tensors, layouts = compare(check)
    return [
        None if tensor is None or layout is None else gather_parts(tensor, layout.lengths)
        for tensor, layout in zip(tensors, layouts, strict=True)
    ]


class Layout(NamedTuple):
    """How the rows of one tensor are distributed over the ranks."""

    lengths: list[int]
    """Number of rows on each rank."""
    needs_grad: bool
    """Whether any rank's part requires a gradient."""

    @property
    def start(self) -> int:
        """Number of rows on the ranks before this one."""
        return sum(self.lengths[: rank()])

    @property
    def total(self) -> int:
        return sum(self.lengths)


def compare(check: Callable[[], Sequence[Tensor | None]]) -> tuple[list[Tensor | None], list[Layout | None]]:
    """Runs `check` and compares its tensors over all ranks.

    `check` gives tensors [B, ...] or None. It raises if the rank's own arguments are invalid. Without this comparison,
    the other ranks would then wait in their next collective.

    Returns:
        The tensors of this rank, and the layout of each over all ranks.

    Raises:
        RankError: `check` raised on another rank, or dtypes or row sizes differ between ranks.
    """
    tensors: list[Tensor | None] = []
    failure: Exception | None = None
    try:
        tensors = list(check())
    except Exception as error:
        if world_size() == 1:
            raise
        failure = error
    own = [
        None if t is None else (str(t.dtype).removeprefix("torch."), list(t.shape), t.requires_grad) for t in tensors
    ]
    parts = join_lists([(None if failure is None else one_line(failure), own)])
    if failure is not None:
        raise failure
    for number, (message, _) in enumerate(parts):
        if message is not None:
            raise RankError(f"rank {number} failed: {message}")
    return tensors, [_layout(of_ranks) for of_ranks in zip(*(layouts for _, layouts in parts), strict=True)]


def _layout(of_ranks: Sequence[tuple[str, list[int], bool] | None]) -> Layout | None:
    kinds = {None if part is None else (part[0], *part[1][1:], len(part[1])) for part in of_ranks}
    if len(kinds) > 1:
        found = ", ".join(
            f"rank {rank} " + ("none" if part is None else f"{part[0]} {part[1]}") for rank, part in enumerate(of_ranks)
        )
        raise RankError(
            f"the ranks' tensors do not fit together: {found}. Pass tensors that differ in their number of rows only"
        )
    parts = [part for part in of_ranks if part is not None]
    needs_grad = torch.is_grad_enabled() and any(part[2] for part in parts)
    return Layout([part[1][0] for part in parts], needs_grad) if parts else None


@torch.no_grad()
def gather_parts(tensor: Tensor, lengths: list[int]) -> Tensor:
    """Gathers parts that ranks have compared already: [B, ...] -> [sum of B, ...], without gradient.

    Backends need equal shapes, so shorter parts are padded.
    """
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
    """This rank's rows in the result of `gather_in_rank_order`, as a view. `lengths` of the parts, if not equal."""
    return tensor.split(lengths or len(tensor) // world_size())[rank()]


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """`gather_in_rank_order` with gradients. Each rank's rows get the sum of all ranks' gradients for them.

    All ranks must run the backward pass too. DistributedDataParallel averages gradients over ranks. The mean of the
    ranks' losses then has the gradient of one process with all rows.
    """
    if world_size() == 1:
        return tensor
    _, (layout,) = compare(lambda: [tensor])
    assert layout is not None
    return gather_rows(tensor, layout)


def gather_rows(tensor: Tensor, layout: Layout) -> Tensor:
    """`gather_with_gradient`, for parts that ranks have compared already."""
    if world_size() == 1:
        return tensor
    return _Gather.apply(joined(tensor, layout), layout.lengths)


def joined(tensor: Tensor, layout: Layout) -> Tensor:
    """The tensor, which requires a gradient if any rank's part does.

    Backward passes use collectives, so a rank whose own part needs no gradient must join them.
    """
    return tensor.detach().requires_grad_() if layout.needs_grad and not tensor.requires_grad else tensor


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, lengths: list[int]) -> Tensor:
        ctx.lengths = lengths
        return gather_parts(tensor, lengths)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return scatter_sum(gradient, ctx.lengths), None


@torch.no_grad()
def scatter_sum(gathered: Tensor, lengths: list[int]) -> Tensor:
    """Sums [sum of B, ...] over ranks and returns this rank's rows. 16-bit numbers are summed in float32."""
    wide = torch.promote_types(gathered.dtype, torch.float32)
    total = gathered.to(wide, memory_format=torch.contiguous_format, copy=True)  # (others may hold it too)
    dist.all_reduce(total)
    return own_rows(total, lengths).to(gathered.dtype)


def sum_over_ranks(share: Tensor) -> Tensor:
    """The sum of all ranks' shares, the same on every rank.

    Its gradient is that of this rank's share, times the number of ranks. DistributedDataParallel averages gradients,
    and the average is the gradient of one process. So all ranks must weigh the sum alike.
    """
    return share if world_size() == 1 else _SumOverRanks.apply(share)


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, share: Tensor) -> Tensor:
        total = share.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * world_size()
