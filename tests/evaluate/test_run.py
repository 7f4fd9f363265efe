"""Whole evaluations: the same treatment for every encoder, the table, the file of rows, bad input."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from labelled import make_class_folders, make_coco
from torch import nn

from maskco import cli
from maskco.checkpoint import CheckpointError, save_checkpoint
from maskco.config import PretrainConfig, UserError
from maskco.evaluate.options import Detection, Knn, Linear, Regions
from maskco.evaluate.results import Row, format_table, load_rows, save_rows
from maskco.evaluate.run import evaluate
from maskco.methods import build_method


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder that ended with the weights it began with, but with other running statistics."""
    return make_run(tmp_path / "run")


def make_run(folder: Path, change=lambda encoder: None) -> Path:
    config = PretrainConfig(
        data="demo", out=str(folder), encoder="test_resnet", stage=2, image_size=32, dim=8, queue_size=8, seed=5
    )
    torch.manual_seed(config.seed)
    method = build_method(config)
    for layer in method.encoder.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-1, 1)
            layer.running_var.uniform_(0.5, 9)
    with torch.no_grad():
        change(method.encoder)
    folder.mkdir()
    save_checkpoint(folder / "last.pt", {"config": config.to_dict(), "method": method.state_dict(), "step": 12})
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_class_folders(tmp_path_factory.mktemp("colours"), {"train": 24, "val": 12}))


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_coco(tmp_path_factory.mktemp("coco"), {"train2017": 24, "val2017": 12}))


SMALL = {"image_size": 32, "workers": 0, "device": "cpu"}


@pytest.mark.parametrize("task", [Knn, Linear, Regions])
def test_a_run_that_learned_nothing_scores_as_untrained(run: Path, task) -> None:
    """Every encoder gets the same treatment: only weights can make a difference, not what BatchNorm happened to see."""
    torch.manual_seed(123)  # whatever the caller's random numbers are
    state = torch.random.get_rng_state()
    options = task(encoders=(str(run),), untrained=True, train_pictures=40, test_pictures=20)
    trained, untrained = evaluate(options, verbose=False)
    assert trained.scores == untrained.scores
    assert torch.equal(torch.random.get_rng_state(), state)


def test_stored_statistics_are_used_where_they_are_asked_for(run: Path) -> None:
    options = Regions(encoders=(str(run),), train_pictures=60, test_pictures=40, epochs=10)
    scores = [evaluate(replace(options, batch_norm=kind), verbose=False)[0].scores for kind in ("data", "stored")]
    assert scores[0] != scores[1]


@pytest.mark.parametrize("task", [Knn, Linear])
def test_pictures_of_three_colours_are_told_apart_unless_the_encoder_sees_nothing(
    tmp_path: Path, pictures: str, task
) -> None:
    blind = make_run(tmp_path / "blind", lambda encoder: [p.zero_() for p in encoder.parameters()])
    rows = evaluate(task(encoders=(str(blind),), untrained=True, data=pictures, **SMALL), verbose=False)
    score = next(iter(rows[0].scores))
    assert rows[0].scores[score] == pytest.approx(rows[0].scores["chance"]) == pytest.approx(100 / 3)
    assert rows[1].scores[score] > 90  # flat colours are easy, once BatchNorm has statistics


def test_boxes_are_told_apart_in_place_and_cut_out(coco: str, run: Path) -> None:
    regions = evaluate(Regions(encoders=(str(run),), data=coco, **SMALL), verbose=False)[0]
    assert regions.scores["linear top-1"] > 90 and regions.details["rows"] == {"train": 48, "test": 24}
    cut = evaluate(Knn(encoders=(str(run),), data=coco, **SMALL), verbose=False)[0]
    assert cut.scores["kNN top-1"] > 90 and cut.details["rows"] == {"train": 48, "test": 24}


def test_encoders_of_all_kinds_stand_in_one_table_and_one_file(
    tmp_path: Path, run: Path, pictures: str, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "weights.pth"
    from maskco.evaluate.encoders import open_encoder

    torch.save(open_encoder("untrained:test_vit").encoder.backbone.model.state_dict(), weights)
    names = (str(run), "untrained:test_convnext", str(weights))
    options = Knn(encoders=names, data=pictures, architecture="test_vit", workers=0, train_pictures=9, test_pictures=6)
    rows = evaluate(options)
    table = capsys.readouterr().out.splitlines()
    assert [row.encoder for row in rows] == list(names)
    assert [row.details["image_size"] for row in rows] == [64, 64, 160]  # the run's; the ViT takes its own only
    start = next(i for i, line in enumerate(table) if line.startswith("encoder"))
    assert [line.split()[0] for line in table[start + 2 : start + 5]] == list(names)
    assert f"{rows[1].scores['kNN top-1']:.1f}" in table[start + 3]
    saved = json.loads((run / "evaluation.json").read_text())["rows"]
    assert [row["encoder"] for row in saved] == list(names)
    details = saved[0]["details"]
    assert (details["step"], details["pictures"], details["rows"]) == (
        12,
        {"train": 9, "test": 6},
        {"train": 9, "test": 6},
    )
    assert details["versions"]["torch"] == torch.__version__ and details["settings"]["k"] == 20
    assert {"commit", "encoder_sha256", "device"} <= details.keys()


def test_rows_of_a_file_are_replaced_by_newer_ones_and_others_kept(tmp_path: Path) -> None:
    path = tmp_path / "made" / "rows.json"
    first = [Row("knn", "x", name, "a", {"kNN top-1": score}) for name, score in (("one", 1.0), ("two", 2.0))]
    save_rows(path, first)
    newer = Row("knn", "x", "one", "a", {"kNN top-1": 3.0})
    other = Row("regions", "x", "one", "a", {"linear top-1": 4.0})
    save_rows(path, [newer, other])
    assert load_rows(path) == [newer, first[1], other]
    path.write_text('{"scores": {}}')
    with pytest.raises(UserError, match="no file of evaluations"):
        save_rows(path, first)
    with pytest.raises(UserError, match="no file of evaluations"):  # before it works, not after
        evaluate(Knn(encoders=("untrained:test_resnet",), train_pictures=1, test_pictures=1, out=str(path)))


def test_a_table_leaves_out_what_an_encoder_has_no_score_for() -> None:
    table = format_table([Row("t", "d", "long name", "a", {"x": 1.25}), Row("t", "d", "b", "a", {"x": 100, "y": 2})])
    assert table.splitlines()[0::2] == ["encoder        x    y", "long name    1.2     "] and "100.0  2.0" in table


def test_bad_input_is_one_line_and_writes_nothing(tmp_path: Path, run: Path, pictures: str) -> None:
    before = sorted(run.iterdir())
    for options, message in (
        (Knn(encoders=()), "encoders: name at least one"),
        (Knn(encoders=(str(run), "resnet50")), "did you mean timm:resnet50"),
        (Knn(encoders=(str(run),), data="imagenet"), "data: no such folder 'imagenet'"),
        (Knn(encoders=(str(run),), k=0), "k must be positive"),
        (Knn(encoders=(str(run),), image_size=8), "image_size must be at least 16"),
        (Knn(encoders=(str(run),), device="gpu"), "device: 'gpu' cannot be used"),
        (Knn(encoders=(str(run),), workers=-1), "workers must be 0 or more"),
        (Regions(encoders=(str(run),), data=pictures), "regions need boxes"),
        (Detection(encoders=(str(run),), data=pictures), "detection needs"),
    ):
        with pytest.raises(UserError, match=message) as error:
            evaluate(options, verbose=False)
        assert "\n" not in str(error.value)
    assert sorted(run.iterdir()) == before
    with pytest.raises(CheckpointError):
        evaluate(Knn(encoders=(str(tmp_path),)))


def test_the_command_line(run: Path, pictures: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "here.json"
    for arguments, code in (
        (["knn", str(run), "untrained:test_resnet", "--data", pictures, "--k", "3", "--out", str(out)], 0),
        (["linear", str(run), "--data", pictures + "x"], 2),
    ):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["eval", *arguments, "--workers", "0", "--image-size", "32"])
        assert stopped.value.code == code
    printed = capsys.readouterr()
    assert "kNN top-1" in printed.out and printed.err.startswith("error: data: no such folder")
    assert [row.details["settings"]["k"] for row in load_rows(out)] == [3, 3]
