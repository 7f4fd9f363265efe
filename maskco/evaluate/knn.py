"""DINO's weighted nearest-neighbour vote on frozen features (Caron et al., arXiv 2104.14294, and Wu et al.,
1805.01978)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from maskco.evaluate.accuracy import accuracy
from maskco.evaluate.errors import EvaluationError, check_rows


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
    """The per cent of test rows whose class `knn_predictions` finds. Same arguments and errors."""
    predictions = knn_predictions(train_x, train_y, test_x, test_y, k=k, temperature=temperature, chunk=chunk)
    return accuracy(predictions, test_y)


def knn_predictions(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
    chunk: int = 1024,
) -> Tensor:
    """The k most similar rows vote for their class with exp(cosine / τ).

    Args:
        train_x, test_x: [N, C] and [M, C], floating.
        train_y, test_y: [N] and [M], int64, any values. `test_y` is only checked.
        chunk: test rows at a time, so that no more than chunk × N similarities are held.

    Returns: [M] int64, the class that won for each test row.

    Raises:
        EvaluationError: rows that do not fit together, k out of range, or a temperature that is not positive.
    """
    check_rows(train_x, train_y, test_x, test_y)
    if not 1 <= k <= len(train_x):
        raise EvaluationError(f"k: expected 1 to {len(train_x)}, the number of training rows, got {k}")
    if temperature <= 0:
        raise EvaluationError(f"temperature: expected a positive number, got {temperature}")
    classes, train_class = train_y.unique(return_inverse=True)
    train_x, test_x = F.normalize(train_x.float(), dim=1), F.normalize(test_x.float(), dim=1)
    won = []
    for x in test_x.split(chunk):
        similarity, neighbour = (x @ train_x.T).topk(k, dim=1)  # [m, k]
        weight = ((similarity - similarity[:, :1]) / temperature).exp()  # relative to the nearest: cannot overflow
        votes = weight.new_zeros(len(x), len(classes)).scatter_add_(1, train_class[neighbour], weight)
        won.append(classes[votes.argmax(1)])
    return torch.cat(won)
