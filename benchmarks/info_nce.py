"""`info_nce` beside MoCo's and SimCLR's eager code, torch.compile, pip packages, and its bare matrix products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases import (
    ALSO_QUICK,
    BOTH,
    FORWARD,
    FULL,
    OURS,
    Case,
    Implementation,
    Inputs,
    Passes,
    Suites,
    Target,
    differentiable,
)
from benchmarks.harness import main
from benchmarks.timing import fastest
from maskco import build_info
from maskco.ops import info_nce

TEMPERATURE = 0.2
TILES = (256, 512, 1024, 2048, 4096, 8192)  # keys at a time, for the bare products
MOST_LOGITS = 2**27  # 512 MiB in float32; eager code holds about five such tensors at once


def ours(query: Tensor, positive: Tensor, queue: Tensor) -> Tensor:
    return info_nce(query, positive, queue, temperature=TEMPERATURE)


def moco(query: Tensor, positive: Tensor, queue: Tensor) -> Tensor:
    """As MoCo's builder.py; the queue is cloned because the next keys are written into it before backward."""
    positive_logits = torch.einsum("nc,nc->n", query, positive)[:, None]  # [N, 1]
    negative_logits = query @ queue.clone().detach().T  # [N, K]
    logits = torch.cat([positive_logits, negative_logits], dim=1) / TEMPERATURE
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


def ours_in_batch(query: Tensor, positive: Tensor) -> Tensor:
    return info_nce(query, positive, in_batch=True, temperature=TEMPERATURE)


def clip(query: Tensor, positive: Tensor) -> Tensor:
    """One direction of CLIP's loss: every other positive of the batch is a negative."""
    labels = torch.arange(len(query), device=query.device)
    return F.cross_entropy(query @ positive.T / TEMPERATURE, labels)


def products(inputs: Inputs) -> Passes:
    """The two products of N×C by C×K and N×K by K×C that forward and backward need, in the best tiles, by ATen."""
    query, queue = inputs["query"], inputs["queue"]
    scores = query.new_empty(len(query) * min(max(TILES), len(queue)))
    grad_query = torch.zeros_like(query)

    def run(tile: int, both: bool) -> None:
        for keys in queue.split(tile):
            tile_scores = scores[: len(query) * len(keys)].view(len(query), len(keys))
            torch.mm(query, keys.T, out=tile_scores)
            if both:
                grad_query.addmm_(tile_scores, keys)

    return _best_tile(run, queue)


def products_in_batch(inputs: Inputs) -> Passes:
    """The same with gradients to both sides: three products."""
    query, positive = inputs["query"], inputs["positive"]
    scores = query.new_empty(len(query) * min(max(TILES), len(positive)))
    grad_query, grad_positive = torch.zeros_like(query), torch.zeros_like(positive)

    def run(tile: int, both: bool) -> None:
        for keys, grad_keys in zip(positive.split(tile), grad_positive.split(tile), strict=True):
            tile_scores = scores[: len(query) * len(keys)].view(len(query), len(keys))
            torch.mm(query, keys.T, out=tile_scores)
            if both:
                grad_query.addmm_(tile_scores, keys)
                torch.mm(tile_scores.T, query, out=grad_keys)

    return _best_tile(run, positive)


def _best_tile(run: Callable[[int, bool], None], keys: Tensor) -> Passes:
    tiles = {min(tile, len(keys)) for tile in TILES}
    tile = fastest({tile: partial(run, tile, True) for tile in tiles}, keys.device)
    return Passes(partial(run, tile, False), partial(run, tile, True), note=f"best in tiles of {tile} keys")


def lightly(inputs: Inputs) -> Passes:
    from lightly.loss import NTXentLoss

    loss = NTXentLoss(TEMPERATURE, memory_bank_size=tuple(inputs["queue"].shape)).to(inputs["queue"].device)
    loss.memory_bank.bank.copy_(inputs["queue"])
    return differentiable(lambda query, positive, queue: loss(query, positive), ["query"])(inputs)


def info_nce_pytorch(inputs: Inputs) -> Passes:
    from info_nce import InfoNCE

    return differentiable(InfoNCE(TEMPERATURE), ["query"])(
        {"query": inputs["query"], "positive_key": inputs["positive"], "negative_keys": inputs["queue"]}
    )


def metric_learning(inputs: Inputs) -> Passes:
    from pytorch_metric_learning.losses import CrossBatchMemory, SupConLoss

    count, channels = inputs["query"].shape
    size = len(inputs["queue"])
    memory = CrossBatchMemory(SupConLoss(TEMPERATURE), channels, memory_size=size)
    memory.embedding_memory, memory.label_memory = inputs["queue"].clone(), -1 - torch.arange(size)
    memory.has_been_filled = True
    is_key = torch.arange(2 * count) >= count
    new_label = 0

    def step(query: Tensor, positive: Tensor, queue: Tensor) -> Tensor:
        nonlocal new_label
        labels = torch.arange(new_label, new_label + count).repeat(2)  # of their own: every query has one positive
        new_label += count
        return memory(torch.cat([query, positive]), labels, enqueue_mask=is_key)

    return differentiable(step, ["query"])(inputs)


def attention(inputs: Inputs) -> Passes:
    """softmax(query queueᵀ / τ) queue: the part of the gradient that the negatives give."""
    query, queue = inputs["query"][None, None], inputs["queue"][None, None]
    run = partial(F.scaled_dot_product_attention, query, queue, queue, scale=1 / TEMPERATURE)
    return Passes(None, run)


def liger(inputs: Inputs) -> Passes:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss, labels = LigerFusedLinearCrossEntropyLoss(), torch.arange(len(inputs["query"]), device=inputs["query"].device)
    return differentiable(lambda query, positive: loss(positive, query / TEMPERATURE, labels), ["query", "positive"])(
        inputs
    )


def cut_cross_entropy(inputs: Inputs) -> Passes:
    from cut_cross_entropy import linear_cross_entropy

    labels = torch.arange(len(inputs["query"]), device=inputs["query"].device)
    return differentiable(
        lambda query, positive: linear_cross_entropy(query / TEMPERATURE, positive, labels), ["query", "positive"]
    )(inputs)


OURS_HERE = Implementation(OURS, differentiable(ours, ["query"]))
EAGER = Implementation("eager", differentiable(moco, ["query"]))
COMPILED = Implementation("torch.compile", differentiable(moco, ["query"], compile=True))
PRODUCTS = Implementation("bare products", products, agrees="", memory=False)
PEERS = (
    Implementation("info-nce-pytorch", info_nce_pytorch, "also normalises queries and the queue", agrees="result"),
    Implementation(
        "lightly", lightly, "NTXentLoss with memory bank: also normalises queries, pushes the keys", agrees="result"
    ),
    Implementation(
        "pytorch-metric-learning",
        metric_learning,
        "CrossBatchMemory(SupConLoss), as NTXentLoss takes N×N×K memory there: normalises the queue, pushes the keys",
        agrees="",  # the pushed positives replace N of the K negatives
    ),
)
ATTENTION = Implementation(
    "SDPA", attention, "attention with keys = values = queue alone: no loss", agrees="", only_on="cuda"
)
BOTH_SIDES = ["query", "positive"]
IN_BATCH = (
    Implementation(OURS, differentiable(ours_in_batch, BOTH_SIDES)),
    Implementation("eager", differentiable(clip, BOTH_SIDES)),
    Implementation("torch.compile", differentiable(clip, BOTH_SIDES, compile=True)),
    Implementation("bare products", products_in_batch, agrees="", memory=False),
    Implementation("Liger", liger, only_on="cuda"),
    Implementation("CCE", cut_cross_entropy, only_on="cuda"),
)


def unit(seed: int, rows: int, channels: int) -> Tensor:
    """Normalised rows, the same on every device."""
    return F.normalize(torch.randn(rows, channels, generator=torch.Generator().manual_seed(seed)), dim=1)


def make_inputs(n: int, k: int, c: int, device: torch.device, dtype: torch.dtype) -> Inputs:
    rows = {"query": unit(0, n, c), "positive": unit(1, n, c)} | ({"queue": unit(2, k, c)} if k else {})
    return {name: value.to(device, dtype) for name, value in rows.items()}


def with_queue(
    n: int,
    k: int,
    c: int,
    *,
    peers: bool = False,
    targets: tuple[Target, ...] = (),
    axis: str = "",
    suites: Suites = FULL,
) -> Case:
    too_large = f"would hold several N×K tensors of {n * k >> 18} MiB" if n * k > MOST_LOGITS else ""
    eager = tuple(replace(i, skip=too_large) for i in (EAGER, COMPILED))
    name = f"N={n} K={k} C={c}"
    return Case(
        f"{name}, over {axis}" if axis else name,
        partial(make_inputs, n, k, c),
        (OURS_HERE, *eager, *(PEERS if peers else ()), PRODUCTS, ATTENTION),
        flops={FORWARD: 2 * n * k * c, BOTH: 4 * n * k * c},
        targets=targets,
        sweep=(axis, {"N": n, "K": k}[axis]) if axis else None,
        suites=suites,
    )


def in_batch(n: int, c: int, *, suites: Suites = FULL) -> Case:
    return Case(
        f"in-batch N={n} C={c}",
        partial(make_inputs, n, 0, c),
        IN_BATCH,
        flops={FORWARD: 2 * n * n * c, BOTH: 6 * n * n * c},
        targets=() if n < 4096 else (Target(0.6, "eager"), Target(0.1, "eager", "peak_ratio")),
        suites=suites,
    )


def bfloat16(n: int, k: int, c: int) -> Case:
    """Our float32 time on the same values is the reference here."""

    def in_float32(inputs: Inputs) -> Passes:
        return OURS_HERE.build({name: value.float() for name, value in inputs.items()})

    return Case(
        f"N={n} K={k} C={c} bfloat16",
        partial(make_inputs, n, k, c),
        (OURS_HERE, Implementation(f"{OURS} float32", in_float32), EAGER, COMPILED, PRODUCTS, ATTENTION),
        dtype=torch.bfloat16,
        flops={FORWARD: 2 * n * k * c, BOTH: 4 * n * k * c},
        targets=(Target(0.7, f"{OURS} float32"), *with_amx()),
    )


def high(n: int, k: int, c: int) -> Case:
    """float32 under torch.set_float32_matmul_precision("high"); on a CPU without AMX nothing changes."""

    def at_high(build: Callable[[Inputs], Passes]) -> Callable[[Inputs], Passes]:
        def call(function: Callable[..., Any], *arguments: Any) -> Any:
            before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("high")
            try:
                return function(*arguments)
            finally:
                torch.set_float32_matmul_precision(before)

        def built(inputs: Inputs) -> Passes:
            *functions, note = call(build, inputs)
            return Passes(*(function and partial(call, function) for function in functions), note)

        return built

    return Case(
        f"N={n} K={k} C={c} float32, high",
        partial(make_inputs, n, k, c),
        tuple(replace(i, build=at_high(i.build)) for i in (OURS_HERE, EAGER, PRODUCTS)),
        flops={FORWARD: 2 * n * k * c, BOTH: 4 * n * k * c},
        targets=with_amx(),
    )


def with_amx() -> tuple[Target, ...]:
    return (Target(0.35, "eager"), Target(1, "bare products")) if "AMX" in build_info()["cpu_kernels"] else ()


def against(eager: float, compiled: float, bare: float) -> tuple[Target, ...]:
    return (
        Target(0.6, metric="of forward+backward", on=FORWARD),
        Target(eager, "eager"),
        Target(compiled, "torch.compile"),
        Target(bare, "bare products"),
    )


def cases() -> list[Case]:
    return [
        with_queue(256, 65536, 128, peers=True, targets=(*against(0.15, 0.25, 0.6), Target(16, metric="peak_mib"))),
        with_queue(2048, 65536, 128, targets=against(0.13, 0.3, 0.6)),
        with_queue(64, 16384, 128, peers=True, targets=against(0.4, 0.45, 0.65), suites=ALSO_QUICK),
        with_queue(256, 2**20, 128, targets=(Target(0.6, "bare products"), Target(64, metric="peak_mib"))),
        in_batch(4096, 256),
        in_batch(256, 256, suites=ALSO_QUICK),
        replace(
            with_queue(1, 1, 16, targets=(Target(2.5, "eager"),), suites=ALSO_QUICK),
            implementations=(OURS_HERE, EAGER, COMPILED),  # what a call costs at all
        ),
        bfloat16(256, 65536, 128),
        high(256, 65536, 128),
        *(with_queue(256, 2**e, 128, axis="K", suites=ALSO_QUICK if e == 10 else FULL) for e in range(10, 21, 2)),
        *(with_queue(4**e, 65536, 128, axis="N") for e in range(2, 7)),
    ]


if __name__ == "__main__":
    main("benchmarks.info_nce", cases)
