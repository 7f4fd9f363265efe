"""The one tolerance rule of the test suite: as good as plain torch in the same dtype, judged against the truth."""

from __future__ import annotations

import torch
from torch import Tensor

SLACK = {torch.float64: 1e-10, torch.float32: 5e-4, torch.float16: 1e-3, torch.bfloat16: 1e-2}


def assert_as_good_as(
    actual: Tensor,
    same_dtype_reference: Tensor,
    truth: Tensor,
    dtype: torch.dtype,
    name: str = "result",
    slack: torch.dtype | None = None,
) -> None:
    """max|actual − truth| ≤ max|reference − truth| + slack(dtype)·max(1, max|truth|), and no drift hidden by outliers.

    `truth` is the op in float64 (or float32) of the same, already rounded, inputs; `same_dtype_reference` what plain
    torch makes of them in `dtype`. The relative L2 error obeys the same rule. NaN and Inf must stand where they stand
    in the truth. `slack`: of another dtype than the result's.
    """
    assert actual.shape == truth.shape, f"{name}: shape {list(actual.shape)}, expected {list(truth.shape)}"
    assert actual.dtype == dtype, f"{name}: {actual.dtype}, expected {dtype}"
    actual, reference, truth = (t.detach().to("cpu", torch.float64) for t in (actual, same_dtype_reference, truth))
    finite = truth.isfinite()
    torch.testing.assert_close(actual[~finite], truth[~finite], equal_nan=True, msg=lambda m: f"{name}: {m}")
    assert bool(actual[finite].isfinite().all()), f"{name}: NaN or Inf where the truth is finite"
    actual, reference, truth = actual[finite], reference[finite], truth[finite]
    if truth.numel() == 0:
        return
    reference = torch.where(reference.isfinite(), reference, truth)  # an overflow of plain torch excuses nothing
    scale = max(1.0, float(truth.abs().max()))
    slack = dtype if slack is None else slack
    error, allowed = float((actual - truth).abs().max()), float((reference - truth).abs().max())
    assert error <= allowed + SLACK[slack] * scale, f"{name}: error {error:.3g}, plain torch in {dtype} {allowed:.3g}"
    norm = max(float(truth.norm()), 1e-6)
    slack = dtype if slack is None else slack
    error, allowed = float((actual - truth).norm()) / norm, float((reference - truth).norm()) / norm
    assert error <= allowed + SLACK[slack], (
        f"{name}: relative L2 error {error:.3g}, plain torch in {dtype} {allowed:.3g}"
    )
