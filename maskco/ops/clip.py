"""CLIP's loss. One sweep over all pairs gives both directions."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskco.ops import _library, reference
from maskco.ops._contrast import (
    accumulation_dtype,
    allow_tf32,
    check_features,
    check_ids,
    check_nonzero,
    check_reduction,
    divided,
    fake_gradients,
    inverse,
    kept_rows,
    mean_factor,
    needs_grad,
    one_dtype,
    padded,
    reduce,
    refuse_double_backward,
    register_sum,
    scalar_of,
    with_gradients,
)
from maskco.ops._inputs import as_float, as_tensor, refuse_forward_mode, refuse_transforms


class ClipStats(NamedTuple):
    """Statistics from the same pass. All are [N], without gradient, float32 (float64 for float64 inputs)."""

    image_lse: Tensor
    """Logsumexp of each image's logits over the texts."""
    text_lse: Tensor
    """Logsumexp of each text's logits over the images."""
    positive_logit: Tensor
    """The logit of each pair: image · text, times the scale."""
    image_rank: Tensor
    """int64, number of texts with a larger logit than the image's own. 0 is a correct top-1 retrieval."""
    text_rank: Tensor
    """int64, number of images with a larger logit than the text's own."""


def clip_loss(
    image: Tensor,
    text: Tensor,
    *,
    temperature: float | Tensor | None = None,
    logit_scale: float | Tensor | None = None,
    ids: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, ClipStats]:
    """CLIP's symmetric cross-entropy (Radford et al., 2021), without a tensor of all logits.

    Equivalent plain torch, whose `logits` this op does not allocate for large N::

        logits = logit_scale * image @ text.T                # [N, N]
        labels = torch.arange(N)
        loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2

    Row i of `image` and row i of `text` are a pair. One sweep over all pairs gives the loss, and one more gives all
    gradients.

    Args:
        image, text: [N, C], float32, float64, float16 or bfloat16. Normalise them first, as CLIP does.
        temperature: divides the dot products, by default 0.07. A float, or a tensor with one element.
        logit_scale: multiplies the dot products, instead of a temperature. A tensor gets a gradient. CLIP's parameter
            is the logarithm of this scale, so pass `log_scale.exp()`.
        ids: [N] integers. Pairs with equal ids, such as copies of one caption, are not negatives of each other.
        label_smoothing: as in F.cross_entropy, over the pairs that are not excluded.
        reduction: "mean", "sum" or "none". The mean over no pairs is 0.
        return_stats: also return the `ClipStats`.

    Both must have one dtype. Autocast widens the narrower one. Sums run in float32 (float64 for float64 inputs).
    Gradients reach both features and the scale. Results are repeatable bit for bit. There is no second derivative and
    no forward-mode derivative.

    Returns:
        The loss, or (loss, ClipStats). The loss is [], or [N] with the mean of both directions for each pair. It is
        float32 (float64 for float64 inputs).

    Raises:
        TypeError: an unsupported dtype, or mixed dtypes.
        ValueError: a shape, device or option that does not fit. The message names the argument.
        RuntimeError: a backward pass with create_graph=True, forward-mode AD, or a gradient of torch.func.
    """
    image, text = as_tensor(image, "image"), as_tensor(text, "text")
    check_features(image, ("N", "C"), "image", image, "image")
    check_features(text, tuple(image.shape), "text", image, "image")
    if ids is not None:
        ids = check_ids(ids, image.shape[0], image, "ids", "image")
    smoothing = as_float(label_smoothing, "label_smoothing")
    if not 0 <= smoothing <= 1:
        raise ValueError(f"label_smoothing must lie between 0 and 1, got {label_smoothing}")
    check_reduction(reduction)
    image, text = one_dtype({"image": image, "text": text}, image)  # type: ignore[assignment]
    if temperature is not None and logit_scale is not None:
        raise ValueError("temperature and logit_scale were both given. Pass one of them")
    if logit_scale is None:
        scale = inverse(check_nonzero(0.07 if temperature is None else temperature, image, "temperature", "image"))
    else:
        scale = check_nonzero(logit_scale, image, "logit_scale", "image")

    ops = _library.kernels(image.device)
    if ops is None:
        found = reference.clip_loss(image, text, scale=scalar_of(scale), ids=ids, label_smoothing=smoothing)
        loss, stats = reduce(found[0], reduction), ClipStats(*(t.detach() for t in found[1:]))
        return (loss, stats) if return_stats else loss
    features = ops, "clip_loss", image, text
    loss, statistics, ranks = pair_losses(
        *features, ids, scale, reduction, columns=True, smoothing=smoothing, stats=return_stats
    )
    if not return_stats:
        return loss
    own, *sides = statistics.detach()
    return loss, ClipStats(_lse(own, *sides[:2]), _lse(own, *sides[2:]), own, *ranks)


def all_pairs(
    ops: Any,
    query: Tensor,
    positive: Tensor,
    ids: Tensor | None,
    scale: tuple[float, Tensor | None],
    reduction: str,
    *,
    decoupled: bool,
    margin: float | None,
    stats: bool,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """`info_nce` in one batch without other negatives: the reduced loss, and lse, positive_logit and rank [N].

    Without `stats`, the last three are placeholders.
    """
    features = ops, "info_nce", query, positive
    loss, statistics, ranks = pair_losses(
        *features, ids, scale, reduction, decoupled=decoupled, margin=margin, stats=stats
    )
    if not stats:
        return loss, (statistics, statistics, ranks)
    own, *row, _, _ = statistics.detach()
    return loss, (_lse(None if decoupled else own, *row), own, ranks[0])


def _lse(own: Tensor | None, largest: Tensor, total: Tensor) -> Tensor:
    """Natural logsumexp [N] of the own logit and of all others, whose sum is `total` times 2^`largest`."""
    others = largest * math.log(2) + total.log()
    return others if own is None else torch.logaddexp(own, others)


def pair_losses(
    ops: Any,
    op: str,
    query: Tensor,
    keys: Tensor,
    ids: Tensor | None,
    scale: tuple[float, Tensor | None],
    reduction: str,
    *,
    columns: bool = False,
    smoothing: float = 0.0,
    decoupled: bool = False,
    margin: float | None = None,
    stats: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs the compiled op. Returns the reduced loss, statistics [5, N] and ranks [2, N].

    The statistics are own logits, the largest logit (in units of log 2) and the sum of each row, and those of each
    column. The ranks are those of rows and columns. Without `stats`, both are placeholders.
    """
    n, inputs = query.shape[0], (query, keys, scale[1])
    in_vmap = refuse_transforms(op, *inputs)
    needed = [in_vmap or needs_grad(t) for t in inputs]
    kept = kept_rows(ops, n, n, query, some=columns) if any(needed) else 0
    options = (*scale, columns, smoothing, decoupled, margin)
    tf32 = allow_tf32()
    if reduction != "none":
        arguments = (query, keys, ids, *options, mean_factor(n, reduction), *needed, kept, stats, tf32)
        loss, statistics, ranks = with_gradients(ops.clip_loss_sum.default, arguments, *inputs, in_vmap=in_vmap)
        return divided(loss, n, reduction), statistics, ranks
    loss, _, own, rank, column_rank, row_sums, column_sums, *_ = ops.clip_loss_fwd(
        query, keys, 0, ids, ids, *options, kept, tf32
    )
    if not stats:
        return loss, own, rank
    if not columns:
        column_sums, column_rank = row_sums.new_zeros((2, n)), torch.zeros_like(rank[:n])
    return loss, torch.cat([own[:, :n], row_sums[:, :n], column_sums]), torch.stack([rank[:n], column_rank])


def _fake_fwd(
    query, keys, own, query_ids, key_ids, scale, tensor, columns, smoothing, decoupled, margin, kept, tf32=False
):
    refuse_forward_mode("clip_loss")
    n, k, rows = query.shape[0], keys.shape[0], padded(query.shape[0])
    dtype = accumulation_dtype(query)
    sizes = ((n,), (2, n), (1, rows))
    loss, parts, own_logit = (query.new_empty(size, dtype=dtype) for size in sizes)
    row_rank, column_rank = (query.new_empty(size, dtype=torch.int64) for size in (rows, k if columns else 0))
    logits = query.new_empty((k, kept), dtype=dtype)
    k = k if columns else 0
    sizes = ((2, rows), (2, k), (2, rows if smoothing > 0 else 0), (2, k if smoothing > 0 else 0))
    sums = tuple(query.new_empty(size, dtype=dtype) for size in sizes)
    return loss, parts, own_logit, row_rank, column_rank, *sums, logits


def _fake_sum(query, keys, ids, scale, tensor, columns, smoothing, decoupled, margin, factor, *rest):
    refuse_forward_mode("clip_loss")
    n, dtype, stats = query.shape[0], accumulation_dtype(query), rest[4]
    statistics = query.new_empty((5 if stats else 0, n), dtype=dtype)
    ranks = query.new_empty((2 if stats else 0, n), dtype=torch.int64)
    return (query.new_empty((), dtype=dtype), *fake_gradients(query, keys, rest[:3]), statistics, ranks)


def _fake_bwd(row_upstream, column_upstream, query, keys, *rest):
    need_query, need_keys, need_scale = rest[17:20]
    return (
        query.new_empty((query.shape[0] if need_query else 0, query.shape[1])),
        keys.new_empty((keys.shape[0] if need_keys else 0, keys.shape[1])),
        query.new_empty(1 if need_scale else 0, dtype=accumulation_dtype(query)),
    )


def _setup_context(ctx, inputs, output) -> None:
    query, keys, _, query_ids, key_ids, _, tensor, *_ = inputs
    _, parts, own_logit, _, _, *sums = output
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(query, keys, query_ids, key_ids, tensor, parts, own_logit, *sums)
    ctx.own, ctx.scale = inputs[2], inputs[5]
    ctx.options = inputs[7:11]  # columns, smoothing, decoupled, margin
    ctx.allow_tf32 = inputs[12]


def register(namespace: str) -> None:
    """Registers fake kernels and gradients of the op in `namespace`."""
    ops = getattr(torch.ops, namespace)

    def backward(ctx, grad_loss, *_):
        refuse_double_backward("clip_loss")
        grads: list[Tensor | None] = [None] * 13
        if grad_loss is None:
            return tuple(grads)
        query, keys, query_ids, key_ids, tensor, *saved = ctx.saved_tensors
        columns = ctx.options[0]
        own_of_keys = saved[1][0, : keys.shape[0] if columns else 0]  # (square: key i's own query is i)
        upstream = (grad_loss / 2 if columns else grad_loss).contiguous()
        need_query, need_keys = ctx.needs_input_grad[:2]
        need_scale = tensor is not None and ctx.needs_input_grad[6]
        grad_query, grad_keys, grad_scale = ops.clip_loss_bwd(
            upstream,
            upstream if columns else upstream[:0],
            query,
            keys,
            ctx.own,
            query_ids,
            key_ids,
            ctx.scale,
            tensor,
            *ctx.options,
            *saved[:2],
            own_of_keys,
            *saved[2:],
            need_query,
            need_keys,
            need_scale,
            ctx.allow_tf32,
        )
        grads[0] = grad_query if need_query else None
        grads[1] = grad_keys if need_keys else None
        grads[6] = grad_scale.reshape(tensor.shape) if need_scale else None
        return tuple(grads)

    torch.library.register_fake(f"{namespace}::clip_loss_fwd", _fake_fwd)
    torch.library.register_fake(f"{namespace}::clip_loss_bwd", _fake_bwd)
    torch.library.register_autograd(f"{namespace}::clip_loss_fwd", backward, setup_context=_setup_context)
    register_sum(namespace, "clip_loss_sum", _fake_sum, (0, 1, 4))


register("maskco")
