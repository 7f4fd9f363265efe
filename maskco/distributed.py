"""Data-parallel training: one process (a rank) for each device, started by torchrun. A no-op without a process group.

Every rank holds the whole method and queue, and takes its slice of each global batch. DistributedDataParallel averages
the gradients while the backward pass still runs; keys are gathered in rank order before the push, so that all queues
stay equal bit for bit. Gradients, queue and loss are those of one process with the whole batch, but for two things:

* sums are rounded in another order;
* a batch norm sees one rank's micro-batch, `batch_size / (ranks × accumulate)` pictures, not the whole batch. On the
  query side `batch_norm="sync"` shares the statistics between ranks (not between micro-batches). On the key side they
  must be of other pictures than the query's, else the two recognise each other by their company: that is what
  `shuffle_keys` (between ranks) and `key_group` (within one) are for, see `nn.shuffled_across_ranks`.

Running statistics stay each rank's own, and the checkpoint has rank 0's, as is usual.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from maskco.config import ConfigError, UserError

T = TypeVar("T")


class RankError(UserError, RuntimeError):
    """Another rank failed or is gone, or brings what does not fit."""


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    return dist.get_rank() if is_distributed() else 0


# ---- start and end


def local_device(name: str) -> torch.device:
    """The device of this rank: "cuda" is the GPU of its number on this machine. Raises ConfigError."""
    device = torch.device(name)
    if device.type != "cuda" or not _launched_with_others():
        return device
    if device.index is not None:
        raise ConfigError(f"device {name} is one GPU for all ranks: leave it at auto or cuda, and each takes its own")
    number, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if number >= count:
        raise ConfigError(f"device: no GPU is left for local rank {number}, this machine shows {count}: start fewer")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """The process group of torchrun's environment while the block runs; does nothing without one, or inside another.

    Ranks agree on what they do over gloo, on the CPU, so that it never waits for a GPU. When a peer is lost in the
    block, RankError is raised.
    """
    own = _launched_with_others() and not is_distributed()
    if own:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    except RuntimeError as error:
        ours = isinstance(error, UserError) or not any(name in str(error) for name in ("gloo", "NCCL"))
        if ours or not is_distributed():
            raise
        raise RankError(f"rank {rank()} lost another rank, which tells why; go on from the last checkpoint") from error
    if own:
        dist.destroy_process_group()  # (after an error this could wait for ranks that will not come)


@contextmanager
def all_or_none() -> Iterator[None]:
    """No rank leaves the block before all have reached its end, and none at all if one of them fails in it."""
    try:
        yield
    except Exception:
        agree(True)
        raise
    if agree(False)[0]:
        raise RankError(f"rank {rank()} does not start, since another one cannot: see its error")


def _launched_with_others() -> bool:
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


# ---- gradients


def data_parallel(module: nn.Module, *, unused: bool = False) -> nn.Module:
    """`module`, equal on all ranks, with gradients averaged over them.

    unused: some parameters get no gradient. They are looked for at each step, or torch would wait for them.

    Buffers are not broadcast at each step: the queue's stay equal anyway, and a batch norm's are for each rank to keep.
    """
    if not is_distributed():
        return module
    renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters  # from torch 2.14 on
    buffers: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    return DistributedDataParallel(module, gradient_as_bucket_view=True, find_unused_parameters=unused, **buffers)


def reduce_gradients(module: nn.Module, now: bool) -> AbstractContextManager[None]:
    """Around forward and backward of a `data_parallel` module: with `now` false, gradients only add up on each rank."""
    return nullcontext() if now or not isinstance(module, DistributedDataParallel) else module.no_sync()


def share_batch_statistics(method: nn.Module) -> None:
    """Makes the query side's batch norms take their statistics over all ranks, in place; CUDA only.

    The key side's do not change: it is parted into groups so that its statistics are of other pictures.
    """
    from timm.layers import convert_sync_batchnorm  # torch's own would lose the activation in timm's norms

    if is_distributed():
        for name, module in method.named_children():
            if not name.startswith("momentum_"):
                setattr(method, name, convert_sync_batchnorm(module))


# ---- questions to other ranks


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
