"""CLIP's loss for pairs on several ranks.

Each rank contrasts its own images with the texts of all ranks, in one sweep. This gives all sums of its images, and its
share of each text's sums. Ranks add up the shares, so no logit is computed twice.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from maskco.nn.ranks import Layout, gather_parts, gather_rows, joined, scatter_sum
from maskco.ops import _library
from maskco.ops._contrast import allow_tf32, kept_rows, refuse_double_backward, scalar_of
from maskco.ops._inputs import refuse_transforms

LN2 = math.log(2)  # the kernels' sums are in units of log 2


def clip_losses(
    image: Tensor,
    text: Tensor,
    ids: Tensor | None,
    scale: tuple[float, Tensor | None],
    smoothing: float,
    of_images: Layout,
    of_texts: Layout,
) -> Tensor:
    """The losses [n] of this rank's pairs among the pairs of all ranks: the mean of both directions.

    Args:
        image, text: [n, C], of one dtype.
        ids: [n] int64.
        scale: (a number, None) or (1.0, a tensor [] in the dtype of the sums).
    """
    refuse_transforms("clip_loss", image, text, scale[1])
    image, text = joined(image, of_images), joined(text, of_texts)
    all_ids = None if ids is None else gather_parts(ids, of_images.lengths)
    if _library.kernels(image.device) is None:
        return _plain(image, text, ids, all_ids, scalar_of(scale), smoothing, of_images, of_texts)
    return _GatheredClip.apply(image, text, ids, all_ids, *scale, smoothing, of_texts)


class _GatheredClip(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        text: Tensor,
        ids: Tensor | None,
        all_ids: Tensor | None,
        scale: float,
        scale_tensor: Tensor | None,
        smoothing: float,
        layout: Layout,
    ) -> Tensor:
        n, own = len(image), slice(layout.start, layout.start + len(image))
        texts = gather_parts(text, layout.lengths)
        kept = kept_rows(torch.ops.maskco, n, len(texts), image, some=True) if any(ctx.needs_input_grad) else 0
        ctx.options = True, smoothing, False, None  # both directions; neither decoupled nor with a margin
        ctx.allow_tf32 = allow_tf32()
        call = image, texts, own.start, ids, all_ids, scale, scale_tensor, *ctx.options
        _, parts, own_logit, _, _, row_sums, column_sums, row_totals, column_totals, logits = (
            torch.ops.maskco.clip_loss_fwd(*call, kept, ctx.allow_tf32)
        )
        own_of_rows = own_logit[0, :n]
        own_of_columns = gather_parts(own_of_rows, layout.lengths)
        column_sums = _add_sums(column_sums)
        if smoothing:
            dist.all_reduce(column_totals)
        behind = column_sums[0, own] * LN2 - own_of_rows  # of the largest logit
        column_part = behind + torch.log1p(torch.expm1(-behind) + column_sums[1, own])  # (precise near a loss of 0)
        parts = torch.stack([parts[0], column_part])
        losses = parts
        if smoothing:
            totals = torch.stack([row_totals[:, :n], column_totals[:, own]])  # [direction, sum and number, n]
            mean = (totals[:, 0] * LN2 + own_of_rows) / (totals[:, 1] + 1)
            losses = parts + smoothing * (own_of_rows - mean)
        sums = row_sums, column_sums, row_totals, column_totals
        ctx.save_for_backward(image, texts, ids, all_ids, scale_tensor, parts, own_logit, own_of_columns, *sums, logits)
        ctx.scale, ctx.layout = scale, layout
        return losses.mean(0)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        refuse_double_backward("clip_loss")
        image, texts, ids, all_ids, scale_tensor, *saved = ctx.saved_tensors
        layout = ctx.layout
        rows = (upstream / 2).contiguous()
        columns = gather_parts(rows, layout.lengths)  # each text's loss is on the rank of its pair
        need_scale = scale_tensor is not None and ctx.needs_input_grad[5]
        call = image, texts, layout.start, ids, all_ids, ctx.scale, scale_tensor, *ctx.options
        needed = ctx.needs_input_grad[0], layout.needs_grad, need_scale
        grad_image, grad_texts, grad_scale = torch.ops.maskco.clip_loss_bwd(
            rows, columns, *call, *saved, *needed, ctx.allow_tf32
        )
        return (
            grad_image if needed[0] else None,
            scatter_sum(grad_texts, layout.lengths) if layout.needs_grad else None,
            None,
            None,
            None,
            grad_scale.reshape(()) if need_scale else None,
            None,
            None,
        )


def _add_sums(sums: Tensor) -> Tensor:
    """Merges each rank's largest logits and sums of 2^(s - largest), [2, N], over all ranks."""
    largest = sums[0].clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    factor = torch.where(sums[0] == largest, 1, torch.exp2(sums[0] - largest))  # (Inf - Inf would be NaN)
    total = sums[1] * factor
    dist.all_reduce(total)
    return torch.stack([largest, total])


def _plain(
    image: Tensor,
    text: Tensor,
    ids: Tensor | None,
    all_ids: Tensor | None,
    scale: float | Tensor,
    smoothing: float,
    of_images: Layout,
    of_texts: Layout,
) -> Tensor:
    """The same in plain torch, without kernels: own rows against all rows of the other side, in both directions."""
    images, texts = gather_rows(image, of_images), gather_rows(text, of_texts)
    row = torch.arange(len(image), device=image.device)
    own = torch.zeros(len(image), len(images), dtype=torch.bool, device=image.device)
    own[row, row + of_images.start] = True
    counts = torch.ones_like(own)
    if ids is not None and all_ids is not None:
        counts = (ids[:, None] != all_ids[None, :]) | own

    def direction(rows: Tensor, others: Tensor) -> Tensor:
        wide = torch.promote_types(rows.dtype, torch.float32)
        logits = (rows.to(wide) @ others.to(wide).T * scale).masked_fill(~counts, -math.inf)  # [n, N]
        positive = logits[own]
        loss = logits.logsumexp(1) - positive
        if smoothing:
            loss = loss + smoothing * (positive - torch.where(counts, logits, 0.0).sum(1) / counts.sum(1))
        return loss

    with torch.autocast(image.device.type, enabled=False):
        return (direction(image, texts) + direction(text, images)) / 2
