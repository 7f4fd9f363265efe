"""What frozen features are good for: classifying regions, pictures, and which classes a scene shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from statistics import mean
from typing import NamedTuple

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.utils.data import Dataset

from maskco.data.sources.demo import Scene
from maskco.errors import UserError
from maskco.evaluate.accuracy import accuracy, mean_class_accuracy
from maskco.evaluate.features import Input, extract_features, reestimate_batch_norm
from maskco.evaluate.knn import knn_predictions
from maskco.evaluate.linear import linear_probe

REGION, NEIGHBOURS, SHOWN = "region linear", "region kNN", "classes shown, mAP"
TOP1 = ", top-1"  # of scores that are means over classes elsewhere
BN_SCENES = 512
PROBES = 3  # of photographs: which regions a classifier holds out to choose its learning rate moves it by half a point
WHOLE = -1  # label of the box around a whole scene


def probe(
    encoder: nn.Module,
    train: Sequence[Scene],
    test: Sequence[Scene],
    classes: int,
    image_size: int | None = None,
    *,
    balanced: bool = False,
) -> dict[str, float]:
    """Per cent, by name. Regions are `maskco eval regions`' linear classifier and 20-nearest-neighbour vote; "classes
    shown" is the mean average precision of a logistic regression for each class on the mean feature of a whole scene,
    left out where a picture is one region. Batch norms' statistics are first estimated anew on the training scenes.

    Args:
        image_size: scenes are squeezed into squares of this side, which cuts nothing off; None: they are of one size.
        balanced: regions are scored by the mean accuracy over classes, and by that of all regions ("top-1") next to it.
            The linear classifier's learning rate is chosen by the former, and its scores are means over PROBES seeds.
    """
    form = Input(image_size)
    reestimate_batch_norm(encoder, train, form, limit=BN_SCENES)
    parts = [extract(encoder, part, form) for part in (train, test)]
    rows = [value for part in parts for value in (part.x, part.labels)]
    measure, seeds = (mean_class_accuracy, PROBES) if balanced else (accuracy, 1)
    linear = [linear_probe(*rows, epochs=50, seed=seed, measure=measure).predictions for seed in range(seeds)]
    found = {REGION: linear, NEIGHBOURS: [knn_predictions(*rows)]}

    def score(measure: Callable[[Tensor, Tensor], float], name: str) -> float:
        return mean(measure(predictions, parts[1].labels) for predictions in found[name])

    scores = {name: score(measure, name) for name in found}
    if len(parts[0].x) > len(train):
        tables = map(partial(shown, classes=classes), (train, test))
        scores[SHOWN] = classes_shown(*(part.whole for part in parts), *tables)
    if balanced:
        scores |= {name + TOP1: score(accuracy, name) for name in found}
    return scores


class Extracted(NamedTuple):
    x: Tensor  # [M, C], of every box
    labels: Tensor  # [M]
    whole: Tensor  # [N, C], of every scene


def extract(encoder: nn.Module, scenes: Sequence[Scene], form: Input) -> Extracted:
    """Scenes of one size are averaged whole. Photographs get a box around all of it, so that each is read once."""
    if form.image_size is None:
        x, labels, _ = extract_features(encoder, scenes, form)
        return Extracted(x, labels, extract_features(encoder, scenes, form._replace(whole=True)).x)
    encoder = encoder.to(memory_format=torch.channels_last)
    x, labels, skipped = extract_features(encoder, WithWhole(scenes), form)
    if skipped:
        raise UserError(f"images: {len(skipped)} cannot be read, the first of them {skipped[0]}. Restore them")
    return Extracted(x[labels != WHOLE], labels[labels != WHOLE], x[labels == WHOLE])


class WithWhole(Dataset):
    """Scenes with one box more, around everything."""

    def __init__(self, scenes: Sequence[Scene]) -> None:
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Scene:
        image, boxes, labels = self.scenes[index]
        whole = torch.tensor([[0.0, 0.0, image.shape[2], image.shape[1]]])
        return Scene(image, torch.cat([boxes, whole]), torch.cat([labels, torch.tensor([WHOLE])]))


def shown(scenes: Sequence[Scene], classes: int) -> Tensor:
    """bool [N, classes]: which classes each scene shows."""
    table = torch.zeros(len(scenes), classes, dtype=torch.bool)
    labels = getattr(scenes, "labels", None)  # (of photographs: known without decoding them)
    for row, index in zip(table, range(len(scenes)), strict=True):
        row[scenes[index].labels if labels is None else labels[index]] = True
    return table


def classes_shown(train_x: Tensor, test_x: Tensor, train_y: Tensor, test_y: Tensor) -> float:
    """Features [N, C] and [M, C], tables [N, classes] and [M, classes] -> mean average precision, per cent.

    Classes that no test scene shows are left out of the mean. So are those that no training scene shows, or every one:
    nothing can be learnt about them. Raises UserError if no class is left.
    """
    mean, std = train_x.mean(0), train_x.std(0).clamp_min(1e-6)
    train_x, test_x = ((x - mean) / std for x in (train_x, test_x))
    precisions = []
    for train_column, test_column in zip(train_y.T, test_y.T, strict=True):
        if not test_column.any() or not train_column.any() or train_column.all():
            continue
        classifier = LogisticRegression(C=0.1, max_iter=1000).fit(train_x.numpy(), train_column.numpy())
        precisions.append(average_precision_score(test_column.numpy(), classifier.decision_function(test_x.numpy())))
    if not precisions:
        raise UserError("images: no class can be learnt and tested. Take more images")
    return 100 * sum(precisions) / len(precisions)
