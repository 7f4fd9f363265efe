"""Runs one evaluation of several encoders: opens them, hands each to its task, prints the table, keeps the rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from maskco.data.sources import locate
from maskco.devices import check_caller, usable_device
from maskco.evaluate.accuracy import accuracy, chance, mean_class_accuracy
from maskco.evaluate.datasets import CutOuts, LabelledSet, Scenes, missing, open_labelled
from maskco.evaluate.encoders import IMAGE_SIZE, OpenedEncoder, open_encoder, untrained_of
from maskco.evaluate.errors import EvaluationError
from maskco.evaluate.features import Features, Input, extract_features, loading_workers, reestimate_batch_norm
from maskco.evaluate.knn import knn_predictions
from maskco.evaluate.linear import linear_probe
from maskco.evaluate.options import Detection, Evaluation, Knn, Linear, Regions
from maskco.evaluate.results import EVALUATION, Row, format_table, load_rows, save_rows
from maskco.files import user_path
from maskco.memory import memory_errors
from maskco.provenance import provenance
from maskco.runs.trust import own_file

SHOWN_SKIPPED = 20  # names of unreadable images that a row keeps

Scored = tuple[dict[str, float], dict[str, Any]]  # a row's scores and details


@memory_errors("lower image_size, batch_size, train_images or test_images")
def evaluate(options: Evaluation, *, verbose: bool = True) -> list[Row]:
    """Evaluates every encoder that `options` names and adds the rows to a JSON file.

    Args:
        verbose: show progress and print the table.

    Raises:
        SourceError: no such data, or none with labels.
        EvaluationError: unsuitable data, or unknown encoders.
        WeightsError: a file that does not fit.
    """
    check_caller()
    _check(options)
    device = usable_device(options.device)
    encoders = [open_encoder(name, options.architecture, options.prefix) for name in options.encoders]
    if options.prefix is not None and not any("prefix" in opened.facts for opened in encoders):
        raise EvaluationError("prefix: none of the encoders is a file of weights. Leave it out")
    if options.architecture is not None and not any(
        "prefix" in opened.facts or opened.architecture == options.architecture for opened in encoders
    ):
        raise EvaluationError("architecture: none of the encoders is a file of weights or of it. Leave it out")
    if options.untrained:
        fresh = dict.fromkeys(untrained_of(opened) for opened in encoders if not opened.name.startswith("untrained:"))
        encoders += [open_encoder(name, options.architecture) for name in fresh if name not in options.encoders]
    runs = [(opened.run, opened.image_size) for opened in encoders if opened.run is not None]
    size = options.image_size or next((own for _, own in runs if own is not None), IMAGE_SIZE)
    data = open_labelled(options.data, image_size=size, train=options.train_images, test=options.test_images)
    out = user_path(options.out) if options.out else Path(runs[0][0] if runs else ".", EVALUATION)
    if out.is_dir():
        raise EvaluationError(f"out: {out} is a folder. Name a file, such as {out / EVALUATION}")
    if out.exists():
        load_rows(out)  # what cannot be added to should be known before the work

    rows = []
    notes = dict.fromkeys(data.notes)  # in order, each once
    for opened in encoders:
        opened.facts["encoder_sha256"] = opened.digest  # before batch norms see the data
        opened.encoder.to(device)
        try:
            scores, details = TASKS[options.task](opened, data, options, opened.encoder.image_size or size, verbose)
        finally:
            opened.encoder.cpu()
        own_notes = [*data.notes, *opened.notes, *details.pop("notes", ())]
        if opened.encoder.image_size not in (None, options.image_size or opened.encoder.image_size):
            own_notes.append(
                f"{opened.name} takes images of {opened.encoder.image_size} pixels only, which these are resized to"
            )
        notes |= dict.fromkeys(own_notes)
        row = Row(
            task=options.task,
            data=data.name,
            encoder=opened.name,
            architecture=opened.architecture,
            scores=scores,
            details={
                **opened.facts,
                "place": opened.place(out.parent),
                "settings": {k: v for k, v in asdict(options).items() if k not in ("encoders", "out", "untrained")}
                | {"data": locate(options.data)},
                "image_size": opened.encoder.image_size or size,
                "pictures": {"train": len(data.train), "test": len(data.test)},
                **details,
                "notes": own_notes,
                "device": str(device),
                **provenance(),
            },
        )
        rows.append(row)
        save_rows(out, [row])  # each as soon as it is known: the next encoder may take hours
    if verbose:
        print(f"{TITLES[options.task]}, {data.name}, {size} px")
        print(format_table(rows))
        print("\n".join([*notes, f"kept in {out}"]))
    return rows


def _check(options: Evaluation) -> None:
    options.check()
    if not options.encoders:
        raise EvaluationError("encoders: none was named. Name at least one run folder, timm:NAME or file of weights")


# --- tasks on frozen features ---------------------------------------------------------------------------------------


def _frozen(
    opened: OpenedEncoder, data: LabelledSet, options: Evaluation, size: int, verbose: bool, *, whole: bool
) -> tuple[Features, Features, dict[str, Any]]:
    """Features of both parts, and details for a row."""
    parts: list[Scenes] = [data.train, data.test]
    if whole and data.has_boxes:
        parts = [CutOuts(data.train, size), CutOuts(data.test, size)]
    form = Input(size, whole, opened.mean, opened.std, workers(options, data))
    if options.batch_norm == "data":
        reestimate_batch_norm(opened.encoder, parts[0], form)
    boxes_of = "boxes of the " if isinstance(parts[0], CutOuts) else ""
    digests: tuple[list[bytes], list[bytes]] = ([], [])
    train, test = (
        extract_features(
            opened.encoder,
            part,
            form._replace(noun=f"{boxes_of}{kind} images"),
            progress=f"{opened.name}, {kind}" if verbose else None,
            digests=read,
        )
        for kind, part, read in zip(("training", "test"), parts, digests, strict=True)
    )
    skipped = {name: part.skipped for name, part in (("train", train), ("test", test))}
    details: dict[str, Any] = {
        "rows": {"train": len(train.x), "test": len(test.x)},
        "channels": train.x.shape[1],
        "skipped": {name: {"count": len(those), "first": those[:SHOWN_SKIPPED]} for name, those in skipped.items()},
        "notes": _skipped_notes(data, skipped) + _class_notes(data, train, test) + _repeated_notes(boxes_of, *digests),
    }
    return train, test, details


def _skipped_notes(data: LabelledSet, skipped: dict[str, list[str]]) -> list[str]:
    counts = {"train": len(data.train), "test": len(data.test)}
    return [
        f"{len(those)} of the {counts[name]} {kind} images could not be read and are left out. The first: {those[0]}"
        for name, kind in (("train", "training"), ("test", "test"))
        if (those := skipped[name])
    ]


def _class_notes(data: LabelledSet, train: Features, test: Features) -> list[str]:
    """Classes that only one of the parts has."""
    unknown = missing(data.classes, test.labels.tolist(), train.labels.tolist())
    untested = missing(data.classes, range(len(data.classes)), test.labels.tolist())
    notes = [f"not learned, so that their test rows count as wrong: {unknown}"] if unknown else []
    return notes + ([f"not tested, so that the mean per class leaves them out: {untested}"] if untested else [])


def _repeated_notes(boxes_of: str, train: list[bytes], test: list[bytes]) -> list[str]:
    """Images that both parts hold. Learning one by heart counts as right on the test part."""
    repeated = sum(map(set(train).__contains__, test))
    return [f"{repeated} of the {len(test)} {boxes_of}test images are training images too"] if repeated else []


def _knn(opened: OpenedEncoder, data: LabelledSet, options: Knn, size: int, verbose: bool) -> Scored:
    train, test, details = _frozen(opened, data, options, size, verbose, whole=True)
    return _vote(train, test, options) | {"chance": chance(train.labels, test.labels)}, details


def _linear(opened: OpenedEncoder, data: LabelledSet, options: Linear, size: int, verbose: bool) -> Scored:
    train, test, details = _frozen(opened, data, options, size, verbose, whole=True)
    scores, probe = _probe(train, test, options)
    return scores | {"chance": chance(train.labels, test.labels)}, details | probe


def _regions(opened: OpenedEncoder, data: LabelledSet, options: Regions, size: int, verbose: bool) -> Scored:
    if not data.has_boxes:
        raise EvaluationError(f"data: regions need boxes, and {data.name} has none. Take knn or linear for it")
    train, test, details = _frozen(opened, data, options, size, verbose, whole=False)
    scores, probe = _probe(train, test, options)
    return scores | _vote(train, test, options) | {"chance": chance(train.labels, test.labels)}, details | probe


def _accuracies(name: str, predictions: Tensor, labels: Tensor) -> dict[str, float]:
    return {
        f"{name} top-1": accuracy(predictions, labels),
        f"{name} per class": mean_class_accuracy(predictions, labels),
    }


def _vote(train: Features, test: Features, options: Knn | Regions) -> dict[str, float]:
    k = min(options.k, len(train.x))
    rows = (train.x, train.labels, test.x, test.labels)
    return _accuracies("kNN", knn_predictions(*rows, k=k, temperature=options.temperature), test.labels)


def _probe(train: Features, test: Features, options: Linear | Regions) -> tuple[dict[str, float], dict[str, Any]]:
    device = usable_device(options.device)
    rows = (value.to(device) for value in (train.x, train.labels, test.x, test.labels))
    probe = linear_probe(*rows, epochs=options.epochs, seed=options.seed)
    scores = _accuracies("linear", probe.predictions.cpu(), test.labels)
    return scores, {"probe": {"lr": probe.lr, "held_out_accuracy": probe.held_out_accuracy}}


def _detection(opened: OpenedEncoder, data: LabelledSet, options: Detection, size: int, verbose: bool) -> Scored:
    from maskco.evaluate.detection import evaluate_detection  # needs [eval]

    folder = own_file(opened.run or user_path(options.out or ".").parent, "detectors")
    return evaluate_detection(opened, data, options, size, folder, workers(options, data), verbose)


def workers(options: Evaluation, data: LabelledSet) -> int:
    return loading_workers(options.workers, data.train.in_memory)


TASKS: dict[str, Callable[..., Scored]] = {"knn": _knn, "linear": _linear, "regions": _regions, "detection": _detection}
TITLES = {
    "knn": "images by nearest neighbours, %",
    "linear": "images by a linear classifier, %",
    "regions": "regions by frozen features, %",
    "detection": "Faster R-CNN, fine-tuned: COCO's average precision, %",
}
