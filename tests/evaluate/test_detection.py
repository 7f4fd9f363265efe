"""Detection transfer: which weights and maps the detector gets, how it trains, resumes and is measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from labelled import colored, make_coco
from maskco.evaluate import detection
from maskco.evaluate.datasets import open_labelled
from maskco.evaluate.detection import DetectionSet, Pyramid, Training, average_precision, build_detector
from maskco.evaluate.encoders import open_encoder
from maskco.evaluate.errors import EvaluationError
from maskco.evaluate.options import Detection
from maskco.evaluate.run import evaluate

pytest.importorskip("torchmetrics")
pytest.importorskip("pycocotools")


@pytest.fixture
def coco(tmp_path: Path) -> str:
    return str(make_coco(tmp_path / "coco", {"train2017": 4, "val2017": 3}))


@pytest.mark.parametrize(
    ("name", "stage", "strides"),
    [
        ("test_resnet", -1, [4, 8, 16, 32, 64]),
        ("test_resnet", 2, [4, 8, 16]),
        ("test_convnext", -1, [4, 8, 16, 32, 64]),
    ],
)
def test_a_pyramid_stands_on_the_encoder_s_own_maps(name: str, stage: int, strides: list[int]) -> None:
    opened = open_encoder(f"untrained:{name}")
    if stage != -1:
        from maskco.nn import create_encoder

        opened.encoder, opened.stage = create_encoder(name, stage=stage).eval(), stage
    images = torch.rand(2, 3, 64, 96)
    pyramid = Pyramid(opened).eval()
    assert pyramid.strides == strides
    with torch.no_grad():
        torch.testing.assert_close(pyramid.body(images)[-1], opened.encoder(images))
        shapes = [tuple(level.shape) for level in pyramid(images).values()]
    assert shapes == [(2, 256, 64 // s, 96 // s) if 64 % s == 0 and 96 % s == 0 else (2, 256, 1, 2) for s in strides]
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in pyramid.body.modules())


def test_all_but_batch_norms_is_trained() -> None:
    pyramid = Pyramid(open_encoder("untrained:resnet18"))
    frozen = [layer for layer in pyramid.modules() if "Frozen" in type(layer).__name__]
    assert len(frozen) == 20
    assert all(parameter.requires_grad for parameter in pyramid.parameters())
    assert not any(True for layer in frozen for _ in layer.parameters())


def test_an_encoder_of_one_size_is_refused() -> None:
    with pytest.raises(EvaluationError, match="takes images of 160 pixels only"):
        Pyramid(open_encoder("untrained:test_vit"))


def test_mirroring_takes_the_boxes_along_and_repeats() -> None:
    scenes = colored(1, 0)
    seen = [DetectionSet(scenes)[(epoch, 0)] for epoch in range(20)]
    straight, plain = DetectionSet(scenes)[0]
    assert plain["labels"].tolist() == (scenes[0].labels + 1).tolist()
    mirrored = [not torch.equal(image, straight) for image, _ in seen]
    assert 3 < sum(mirrored) < 17
    for (image, target), turned in zip(seen, mirrored, strict=True):
        for (x1, y1, x2, y2), label in zip(target["boxes"].int().tolist(), target["labels"].tolist(), strict=True):
            inside = image[:, y1:y2, x1:x2].flatten(1)
            assert torch.equal(inside.min(1).values, inside.max(1).values) and inside[label - 1, 0] > 0.7
        assert turned == torch.equal(image, straight.flip(-1))
    again = DetectionSet(scenes)[(3, 0)][0]
    assert torch.equal(seen[3][0], again)


def small_training(path: Path, options: Detection) -> Training:
    torch.manual_seed(0)
    detector = build_detector(open_encoder("untrained:test_resnet"), 3, 32, 8)
    return Training(detector, colored(4, 0), options, path, 0)


def test_an_interrupted_training_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = Detection(encoders=(), epochs=2, batch_size=2)
    with torch.random.fork_rng():
        whole = small_training(tmp_path / "whole.pt", options)
        whole.run(None)

    monkeypatch.setattr(detection, "SAVE_MINUTES", 0)
    with torch.random.fork_rng(), pytest.raises(KeyboardInterrupt):
        broken = small_training(tmp_path / "broken.pt", options)
        saves = iter([broken.save, broken.save, broken.save])
        broken.save = lambda: next(saves)() if broken.step < 3 else (_ for _ in ()).throw(KeyboardInterrupt)
        broken.run(None)
    resumed = small_training(tmp_path / "broken.pt", options)
    assert resumed.step == 2
    resumed.run(None)
    assert resumed.step == whole.step == 4 and resumed.loss == whole.loss
    for name, value in whole.detector.state_dict().items():
        torch.testing.assert_close(resumed.detector.state_dict()[name], value, rtol=0, atol=0)


def test_the_schedule_rises_and_falls_twice(tmp_path: Path) -> None:
    training = small_training(tmp_path / "x.pt", Detection(encoders=(), epochs=45, batch_size=2, lr=1.6))
    rates = [training.lr(step) for step in range(training.steps)]
    assert training.steps == 90 and rates[0] == pytest.approx(0.02) and rates[9] == pytest.approx(0.2)
    assert [rates[i] for i in (59, 60, 79, 80)] == pytest.approx([0.2, 0.02, 0.02, 0.002])


class Oracle(torch.nn.Module):
    """Finds what it is told to."""

    def __init__(self, found: list[dict]) -> None:
        super().__init__()
        self.found = iter(found)
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images: list) -> list[dict]:
        return [next(self.found) for _ in images]


def test_right_boxes_score_100_shifted_ones_less_and_crowds_do_not_count(coco: str) -> None:
    test = open_labelled(coco).test
    assert len(test.crowds[0].boxes) == 1
    right = [{"boxes": s.boxes, "labels": s.labels + 1, "scores": torch.ones(len(s.boxes))} for s in test]
    metric = detection._mean_average_precision
    assert average_precision(Oracle(right), test, metric()) == pytest.approx({"mAP": 100, "mAP 50": 100, "mAP 75": 100})
    crowd = {k: torch.cat([right[0][k], v]) for k, v in (
        ("boxes", test.crowds[0].boxes), ("labels", test.crowds[0].labels + 1), ("scores", torch.ones(1)),
    )}  # fmt: skip
    assert average_precision(Oracle([crowd, *right[1:]]), test, metric())["mAP"] == pytest.approx(100)
    shifted = [found | {"boxes": found["boxes"] + torch.tensor([6.0, 0, 6, 0])} for found in right]  # IoU 22 / 34
    scores = average_precision(Oracle(shifted), test, metric())
    assert scores["mAP 50"] == pytest.approx(100) and scores["mAP 75"] == 0 and 20 < scores["mAP"] < 50


def test_nothing_to_find_and_packages_that_are_missing_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EvaluationError, match="the test images have no box"):
        none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "scores": torch.zeros(0)}
        average_precision(Oracle([none]), colored(1, 0, boxes=0), detection._mean_average_precision())
    monkeypatch.setitem(sys.modules, "torchmetrics.detection", None)
    with pytest.raises(EvaluationError, match=r"pip install 'maskco\[eval\]'"):
        detection._mean_average_precision()


def test_other_annotations_train_another_detector_and_a_finished_one_is_noted(coco: str, tmp_path: Path) -> None:
    options = Detection(
        encoders=("untrained:test_resnet",), data=coco, image_size=32, epochs=1, batch_size=4, proposals=4, workers=0,
        device="cpu", out=str(tmp_path / "rows.json"),
    )  # fmt: skip

    def row() -> tuple[str, bool]:
        details = evaluate(options, verbose=False)[0].details
        return details["detector"], any("was only tested" in note for note in details["notes"])

    first, again = row(), row()
    assert first[0] == again[0] and not first[1] and again[1]
    file = Path(coco, "annotations", "instances_train2017.json")
    found = json.loads(file.read_text())
    found["annotations"][0]["bbox"][2] += 1
    file.write_text(json.dumps(found))
    changed = row()
    assert changed[0] != first[0] and not changed[1]


def test_a_test_part_without_boxes_is_refused_before_training(coco: str, tmp_path: Path) -> None:
    file = Path(coco, "annotations", "instances_val2017.json")
    found = json.loads(file.read_text())
    file.write_text(json.dumps(found | {"annotations": []}))
    options = Detection(
        encoders=("untrained:test_resnet",), data=coco, image_size=32, device="cpu", out=str(tmp_path / "rows.json")
    )
    with pytest.raises(EvaluationError, match="the test images have no box"):
        evaluate(options, verbose=False)
    assert not (tmp_path / "detectors").exists()


@pytest.mark.slow
def test_a_whole_detection_run_learns_three_colors_and_is_short_the_second_time(tmp_path: Path) -> None:
    data = str(make_coco(tmp_path / "coco", {"train2017": 24, "val2017": 8}))
    out = tmp_path / "rows.json"
    options = Detection(
        encoders=("untrained:test_resnet",), data=data, image_size=64, epochs=6, batch_size=4, lr=0.04, proposals=32,
        workers=0, device="cpu", out=str(out),
    )  # fmt: skip
    row = evaluate(options, verbose=False)[0]
    assert row.scores["mAP 50"] > 10 and row.details["boxes"] == {"train": 48, "test": 16}
    detector = Path(row.details["detector"])
    written = detector.stat().st_mtime_ns
    assert evaluate(options, verbose=False)[0].scores == row.scores and detector.stat().st_mtime_ns == written


@pytest.mark.parametrize("content", [b"", b"damaged", None], ids=["empty", "text", "other"])
def test_a_damaged_detector_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.pt"
    torch.save({"step": 1}, path) if content is None else path.write_bytes(content)
    with pytest.raises(EvaluationError, match=r"x.pt holds no detector to resume from.*. Remove it") as error:
        small_training(path, Detection(encoders=()))
    assert "\n" not in str(error.value)
