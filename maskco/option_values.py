"""Options as dataclasses: values made plain Python, then checked against types and bounds. Imports nothing heavy.

@dataclass
class LossOptions(Options):
    temperature: Annotated[float, Between(1e-4, 1e4)] = 0.2
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import os
import sys
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from maskco.errors import ConfigError

LARGEST = 2**63 - 1  # that torch's integers hold


@dataclass(frozen=True)
class Between:
    """Bounds of an option, both included."""

    low: float
    high: float = LARGEST

    def refuse(self, value: Any) -> str | None:
        """The requirement that the value violates, or None. NaN is out of bounds."""
        if self.low <= value <= self.high:
            return None
        return (
            f"at least {self.low}"
            if value < self.low and self.high == LARGEST
            else f"between {self.low} and {self.high}"
        )


@dataclass(frozen=True)
class Range:
    """Bounds of both ends of a (low, high) option, which must be above 0."""

    low: float
    high: float

    def refuse(self, value: Any) -> str | None:
        first, last = value
        if self.low <= first <= last <= self.high and first != 0:
            return None
        wanted = f"{self.low} <= low" if self.low else "0 < low"
        return f"(low, high) with {wanted} <= high <= {self.high}"


@dataclass(frozen=True)
class Each(Between):
    """Bounds of every item of a tuple."""

    def refuse(self, value: Any) -> str | None:
        return next(filter(None, map(super().refuse, value)), None)


Count = Annotated[int, Between(1)]
Natural = Annotated[int, Between(0)]
Share = Annotated[float, Between(0, 1)]
Workers = Annotated[int, Between(0, 1024)]


@dataclass
class Options:
    """Base of all groups of options. Fields are checked by `check`, not when they are set."""

    def check(self) -> None:
        """Makes values plain. Raises ConfigError for the first of another type than its field's, or out of bounds."""
        for field in dataclasses.fields(self):
            setattr(self, field.name, plain(getattr(self, field.name)))
        kinds = get_type_hints(type(self), include_extras=True)
        for field in dataclasses.fields(self):
            value, kind = getattr(self, field.name), kinds[field.name]
            if not fits(value, kind):
                raise ConfigError(f"{field.name} must be {written(kind)}, got {value!r}")
            wanted = next(filter(None, (bound.refuse(value) for bound in bounds(kind) if value is not None)), None)
            if wanted:
                raise ConfigError(f"{field.name} must be {wanted}, got {value}")

    def require(self, name: str, fine: bool, wanted: str) -> None:
        """Raises ConfigError that says what the option must be, unless it is fine."""
        if not fine:
            raise ConfigError(f"{name} must be {wanted}, got {getattr(self, name)}")


def plain(value: Any) -> Any:
    """The value as JSON and `torch.load(weights_only=True)` know it, lists as tuples.

    NumPy's numbers and arrays, torch's tensors and devices, fractions and paths are converted. Others come back as they
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


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of an option's type. Whole numbers are floats too, and paths are text."""
    if get_origin(kind) is Annotated:
        return fits(value, get_args(kind)[0])
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


def bounds(kind: Any) -> list[Between | Range]:
    """The bounds in a type's annotations."""
    found = [note for note in getattr(kind, "__metadata__", ()) if isinstance(note, (Between, Range))]
    return found + [bound for each in get_args(kind) for bound in bounds(each)]


def written(kind: Any) -> str:
    """A type as a user writes it, without bounds."""
    if get_origin(kind) is Annotated:
        return written(get_args(kind)[0])
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if get_origin(kind) is tuple:
        return f"tuple[{', '.join('...' if each is ... else written(each) for each in get_args(kind))}]"
    if get_args(kind):
        return " | ".join(written(each) for each in get_args(kind))
    return "None" if kind is type(None) else getattr(kind, "__name__", str(kind))


def window_of(shuffle: str) -> int | None:
    """How many shards N an order "window:N" draws from. None for "full". Raises ConfigError for another order."""
    if shuffle == "full":
        return None
    name, _, count = shuffle.partition(":")
    if name != "window" or not (count.isascii() and count.isdecimal()) or not 1 <= int(count) <= LARGEST:
        raise ConfigError(f"shuffle must be full or window:N, with N shards at a time, got {shuffle!r}")
    return int(count)
