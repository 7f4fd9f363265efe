"""Argument handling that all ops share: DLPack, NumPy numbers, autocast, and checks that name the argument."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch._C._functorch as functorch
from torch import Tensor
from torch.autograd import forward_ad

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def as_tensor(value: Any, name: str, other: str = "") -> Tensor:
    """A tensor, or anything with `__dlpack__` (NumPy, CuPy, JAX …) as a tensor on the same memory.

    Raises TypeError for anything else, ValueError for an array that torch cannot share, such as a reversed one.
    `other` says in the message what else the argument may be.
    """
    if isinstance(value, Tensor):
        return value
    if hasattr(value, "__dlpack__"):
        try:
            if any(step < 0 for step in getattr(value, "strides", None) or ()):  # torch 2.11 and 2.13 would abort
                raise BufferError("it has negative strides")
            return torch.from_dlpack(value)
        except (RuntimeError, BufferError) as error:  # also another byte order
            reason = str(error).split("\n")[0].rstrip(".")
            raise ValueError(f"{name} cannot be shared with torch ({reason}). Pass a contiguous copy of it") from error
    raise TypeError(f"{name} must be {other}a tensor or an array with __dlpack__, got {type(value).__name__}")


def as_output(value: Any, name: str) -> Tensor:
    """`as_tensor` for what an op writes to. Raises ValueError for a read-only array, which torch would write to, and
    for a tensor whose elements mean the negative of what is stored, such as `x.conj().imag`."""
    if getattr(getattr(value, "flags", None), "writeable", True) is False:
        raise ValueError(f"{name} is a read-only array, and it is overwritten in place. Pass a copy of it")
    tensor = as_tensor(value, name)
    if not torch.compiler.is_compiling() and tensor.is_neg():
        raise ValueError(f"{name} is a negated view, and it is overwritten in place. Pass {name}.resolve_neg()")
    return tensor


def is_number(value: Any) -> bool:
    """Whether it is a number of Python or NumPy, or a CPU array without dimensions. Tensors and bools are not."""
    if isinstance(value, (int, float)):
        return not isinstance(value, bool)
    if isinstance(value, Tensor) or hasattr(value, "__cuda_array_interface__"):
        return False
    return hasattr(value, "__float__") and getattr(value, "ndim", 0) == 0 and str(getattr(value, "dtype", "")) != "bool"


def as_float(value: Any, name: str) -> float:
    """A float from any number, such as NumPy's, or from a tensor with one element."""
    if type(value) in (float, int):
        return value
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if not is_number(value):
        raise TypeError(f"{name} must be a number, got {value!r}")
    return float(value)


def as_int(value: Any, name: str) -> int:
    """An int of 64 bits from any integer type, such as NumPy's. Floats raise TypeError, even 7.0."""
    if isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool):  # (a SymInt is torch.compile's int)
        number = value
    else:
        try:
            if isinstance(value, bool) or (isinstance(value, Tensor) and value.dtype == torch.bool):
                raise TypeError
            number = operator.index(value)
        except TypeError:
            raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if not torch.compiler.is_compiling() and not -(2**63) <= number < 2**63:
        raise ValueError(f"{name} must fit into 64 bits, got {number}")
    return number  # type: ignore[return-value]


def as_pair(value: Any, name: str) -> tuple[int, int]:
    """(height, width) from one integer for both, or from any sequence of two."""
    if type(value) is int:
        return value, value
    if not (isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) == 1):
        size = as_int(value, name)
        return size, size
    if len(value) != 2:
        raise ValueError(f"{name} must be one integer or two, (height, width), got {len(value)}")
    return as_int(value[0], f"{name}[0]"), as_int(value[1], f"{name}[1]")


def check_shape(value: Tensor, shape: tuple[int | str, ...], name: str) -> None:
    """Raises ValueError unless `value` has the shape. A str is a dimension of any size, and names it in the error."""
    fits = value.dim() == len(shape)
    if fits:
        for got, want in zip(value.shape, shape, strict=True):
            fits = fits and (isinstance(want, str) or got == want)
    if not fits:  # (the text only now: torch.compile cannot format symbolic sizes)
        wanted = ", ".join(str(s) for s in shape)
        raise ValueError(f"{name} must have shape [{wanted}], got {list(value.shape)}")


def check_dtype(value: Tensor, dtypes: tuple[torch.dtype, ...], name: str) -> None:
    if value.dtype not in dtypes:
        allowed = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise TypeError(f"{name} must be {allowed}, got {str(value.dtype).removeprefix('torch.')}")


def check_device(value: Tensor, like: Tensor, name: str, like_name: str) -> None:
    if value.device != like.device:
        raise ValueError(f"{name} is on {value.device} but {like_name} on {like.device}. Move one of them")


def autocast_on(value: Tensor) -> bool:
    return value.device.type != "meta" and torch.is_autocast_enabled(value.device.type)


def refuse_transforms(op: str, *tensors: Tensor | None) -> bool:
    """Whether a torch.func transform or forward-mode AD is active. Raises RuntimeError if it differentiates a tensor.

    The compiled ops have gradients only for `backward` and `torch.autograd.grad`. In forward mode torch would silently
    give a tangent of 0. torch.compile cannot trace this check: see `refuse_forward_mode`.
    """
    if torch.compiler.is_compiling() or (forward_ad._current_level < 0 and functorch.peek_interpreter_stack() is None):
        return False
    if any(tensor is not None and _is_differentiated(tensor) for tensor in tensors):
        raise RuntimeError(_no_transform(op))
    return True


def refuse_forward_mode(op: str) -> None:
    """Raises if forward-mode AD is active at all. For fake kernels, which run when torch.compile traces."""
    if forward_ad._current_level >= 0:
        raise RuntimeError(_no_transform(op))


def _no_transform(op: str) -> str:
    if op == "queue_push_":
        advice = "Its keys are constants. Pass keys.detach()"
    else:
        advice = f"Use backward() or torch.autograd.grad, or maskco.ops.reference.{op}, the same in plain torch"
    return (
        f"{op} has no forward-mode derivative (torch.func.jvp, jacfwd, dual tensors) and no torch.func gradient (grad, "
        f"vjp, jacrev, hessian). {advice}"
    )


def _is_differentiated(tensor: Tensor) -> bool:
    forward = forward_ad._current_level >= 0
    while functorch.is_functorch_wrapped_tensor(tensor):  # one wrapper for each transform; vmap's are harmless
        if functorch.is_gradtrackingtensor(tensor) and (forward or tensor.requires_grad):
            return True
        tensor = functorch.get_unwrapped(tensor)
    return forward and forward_ad.unpack_dual(tensor).tangent is not None
