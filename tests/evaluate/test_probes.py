"""The two read-outs against scikit-learn, and what they must not look at."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from maskco.probes import L2, knn_accuracy, linear_probe


def blobs(
    rows: int = 600, channels: int = 24, classes: int = 5, noise: float = 1.6, seed: int = 0
) -> tuple[Tensor, ...]:
    """Overlapping Gaussian classes whose channels have very different scales and offsets: train x, y and test x, y."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, channels, generator=generator)
    labels = torch.randint(classes, (rows,), generator=generator)
    x = centres[labels] + noise * torch.randn(rows, channels, generator=generator)
    x = x * torch.logspace(-2, 2, channels) + 3
    train = rows * 2 // 3
    return x[:train], labels[:train], x[train:], labels[train:]


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


@pytest.mark.parametrize("l2", [1e-1, 1e-3])
def test_linear_probe_is_sklearns_logistic_regression(l2: float) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    data = blobs()
    train_x, train_y, test_x, _ = (value.numpy().astype(np.float64) for value in data)
    scaler = preprocessing.StandardScaler().fit(train_x)
    # sklearn minimises the *sum* of cross-entropies times C, plus half the squared weights
    model = linear_model.LogisticRegression(C=1 / (l2 * len(train_x)), max_iter=10_000, tol=1e-10)
    expected = model.fit(scaler.transform(train_x), train_y).predict(scaler.transform(test_x))
    assert np.array_equal(linear_probe(*data, l2=[l2]).predictions.numpy(), expected)


def test_linear_probe_chooses_its_strength_without_the_test_rows() -> None:
    train_x, train_y, test_x, test_y = blobs(noise=2.5)
    probe = linear_probe(train_x, train_y, test_x, test_y)
    blind = linear_probe(train_x, train_y, test_x, (test_y + 1) % 5)
    assert probe.l2 == blind.l2
    assert torch.equal(probe.predictions, blind.predictions)
    assert probe.accuracy == pytest.approx(100 * float((probe.predictions == test_y).float().mean()), abs=1e-4)


def test_linear_probe_regularises_where_features_are_many_and_noisy() -> None:
    """Two of 300 channels carry the class: on average the chosen strength beats the weakest one of the list."""
    gains = []
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(3000, 300, generator=generator)
        y = (x[:, 0] + x[:, 1] + 0.5 * torch.randn(3000, generator=generator) > 0).long()
        data = (x[:1000], y[:1000], x[1000:], y[1000:])
        gains.append(linear_probe(*data).accuracy - linear_probe(*data, l2=[min(L2)]).accuracy)
    assert sum(gains) / len(gains) > 0.5


def test_linear_probe_is_deterministic_and_leaves_the_random_numbers_alone() -> None:
    data = blobs()
    state = torch.random.get_rng_state()
    first, second = linear_probe(*data), linear_probe(*data)
    assert first.l2 == second.l2 and torch.equal(first.predictions, second.predictions)
    assert torch.equal(state, torch.random.get_rng_state())


def test_linear_probe_takes_any_labels_constant_channels_and_works_under_no_grad() -> None:
    train_x, train_y, test_x, test_y = blobs()
    plain = linear_probe(train_x, train_y, test_x, test_y)
    wider = [torch.cat([x, torch.full((len(x), 1), 4.0)], 1) for x in (train_x, test_x)]
    with torch.no_grad():
        other = linear_probe(wider[0], 10 - 3 * train_y, wider[1], 10 - 3 * test_y)
    assert torch.equal(other.predictions, 10 - 3 * plain.predictions)


def test_a_class_that_only_the_test_rows_have_is_an_error_of_every_readout() -> None:
    train_x, train_y, test_x, test_y = blobs()
    unseen = torch.full_like(test_y, 99)
    assert knn_accuracy(train_x, train_y, test_x, unseen) == 0
    assert linear_probe(train_x, train_y, test_x, unseen).accuracy == 0


@pytest.mark.parametrize("readout", [knn_accuracy, linear_probe])
def test_bad_rows_are_refused_by_name(readout) -> None:
    train_x, train_y, test_x, test_y = blobs()
    with pytest.raises(ValueError, match="train_x, train_y: expected"):
        readout(train_x, train_y[:-1], test_x, test_y)
    with pytest.raises(ValueError, match="test_x, test_y: expected"):
        readout(train_x, train_y, test_x[:0], test_y[:0])
    with pytest.raises(ValueError, match="test_x: expected 24 channels"):
        readout(train_x, train_y, test_x[:, :5], test_y)
    with pytest.raises(ValueError, match="train_x: expected finite"):
        readout(train_x.clone().fill_(torch.nan), train_y, test_x, test_y)


def test_bad_options_are_refused_by_name() -> None:
    data = blobs()
    with pytest.raises(ValueError, match="k: expected 1 to 400"):
        knn_accuracy(*data, k=401)
    with pytest.raises(ValueError, match="temperature: expected a positive"):
        knn_accuracy(*data, temperature=0)
    with pytest.raises(ValueError, match="train_y: expected at least two classes"):
        linear_probe(data[0], torch.zeros_like(data[1]), data[2], data[3])
