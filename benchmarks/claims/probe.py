"""What frozen features are good for: classifying regions, pictures, and which classes a scene shows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from maskco.data.sources.demo import Scene
from maskco.evaluate.features import Input, extract_features, reestimate_batch_norm
from maskco.evaluate.knn import knn_accuracy
from maskco.evaluate.linear import linear_probe

REGION, NEIGHBOURS, SHOWN = "region linear", "region kNN", "classes shown, mAP"
BN_SCENES = 512


def probe(
    encoder: nn.Module, train: Sequence[Scene], test: Sequence[Scene], classes: int, image_size: int | None = None
) -> dict[str, float]:
    """Per cent, by name. Regions are `maskco eval regions`' linear classifier and 20-nearest-neighbour vote; "classes
    shown" is the mean average precision of a logistic regression for each class on the mean feature of a whole scene,
    left out where a picture is one region. Batch norms' statistics are first estimated anew on the training scenes.
    """
    form = Input(image_size)
    reestimate_batch_norm(encoder, train, form, limit=BN_SCENES)
    boxes = [extract_features(encoder, part, form) for part in (train, test)]
    rows = [value for part in boxes for value in (part.x, part.labels)]
    scores = {REGION: linear_probe(*rows, epochs=50).accuracy, NEIGHBOURS: knn_accuracy(*rows)}
    if len(boxes[0].x) > len(train):
        whole = [extract_features(encoder, part, form._replace(whole=True)).x for part in (train, test)]
        scores[SHOWN] = classes_shown(*whole, *map(partial(shown, classes=classes), (train, test)))
    return scores


def shown(scenes: Sequence[Scene], classes: int) -> Tensor:
    """bool [N, classes]: which classes each scene shows."""
    table = torch.zeros(len(scenes), classes, dtype=torch.bool)
    for row, index in zip(table, range(len(scenes)), strict=True):
        row[scenes[index].labels] = True
    return table


def classes_shown(train_x: Tensor, test_x: Tensor, train_y: Tensor, test_y: Tensor) -> float:
    """Features [N, C] and [M, C], tables [N, classes] and [M, classes] -> mean average precision, per cent."""
    mean, std = train_x.mean(0), train_x.std(0).clamp_min(1e-6)
    train_x, test_x = ((x - mean) / std for x in (train_x, test_x))
    precisions = []
    for train_column, test_column in zip(train_y.T, test_y.T, strict=True):
        classifier = LogisticRegression(C=0.1, max_iter=1000).fit(train_x.numpy(), train_column.numpy())
        precisions.append(average_precision_score(test_column.numpy(), classifier.decision_function(test_x.numpy())))
    return 100 * sum(precisions) / len(precisions)
