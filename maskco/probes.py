"""Two read-outs that classify frozen features: a weighted nearest-neighbour vote and a linear probe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from maskco.config import UserError

L2 = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)


class EvaluationError(UserError, ValueError):
    """What was given cannot be evaluated."""


class Probe(NamedTuple):
    accuracy: float  # per cent of the test rows
    l2: float  # the strength that was best on the held-out part
    predictions: Tensor  # [M'] int64


def knn_accuracy(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
    chunk: int = 1024,
) -> float:
    """DINO's weighted nearest-neighbour vote: the k most similar rows vote for their class with exp(cosine / τ).

    Args:
        train_x: [N, C] and test_x: [M, C] floating; train_y: [N] and test_y: [M] int64, any values.
        chunk: test rows at a time, so that no more than chunk × N similarities are held.

    Returns: the per cent of test rows whose class won.
    """
    _check_rows(train_x, train_y, test_x, test_y)
    if not 1 <= k <= len(train_x):
        raise EvaluationError(f"k: expected 1 to {len(train_x)}, the number of training rows, got {k}")
    if temperature <= 0:
        raise EvaluationError(f"temperature: expected a positive number, got {temperature}")
    classes, train_class = train_y.unique(return_inverse=True)
    train_x, test_x = F.normalize(train_x.float(), dim=1), F.normalize(test_x.float(), dim=1)
    correct = 0
    for x, y in zip(test_x.split(chunk), test_y.split(chunk), strict=True):
        similarity, neighbour = (x @ train_x.T).topk(k, dim=1)  # [m, k]
        weight = ((similarity - similarity[:, :1]) / temperature).exp()  # relative to the nearest: cannot overflow
        votes = weight.new_zeros(len(x), len(classes)).scatter_add_(1, train_class[neighbour], weight)
        correct += int((classes[votes.argmax(1)] == y).sum())
    return 100 * correct / len(test_x)


def linear_probe(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    l2: Sequence[float] = L2,
    held_out: float = 0.2,
    seed: int = 0,
) -> Probe:
    """Multinomial logistic regression on features standardised by the training rows' mean and deviation.

    Minimises mean cross-entropy + l2/2 · ‖W‖² (the bias is free) to convergence, in float64, from zeros: deterministic.
    Which l2 of the list is used is decided on a random held-out share of the *training* rows, then all of them are
    fitted; the test rows are looked at once.

    Args:
        train_x: [N, C] and test_x: [M, C] floating; train_y: [N] and test_y: [M] int64, any values.
    """
    _check_rows(train_x, train_y, test_x, test_y)
    classes, target = train_y.unique(return_inverse=True)
    if len(classes) < 2:
        raise EvaluationError(
            "train_y: expected at least two classes, found one; evaluate on scenes of several classes"
        )
    train_x, test_x = train_x.double(), test_x.double()
    mean, std = train_x.mean(0), train_x.std(0, correction=0)
    std = torch.where(std > 0, std, 1)  # a constant feature says nothing: it becomes 0
    train_x, test_x = (train_x - mean) / std, (test_x - mean) / std

    best = l2[0]
    if len(l2) > 1:
        order = torch.randperm(len(train_x), generator=torch.Generator().manual_seed(seed)).to(train_x.device)
        count = max(1, int(held_out * len(order)))
        held, kept = order[:count], order[count:]
        best_correct, solution = -1, None
        for strength in sorted(l2, reverse=True):
            solution = _fit(train_x[kept], target[kept], len(classes), strength, solution)
            correct = int((_predict(train_x[held], solution) == target[held]).sum())
            if correct > best_correct:  # among equals the stronger, simpler one
                best, best_correct = strength, correct
    predictions = classes[_predict(test_x, _fit(train_x, target, len(classes), best))]
    return Probe(100 * float((predictions == test_y).double().mean()), best, predictions)


def _fit(x: Tensor, target: Tensor, classes: int, l2: float, start: Tensor | None = None) -> Tensor:
    """The weights [C + 1, K], whose last row is the bias, that minimise mean cross-entropy + l2/2 · ‖W‖²."""
    solution = x.new_zeros(x.shape[1] + 1, classes) if start is None else start.clone()
    solution.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [solution], max_iter=1000, tolerance_grad=1e-6, tolerance_change=1e-10, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(torch.addmm(solution[-1], x, solution[:-1]), target)
        loss = loss + l2 / 2 * solution[:-1].square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(objective)
    return solution.detach()


def _predict(x: Tensor, solution: Tensor) -> Tensor:
    return torch.addmm(solution[-1], x, solution[:-1]).argmax(1)


def _check_rows(train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor) -> None:
    for name, x, y in (("train", train_x, train_y), ("test", test_x, test_y)):
        if x.ndim != 2 or y.shape != x.shape[:1] or len(x) == 0:
            raise EvaluationError(
                f"{name}_x, {name}_y: expected [N, C] and [N], N > 0, got {list(x.shape)} and {list(y.shape)}"
            )
        if not torch.isfinite(x).all():
            raise EvaluationError(
                f"{name}_x: expected finite features, found NaN or Inf; the encoder may have diverged"
            )
    if train_x.shape[1] != test_x.shape[1]:
        raise EvaluationError(f"test_x: expected {train_x.shape[1]} channels as train_x has, got {test_x.shape[1]}")
