"""SigLIP's loss: no normaliser, so loss and all gradients come from one stream over all pairs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maskco.ops import _library, reference
from maskco.ops._contrast import (
    accumulation_dtype,
    check_features,
    check_nonzero,
    check_reduction,
    check_scalar,
    needs_grad,
    one_dtype,
    refuse_double_backward,
    scalar_of,
)
from maskco.ops._inputs import as_int, as_tensor, refuse_forward_mode, refuse_transforms


def siglip_loss(
    image: Tensor,
    text: Tensor,
    *,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor,
    offset: int | None = 0,
    reduction: str = "mean",
) -> Tensor:
    """The pairwise sigmoid loss (SigLIP, Zhai et al., 2023), without a tensor of all logits.

    The same as this, but `logits` is never allocated::

        logits = logit_scale * image @ text.T + logit_bias   # [N, M]
        labels = 2 * torch.eye(N) - 1                        # 1: a pair, -1: not
        loss = -F.logsigmoid(labels * logits).sum() / N

    With the default reduction one sweep over all pairs gives the loss and every gradient.

    Args:
        image: [N, C], float32, float64, float16 or bfloat16. Normalise it first, as SigLIP does.
        text: [M, C].
        logit_scale: multiplies the dot products. A float, or a tensor with one element, which gets a gradient. SigLIP
            learns its logarithm: pass `log_scale.exp()`.
        logit_bias: added to each logit. A float, or a tensor with one element, which gets a gradient.
        offset: row 0 of `image` belongs to row `offset` of `text`, row 1 to the next, and so on. None: no image
            belongs to any of these texts, as in blocks of texts from other ranks.
        reduction: "mean" over the N images, "sum", or "none": each image's sum over all texts.

    Both must have one dtype; under autocast the narrower one is widened. Sums run in float32 (float64 for float64).
    Bit for bit repeatable. There is no second derivative and no forward-mode one.

    Returns:
        The loss, [] or [N], float32 (float64 for float64 inputs).

    Raises:
        TypeError: dtypes that are not supported, or mixed.
        ValueError: shapes, devices or options that do not fit. The message names the argument.
        RuntimeError: a backward pass with create_graph=True; forward-mode AD and torch.func's gradients.
    """
    image, text = as_tensor(image, "image"), as_tensor(text, "text")
    check_features(image, ("N", "C"), "image", image, "image")
    check_features(text, ("M", image.shape[1]), "text", image, "image")
    check_reduction(reduction)
    offset = None if offset is None else as_int(offset, "offset")
    image, text = one_dtype({"image": image, "text": text}, image)  # type: ignore[assignment]
    scale = check_nonzero(logit_scale, image, "logit_scale", "image")
    bias = check_scalar(logit_bias, image, "logit_bias", "image")

    if _library.kernels(image.device, cpu_only="siglip_loss") is None:
        loss = reference.siglip_loss(image, text, scale=scalar_of(scale), bias=scalar_of(bias), offset=offset)
        loss = loss if reduction == "none" else loss.sum()
    elif reduction == "none":
        refuse_transforms("siglip_loss", image, text, scale[1], bias[1])
        loss = torch.ops.maskco.siglip_loss_fwd(image, text, offset, *scale, *bias)
    else:
        in_vmap = refuse_transforms("siglip_loss", image, text, scale[1], bias[1])
        needed = [in_vmap or needs_grad(t) for t in (image, text, scale[1], bias[1])]
        loss = torch.ops.maskco.siglip_loss_sum(image, text, offset, *scale, *bias, *needed)[0]
    return loss / max(image.shape[0], 1) if reduction == "mean" else loss


def _sizes(query: Tensor, keys: Tensor, needed: tuple[bool, ...]) -> tuple[Tensor, ...]:
    features = torch.float32 if query.dtype == torch.float16 else query.dtype
    rows = tuple(t.shape[0] if need else 0 for t, need in zip((query, keys), needed, strict=False))
    scalars = tuple(1 if need else 0 for need in needed[2:])
    return (
        *(query.new_empty((count, query.shape[1]), dtype=features) for count in rows),
        *(query.new_empty(count, dtype=accumulation_dtype(query)) for count in scalars),
    )


def _fake_fwd(query, *_):
    refuse_forward_mode("siglip_loss")
    return query.new_empty(query.shape[0], dtype=accumulation_dtype(query))


def _fake_bwd(grad_loss, query, keys, own, scale, scale_tensor, bias, bias_tensor, *needed):
    return _sizes(query, keys, needed)


def _fake_sum(query, keys, own, scale, scale_tensor, bias, bias_tensor, *needed):
    refuse_forward_mode("siglip_loss")
    return (query.new_empty((), dtype=accumulation_dtype(query)), *_sizes(query, keys, needed))


def _setup_rows(ctx, inputs, output) -> None:
    query, keys, own, scale, scale_tensor, bias, bias_tensor = inputs
    ctx.save_for_backward(query, keys, scale_tensor, bias_tensor)
    ctx.own, ctx.scale, ctx.bias = own, scale, bias


def _setup_sum(ctx, inputs, output) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:])
    ctx.dtype = inputs[0].dtype


_DIFFERENTIABLE = (0, 1, 4, 6)  # query, keys, scale_tensor, bias_tensor


def _backward_of_sum(ctx, grad_loss, *_) -> tuple[Tensor | None, ...]:
    refuse_double_backward("siglip_loss")
    grads: list[Tensor | None] = [None] * 11
    if grad_loss is None:
        return tuple(grads)
    for at, grad in zip(_DIFFERENTIABLE, ctx.saved_tensors, strict=True):
        if ctx.needs_input_grad[at]:
            grad = grad * grad_loss
            grads[at] = grad.to(ctx.dtype) if at < 2 else grad.reshape(())
    return tuple(grads)


def register(namespace: str) -> None:
    """Fake kernels and gradients of the ops in `namespace`."""
    ops = getattr(torch.ops, namespace)

    def backward_of_rows(ctx, grad_loss) -> tuple[Tensor | None, ...]:
        refuse_double_backward("siglip_loss")
        query, keys, scale_tensor, bias_tensor = ctx.saved_tensors
        needed = [ctx.needs_input_grad[at] for at in _DIFFERENTIABLE]
        found = ops.siglip_loss_bwd(
            grad_loss.contiguous(), query, keys, ctx.own, ctx.scale, scale_tensor, ctx.bias, bias_tensor, *needed
        )
        grads: list[Any] = [None] * 7
        for at, grad, need in zip(_DIFFERENTIABLE, found, needed, strict=True):
            if need:
                grads[at] = grad.to(query.dtype) if at < 2 else grad.reshape(())
        return tuple(grads)

    torch.library.register_fake(f"{namespace}::siglip_loss_fwd", _fake_fwd)
    torch.library.register_fake(f"{namespace}::siglip_loss_bwd", _fake_bwd)
    torch.library.register_fake(f"{namespace}::siglip_loss_sum", _fake_sum)
    torch.library.register_autograd(f"{namespace}::siglip_loss_fwd", backward_of_rows, setup_context=_setup_rows)
    torch.library.register_autograd(f"{namespace}::siglip_loss_sum", _backward_of_sum, setup_context=_setup_sum)


register("maskco")
