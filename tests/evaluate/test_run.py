"""Whole evaluations: the same treatment for every encoder, the table, the file of rows, bad input."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from labelled import make_class_folders, make_coco
from maskco import cli
from maskco.config import PretrainConfig
from maskco.errors import UserError
from maskco.evaluate.options import Detection, Knn, Linear, Regions
from maskco.evaluate.results import Row, format_table, load_rows, save_rows
from maskco.evaluate.run import evaluate
from maskco.methods import build_method
from maskco.runs.checkpoint import CheckpointError, save_checkpoint


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder that ended with the weights it began with, but with other running statistics."""
    return make_run(tmp_path / "run")


def make_run(folder: Path, change=lambda encoder: None) -> Path:
    config = PretrainConfig.of(
        data="demo", out=str(folder), encoder="test_resnet", stage=2, image_size=32, dim=8, queue_size=8, seed=5
    )
    torch.manual_seed(config.run.seed)
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
    return str(make_class_folders(tmp_path_factory.mktemp("colors"), {"train": 24, "val": 12}))


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_coco(tmp_path_factory.mktemp("coco"), {"train2017": 24, "val2017": 12}))


SMALL = {"image_size": 32, "workers": 0, "device": "cpu"}


@pytest.mark.parametrize("task", [Knn, Linear, Regions])
def test_a_run_that_learned_nothing_scores_as_untrained(run: Path, task) -> None:
    """Every encoder gets the same treatment: only weights can make a difference, not what BatchNorm happened to see."""
    torch.manual_seed(123)  # whatever the caller's random numbers are
    state = torch.random.get_rng_state()
    options = task(encoders=(str(run),), untrained=True, train_images=40, test_images=20)
    trained, untrained = evaluate(options, verbose=False)
    assert trained.scores == untrained.scores
    assert torch.equal(torch.random.get_rng_state(), state)


def test_stored_statistics_are_used_where_they_are_asked_for(run: Path) -> None:
    options = Regions(encoders=(str(run),), train_images=60, test_images=40, epochs=10)
    scores = [evaluate(replace(options, batch_norm=kind), verbose=False)[0].scores for kind in ("data", "stored")]
    assert scores[0] != scores[1]


@pytest.mark.parametrize("task", [Knn, Linear])
def test_pictures_of_three_colors_are_told_apart_unless_the_encoder_sees_nothing(
    tmp_path: Path, pictures: str, task
) -> None:
    blind = make_run(tmp_path / "blind", lambda encoder: [p.zero_() for p in encoder.parameters()])
    rows = evaluate(task(encoders=(str(blind),), untrained=True, data=pictures, **SMALL), verbose=False)
    score = next(iter(rows[0].scores))
    assert rows[0].scores[score] == pytest.approx(rows[0].scores["chance"]) == pytest.approx(100 / 3)
    assert rows[1].scores[score] > 90  # flat colors are easy, once BatchNorm has statistics


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
    options = Knn(encoders=names, data=pictures, architecture="test_vit", workers=0, train_images=9, test_images=6)
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
    others = [  # an encoder and task as before
        replace(newer, details={"settings": settings})
        for settings in ({"data": "/d1/x"}, {"data": "/d2/x"}, {"data": "/d1/x", "k": 1})
    ]
    save_rows(path, [*others, replace(others[0], details={"settings": {"data": "/d1/x", "workers": 2}})])
    assert [row.details.get("settings") for row in load_rows(path)] == [
        None, None, None, {"data": "/d1/x", "workers": 2}, {"data": "/d2/x"}, {"data": "/d1/x", "k": 1},
    ]  # fmt: skip
    path.write_text('{"scores": {}}')
    with pytest.raises(UserError, match="no file of evaluations"):
        save_rows(path, first)
    with pytest.raises(UserError, match="no file of evaluations"):  # before it works, not after
        evaluate(Knn(encoders=("untrained:test_resnet",), train_images=1, test_images=1, out=str(path)))


def test_an_encoder_of_one_size_says_so(tmp_path: Path, pictures: str) -> None:
    options = Knn(
        encoders=("untrained:test_vit",), data=pictures, image_size=64, workers=0, device="cpu",
        out=str(tmp_path / "rows.json"),
    )  # fmt: skip
    said = "untrained:test_vit takes images of 160 pixels only, which these are resized to"
    assert said in evaluate(options, verbose=False)[0].details["notes"]
    same = evaluate(dataclasses.replace(options, image_size=160), verbose=False)[0]
    assert said not in same.details["notes"]


def test_a_table_leaves_out_what_an_encoder_has_no_score_for() -> None:
    table = format_table([Row("t", "d", "long name", "a", {"x": 1.25}), Row("t", "d", "b", "a", {"x": 100, "y": 2})])
    assert table.splitlines()[0::2] == ["encoder        x    y", "long name    1.2     "] and "100.0  2.0" in table


def test_bad_input_is_one_line_and_writes_nothing(tmp_path: Path, run: Path, pictures: str) -> None:
    before = sorted(run.iterdir())
    for options, message in (
        (Knn(encoders=()), "encoders: none was named. Name at least one"),
        (Knn(encoders=(str(run), "resnet50")), "Did you mean timm:resnet50"),
        (Knn(encoders=(str(run),), data="imagenet"), "data: no such folder '.*imagenet'"),
        (Knn(encoders=(str(run),), architecture="resnet50"), "architecture: none of the encoders is a file of weights"),
        (Knn(encoders=(str(run),), k=0), "k must be at least 1"),
        (Knn(encoders=(str(run),), image_size=8), "image_size must be between 16 and"),
        (Knn(encoders=(str(run),), device="gpu"), "device: 'gpu' cannot be used"),
        (Knn(encoders=(str(run),), workers=-1), "workers must be between 0 and 1024"),
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
    assert "kNN top-1" in printed.out and printed.err.startswith("error: --data: no such folder")
    assert [row.details["settings"]["k"] for row in load_rows(out)] == [3, 3]


def spoil(folder: Path, count: int) -> list[Path]:
    """Cuts the first images of a folder short."""
    paths = sorted(folder.rglob("*.png"))[:count]
    for path in paths:
        path.write_bytes(path.read_bytes()[:60])
    return paths


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_counted_and_named(
    tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    root = make_class_folders(tmp_path / "set", {"train": 24, "val": 12})
    learnt, tested = spoil(root / "train", 3), spoil(root / "val", 2)
    (row,) = evaluate(Knn(encoders=(str(run),), data=str(root), image_size=32, workers=workers, device="cpu"))
    told = capsys.readouterr().out
    assert "3 of the 24 training images could not be read" in told and str(learnt[0]) in told
    assert "2 of the 12 test images could not be read" in told and str(tested[0]) in told
    assert row.details["rows"] == {"train": 21, "test": 10}
    skipped = row.details["skipped"]
    assert {name: part["count"] for name, part in skipped.items()} == {"train": 3, "test": 2}
    assert all(path in reason for path, reason in zip(map(str, tested), skipped["test"]["first"], strict=True))
    assert len([note for note in row.details["notes"] if "could not be read" in note]) == 2


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("part", "count", "message"),
    [
        ("train", 24, r"none of the 24 training images could be read. The first that could not: .*blue/\d+.png: "),
        ("val", 12, r"none of the 12 test images could be read. The first that could not: .*blue/\d+.png: "),
        ("val", 7, "only 5 of the 12 test images could be read"),
    ],
)
def test_a_part_that_is_mostly_unreadable_is_refused(
    tmp_path: Path, run: Path, part: str, count: int, message: str, workers: int
) -> None:
    root = make_class_folders(tmp_path / "set", {"train": 24, "val": 12})
    spoil(root / part, count)
    options = Linear(encoders=(str(run),), data=str(root), image_size=32, workers=workers, device="cpu")
    with pytest.raises(UserError, match=message) as error:
        evaluate(options, verbose=False)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_with_boxes(tmp_path: Path, run: Path, workers: int) -> None:
    root = make_coco(tmp_path / "coco", {"train2017": 12, "val2017": 6})
    options = {"encoders": (str(run),), "data": str(root), "image_size": 32, "workers": workers, "device": "cpu"}
    spoil(root / "val2017", 1)
    for task in (Knn, Regions):
        row = evaluate(task(**options), verbose=False)[0]
        assert row.details["skipped"]["test"]["count"] == 1 and row.details["rows"]["test"] == 10
    with pytest.raises(UserError, match=r"val2017/000.png: .*take it out of the annotation file") as error:
        evaluate(Detection(**options, epochs=1, batch_size=4, proposals=8), verbose=False)
    assert "\n" not in str(error.value)
    spoil(root / "val2017", 6)
    with pytest.raises(UserError, match="none of the 6 test images could be read"):
        evaluate(Regions(**options), verbose=False)


def test_a_class_that_only_one_part_has_is_said(tmp_path: Path, run: Path) -> None:
    root = make_class_folders(tmp_path / "set", {"train": 24, "val": 12})
    spoil(root / "train/blue", 8)
    spoil(root / "val/green", 4)
    row = evaluate(Knn(encoders=(str(run),), data=str(root), **SMALL), verbose=False)[0]
    notes = "\n".join(row.details["notes"])
    assert "not learned, so that their test rows count as wrong: 1 of 3 classes (blue)" in notes
    assert "not tested, so that the mean per class leaves them out: 1 of 3 classes (green)" in notes
    assert row.scores["kNN per class"] <= 50  # of blue and red, blue cannot be told


def test_images_of_both_parts_are_counted(tmp_path: Path, run: Path, pictures: str) -> None:
    root = make_class_folders(tmp_path / "set", {"train": 24, "val": 12})
    for index, path in enumerate(sorted((root / "train/red").iterdir())[:3]):
        (root / f"val/red/copy{index}.png").write_bytes(path.read_bytes())
    notes = evaluate(Knn(encoders=(str(run),), data=str(root), **SMALL), verbose=False)[0].details["notes"]
    repeated = [note for note in notes if "are training images too" in note]
    same = make_class_folders(tmp_path / "same", {"train": 24, "val": 12})  # one generator: the parts differ
    assert repeated == ["3 of the 15 test images are training images too"]
    assert not evaluate(Knn(encoders=(str(run),), data=str(same), **SMALL), verbose=False)[0].details["notes"]


@pytest.mark.parametrize("task", [Knn, Linear, Regions])
def test_imbalanced_classes_show_in_the_mean_per_class(tmp_path: Path, task) -> None:
    """An encoder that sees nothing scores by the most frequent class; per class it cannot."""
    blind = make_run(tmp_path / "blind", lambda encoder: [p.zero_() for p in encoder.parameters()])
    root = make_coco(tmp_path / "coco", {"train2017": 24, "val2017": 12})
    for path in sorted(root.glob("annotations/*.json")):  # that of the test part is read last
        content = json.loads(path.read_text())
        for annotation in content["annotations"][:-6]:
            annotation["category_id"] = 1
        path.write_text(json.dumps(content))
    row = evaluate(task(encoders=(str(blind),), data=str(root), **SMALL), verbose=False)[0]
    readout = "kNN" if task is Knn else "linear"
    tested = len({a["category_id"] for a in content["annotations"]})
    assert row.scores[f"{readout} top-1"] == pytest.approx(row.scores["chance"]) and row.scores["chance"] > 70
    assert row.scores[f"{readout} per class"] == pytest.approx(100 / tested)
    assert list(row.scores)[-1] == "chance"


def test_the_encoder_that_was_taken_of_several_is_said(
    tmp_path: Path, pictures: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from maskco.evaluate.encoders import open_encoder

    state = open_encoder("untrained:test_convnext").encoder.backbone.state_dict()
    prefixes = ("module.encoder_k.", "module.encoder_q.")
    both = {prefix + name: value * (1 + n) for n, prefix in enumerate(prefixes) for name, value in state.items()}
    torch.save({"state_dict": both}, tmp_path / "moco.pth")
    options = Knn(
        encoders=(str(tmp_path / "moco.pth"),),
        data=pictures,
        architecture="test_convnext",
        out=str(tmp_path / "x.json"),
    )
    options = replace(options, **SMALL)
    (row,) = evaluate(options)
    (note,) = row.details["notes"]
    assert "the encoder taken is 'module.encoder_q.'. The file also holds 'module.encoder_k.'" in note
    assert note in capsys.readouterr().out
    (chosen,) = evaluate(replace(options, prefix="encoder_k"), verbose=False)
    assert chosen.details["prefix"] == "module.encoder_k." and chosen.details["settings"]["prefix"] == "encoder_k"
    assert chosen.details["encoder_sha256"] != row.details["encoder_sha256"]
    with pytest.raises(UserError, match=r"prefix: none of the encoders is a file of weights. Leave it out"):
        evaluate(replace(options, encoders=("untrained:test_convnext",), prefix="x"), verbose=False)


ROW = {"task": "knn", "data": "x", "encoder": "e", "architecture": "a", "scores": {"kNN top-1": 1.0}, "details": {}}


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "null", "[]", "3", '"rows"', "{}", '{"rows": null}', '{"rows": 3}', '{"rows": [null]}',
        '{"rows": [[]]}', '{"rows": {"a": 1}}', "\udce9".encode("utf-8", "surrogateescape"), "[" * 100_000,
        *(json.dumps({"rows": [ROW | change]}) for change in (
            {"scores": None}, {"scores": []}, {"scores": {}}, {"scores": {"chance": 1}}, {"scores": {"x": None}},
            {"scores": {"x": "1"}}, {"scores": {"x": True}}, {"details": None}, {"details": [1]}, {"task": "jump"},
            {"task": None}, {"task": []}, {"encoder": 3}, {"data": None}, {"more": 1},
        )),
    ],
    ids=lambda content: repr(content)[:40],
)  # fmt: skip
def test_a_damaged_or_foreign_file_of_rows_is_one_line(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "evaluation.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match="is no file of evaluations by this version") as error:
        evaluate(Knn(encoders=("untrained:test_resnet",), train_images=1, test_images=1, out=str(path)))
    assert "\n" not in str(error.value)


def test_paths_may_begin_with_the_home_folder(
    tmp_path: Path, run: Path, pictures: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    from maskco.evaluate.encoders import open_encoder

    torch.save(open_encoder("untrained:test_convnext").encoder.backbone.state_dict(), tmp_path / "x.pth")
    names = ("~/run", "untrained:~/run", "~/x.pth", "~/run/last.pt", "untrained:~/run/last.pt")
    options = Knn(encoders=names, data=pictures, architecture="test_convnext", out="~/made/x.json", **SMALL)
    rows = evaluate(options, verbose=False)
    assert [row.encoder for row in rows] == list(names) and (tmp_path / "made/x.json").is_file()
    with pytest.raises(UserError, match=r"out: .* is a folder. Name a file"):
        evaluate(replace(options, out="~/made"), verbose=False)
