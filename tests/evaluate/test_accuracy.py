"""The mean per class against scikit-learn's balanced accuracy."""

from __future__ import annotations

import pytest
import torch

from maskco.evaluate.accuracy import accuracy, mean_class_accuracy


def test_the_mean_per_class_is_sklearns_balanced_accuracy() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(500, generator=generator) ** 3 * 6).long() * 7 - 3  # most are of the first class
    predictions = torch.where(torch.rand(500, generator=generator) < 0.6, labels, labels[0])
    expected = 100 * metrics.balanced_accuracy_score(labels.numpy(), predictions.numpy())
    assert mean_class_accuracy(predictions, labels) == pytest.approx(expected, abs=1e-9)
    assert accuracy(predictions, labels) == pytest.approx(
        100 * metrics.accuracy_score(labels.numpy(), predictions.numpy())
    )


def test_guessing_the_most_frequent_class_scores_as_chance() -> None:
    labels = torch.tensor([0] * 97 + [1, 2, 3])
    predictions = torch.zeros(100, dtype=torch.long)
    assert accuracy(predictions, labels) == pytest.approx(97) and mean_class_accuracy(predictions, labels) == 25


def test_predictions_of_classes_without_rows_are_errors_of_the_others() -> None:
    assert mean_class_accuracy(torch.tensor([5, 1, 1]), torch.tensor([0, 1, 1])) == 50


def test_no_rows_are_refused() -> None:
    for predictions, labels in ((torch.zeros(0), torch.zeros(0)), (torch.zeros(2), torch.zeros(3))):
        with pytest.raises(ValueError, match="predictions, labels: expected"):
            mean_class_accuracy(predictions, labels)
