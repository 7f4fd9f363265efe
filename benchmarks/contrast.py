"""CLIP, SigLIP, SupCon and in-batch InfoNCE next to plain torch, torch.compile and pip packages.

    python -m benchmarks.contrast --keep-freed --json benchmarks/results/contrast_cpu_kept.json

Forward and backward with all gradients: those of the features, and of the scale, bias or temperature.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases import (
    ALSO_QUICK,
    BOTH,
    FULL,
    OURS,
    Case,
    Implementation,
    Inputs,
    Passes,
    Target,
    differentiable,
)
from benchmarks.harness import main
from maskco.ops import clip_loss, info_nce, siglip_loss, supcon_loss

ROWS = (16, 64, 256, 1024, 2048, 4096, 8192)
CHANNELS = (64, 256, 512, 1024)
DTYPES = (torch.float32, torch.bfloat16)
DRAWN = 512  # the channels of the plot, at all N without --sweeps
CORNERS = {(n, c) for n in (16, 2048, 8192) for c in (64, 1024)}  # where the targets could be missed first
WITH_PEERS = (256, 2048)  # the N with the packages
COMPILED = 2048  # the N with torch.compile, which takes longer to compile than all the rest to run
QUICK = {(16, 64), (256, DRAWN)}
LARGE = 2048  # from here on ours must be faster, in little memory
MEMORY = 32  # MiB beyond the gradients
VIEWS = 4  # rows of a class
TEMPERATURE = 0.1
NOISE = 3  # of a feature, to 1 of what it shares with its pair or class


def ours_clip(image: Tensor, text: Tensor, logit_scale: Tensor) -> Tensor:
    return clip_loss(image, text, logit_scale=logit_scale)


def clip(image: Tensor, text: Tensor, logit_scale: Tensor) -> Tensor:
    """As open_clip's ClipLoss with the logits of texts taken from those of images, as CLIP has it."""
    logits = logit_scale * image @ text.T
    labels = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def ours_siglip(image: Tensor, text: Tensor, logit_scale: Tensor, logit_bias: Tensor) -> Tensor:
    return siglip_loss(image, text, logit_scale=logit_scale, logit_bias=logit_bias)


def siglip(image: Tensor, text: Tensor, logit_scale: Tensor, logit_bias: Tensor) -> Tensor:
    """As open_clip's SigLipLoss."""
    logits = logit_scale * image @ text.T
    logits += logit_bias
    labels = -torch.ones(logits.shape, device=image.device, dtype=image.dtype)
    labels = 2 * torch.eye(len(logits), device=image.device, dtype=image.dtype) + labels
    return -F.logsigmoid(labels * logits).sum() / len(image)


def ours_supcon(query: Tensor, labels: Tensor, temperature: Tensor) -> Tensor:
    return supcon_loss(query, query_labels=labels, temperature=temperature)


def supcon(query: Tensor, labels: Tensor, temperature: Tensor) -> Tensor:
    """As SupContrast's losses.py, with the base temperature equal to the temperature."""
    labels = labels.contiguous().view(-1, 1)
    mask = torch.eq(labels, labels.T).float()
    logits = torch.div(torch.matmul(query, query.T), temperature)
    largest, _ = torch.max(logits, dim=1, keepdim=True)
    logits = logits - largest.detach()
    itself = torch.arange(len(query), device=query.device).view(-1, 1)
    logits_mask = torch.scatter(torch.ones_like(mask), 1, itself, 0)
    mask = mask * logits_mask
    exp_logits = torch.exp(logits) * logits_mask
    log_prob = logits - torch.log(exp_logits.sum(1, keepdim=True))
    pairs = mask.sum(1)
    pairs = torch.where(pairs < 1e-6, 1, pairs)
    return -((mask * log_prob).sum(1) / pairs).mean()


def ours_info_nce(query: Tensor, positive: Tensor, temperature: Tensor) -> Tensor:
    return info_nce(query, positive, in_batch=True, temperature=temperature)


def cross_entropy(query: Tensor, positive: Tensor, temperature: Tensor) -> Tensor:
    return F.cross_entropy(query @ positive.T / temperature, torch.arange(len(query), device=query.device))


def open_clip(loss: str, wrt: list[str]) -> Callable[[Inputs], Passes]:
    def build(inputs: Inputs) -> Passes:
        import open_clip

        module = getattr(open_clip.loss, loss)()

        def called(image: Tensor, text: Tensor, **scalars: Tensor) -> Tensor:
            return module(image, text, **scalars)

        return differentiable(called, wrt)(inputs)

    return build


def metric_learning_supcon(inputs: Inputs) -> Passes:
    from pytorch_metric_learning.losses import SupConLoss

    loss = SupConLoss(TEMPERATURE)
    return differentiable(lambda query, labels, temperature: loss(query, labels), ["query"])(inputs)


def metric_learning_nt_xent(inputs: Inputs) -> Passes:
    from pytorch_metric_learning.losses import NTXentLoss

    loss, labels = NTXentLoss(TEMPERATURE), torch.arange(len(inputs["query"]), device=inputs["query"].device)
    others = labels.clone()  # for one tensor of labels no row would be a positive of its own label

    def one_way(query: Tensor, positive: Tensor) -> Tensor:
        return loss(query, labels, ref_emb=positive, ref_labels=others)

    return _without_temperature(one_way, inputs)


def lightly(inputs: Inputs) -> Passes:
    from lightly.loss import NTXentLoss

    return _without_temperature(NTXentLoss(TEMPERATURE), inputs)


def info_nce_pytorch(inputs: Inputs) -> Passes:
    from info_nce import InfoNCE

    return _without_temperature(InfoNCE(TEMPERATURE), inputs)


def _without_temperature(loss: Callable[[Tensor, Tensor], Tensor], inputs: Inputs) -> Passes:
    called = lambda query, positive, temperature: loss(query, positive)  # noqa: E731
    return differentiable(called, ["query", "positive"])(inputs)


@dataclass(frozen=True)
class Loss:
    name: str
    ours: Callable[..., Tensor]
    plain: Callable[..., Tensor]
    wrt: tuple[str, ...]
    peers: tuple[Implementation, ...]
    large: float = 0.8  # the target for the ratio from LARGE on


NORMALISES = "also normalises the features, with a temperature that gets no gradient"
LOSSES = (
    Loss(
        "clip",
        ours_clip,
        clip,
        ("image", "text", "logit_scale"),
        (
            Implementation(
                "open_clip",
                open_clip("ClipLoss", ["image", "text", "logit_scale"]),
                "ClipLoss: computes the logits of texts by a product of its own",
            ),
        ),
    ),
    Loss(
        "siglip",
        ours_siglip,
        siglip,
        ("image", "text", "logit_scale", "logit_bias"),
        (
            Implementation(
                "open_clip",
                open_clip("SigLipLoss", ["image", "text", "logit_scale", "logit_bias"]),
                "SigLipLoss",
            ),
        ),
        large=0.7,
    ),
    Loss(
        "supcon",
        ours_supcon,
        supcon,
        ("query", "temperature"),
        (
            Implementation(
                "pytorch-metric-learning", metric_learning_supcon, f"SupConLoss: {NORMALISES}", agrees="result"
            ),
        ),
    ),
    Loss(
        "info_nce",
        ours_info_nce,
        cross_entropy,
        ("query", "positive", "temperature"),
        (
            Implementation("info-nce-pytorch", info_nce_pytorch, NORMALISES, agrees="result"),
            Implementation(
                "lightly",
                lightly,
                f"NTXentLoss: all 2N features against each other, four times the logits. It {NORMALISES}",
                agrees="",
            ),
            Implementation(
                "pytorch-metric-learning", metric_learning_nt_xent, f"NTXentLoss: {NORMALISES}", agrees="result"
            ),
        ),
    ),
)


def make_inputs(loss: str, n: int, c: int, device: torch.device, dtype: torch.dtype) -> Inputs:
    """Normalised features with a similarity of 0.3 within a pair, 0.1 within a class, as early in training.

    With pairs of 0.7 CLIP's loss of 16 pairs is 0.003, and plain torch's gradients in bfloat16 are off by 0.3. Scalars
    are float32 in every dtype, as parameters are.
    """
    generator = torch.Generator().manual_seed(0)

    def unit(rows: int) -> Tensor:
        return F.normalize(torch.randn(rows, c, generator=generator), dim=1)

    def scalar(value: float) -> Tensor:
        return torch.tensor(value, device=device)

    if loss == "supcon":
        labels = torch.arange(n) % max(n // VIEWS, 1)
        query = F.normalize(unit(n)[labels] + NOISE * unit(n), dim=1).to(device, dtype)
        return {"query": query, "labels": labels.to(device), "temperature": scalar(TEMPERATURE)}
    first = unit(n)
    pair = first.to(device, dtype), F.normalize(first + NOISE * unit(n), dim=1).to(device, dtype)
    if loss == "info_nce":
        return dict(zip(("query", "positive"), pair, strict=True)) | {"temperature": scalar(TEMPERATURE)}
    scalars = {"logit_scale": scalar(1 / 0.07)} if loss == "clip" else {"logit_scale": scalar(10.0)}
    scalars |= {"logit_bias": scalar(-10.0)} if loss == "siglip" else {}  # as both are initialised
    return dict(zip(("image", "text"), pair, strict=True)) | scalars


def all_pairs(loss: Loss, n: int, c: int, dtype: torch.dtype) -> Case:
    others: list[Implementation] = []
    if c == DRAWN and n == COMPILED:
        others.append(Implementation("torch.compile", differentiable(loss.plain, loss.wrt, compile=True)))
    if c == DRAWN and n in WITH_PEERS:
        cubic = "would hold tensors of N×N×N" if n >= LARGE else ""
        others += [replace(peer, skip=cubic) if peer.build is metric_learning_nt_xent else peer for peer in loss.peers]
    targets = [Target(1.05 if n < LARGE else loss.large, "eager")]
    if n >= LARGE:
        targets.append(Target(MEMORY, metric="beyond_gradients_mib"))
    name = str(dtype).removeprefix("torch.")
    return Case(
        f"{loss.name} N={n} C={c} {name}",
        partial(make_inputs, loss.name, n, c),
        (
            Implementation(OURS, differentiable(loss.ours, loss.wrt)),
            # (its peak hardly depends on C, and takes long to measure)
            Implementation("eager", differentiable(loss.plain, loss.wrt), memory=c == DRAWN or n <= LARGE),
            *others,
        ),
        dtype=dtype,
        flops={BOTH: 6 * n * n * c},
        targets=targets,
        sweep=None if c == DRAWN or (n, c) in CORNERS else ("N", n),
        suites=ALSO_QUICK if (n, c) in QUICK else FULL,
        passes=(BOTH,),
        at={"loss": loss.name, "N": n, "C": c},
    )


def cases() -> list[Case]:
    return [all_pairs(*each) for each in product(LOSSES, ROWS, CHANNELS, DTYPES)]


if __name__ == "__main__":
    main("benchmarks.contrast", cases)
