"""SigLIP's loss. It has no normaliser, so one sweep over all pairs gives the loss and all gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from maskco.ops import _library, reference
from maskco.ops._contrast import (
    accumulation_dtype,
    allow_tf32,
    check_features,
    check_nonzero,
    check_reduction,
    check_scalar,
    divided,
    fake_gradients,
    mean_factor,
    needs_grad,
    one_dtype,
    reduce,
    refuse_double_backward,
    register_sum,
    scalar_of,
    with_gradients,
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

    Equivalent plain torch, whose `logits` this op never allocates::

        logits = logit_scale * image @ text.T + logit_bias   # [N, M]
        labels = 2 * torch.eye(N) - 1                        # 1: a pair, -1: no pair
        loss = -F.logsigmoid(labels * logits).sum() / N

    With the default reduction one sweep over all pairs gives the loss and every gradient.

    Args:
        image: [N, C], float32, float64, float16 or bfloat16. Normalise it first, as SigLIP does.
        text: [M, C].
        logit_scale: multiplies the dot products. A float, or a tensor with one element, which gets a gradient. SigLIP
            learns its logarithm, so pass `log_scale.exp()`.
        logit_bias: added to each logit. A float, or a tensor with one element, which gets a gradient.
        offset: row 0 of `image` belongs to row `offset` of `text`, row 1 to the next row, and so on. With None, no
            image belongs to any of these texts, as in blocks of texts from other ranks.
        reduction: "mean" over the N images, "sum" or "none". "none" gives each image's sum over all texts.

    Both must have one dtype. Autocast widens the narrower one. Sums run in float32 (float64 for float64 inputs).
    Results are repeatable bit for bit. There is no second derivative and no forward-mode derivative.

    Returns:
        The loss, [] or [N], float32 (float64 for float64 inputs).

    Raises:
        TypeError: an unsupported dtype, or mixed dtypes.
        ValueError: a shape, device or option that does not fit. The message names the argument.
        RuntimeError: a backward pass with create_graph=True, forward-mode AD, or a gradient of torch.func.
    """
    image, text = as_tensor(image, "image"), as_tensor(text, "text")
    check_features(image, ("N", "C"), "image", image, "image")
    check_features(text, ("M", image.shape[1]), "text", image, "image")
    check_reduction(reduction)
    offset = None if offset is None else as_int(offset, "offset")
    image, text = one_dtype({"image": image, "text": text}, image)  # type: ignore[assignment]
    scale = check_nonzero(logit_scale, image, "logit_scale", "image")
    bias = check_scalar(logit_bias, image, "logit_bias", "image")

    ops = _library.kernels(image.device)
    if ops is None:
        loss = reference.siglip_loss(image, text, scale=scalar_of(scale), bias=scalar_of(bias), offset=offset)
        return reduce(loss, reduction)
    in_vmap = refuse_transforms("siglip_loss", image, text, scale[1], bias[1])
    if reduction == "none":
        return ops.siglip_loss_fwd(image, text, offset, *scale, *bias, allow_tf32())
    inputs = (image, text, scale[1], bias[1])
    needed = [in_vmap or needs_grad(t) for t in inputs]
    n = image.shape[0]
    arguments = (image, text, offset, *scale, *bias, mean_factor(n, reduction), *needed, allow_tf32())
    loss, *_ = with_gradients(ops.siglip_loss_sum.default, arguments, *inputs, in_vmap=in_vmap)
    return divided(loss, n, reduction)


def _fake_fwd(query, *_):
    refuse_forward_mode("siglip_loss")
    return query.new_empty(query.shape[0], dtype=accumulation_dtype(query))


def _fake_bwd(grad_loss, query, keys, own, scale, scale_tensor, bias, bias_tensor, *needed):
    return tuple(t.to(query.dtype) if i < 2 else t for i, t in enumerate(fake_gradients(query, keys, needed[:4])))


def _fake_sum(query, keys, own, scale, scale_tensor, bias, bias_tensor, factor, *needed):
    refuse_forward_mode("siglip_loss")
    return (query.new_empty((), dtype=accumulation_dtype(query)), *fake_gradients(query, keys, needed[:4]))


def _setup_rows(ctx, inputs, output) -> None:
    query, keys, ctx.own, ctx.scale, scale_tensor, ctx.bias, bias_tensor, ctx.allow_tf32 = inputs
    ctx.save_for_backward(query, keys, scale_tensor, bias_tensor)


_DIFFERENTIABLE = (0, 1, 4, 6)  # query, keys, scale_tensor, bias_tensor


def register(namespace: str) -> None:
    """Registers fake kernels and gradients of the ops in `namespace`."""
    ops = getattr(torch.ops, namespace)

    def backward(ctx, grad_loss) -> tuple[Tensor | None, ...]:
        refuse_double_backward("siglip_loss")
        query, keys, scale_tensor, bias_tensor = ctx.saved_tensors
        needed = [ctx.needs_input_grad[at] for at in _DIFFERENTIABLE]
        options = (ctx.own, ctx.scale, scale_tensor, ctx.bias, bias_tensor)
        found = ops.siglip_loss_bwd(grad_loss.contiguous(), query, keys, *options, *needed, ctx.allow_tf32)
        grads: list[Tensor | None] = [None] * 8
        for at, grad, need in zip(_DIFFERENTIABLE, found, needed, strict=True):
            if need:
                grads[at] = grad if at < 2 else grad.reshape(())
        return tuple(grads)

    torch.library.register_fake(f"{namespace}::siglip_loss_fwd", _fake_fwd)
    torch.library.register_fake(f"{namespace}::siglip_loss_bwd", _fake_bwd)
    torch.library.register_autograd(f"{namespace}::siglip_loss_fwd", backward, setup_context=_setup_rows)
    register_sum(namespace, "siglip_loss_sum", _fake_sum, _DIFFERENTIABLE)


register("maskco")
