"""Argument handling that the contrastive losses share: dtypes of features, ids, scales, reductions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch._C._functorch as functorch
from torch import Tensor

from maskco.ops import _library
from maskco.ops._inputs import (
    FLOATS,
    INTEGERS,
    as_float,
    as_tensor,
    autocast_on,
    check_device,
    check_dtype,
    check_shape,
    is_number,
)


def check_features(value: Tensor, shape: tuple[int | str, ...], name: str, like: Tensor, like_name: str) -> None:
    check_shape(value, shape, name)
    check_dtype(value, FLOATS, name)
    check_device(value, like, name, like_name)


def check_ids(ids: Any, count: int, like: Tensor, name: str, like_name: str) -> Tensor:
    """Ids [count] of any integer dtype, checked, as contiguous int64."""
    ids = as_tensor(ids, name)
    check_shape(ids, (count,), name)
    check_dtype(ids, INTEGERS, name)
    check_device(ids, like, name, like_name)
    return ids.to(torch.int64).contiguous()


def one_dtype(features: dict[str, Tensor | None], first: Tensor, leader: Tensor | None = None) -> list[Tensor | None]:
    """The features in one dtype: under autocast the leader's or the widest. Without autocast, mixed dtypes raise."""
    dtypes = {t.dtype for t in features.values() if t is not None}
    if len(dtypes) == 1:
        return list(features.values())
    if not autocast_on(first):
        *names, last = features
        found = ", ".join(sorted(str(d).removeprefix("torch.") for d in dtypes))
        raise TypeError(f"{', '.join(names)} and {last} must have one dtype, got {found}. Convert them")
    dtype = leader.dtype if leader is not None else max(dtypes, key=lambda d: d.itemsize)
    return [None if t is None else t.to(dtype) for t in features.values()]


def check_scalar(value: Any, features: Tensor, name: str, like_name: str) -> tuple[float, Tensor | None]:
    """(the float, None), or (the power 1.0, the tensor in the dtype of the sums)."""
    if is_number(value):
        return float(as_float(value, name)), None
    value = as_tensor(value, name, "a number, ")
    if value.numel() != 1:
        raise ValueError(f"{name} must be a float or have one element, got shape {list(value.shape)}")
    check_dtype(value, FLOATS, name)
    check_device(value, features, name, like_name)
    value = value.to(accumulation_dtype(features))
    return 1.0, value.reshape(()) if value.dim() else value  # (a view more would be a step of autograd more)


def check_nonzero(value: Any, features: Tensor, name: str, like_name: str) -> tuple[float, Tensor | None]:
    """`check_scalar` for a temperature or scale, which must not be 0."""
    number, tensor = check_scalar(value, features, name, like_name)
    return (number if tensor is not None else check_number(number, name)), tensor


def check_number(value: Any, name: str) -> float:
    """The float of a number other than 0."""
    number = float(as_float(value, name))
    if number == 0 or number != number:  # (math.isnan would end torch.compile's graph)
        raise ValueError(f"{name} must be a number other than 0, got {number}")
    return number


def check_temperature(value: Any) -> None:
    """For modules, which know no features yet: raises for what is neither an array nor a number other than 0."""
    if is_number(value) or not hasattr(value, "__dlpack__"):
        check_number(value, "temperature")


def inverse(scalar: tuple[float, Tensor | None]) -> tuple[float, Tensor | None]:
    """A temperature as a scale: the inverse float, or the tensor with the power -1."""
    number, tensor = scalar
    return (1 / number, None) if tensor is None else (-1.0, tensor)


def scalar_of(scalar: tuple[float, Tensor | None]) -> float | Tensor:
    number, tensor = scalar
    if tensor is None:
        return number
    return 1 / tensor if number < 0 else tensor


def accumulation_dtype(features: Tensor) -> torch.dtype:
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def check_reduction(reduction: str) -> None:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")


def reduce(loss: Tensor, reduction: str) -> Tensor:
    """[N] -> [], or [N] for "none". The mean of no losses is 0."""
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.sum() / max(loss.shape[0], 1)


def padded(n: int) -> int:
    """Rows as the kernels lay them out."""
    return (n + 31) // 32 * 32


def kept_rows(ops: Any, n: int, k: int, features: Tensor, *, some: bool = False) -> int:
    """How many of the first queries have their logits kept for the backward pass.

    Keeping logits is faster than computing them again. The result is all or none, or with `some` as many as fit. 16 MiB
    hold the logits of 2048 pairs in float32. With the rest of a call's memory that stays below 32 MiB. bfloat16
    gradients, and many channels, need more for the rest. CUDA kernels keep none.
    """
    if not _library.keep_logits(ops, features.device):
        return 0
    row, room = k * accumulation_dtype(features).itemsize, 16 * 2**20
    if row * padded(n) <= room:
        return padded(n)
    if features.dtype == torch.bfloat16 or features.shape[1] > 512:
        room //= 2
    return room // row // 128 * 128 if some else 0


def allow_tf32() -> bool:
    """Whether TF32 is allowed, by torch.set_float32_matmul_precision("high") or the newer and older settings."""
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


# torch.compile guards this setting in any case, but cannot trace how it is read. The same as decorating with
# torch.compiler.assume_constant_result, which would take seconds of import time for torch._dynamo.
vars(allow_tf32)["_dynamo_marked_constant"] = True


def needs_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def mean_factor(count: int, reduction: str) -> float:
    """The factor for the sum of `count` losses, which an <op>_sum takes. While a graph is traced it is 1, since a float
    made of a size would hold for this size alone: `divided` does the rest."""
    return 1 / max(count, 1) if reduction == "mean" and not _traced(count) else 1.0


def divided(loss: Tensor, count: int, reduction: str) -> Tensor:
    """The reduced loss, of an <op>_sum's with `mean_factor`."""
    return loss / max(count, 1) if reduction == "mean" and _traced(count) else loss


def _traced(count: int) -> bool:
    """Whether torch.compile, make_fx or torch.jit.trace makes a graph, in which `count` will be another."""
    return torch.compiler.is_compiling() or type(count) is not int


class _Ready(torch.autograd.Function):
    """A loss whose op also returns the gradients. torch.library's autograd would cost more than a small loss."""

    @staticmethod
    def forward(ctx, op, arguments, stats, *inputs):
        with torch._C._AutoDispatchBelowAutograd():
            loss, *rest = op(*arguments)
        stats += rest[len(inputs) :]
        ctx.save_for_backward(*rest[: len(inputs)])
        ctx.dtype = inputs[0].dtype
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        factor = None if _is_one(grad_loss) else grad_loss  # (else a copy of each gradient more)
        return (None, None, None, *_scaled(ctx, factor, ctx.needs_input_grad[3:]))


def _is_one(number: Tensor) -> bool:
    """Whether a tensor [] holds a 1. False where reading it would not be allowed, or would wait for a device."""
    if type(number) is not Tensor or number.device.type != "cpu" or torch.compiler.is_compiling():
        return False  # (among others a fake tensor)
    if torch._C._len_torch_dispatch_stack():  # (make_fx traces)
        return False
    if functorch.is_batchedtensor(number) or functorch.is_legacy_batchedtensor(number):
        return False
    return number.item() == 1


def _scaled(ctx, grad_loss: Tensor | None, needed: Sequence[bool]) -> list[Tensor | None]:
    """The saved gradients times the upstream gradient (None: 1). Those of both features come first, then of scalars."""
    refuse_double_backward("this loss")
    grads: list[Tensor | None] = [None] * len(needed)
    for at, (grad, need) in enumerate(zip(ctx.saved_tensors, needed, strict=True)):
        if need:
            grad = grad if grad_loss is None else grad * grad_loss
            grads[at] = grad.to(ctx.dtype) if at < 2 else grad.reshape(())
    return grads


def with_gradients(op: Any, arguments: tuple, *inputs: Tensor | None, in_vmap: bool = False) -> list[Tensor]:
    """The loss and statistics of an <op>_sum. Its gradients for `inputs` go to autograd."""
    if in_vmap or torch.compiler.is_compiling() or not needs_grad(*inputs):
        loss, *rest = op(*arguments)
        return [loss, *rest[len(inputs) :]]
    stats: list[Tensor] = []
    return [_Ready.apply(op, arguments, stats, *inputs), *stats]


def register_sum(namespace: str, name: str, fake: Callable, with_gradient: Sequence[int]) -> None:
    """Registers fake kernel and gradients of an <op>_sum. `with_gradient`: positions of arguments with gradients."""

    def setup_context(ctx, inputs, output) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output[1 : 1 + len(with_gradient)])
        ctx.dtype, ctx.count = inputs[0].dtype, len(inputs)

    def backward(ctx, grad_loss, *_) -> tuple[Tensor | None, ...]:
        grads: list[Tensor | None] = [None] * ctx.count
        if grad_loss is not None:
            scaled = _scaled(ctx, grad_loss, [ctx.needs_input_grad[at] for at in with_gradient])
            for at, grad in zip(with_gradient, scaled, strict=True):
                grads[at] = grad
        return tuple(grads)

    torch.library.register_fake(f"{namespace}::{name}", fake)
    torch.library.register_autograd(f"{namespace}::{name}", backward, setup_context=setup_context)


def fake_gradients(query: Tensor, keys: Tensor, needed: Sequence[bool]) -> list[Tensor]:
    """Empty gradients of the shapes that an <op>_sum returns: for query, keys and scalars, where needed."""
    features = torch.float32 if query.dtype == torch.float16 else query.dtype
    rows = [t.shape[0] if need else 0 for t, need in zip((query, keys), needed, strict=False)]
    found = [query.new_empty((count, query.shape[1]), dtype=features) for count in rows]
    scalars = [query.new_empty(1 if need else 0, dtype=accumulation_dtype(query)) for need in needed[2:]]
    return [*found, *scalars]


def refuse_double_backward(op: str) -> None:
    """Raises in a backward pass with create_graph=True.

    Values kept by the forward pass would count as constants, so the second derivative would be wrong.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(f"{op} has no second derivative. Call backward without create_graph=True")
