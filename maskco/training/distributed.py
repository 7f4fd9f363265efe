"""Data-parallel training: one process (a rank) for each device, started by torchrun. A no-op without a process group.

Every rank holds the whole method and queue, and takes its slice of each global batch. DistributedDataParallel averages
the gradients while the backward pass still runs. Keys are gathered in rank order before the push, so that all queues
stay equal bit for bit. Gradients, queue and loss are those of one process with the whole batch, except for two things:

* Sums are rounded in another order.
* A batch norm sees one rank's micro-batch, `batch_size / (ranks × accumulate)` images, not the whole batch. On the
  query side `batch_norm="sync"` shares the statistics between ranks (not between micro-batches). On the key side the
  statistics must be of other images than the query's. Else the two recognise each other by their statistics. This is
  the purpose of `shuffle_keys` (between ranks) and `key_group` (within one), see `nn.shuffled_across_ranks`.

Running statistics stay each rank's own, and the checkpoint has rank 0's, as is usual.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from maskco.errors import ConfigError, RankError, UserError
from maskco.methods import Method
from maskco.nn.ranks import agree, is_distributed, rank

# ---- start and end


def local_device(name: str) -> torch.device:
    """The device of this rank: "cuda" is the GPU of its number on this machine. Raises ConfigError."""
    device = torch.device(name)
    if device.type != "cuda" or not _launched_with_others():
        return device
    if device.index is not None:
        raise ConfigError(f"device {name} is one GPU for all ranks. Leave it at auto or cuda, and each takes its own")
    number, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if number >= count:
        raise ConfigError(f"device: no GPU is left for local rank {number}, this machine shows {count}. Start fewer")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """The process group of torchrun's environment while the block runs. Does nothing without one, or inside another.

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
        raise RankError(
            f"rank {rank()}: another rank failed. Its log has the cause. Resume from the last checkpoint"
        ) from error
    if own:
        dist.destroy_process_group()  # (after an error this could wait for ranks that will not come)


@contextmanager
def all_or_none() -> Iterator[None]:
    """No rank leaves the block before all have reached its end. If one fails in it, all raise."""
    try:
        yield
    except Exception:
        agree(True)
        raise
    if agree(False)[0]:
        raise RankError(f"rank {rank()}: another rank could not start. Its log has the cause")


def _launched_with_others() -> bool:
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


# ---- gradients


def data_parallel(module: nn.Module, *, unused: bool = False) -> nn.Module:
    """`module`, equal on all ranks, with gradients averaged over them.

    unused: some parameters get no gradient. torch looks for them at each step. Else it would wait for them.

    Buffers are not broadcast at each step: the queue's stay equal anyway, and each rank keeps those of its batch norms.
    """
    if not is_distributed():
        return module
    renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters  # from torch 2.14 on
    buffers: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    return DistributedDataParallel(module, gradient_as_bucket_view=True, find_unused_parameters=unused, **buffers)


def reduce_gradients(module: nn.Module, now: bool) -> AbstractContextManager[None]:
    """Context of a `data_parallel` module's passes. With `now` false, gradients only add up on each rank."""
    return nullcontext() if now or not isinstance(module, DistributedDataParallel) else module.no_sync()


def share_batch_statistics(method: Method) -> None:
    """Makes the trained side's batch norms take their statistics over all ranks, in place. CUDA only.

    The momentum side's do not change. It is split into groups so that its statistics are of other images.
    """
    from timm.layers import convert_sync_batchnorm  # torch's own would lose the activation in timm's norms

    if is_distributed():
        copies = [copy for _, copy in method.key_modules()]
        for name, module in method.named_children():
            if not any(module is copy for copy in copies):
                setattr(method, name, convert_sync_batchnorm(module))
