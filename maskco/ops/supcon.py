"""The supervised contrastive loss. Every key with the query's label is a positive."""

from __future__ import annotations

from collections.abc import Sequence
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
    with_gradients,
)
from maskco.ops._inputs import as_int, as_tensor, refuse_forward_mode, refuse_transforms


class SupConStats(NamedTuple):
    """Statistics from the same pass. All are [N], without gradient, float32 (float64 for float64 inputs)."""

    lse: Tensor
    """Logsumexp of the logits over all keys except the query itself. -inf if there is no such key."""
    positive_logit: Tensor
    """The mean logit of the positives. 0 if there are none."""
    positives: Tensor
    """int64, number of other keys with the query's label. Rows with 0 have loss 0 and gradient 0."""


def supcon_loss(
    query: Tensor,
    keys: Tensor | None = None,
    *,
    query_labels: Tensor,
    key_labels: Tensor | None = None,
    offset: int | None = None,
    temperature: float | Tensor = 0.1,
    reduction: str = "mean",
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, SupConStats]:
    """The supervised contrastive loss (SupCon, Khosla et al., 2020, L_out), without a tensor of all logits.

    Equivalent plain torch, whose `logits` this op does not allocate for large N::

        logits = query @ query.T / temperature                               # [N, N]
        logits.fill_diagonal_(-inf)
        positive = (labels[:, None] == labels) & ~torch.eye(N, dtype=bool)
        log_prob = logits - logits.logsumexp(1, keepdim=True)
        loss = -(log_prob * positive).sum(1) / positive.sum(1)               # a row without positives has loss 0

    Args:
        query: [N, C], float32, float64, float16 or bfloat16. Normalise it first for cosine similarity.
        keys: [K, C], such as a memory bank, or the features of all ranks. With None, each query is contrasted with all
            other queries.
        query_labels: [N] integers.
        key_labels: [K] integers, with `keys`.
        offset: row `offset` of `keys` is query 0 itself, the next row is query 1, and so on. A query is not its own
            key. With None, the queries are not among the keys.
        temperature: divides the dot products. A float, or a tensor with one element, which then gets a gradient. It may
            be negative, but not 0.
        reduction: "mean" over all N rows, "sum" or "none".
        return_stats: also return the `SupConStats`.

    Queries and keys must have one dtype. Autocast widens the narrower one. Sums run in float32 (float64 for float64
    inputs). Gradients reach both features and the temperature. Results are repeatable bit for bit. There is no second
    derivative and no forward-mode derivative.

    Returns:
        The loss, [] or [N], float32 (float64 for float64 inputs), or (loss, SupConStats).

    Raises:
        TypeError: an unsupported dtype, or mixed dtypes.
        ValueError: a shape, device or option that does not fit. The message names the argument.
        RuntimeError: a backward pass with create_graph=True, forward-mode AD, or a gradient of torch.func.
    """
    query = as_tensor(query, "query")
    check_features(query, ("N", "C"), "query", query, "query")
    if (keys is None) != (key_labels is None):
        raise ValueError(f"{'key_labels were' if keys is None else 'keys were'} given alone. Pass keys and key_labels")
    query_labels = check_ids(query_labels, query.shape[0], query, "query_labels", "query")
    if keys is not None:
        keys = as_tensor(keys, "keys")
        check_features(keys, ("K", query.shape[1]), "keys", query, "query")
        key_labels = check_ids(key_labels, keys.shape[0], query, "key_labels", "query")
        query, keys = one_dtype({"query": query, "keys": keys}, query)  # type: ignore[assignment]
        offset = None if offset is None else as_int(offset, "offset")
    elif offset is not None:
        raise ValueError("offset was given without keys. Pass both")
    check_reduction(reduction)
    number, tensor = check_nonzero(temperature, query, "temperature", "query")

    ops = _library.kernels(query.device)
    if ops is None:
        options = {"query_labels": query_labels, "key_labels": key_labels, "offset": offset}
        loss, *stats = reference.supcon_loss(query, keys, **options, temperature=number if tensor is None else tensor)
        loss = reduce(loss, reduction)
    else:
        loss, *stats = _compiled(
            ops, query, keys, query_labels, key_labels, offset, inverse((number, tensor)), reduction
        )
    return (loss, SupConStats(*(t.detach() for t in stats[:3]))) if return_stats else loss


def _compiled(
    ops: Any,
    query: Tensor,
    keys: Tensor | None,
    query_labels: Tensor,
    key_labels: Tensor | None,
    offset: int | None,
    scale: tuple[float, Tensor | None],
    reduction: str,
) -> Sequence[Tensor]:
    """Runs the compiled op. Returns the reduced loss, then the stats."""
    symmetric = keys is None
    others = query.detach() if keys is None else keys  # (then the first holds both gradients)
    labels, own = (query_labels, 0) if symmetric else (key_labels, offset)
    inputs: tuple[Tensor | None, ...] = (query, others, scale[1])
    in_vmap = refuse_transforms("supcon_loss", *inputs)
    needed = [in_vmap or needs_grad(t) for t in inputs]
    kept = kept_rows(ops, query.shape[0], others.shape[0], query, some=True) if any(needed) else 0
    arguments = (query, others, query_labels, labels, own, *scale, symmetric)
    if reduction == "none":
        return ops.supcon_loss_fwd(*arguments, kept, allow_tf32())
    options = (mean_factor(query.shape[0], reduction), *needed, kept, allow_tf32())
    loss, *stats = with_gradients(ops.supcon_loss_sum.default, (*arguments, *options), *inputs, in_vmap=in_vmap)
    return divided(loss, query.shape[0], reduction), *stats


def _fake_fwd(query, keys, query_labels, key_labels, own, scale, tensor, symmetric, kept, tf32=False):
    refuse_forward_mode("supcon_loss")
    n, rows, dtype = query.shape[0], padded(query.shape[0]), accumulation_dtype(query)
    loss, lse, positive = (query.new_empty(n, dtype=dtype) for _ in range(3))
    sums, logits = (query.new_empty(size, dtype=dtype) for size in ((2, rows), (keys.shape[0], kept)))
    return loss, lse, positive, query.new_empty(n, dtype=torch.int64), sums, logits


def _fake_bwd(grad_loss, query, keys, query_labels, key_labels, own, *rest):
    symmetric, need_query, need_keys, need_scale = rest[5:9]
    return (
        query.new_empty((query.shape[0] if need_query else 0, query.shape[1])),
        keys.new_empty((keys.shape[0] if need_keys and not symmetric else 0, keys.shape[1])),
        query.new_empty(1 if need_scale else 0, dtype=accumulation_dtype(query)),
    )


def _fake_sum(query, keys, query_labels, key_labels, own, scale, tensor, symmetric, factor, *rest):
    refuse_forward_mode("supcon_loss")
    n, dtype = query.shape[0], accumulation_dtype(query)
    stats = (query.new_empty(n, dtype=dtype), query.new_empty(n, dtype=dtype), query.new_empty(n, dtype=torch.int64))
    return (query.new_empty((), dtype=dtype), *fake_gradients(query, keys, rest[:3]), *stats)


def _setup_context(ctx, inputs, output) -> None:
    query, keys, query_labels, key_labels, ctx.own, ctx.scale, tensor, ctx.symmetric, _, ctx.allow_tf32 = inputs
    _, _, _, positives, sums, logits = output
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(query, keys, query_labels, key_labels, tensor, positives, sums, logits)


def register(namespace: str) -> None:
    """Registers fake kernels and gradients of the op in `namespace`."""
    ops = getattr(torch.ops, namespace)

    def backward(ctx, grad_loss, *_):
        refuse_double_backward("supcon_loss")
        grads: list[Tensor | None] = [None] * 10
        if grad_loss is None:
            return tuple(grads)
        *features, tensor, positives, sums, logits = ctx.saved_tensors
        need_query, need_keys = ctx.needs_input_grad[:2]
        need_scale = tensor is not None and ctx.needs_input_grad[6]
        grad_query, grad_keys, grad_scale = ops.supcon_loss_bwd(
            grad_loss.contiguous(),
            *features,
            ctx.own,
            ctx.scale,
            tensor,
            positives,
            sums,
            logits,
            ctx.symmetric,
            need_query,
            need_keys,
            need_scale,
            ctx.allow_tf32,
        )
        grads[0] = grad_query if need_query else None
        grads[1] = grad_keys if need_keys and not ctx.symmetric else None
        grads[6] = grad_scale.reshape(tensor.shape) if need_scale else None
        return tuple(grads)

    torch.library.register_fake(f"{namespace}::supcon_loss_fwd", _fake_fwd)
    torch.library.register_fake(f"{namespace}::supcon_loss_bwd", _fake_bwd)
    torch.library.register_autograd(f"{namespace}::supcon_loss_fwd", backward, setup_context=_setup_context)
    register_sum(namespace, "supcon_loss_sum", _fake_sum, (0, 1, 6))


register("maskco")
