"""InfoNCE against a queue, in-batch and local negatives. One pass gives loss and gradient, without an [N, K] tensor."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskco.ops import _library, reference
from maskco.ops._contrast import (
    accumulation_dtype,
    allow_tf32,
    check_ids,
    check_nonzero,
    check_reduction,
    inverse,
    one_dtype,
    reduce,
    refuse_double_backward,
)
from maskco.ops._inputs import (
    FLOATS,
    INTEGERS,
    as_float,
    as_int,
    as_tensor,
    check_device,
    check_dtype,
    check_shape,
    is_number,
    refuse_forward_mode,
    refuse_transforms,
)
from maskco.ops.clip import all_pairs


class InfoNCEStats(NamedTuple):
    """Statistics from the same pass. All are [N], without gradient, float32 (float64 for float64 inputs)."""

    lse: Tensor
    """Logsumexp of the logits of the positive and all negatives."""
    positive_logit: Tensor
    """The logit of the positive: query · positive / temperature."""
    rank: Tensor
    """int64, number of negatives with a larger logit than the positive's. 0 is a top-1 hit, below 5 a top-5 hit. Logits
    that are equal up to rounding may count either way."""


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
    reduction: str = "mean",
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, InfoNCEStats]:
    """The InfoNCE loss (van den Oord et al., 2018, and MoCo, He et al., 2020), without a tensor of all logits.

    Equivalent plain torch, whose `logits` this op never allocates::

        negatives = query @ queue.T                          # [N, K], also local, in-batch
        logits = torch.cat([(query * positive).sum(1, keepdim=True), negatives], 1) / temperature
        loss = F.cross_entropy(logits, torch.zeros(N, dtype=torch.long), reduction=reduction)

    The loss alone costs one matrix product, and the loss with gradients two. Extra memory does not grow with K.

    Args:
        query: [N, C], float32, float64, float16 or bfloat16. Normalise it first for cosine similarity.
        positive: [N, C], the key of each query.
        queue: [K, C], negatives shared by all queries, with any strides. A transposed [C, K] buffer is not copied.
        local_negatives: [N, M, C], negatives of each query alone, such as other regions of its image.
        in_batch: the other queries' positives are negatives too (SimCLR, CLIP).
        query_ids, queue_ids: [N] and [K] integers. A key with the query's id is not its negative. With `in_batch` this
            holds for the other queries' positives too, and `query_ids` alone is enough.
        valid: only the first `valid` rows of the queue count. Rows beyond may hold anything. An int, or an integer
            tensor with one element on the queue's device. The tensor is read there.
        temperature: divides the dot products. A float, or a tensor with one element, which then gets a gradient. It may
            be negative, but not 0.
        decoupled: leave the positive out of the sum (DCL, Yeh et al., 2022). The loss may then be negative. It is 0 for
            a query without negatives.
        margin: a key is not a negative if its dot product with the query exceeds the positive's by more than this. Such
            keys may be positives without a label. No gradient flows through the choice.
        reduction: "mean", "sum" or "none". The mean over no queries is 0.
        return_stats: also return the `InfoNCEStats`.

    Dtypes and inputs:

    - Inputs may be tensors, or arrays with `__dlpack__`.
    - All float inputs must have one dtype. Autocast converts them to the queue's dtype, and so never copies the queue.
      Without a queue it converts them to the widest dtype.
    - Sums run in float32 (float64 for float64 inputs). Products of float32 do too, unless
      torch.set_float32_matmul_precision allows TF32. On CUDA the softmax weights of 16-bit keys are rounded to 16 bits.

    Gradients:

    - Every float input that requires a gradient gets one. A gradient for the queue costs a second pass over the queue.
    - You may push new keys into a queue without gradient between loss and backward. No gradient changes.
    - Results are repeatable bit for bit.
    - There is no second derivative and no forward-mode derivative. `torch.func.vmap` works.

    Returns:
        The loss, [] or [N], float32 (float64 for float64 inputs), or (loss, InfoNCEStats).

    Raises:
        TypeError: an unsupported dtype, or mixed dtypes.
        ValueError: a shape, device or option that does not fit. The message names the argument.
        RuntimeError: a backward pass with create_graph=True, forward-mode AD, or a gradient of torch.func.
            `maskco.ops.reference.info_nce` supports these. On the CPU also a tensor `valid` outside the queue. CUDA
            clamps `valid`, since a check would wait for the device.
    """
    query, positive = as_tensor(query, "query"), as_tensor(positive, "positive")
    queue = None if queue is None else as_tensor(queue, "queue")
    local_negatives = None if local_negatives is None else as_tensor(local_negatives, "local_negatives")
    _check_features(query, positive, queue, local_negatives)
    query_ids, queue_ids = _check_ids(query, queue, in_batch, query_ids, queue_ids)
    queue, queue_ids, valid = _check_valid(queue, queue_ids, valid)
    check_reduction(reduction)
    features = {"query": query, "positive": positive, "queue": queue, "local_negatives": local_negatives}
    query, positive, queue, local_negatives = one_dtype(features, query, queue)  # type: ignore[assignment]
    scalar, temperature_tensor = check_nonzero(temperature, query, "temperature", "query")

    margin = None if margin is None else check_margin(margin)
    ops = _library.kernels(query.device)
    variant = decoupled or margin is not None  # (CUDA's flash kernels know neither)
    if ops is None:
        loss, lse, positive_logit, rank = reference.info_nce(
            query,
            positive,
            queue,
            local_negatives=local_negatives,
            in_batch=in_batch,
            query_ids=query_ids,
            queue_ids=queue_ids,
            valid=valid,
            temperature=scalar if temperature_tensor is None else temperature_tensor,
            decoupled=decoupled,
            margin=margin,
        )
    elif in_batch and queue is local_negatives is None and (_library.keep_logits(ops, query.device) or variant):
        scale, decoupled = inverse((scalar, temperature_tensor)), bool(decoupled)
        pairs = ops, query, positive, query_ids, scale
        loss, stats = all_pairs(*pairs, reduction, decoupled=decoupled, margin=margin, stats=return_stats)
        return (loss, InfoNCEStats(*stats)) if return_stats else loss
    else:
        # (under vmap a tensor does not say whether it requires a gradient outside)
        in_vmap = refuse_transforms("info_nce", query, positive, queue, local_negatives, temperature_tensor)
        need_grad = torch.is_grad_enabled() and (
            in_vmap or query.requires_grad or (temperature_tensor is not None and temperature_tensor.requires_grad)
        )
        loss, lse, positive_logit, rank, *_ = ops.info_nce_fwd(
            query,
            positive,
            queue,
            local_negatives,
            in_batch,
            query_ids,
            queue_ids,
            valid,
            scalar,
            temperature_tensor,
            need_grad,
            allow_tf32(),
            bool(decoupled),
            margin,
        )
    loss = reduce(loss, reduction)
    if not return_stats:
        return loss
    return loss, InfoNCEStats(lse.detach(), positive_logit.detach(), rank)


def check_margin(value: Any) -> float:
    margin = as_float(value, "margin")
    if margin != margin:
        raise ValueError(f"margin must be a number, got {margin}")
    return margin


def _check_features(query: Tensor, positive: Tensor, queue: Tensor | None, local_negatives: Tensor | None) -> None:
    check_shape(query, ("N", "C"), "query")
    n, c = query.shape
    check_shape(positive, (n, c), "positive")
    features = {"query": query, "positive": positive}
    if queue is not None:
        check_shape(queue, ("K", c), "queue")
        features["queue"] = queue
    if local_negatives is not None:
        check_shape(local_negatives, (n, "M", c), "local_negatives")
        features["local_negatives"] = local_negatives
    for name, value in features.items():
        check_dtype(value, FLOATS, name)
        check_device(value, query, name, "query")


def _check_ids(
    query: Tensor, queue: Tensor | None, in_batch: bool, query_ids: Any, queue_ids: Any
) -> tuple[Tensor | None, Tensor | None]:
    if queue_ids is not None and (queue is None or query_ids is None):
        raise ValueError("queue_ids were given without " + ("queue" if queue is None else "query_ids") + ". Pass both")
    if query_ids is not None and queue_ids is None and not in_batch:
        raise ValueError("query_ids have nothing to be compared with. Pass queue_ids, or in_batch=True")
    checked: list[Tensor | None] = []
    for ids, features, name in ((query_ids, query, "query_ids"), (queue_ids, queue, "queue_ids")):
        given = ids is not None and features is not None  # (queue_ids without a queue raised above)
        checked.append(check_ids(ids, features.shape[0], query, name, "query") if given else None)  # type: ignore[union-attr]
    return checked[0], checked[1]


def _check_valid(
    queue: Tensor | None, queue_ids: Tensor | None, valid: Any
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Applies an int `valid` by shortening the queue. A tensor stays on its device, so that nothing waits for it."""
    if valid is None:
        return queue, queue_ids, None
    if queue is None:
        raise ValueError("valid was given without queue. Pass both")
    if is_number(valid):
        valid = as_int(valid, "valid")
        if not 0 <= valid <= queue.shape[0]:
            raise ValueError(f"valid must lie between 0 and the queue's {queue.shape[0]} rows, got {valid}")
        return queue[:valid], None if queue_ids is None else queue_ids[:valid], None
    valid = as_tensor(valid, "valid", "an integer, ")
    if valid.numel() != 1:
        raise ValueError(f"valid must be an int or have one element, got shape {list(valid.shape)}")
    check_dtype(valid, INTEGERS, "valid")
    check_device(valid, queue, "valid", "queue")
    return queue, queue_ids, valid.to(torch.int64)


def _fake_fwd(
    query,
    positive,
    queue,
    local_negatives,
    in_batch,
    query_ids,
    queue_ids,
    valid,
    temperature,
    tensor,
    need,
    tf32,
    decoupled=False,
    margin=None,
):
    refuse_forward_mode("info_nce")
    n, c = query.shape
    dtype = accumulation_dtype(query)
    loss, lse, positive_logit = (query.new_empty(n, dtype=dtype) for _ in range(3))
    rank = query.new_empty(n, dtype=torch.int64)
    m = 0 if local_negatives is None else local_negatives.shape[1]
    grad_query, normaliser, local_share = (
        query.new_empty(size, dtype=dtype) for size in ((n if need else 0, c), (2, n), (n, m))
    )
    return loss, lse, positive_logit, rank, grad_query, normaliser, local_share


def _fake_bwd_keys(
    grad_loss,
    normaliser,
    query,
    keys,
    in_batch,
    query_ids,
    key_ids,
    valid,
    temperature,
    tensor,
    aligned,
    tf32,
    margin=None,
    positive_logit=None,
):
    return torch.empty_like(keys, memory_format=torch.contiguous_format)


def _setup_context(ctx, inputs, output) -> None:
    query, positive, queue, _, in_batch, query_ids, queue_ids, valid, temperature, tensor, *_ = inputs
    tf32, decoupled, margin = inputs[11:]
    loss, _, positive_logit, _, grad_query, normaliser, local_share = output
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    # A queue without gradient is not needed again: it may be pushed into before backward.
    ctx.queue_needs_grad = ctx.needs_input_grad[2]
    saved_queue = (queue, query_ids, queue_ids, valid) if ctx.queue_needs_grad else (None, query_ids, None, None)
    saved_rows = (tensor, loss, grad_query, normaliser, local_share, None if margin is None else positive_logit)
    ctx.save_for_backward(query, positive, *saved_rows, *saved_queue)
    ctx.in_batch, ctx.temperature, ctx.allow_tf32 = in_batch, temperature, tf32
    ctx.decoupled, ctx.margin = decoupled, margin
    plain = not decoupled and margin is None  # (else the forward pass did not take CUDA's flash kernels)
    ctx.aligned = plain and all(_aligned_rows(t) for t in (query, positive, queue) if t is not None)


def _aligned_rows(features: Tensor) -> bool:
    """Whether each row starts at a 16-byte boundary, as CUDA's flash kernels need. Allocations do."""
    size = features.element_size()
    return features.stride(1) == 1 and not (features.stride(0) * size % 16 or features.storage_offset() * size % 16)


def register(namespace: str) -> None:
    """Registers fake kernels and gradients of the ops in `namespace`: "maskco", or the simulated device's in tests."""
    ops = getattr(torch.ops, namespace)

    def backward(ctx, grad_loss, *_):
        refuse_double_backward("info_nce")
        if grad_loss is None:
            return (None,) * 14
        query, positive, tensor, loss, grad_query, normaliser, local_share, logit, *saved_queue = ctx.saved_tensors
        queue, query_ids, queue_ids, valid = saved_queue
        need_query, need_positive, need_queue, need_local = ctx.needs_input_grad[:4]
        tau = ctx.temperature if tensor is None else tensor
        weight = (grad_loss / tau)[:, None]  # [N, 1]: d loss / d (query · key)
        wide = query.to(grad_query.dtype)
        options = (ctx.temperature, tensor, ctx.aligned, ctx.allow_tf32, ctx.margin, logit)
        grads: list[Tensor | None] = [None] * 14
        if need_query:
            grads[0] = (grad_query * grad_loss[:, None]).to(query.dtype)
        if need_positive:
            less_one = -(normaliser[1] != 0).to(loss.dtype) if ctx.decoupled else torch.expm1(-loss)
            own = weight * less_one[:, None]  # [N, 1]: (p_+ - 1) / tau, of q
            if ctx.in_batch:
                args = (grad_loss, normaliser, query, positive, True, query_ids, query_ids, None)
                grad = ops.info_nce_bwd_keys(*args, *options)
                grad = grad.to(wide.dtype).addcmul_(own, wide)
            else:
                grad = own * wide
            grads[1] = grad.to(positive.dtype)
        if need_queue:
            args = (grad_loss, normaliser, query, queue, False, query_ids, queue_ids, valid)
            grads[2] = ops.info_nce_bwd_keys(*args, *options)
        if need_local:
            grads[3] = ((weight * local_share)[:, :, None] * wide[:, None]).to(query.dtype)
        if tensor is not None and ctx.needs_input_grad[9]:
            # d loss_i / d tau = -(sum_j p_ij s_ij - s_i+) / tau, and that sum is q_i · grad_query_i
            grads[9] = (-(grad_loss * (wide * grad_query).sum(1)).sum() / tau).reshape(tensor.shape)
        return tuple(grads)

    torch.library.register_fake(f"{namespace}::info_nce_fwd", _fake_fwd)
    torch.library.register_fake(f"{namespace}::info_nce_bwd_keys", _fake_bwd_keys)
    torch.library.register_autograd(f"{namespace}::info_nce_fwd", backward, setup_context=_setup_context)


register("maskco")
