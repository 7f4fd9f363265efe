"""The nearest-neighbour vote against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from blobs import blobs
from maskco.evaluate.knn import knn_accuracy


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (20, 0.5), (400, 0.2)])
def test_knn_is_sklearns_with_dinos_weights(k: int, temperature: float) -> None:
    neighbors = pytest.importorskip("sklearn.neighbors")
    data = blobs()
    train_x, train_y, test_x, test_y = (value.numpy() for value in data)
    model = neighbors.KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / temperature)
    )
    expected = 100 * model.fit(train_x, train_y).score(test_x, test_y)
    assert knn_accuracy(*data, k=k, temperature=temperature) == pytest.approx(expected, abs=1e-9)


def test_knn_votes_are_weighted() -> None:
    """One row at the query outvotes two that are far, unless the temperature makes all votes equal."""
    train_x = torch.tensor([[1.0, 0.0], [0.2, 1.0], [0.2, -1.0]])
    train_y = torch.tensor([7, -3, -3])
    test_x, test_y = torch.tensor([[5.0, 0.0]]), torch.tensor([7])
    assert knn_accuracy(train_x, train_y, test_x, test_y, k=3, temperature=0.07) == 100
    assert knn_accuracy(train_x, train_y, test_x, test_y, k=3, temperature=1e3) == 0
    assert knn_accuracy(train_x, train_y, test_x, test_y, k=3, temperature=1e-4) == 100  # exp(1 / τ) would overflow


def test_knn_does_not_depend_on_the_chunk() -> None:
    data = blobs()
    assert len({knn_accuracy(*data, chunk=chunk) for chunk in (1, 7, 200, 10_000)}) == 1


def test_a_class_that_only_the_test_rows_have_is_an_error_of_the_vote() -> None:
    train_x, train_y, test_x, test_y = blobs()
    assert knn_accuracy(train_x, train_y, test_x, torch.full_like(test_y, 99)) == 0


def test_bad_options_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="k: expected 1 to 400"):
        knn_accuracy(*blobs(), k=401)
    with pytest.raises(ValueError, match="temperature: expected a positive"):
        knn_accuracy(*blobs(), temperature=0)
