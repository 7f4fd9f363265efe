"""A linear classifier on frozen features, with all learning rates of a sweep trained in one pass over them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from maskco.evaluate.accuracy import accuracy
from maskco.evaluate.errors import EvaluationError, check_rows

LEARNING_RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # for 256 rows a step


class Probe(NamedTuple):
    accuracy: float  # per cent of the test rows
    lr: float  # the learning rate that was best on the held-out part
    held_out_accuracy: float  # per cent, at that learning rate; of `measure`
    predictions: Tensor  # [M] int64


def linear_probe(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    learning_rates: Sequence[float] = LEARNING_RATES,
    epochs: int = 100,
    batch_size: int = 256,
    held_out: float = 0.1,
    seed: int = 0,
    measure: Callable[[Tensor, Tensor], float] = accuracy,
) -> Probe:
    """Softmax regression by SGD (momentum 0.9, no weight decay, cosine to 0) on standardised features.

    One classifier for each learning rate sees the same batches, so a single product serves all. The one to report is
    chosen on a random held-out share of the *training* rows. Only that one sees the test rows, once.

    Args:
        train_x, test_x: [N, C] and [M, C], floating.
        train_y, test_y: [N] and [M], int64, any values.
        learning_rates: for batches of 256 rows. They are scaled to the batch size in use.
        measure: chooses the learning rate, from predictions and labels. Use the measure that is reported. Top-1 hardly
            separates learning rates whose mean accuracy over classes differs by points.

    Raises:
        EvaluationError: rows that do not fit together, fewer than two classes or no learning rate.
    """
    check_rows(train_x, train_y, test_x, test_y)
    classes, target = train_y.unique(return_inverse=True)
    if len(classes) < 2:
        raise EvaluationError("train_y: expected at least two classes, found one. Evaluate on data of several classes")
    if not learning_rates or min(learning_rates) <= 0 or epochs < 1 or batch_size < 1:
        raise EvaluationError(
            "learning_rates, epochs and batch_size must be positive, "
            f"got {list(learning_rates)}, {epochs} and {batch_size}"
        )
    mean, std = train_x.float().mean(0), train_x.float().std(0, correction=0)
    std = torch.where(std > 0, std, 1)  # a constant feature says nothing: it becomes 0
    train_x, test_x = (train_x.float() - mean) / std, (test_x.float() - mean) / std
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(train_x), generator=generator)
    count = max(1, int(held_out * len(order)))
    held, kept = (part.to(train_x.device) for part in (order[:count], order[count:]))
    rates = [lr * batch_size / 256 for lr in learning_rates]
    solutions = _fit(train_x[kept], target[kept], len(classes), rates, epochs, batch_size, generator)

    found = [measure(_predict(train_x[held], solution), target[held]) for solution in solutions]
    best = max(range(len(rates)), key=found.__getitem__)  # among equals the lowest, smoothest one
    predictions = classes[_predict(test_x, solutions[best])]
    return Probe(accuracy(predictions, test_y), learning_rates[best], found[best], predictions)


def _fit(
    x: Tensor,
    target: Tensor,
    classes: int,
    rates: Sequence[float],
    epochs: int,
    batch_size: int,
    generator: torch.Generator,
) -> Tensor:
    """Weights [S, K, C + 1], the bias last, for each of S learning rates. All start at zero."""
    x = _with_ones(x)
    weights = x.new_zeros(len(rates) * classes, x.shape[1])
    velocity = torch.zeros_like(weights)
    rate = x.new_tensor(rates).repeat_interleave(classes)[:, None]  # [S * K, 1]
    step, steps = 0, epochs * -(-len(x) // batch_size)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).to(x.device).split(batch_size):
            logits = (x[rows] @ weights.T).unflatten(1, (-1, classes))  # [b, S, K]
            error = logits.softmax(2)  # less the one-hot target: the gradient of each classifier's cross-entropy
            error[torch.arange(len(rows), device=x.device), :, target[rows]] -= 1
            velocity.mul_(0.9).addmm_(error.flatten(1).T, x[rows], alpha=1 / len(rows))
            weights.addcmul_(velocity, rate, value=-0.5 * (1 + math.cos(math.pi * step / steps)))
            step += 1
    return weights.unflatten(0, (-1, classes))


def _with_ones(x: Tensor) -> Tensor:
    return torch.cat([x, x.new_ones(len(x), 1)], 1)


def _predict(x: Tensor, weights: Tensor) -> Tensor:
    return (_with_ones(x) @ weights.mT).argmax(-1)
