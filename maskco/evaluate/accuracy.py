"""Accuracy of predicted classes: over all rows, and as the mean over classes, so that no frequent class dominates."""

from __future__ import annotations

from torch import Tensor

from maskco.evaluate.errors import EvaluationError


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """The per cent of rows [M] whose prediction is their label."""
    return 100 * float((predictions == labels).double().mean())


def chance(train_labels: Tensor, test_labels: Tensor) -> float:
    """The per cent of test rows that always guessing the most frequent class of the training rows gets right."""
    return 100 * float((test_labels == train_labels.mode().values).double().mean())


def mean_class_accuracy(predictions: Tensor, labels: Tensor) -> float:
    """The per cent of each class's rows that are predicted rightly, averaged over the classes that have rows.

    It is scikit-learn's `balanced_accuracy_score`, times 100. Guessing scores 100 / classes.

    Args:
        predictions, labels: [M] int64, any values.

    Raises:
        EvaluationError: no rows, or not as many of both.
    """
    if labels.ndim != 1 or predictions.shape != labels.shape or len(labels) == 0:
        raise EvaluationError(
            f"predictions, labels: expected [M] each, M > 0, got {list(predictions.shape)} and {list(labels.shape)}"
        )
    _, row_class, counts = labels.unique(return_inverse=True, return_counts=True)
    right = row_class[predictions == labels].bincount(minlength=len(counts))
    return 100 * float((right / counts.double()).mean())
