"""What every op does with its arguments first: DLPack, checks with the argument's name, dtypes under autocast."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def as_tensor(value: Any, name: str) -> Tensor:
    """A tensor, or anything with `__dlpack__` (NumPy, CuPy, JAX …) as a tensor on the same memory."""
    if isinstance(value, Tensor):
        return value
    if hasattr(value, "__dlpack__"):
        return torch.from_dlpack(value)
    raise TypeError(f"{name} must be a tensor or an array with __dlpack__, got {type(value).__name__}")


def check_shape(value: Tensor, shape: tuple[int | str, ...], name: str) -> None:
    """Raises ValueError unless `value` has the shape; a str is a dimension of any size, its name shown in the error."""
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
        raise ValueError(f"{name} is on {value.device} but {like_name} on {like.device}; move one of them")


def autocast_on(value: Tensor) -> bool:
    return value.device.type != "meta" and torch.is_autocast_enabled(value.device.type)
