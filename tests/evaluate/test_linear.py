"""The linear classifier against torch's own SGD and scikit-learn, and what it must not look at."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blobs import blobs
from maskco.evaluate.knn import knn_accuracy
from maskco.evaluate.linear import _fit, linear_probe


@pytest.mark.parametrize("batch_size", [64, 100, 1000])
def test_every_rate_of_a_sweep_is_what_torchs_sgd_alone_would_give(batch_size: int) -> None:
    x, y, *_ = blobs()
    x, rates, epochs = F.normalize(x), (0.01, 0.3), 3
    swept = _fit(x, y, 5, rates, epochs, batch_size, torch.Generator().manual_seed(1))
    for weights, lr in zip(swept, rates, strict=True):
        alone = sgd(x, y, lr, epochs, batch_size)
        torch.testing.assert_close(weights, torch.cat([alone.weight, alone.bias[:, None]], 1), rtol=1e-4, atol=1e-6)


def sgd(x: Tensor, y: Tensor, lr: float, epochs: int, batch_size: int) -> nn.Linear:
    model = nn.Linear(x.shape[1], 5)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    steps = epochs * -(-len(x) // batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 + np.cos(np.pi * step / steps)) / 2)
    generator = torch.Generator().manual_seed(1)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(batch_size):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()
    return model.requires_grad_(False)


def test_trained_long_enough_it_agrees_with_sklearns_logistic_regression() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    data = blobs(3000)
    train_x, train_y, test_x, _ = (value.numpy().astype(np.float64) for value in data)
    scaler = preprocessing.StandardScaler().fit(train_x)
    model = linear_model.LogisticRegression(C=np.inf, max_iter=10_000).fit(scaler.transform(train_x), train_y)
    expected = model.predict(scaler.transform(test_x))
    assert (linear_probe(*data).predictions.numpy() == expected).mean() > 0.97


def test_the_learning_rate_is_chosen_without_the_test_rows() -> None:
    train_x, train_y, test_x, test_y = blobs(noise=2.5)
    probe = linear_probe(train_x, train_y, test_x, test_y, epochs=20)
    blind = linear_probe(train_x, train_y, test_x, (test_y + 1) % 5, epochs=20)
    assert probe.lr == blind.lr and probe.held_out_accuracy == blind.held_out_accuracy
    assert torch.equal(probe.predictions, blind.predictions)
    assert probe.accuracy == pytest.approx(100 * float((probe.predictions == test_y).float().mean()), abs=1e-4)


def test_a_rate_that_diverges_is_not_chosen_and_harms_no_other() -> None:
    data = blobs()
    alone = linear_probe(*data, learning_rates=(0.1,), epochs=20)
    probe = linear_probe(*data, learning_rates=(1e38, 0.1), epochs=20)
    assert probe.lr == 0.1 and torch.equal(probe.predictions, alone.predictions)


def test_it_is_deterministic_and_leaves_the_random_numbers_alone() -> None:
    data = blobs()
    state = torch.random.get_rng_state()
    first, second = linear_probe(*data, epochs=5), linear_probe(*data, epochs=5)
    assert first.lr == second.lr and torch.equal(first.predictions, second.predictions)
    assert torch.equal(state, torch.random.get_rng_state())


def test_any_labels_scales_and_constant_channels() -> None:
    train_x, train_y, test_x, test_y = blobs()
    plain = linear_probe(train_x, train_y, test_x, test_y, epochs=10)
    wider = [torch.cat([x * 1000 - 5, torch.full((len(x), 1), 4.0)], 1) for x in (train_x, test_x)]
    other = linear_probe(wider[0], 3 * train_y - 10, wider[1], 3 * test_y - 10, epochs=10)
    assert (other.predictions == 3 * plain.predictions - 10).double().mean() > 0.99  # scaling rounds


def test_a_class_that_only_the_test_rows_have_is_an_error_of_the_probe() -> None:
    train_x, train_y, test_x, test_y = blobs()
    assert linear_probe(train_x, train_y, test_x, torch.full_like(test_y, 99), epochs=1).accuracy == 0


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
    train_x, train_y, test_x, test_y = blobs()
    with pytest.raises(ValueError, match="train_y: expected at least two classes"):
        linear_probe(train_x, torch.zeros_like(train_y), test_x, test_y)
    with pytest.raises(ValueError, match="must be positive"):
        linear_probe(train_x, train_y, test_x, test_y, learning_rates=())
