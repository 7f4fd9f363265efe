"""`queue_push_` beside MoCo's eager enqueue and the queues of pip packages: 256 new keys, normalised and written."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases import ALSO_QUICK, FORWARD, OURS, Case, Implementation, Inputs, Passes, Target
from benchmarks.harness import main
from maskco.ops import queue_push_


def ours(inputs: Inputs) -> Passes:
    queue, keys = inputs["queue"].clone(), inputs["keys"]
    cursor = torch.zeros(2, dtype=torch.int64, device=queue.device)

    def push() -> Tensor:
        queue_push_(queue, cursor, keys, normalize=True)
        return queue

    return Passes(push)


def moco(inputs: Inputs) -> Passes:
    """As MoCo's builder.py, with rows where that has columns, and a wrap for batches that don't divide the queue."""
    queue, keys = inputs["queue"].clone(), inputs["keys"]
    pointer_buffer = torch.zeros(1, dtype=torch.int64, device=queue.device)

    @torch.no_grad()
    def push() -> Tensor:
        rows = F.normalize(keys, dim=1)
        pointer = int(pointer_buffer)
        fits = min(len(rows), len(queue) - pointer)
        queue[pointer : pointer + fits] = rows[:fits]
        if fits < len(rows):
            queue[: len(rows) - fits] = rows[fits:]
        pointer_buffer[0] = (pointer + len(rows)) % len(queue)
        return queue

    return Passes(push)


def lightly(inputs: Inputs) -> Passes:
    from lightly.models.modules.memory_bank import MemoryBankModule

    bank = MemoryBankModule(tuple(inputs["queue"].shape)).to(inputs["queue"].device)
    bank.bank.copy_(inputs["queue"])

    @torch.no_grad()
    def push() -> Tensor:
        bank(F.normalize(inputs["keys"], dim=1), update=True)
        return bank.bank

    return Passes(push)


def metric_learning(inputs: Inputs) -> Passes:
    from pytorch_metric_learning.losses import CrossBatchMemory, NTXentLoss

    queue, keys = inputs["queue"], inputs["keys"]
    memory = CrossBatchMemory(NTXentLoss(), queue.shape[1], memory_size=len(queue)).to(queue.device)
    memory.embedding_memory.copy_(queue)
    labels = torch.zeros(len(keys), dtype=torch.int64, device=queue.device)

    @torch.no_grad()
    def push() -> Tensor:
        memory.add_to_memory(F.normalize(keys, dim=1), labels, len(keys))
        return memory.embedding_memory

    return Passes(push)


def make_inputs(count: int, size: int, channels: int, device: torch.device, dtype: torch.dtype) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    queue, keys = (torch.randn(rows, channels, generator=generator) for rows in (size, count))
    return {"queue": F.normalize(queue, dim=1).to(device, dtype), "keys": keys.to(device)}  # cast while writing


IMPLEMENTATIONS = (
    Implementation(OURS, ours),
    Implementation("eager", moco),
    Implementation("lightly", lightly, "MemoryBankModule: also returns a clone of the queue"),
    Implementation("pytorch-metric-learning", metric_learning, "CrossBatchMemory: also writes labels"),
)
NEVER_A_COPY = Target(1, metric="peak_mib", on=FORWARD)  # MiB; the queue is 32
HALF = Target(0.5, "eager", on=FORWARD)


def cases() -> list[Case]:
    return [
        Case(
            "256 into 65536×128",
            partial(make_inputs, 256, 65536, 128),
            IMPLEMENTATIONS,
            targets=(HALF, NEVER_A_COPY),
            suites=ALSO_QUICK,
        ),
        Case("4096 into 65536×128", partial(make_inputs, 4096, 65536, 128), IMPLEMENTATIONS),
        Case(
            "256 into 65536×128 bfloat16",
            partial(make_inputs, 256, 65536, 128),
            IMPLEMENTATIONS[:2],
            dtype=torch.bfloat16,
            targets=(NEVER_A_COPY,),
        ),
    ]


if __name__ == "__main__":
    main("benchmarks.queue", cases)
