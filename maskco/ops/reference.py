"""The ops in plain torch. They are the specification, the tests compare with them, and they run without kernels.

Each function is the readable version of its namesake in `maskco.ops`, not a fast one. `info_nce` makes the whole [N, K]
logit matrix, and `box_pool` samples every point of its RoIAlign grid. Losses take fewer options than their namesakes
and return unreduced values. Arguments are not checked.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def _full_precision(function: Callable) -> Callable:
    """Disables autocast, which would run float32 products in 16 bits."""

    @functools.wraps(function)
    def run(*args, **options):
        first = next(iter((*args, *options.values())))
        with torch.autocast(first.device.type, enabled=False):
            return function(*args, **options)

    return run


@_full_precision
def info_nce(
    query: Tensor,
    positive: Tensor,
    queue: Tensor | None = None,
    *,
    local_negatives: Tensor | None = None,
    in_batch: bool = False,
    query_ids: Tensor | None = None,
    queue_ids: Tensor | None = None,
    valid: int | Tensor | None = None,
    temperature: float | Tensor = 0.2,
    decoupled: bool = False,
    margin: float | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, lse and positive_logit of each query, [N] and differentiable, and rank, [N] int64."""
    n = query.shape[0]
    wide = torch.promote_types(query.dtype, torch.float32)
    query, positive = query.to(wide), positive.to(wide)
    positive_logit = (query * positive).sum(1) / temperature  # [N]
    negatives = []
    if queue is not None:
        rows = queue.shape[0] if valid is None else min(max(int(valid), 0), queue.shape[0])
        logits = query @ queue[:rows].to(wide).T / temperature  # [N, valid]
        if query_ids is not None and queue_ids is not None:
            logits = logits.masked_fill(query_ids[:, None] == queue_ids[None, :rows], -math.inf)
        negatives.append(logits)
    if local_negatives is not None:
        negatives.append(torch.einsum("nc,nmc->nm", query, local_negatives.to(wide)) / temperature)  # [N, M]
    if in_batch:
        same = torch.eye(n, dtype=torch.bool, device=query.device)
        if query_ids is not None:
            same = same | (query_ids[:, None] == query_ids[None, :])
        negatives.append((query @ positive.T / temperature).masked_fill(same, -math.inf))  # [N, N]
    negative_logits = torch.cat([query.new_zeros(n, 0), *negatives], dim=1)
    if margin is not None:
        too_similar = (negative_logits - positive_logit[:, None]) * temperature > margin
        negative_logits = negative_logits.masked_fill(too_similar, -math.inf)
    rank = (negative_logits > positive_logit[:, None]).sum(1)
    if not decoupled:
        lse = torch.cat([positive_logit[:, None], negative_logits], dim=1).logsumexp(1)
        return lse - positive_logit, lse, positive_logit, rank
    some = (negative_logits != -math.inf).any(1)  # (the logsumexp of none has no gradient)
    lse = torch.cat([negative_logits, torch.where(some, -math.inf, 0.0)[:, None]], dim=1).logsumexp(1)
    loss = torch.where(some, lse - positive_logit, 0.0)
    return loss, torch.where(some, lse, -math.inf), positive_logit, rank


@_full_precision
def clip_loss(
    image: Tensor,
    text: Tensor,
    *,
    scale: float | Tensor,
    ids: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss, image_lse, text_lse and positive_logit of each pair, differentiable, then both ranks. All [N]."""
    wide = torch.promote_types(image.dtype, torch.float32)
    logits = image.to(wide) @ text.to(wide).T * scale  # [N, N]
    own = torch.eye(len(image), dtype=torch.bool, device=image.device)
    counts = torch.ones_like(own)
    if ids is not None:
        counts = (ids[:, None] != ids[None, :]) | own
    logits = logits.masked_fill(~counts, -math.inf)
    positive = logits.diagonal()

    def direction(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        lse = rows.logsumexp(1)
        loss = lse - positive
        if label_smoothing:
            mean = torch.where(counts, rows, 0.0).sum(1) / counts.sum(1)  # (counts is symmetric)
            loss = loss + label_smoothing * (positive - mean)
        return loss, lse, (rows > positive[:, None]).sum(1)

    (image_loss, image_lse, image_rank), (text_loss, text_lse, text_rank) = direction(logits), direction(logits.T)
    return (image_loss + text_loss) / 2, image_lse, text_lse, positive, image_rank, text_rank


@_full_precision
def siglip_loss(
    image: Tensor, text: Tensor, *, scale: float | Tensor, bias: float | Tensor, offset: int | None = 0
) -> Tensor:
    """The loss of each image [N], summed over all texts."""
    wide = torch.promote_types(image.dtype, torch.float32)
    logits = image.to(wide) @ text.to(wide).T * scale + bias  # [N, M]
    sign = -torch.ones_like(logits)
    if offset is not None:
        rows = torch.arange(len(image), device=image.device)
        rows = rows[(rows + offset >= 0) & (rows + offset < len(text))]
        sign[rows, rows + offset] = 1
    return -F.logsigmoid(sign * logits).sum(1)


@_full_precision
def supcon_loss(
    query: Tensor,
    keys: Tensor | None = None,
    *,
    query_labels: Tensor,
    key_labels: Tensor | None = None,
    offset: int | None = None,
    temperature: float | Tensor = 0.1,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, lse and the mean logit of the positives of each query, differentiable, and their number. All [N]."""
    wide = torch.promote_types(query.dtype, torch.float32)
    query = query.to(wide)
    others = query if keys is None else keys.to(wide)
    logits = query @ others.T / temperature  # [N, K]
    counts = torch.ones_like(logits, dtype=torch.bool)
    offset = 0 if keys is None else offset
    if offset is not None:
        row = torch.arange(len(query), device=query.device)
        row = row[(row + offset >= 0) & (row + offset < len(others))]
        counts[row, row + offset] = False
    labels = query_labels if key_labels is None else key_labels
    positive = (query_labels[:, None] == labels[None, :]) & counts
    number = positive.sum(1)
    some = number > 0
    # a row that nothing counts for keeps a logit of 0, which has no gradient, where the logsumexp of none had NaN
    empty = torch.where(counts.any(1), -math.inf, 0.0).to(wide)
    lse = torch.cat([logits.masked_fill(~counts, -math.inf), empty[:, None]], dim=1).logsumexp(1)
    mean = torch.where(positive, logits, 0.0).sum(1) / number.clamp(min=1)
    loss = torch.where(some, lse - mean, 0.0)
    return loss, torch.where(counts.any(1), lse, -math.inf), mean, number


@_full_precision
def box_pool(
    features: Tensor,
    boxes: Tensor,
    *,
    spatial_scale: float,
    output_size: int | Sequence[int] = 7,
    sampling_ratio: int = 2,
    aligned: bool = True,
) -> Tensor:
    """The mean of a RoIAlign grid [R, C], as `torchvision.ops.roi_align(...).mean((-2, -1))`, point by point."""
    wide = torch.promote_types(features.dtype, torch.float32)
    height, width = features.shape[-2:]
    down, across = output_size if isinstance(output_size, Sequence) else (output_size, output_size)
    pooled = []
    for image, x1, y1, x2, y2 in boxes.to(wide).unbind(0) if len(boxes) else []:
        if not bool(torch.isfinite(torch.stack([x1 + x2, y1 + y2]) * spatial_scale).all()):
            pooled.append(features[int(image), :, 0, 0].to(wide) * math.nan)
            continue
        if not 0 <= float(image) < features.shape[0]:  # (a NaN, too)
            pooled.append(features.new_full((features.shape[1],), math.nan, dtype=wide))
            continue
        rows, row_weights = _samples(y1, y2, height, spatial_scale, down, sampling_ratio, aligned)
        columns, column_weights = _samples(x1, x2, width, spatial_scale, across, sampling_ratio, aligned)
        patch = features[int(image)][:, rows][:, :, columns].to(wide)  # [C, 2S, 2S']
        pooled.append(torch.einsum("chw,h,w->c", patch, row_weights, column_weights))
    if not pooled:
        return features.new_zeros(0, features.shape[1]) + features.sum() * 0
    return torch.stack(pooled).to(features.dtype)


def _samples(
    start: Tensor, end: Tensor, size: int, scale: float, count: int, sampling_ratio: int, aligned: bool
) -> tuple[Tensor, Tensor]:
    """The feature rows (or columns) that a RoI's sample points touch, and the share of each in the mean.

    A sample point lies between two rows and takes from both. Points more than a whole pixel outside count as zero.
    """
    offset = 0.5 if aligned else 0.0
    start, end = start * scale - offset, end * scale - offset
    extent = end - start if aligned else (end - start).clamp(min=1)
    bins = extent / count
    per_bin = sampling_ratio if sampling_ratio > 0 else max(math.ceil(bins), 0)
    point = torch.arange(count * per_bin, device=start.device, dtype=start.dtype)
    position = start + (point // max(per_bin, 1)) * bins + (point % max(per_bin, 1) + 0.5) * bins / max(per_bin, 1)
    position = position[(position >= -1) & (position <= size)].clamp(min=0)
    low = position.long().clamp(max=size - 1)
    high = (low + 1).clamp(max=size - 1)
    fraction = torch.where(low >= size - 1, 0, position - low)
    weights = torch.cat([1 - fraction, fraction]) / max(count * per_bin, 1)
    return torch.cat([low, high]), weights


@_full_precision
def masked_pool(features: Tensor, masks: Tensor, *, num_regions: int | None = None, reduction: str = "mean") -> Tensor:
    """Region means or sums [B, R, C]. Float masks weigh pixels (0 * NaN is NaN). Bool masks and labels choose them."""
    wide = torch.promote_types(features.dtype, torch.float32)
    pixels = features.to(wide)
    if num_regions is not None:  # labels [B, H, W]
        masks = masks[:, None] == torch.arange(num_regions, device=masks.device)[:, None, None]
    if masks.dtype == torch.bool:
        chosen = torch.where(masks[:, :, None], pixels[:, None], pixels.new_zeros(()))  # [B, R, C, H, W]
        total = chosen.sum((-2, -1))
    else:
        total = torch.einsum("bchw,brhw->brc", pixels, masks.to(wide))
    if reduction == "sum":
        return total.to(features.dtype)
    area = masks.to(wide).sum((-2, -1))[..., None]  # [B, R, 1]
    return torch.where(area == 0, 0, total / torch.where(area == 0, 1, area)).to(features.dtype)


def queue_push_(
    queue: Tensor,
    cursor: Tensor,
    keys: Tensor,
    *,
    normalize: bool = False,
    ids: Tensor | None = None,
    queue_ids: Tensor | None = None,
    overflow: str = "wrap",
) -> Tensor:
    """Writes `keys` after the newest rows and returns the queue. "truncate" drops keys that pass the queue's end."""
    size, count = queue.shape[0], keys.shape[0]
    if size == 0 or count == 0:
        return queue
    rows = keys.to(torch.promote_types(keys.dtype, torch.float32))
    if normalize:
        rows = F.normalize(rows, dim=1)
    taken = min(size - int(cursor[0]), count) if overflow == "truncate" else count
    kept = torch.arange(
        max(0, taken - size), taken, device=keys.device
    )  # a row that is overwritten at once is left out
    target = (cursor[0] + kept) % size
    queue[target] = rows[kept].to(queue.dtype)
    if ids is not None and queue_ids is not None:
        queue_ids[target] = ids[kept]
    cursor[0] = (cursor[0] + taken) % size
    cursor[1] = torch.clamp(cursor[1] + taken, max=size)
    return queue
