"""Values of options: made plain Python once, then held against their types. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
import math
import numbers
import os
import sys
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

LARGEST = 2**63 - 1  # that torch's integers hold
Bounds = Mapping[str, tuple[float, float]]


def plain(value: Any) -> Any:
    """The value as JSON and `torch.load(weights_only=True)` know it, lists as tuples.

    NumPy's numbers and arrays, torch's tensors and devices, fractions and paths are turned; others come back as they
    are.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.device):
        return str(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (list, tuple)):
        return tuple(map(plain, value))
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, (bool, type)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        try:
            return float(value)
        except OverflowError:  # a fraction
            return math.inf
    if hasattr(value, "tolist"):  # an array, a tensor, or one of NumPy's other scalars
        return plain(value.tolist())
    return value


def make_plain(options: Any) -> None:
    """Replaces the values of a dataclass by `plain` ones, in place."""
    for field in dataclasses.fields(options):
        setattr(options, field.name, plain(getattr(options, field.name)))


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of an option's type. Whole numbers are floats too, and paths are text."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        if not isinstance(value, (tuple, list)):
            return False
        if kinds[-1] is ...:
            return all(fits(item, kinds[0]) for item in value)
        return len(value) == len(kinds) and all(map(fits, value, kinds))
    if get_args(kind):  # X | None
        return any(fits(value, each) for each in get_args(kind))
    if kind in (int, float):
        return isinstance(value, numbers.Integral if kind is int else numbers.Real) and not isinstance(value, bool)
    return isinstance(value, (str, os.PathLike) if kind is str else kind)


def misfit(options: Any, kinds: type) -> str | None:
    """A line about the first option whose value is not of its type in the dataclass `kinds`; None: all are."""
    fields = {field.name: field for field in dataclasses.fields(kinds)}
    for name, kind in get_type_hints(kinds).items():
        if name not in fields or get_origin(kind) is ClassVar or fits(getattr(options, name), kind):
            continue
        written = fields[name].type
        wanted = f"one of {', '.join(get_args(kind))}" if get_origin(kind) is Literal else _written(written)
        return f"{name} must be {wanted}, got {getattr(options, name)!r}"
    return None


def out_of_bounds(options: Any, bounds: Bounds) -> str | None:
    """A line about the first option that is not between its smallest and largest value, NaN included; None: all are.
    Options that are missing or None are left out."""
    for name, (low, high) in bounds.items():
        value = getattr(options, name, None)
        if value is not None and not low <= value <= high:
            wanted = f"at least {low}" if value < low and high == LARGEST else f"between {low} and {high}"
            return f"{name} must be {wanted}, got {value}"
    return None


def _written(kind: Any) -> str:
    """A type as its annotation has it, without what that tells the command line."""
    text = kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))
    return text.removeprefix("Annotated[").partition(", tyro")[0]
