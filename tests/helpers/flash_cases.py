"""Kinds of features that the flash kernels of info_nce take, and how their results are checked."""

from __future__ import annotations

import pytest
import torch

from contrast_cases import run
from maskco.ops import info_nce, reference
from simulated import kernel_names
from tolerance import assert_as_good_as

KINDS = ("float16", "bfloat16", "tf32", "float32")  # float32: three TF32 products, "highest" precision
every_kind = pytest.mark.parametrize("kind", KINDS, indirect=True)


def dtype_of(kind: str) -> torch.dtype:
    return torch.float32 if kind == "tf32" else getattr(torch, kind)


def round_to_tf32(x: torch.Tensor) -> torch.Tensor:
    """As cvt.rna.tf32 does."""
    return ((x.detach().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def kernels(simulated) -> list[str]:
    return [name.removeprefix("info_nce_") for name in kernel_names(simulated)]


def check(case: dict, kind: str, grad: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
    """The op, plain torch on features rounded as the products round them, and float64 on the features as given."""
    floats = {k: v for k, v in case.items() if torch.is_tensor(v) and v.is_floating_point()}
    rounded = {k: round_to_tf32(v) for k, v in floats.items()} if kind == "tf32" else {}
    wide = case | {k: v.double() for k, v in floats.items()}
    actual = run(info_nce, case, grad)
    same, truth = run(reference.info_nce, case | rounded, grad), run(reference.info_nce, wide, grad)
    for name, value in actual.items():
        if name != "rank":
            assert_as_good_as(value, same[name], truth[name], value.dtype, name)
        else:  # rounding takes a logit now and then from one side of the positive's to the other
            assert float((value - truth[name]).abs().double().mean()) < (0.5 if kind == "tf32" else 0.02)
    return actual
