"""The one error of evaluations, and the check that all read-outs of frozen features share."""

from __future__ import annotations

import torch
from torch import Tensor

from maskco.errors import UserError


class EvaluationError(UserError, ValueError):
    """The given data or encoders cannot be evaluated."""


def check_rows(train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor) -> None:
    """Raises EvaluationError unless both parts are finite features [N, C] with labels [N], C the same, N > 0."""
    for name, x, y in (("train", train_x, train_y), ("test", test_x, test_y)):
        if x.ndim != 2 or y.shape != x.shape[:1] or len(x) == 0:
            raise EvaluationError(
                f"{name}_x, {name}_y: expected [N, C] and [N], N > 0, got {list(x.shape)} and {list(y.shape)}"
            )
        if not torch.isfinite(x).all():
            raise EvaluationError(
                f"{name}_x: expected finite features, found NaN or Inf. The encoder may have diverged"
            )
    if train_x.shape[1] != test_x.shape[1]:
        raise EvaluationError(f"test_x: expected {train_x.shape[1]} channels as train_x has, got {test_x.shape[1]}")
