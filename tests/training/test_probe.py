"""The online probe: what it scores, that it changes nothing, when it is due, what it costs, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import maskco.training.monitors.probe as probe
from labelled import make_class_folders, make_coco
from maskco.config import METHODS, PretrainConfig
from maskco.errors import ConfigError
from maskco.evaluate.datasets import open_labelled
from maskco.evaluate.features import HeldScenes, Input, extract_features
from maskco.methods.base import encoders
from maskco.nn import Encoder
from maskco.runs.checkpoint import load_run, read_checkpoint
from maskco.training.loop import pretrain
from maskco.training.monitors.probe import ProbeSet, parts_of
from maskco.training.state import TrainState
from resuming import same
from tiny_runs import TINY, rows, tiny

SCORES = {"probe_knn", "probe_knn_chance"}
REGION_SCORES = {"probe_regions", "probe_regions_chance"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    return make_class_folders(tmp_path_factory.mktemp("folders"), {"train": 30, "val": 12})


@pytest.fixture(scope="module")
def coco(tmp_path_factory) -> Path:
    return make_coco(tmp_path_factory.mktemp("coco"), {"train2017": 12, "val2017": 6})


def without_probe(found: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if not name.startswith("probe")} for row in found]


def state_of(**options: object) -> TrainState:
    options = {**TINY, **options}
    return TrainState(PretrainConfig.of(data="a", out="b", **options).filled("moco_v2"), 16, torch.device("cpu"))


# ---- what it scores, and when


@pytest.mark.parametrize("method", METHODS)
def test_a_probed_run_is_the_run_without_bit_for_bit(pictures, folders, tmp_path, method):
    """Its weights, buffers, queues and random numbers, and what is logged of it."""
    options = tiny(method, key_group=2, mask_fill="noise", log_every=1)
    pretrain(pictures, tmp_path / "plain", **options)
    pretrain(pictures, tmp_path / "probed", probe=folders, probe_every=1, **options)
    found = rows(tmp_path / "probed")
    assert [row.keys() >= SCORES for row in found] == [row["step"] in (4, 8) for row in found]
    assert without_probe(found) == rows(tmp_path / "plain")
    first, second = (read_checkpoint(tmp_path / name / "last.pt") | {"config": 0} for name in ("plain", "probed"))
    assert second["monitors"].pop("Probe").keys() == {"images"}
    assert same(first, second)


def test_colors_are_told_apart_and_chance_stands_beside(pictures, folders, tmp_path):
    """An encoder of the images' mean colors finds the class, which is a color."""
    pretrain(pictures, tmp_path / "run", probe=folders, **TINY)
    (row,) = [row for row in rows(tmp_path / "run") if "probe_knn" in row]
    assert row["step"] == 8 and row["probe_knn"] > 90 and row["probe_knn_chance"] == pytest.approx(100 / 3)


def test_of_data_with_boxes_regions_and_cut_outs_are_scored(pictures, coco, tmp_path):
    pretrain(pictures, tmp_path / "run", probe=coco, **TINY)
    row = rows(tmp_path / "run")[-1]
    assert row.keys() >= SCORES | REGION_SCORES and row["probe_regions"] > 60 and row["probe_knn"] > 60
    log = (tmp_path / "run/log.txt").read_text()
    assert f"region kNN {row['probe_regions']:.1f}%, kNN {row['probe_knn']:.1f}%" in log
    assert "probe: 12 training and 6 test images of " in log and "every 5 epochs and at the end, for about " in log


def test_it_is_due_after_every_so_many_epochs_and_at_the_end():
    def due(epochs: int, **options: int) -> list[int]:
        state = state_of(epochs=epochs, **options)
        monitor = next(each for each in state.monitors.all if isinstance(each, probe.Probe))
        monitor.run.probe = "named"  # (nothing is opened)
        found = []
        for step in range(1, state.steps + 1):
            state.step = step
            found += [step // 4] if monitor.due else []
        return found

    assert due(12) == [5, 10, 12] and due(3) == [3]
    assert due(4, probe_every=2) == [2, 4] and due(2, probe_every=1) == [1, 2]


def test_the_momentum_encoder_is_probed_as_it_stands(pictures, folders, tmp_path, monkeypatch):
    """With its own running statistics, in eval mode; of SimCLR the encoder itself."""
    probed = []
    features = HeldScenes.features

    def noted(self, encoder, **options):
        probed.append((encoder, features(self, encoder, **options)))
        return probed[-1][1]

    monkeypatch.setattr(HeldScenes, "features", noted)
    monkeypatch.setattr(probe.Probe, "_rehearse", lambda *arguments: None)
    for method in ("moco_v2", "simclr"):
        probed.clear()
        pretrain(pictures, tmp_path / method, probe=folders, **tiny(method))
        _, trained, _ = load_run(tmp_path / method)
        expected = trained.momentum_encoder if method == "moco_v2" else trained.encoder
        data = open_labelled(str(folders), train=30, test=12)
        size = probe.scene_size(PretrainConfig.of(data="a", out="b", **tiny(method)), expected)
        own = extract_features(expected, data.train, Input(size, whole=True))
        torch.testing.assert_close(probed[0][1].x, own.x, atol=0.02, rtol=0.02)  # images are held as 8 bits
        assert torch.equal(probed[0][1].labels, own.labels) and len(probed) == 2


def test_a_resumed_run_is_probed_at_the_same_steps(pictures, coco, tmp_path):
    options = {**TINY, "probe": coco, "probe_every": 1, "keep_best": "probe", "log_every": 2, "save_every_steps": 3}
    pretrain(pictures, tmp_path / "whole", **options, keep=9)
    for step in (3, 4, 6):
        part = tmp_path / f"from {step}"
        shutil.copytree(tmp_path / "whole", part)
        shutil.copy(part / f"step-{step}.pt", part / "last.pt")
        assert pretrain(out=part, resume=True).steps == 8
        assert rows(part) == rows(tmp_path / "whole")
        first, second = (read_checkpoint(run / "last.pt") | {"config": 0} for run in (part, tmp_path / "whole"))
        assert same(first, second)
        assert "probe's images are not" not in (part / "log.txt").read_text()


def test_probing_may_begin_end_and_change_when_a_run_is_resumed(pictures, folders, coco, tmp_path):
    run = tmp_path / "run"
    pretrain(pictures, run, **{**TINY, "epochs": 1})
    pretrain(out=run, resume=True, epochs=2, probe=folders, probe_every=1)
    pretrain(out=run, resume=True, epochs=3, probe=coco)
    pretrain(out=run, resume=True, epochs=4, probe=None)
    found = {row["step"]: row.keys() & (SCORES | REGION_SCORES) for row in rows(run) if row["step"] % 4 == 0}
    assert found == {4: set(), 8: SCORES, 12: SCORES | REGION_SCORES, 16: set()}
    assert (run / "log.txt").read_text().count("the probe's images are not those that the run had before") == 1


def test_the_best_epoch_by_the_probe_is_kept(pictures, folders, tmp_path, monkeypatch):
    """Whatever the queue holds; that with the higher score on regions, if there are any."""
    scores = iter([{"probe_knn": 90.0, "probe_regions": 30.0}, {"probe_knn": 10.0, "probe_regions": 50.5}, {}])
    monkeypatch.setattr(probe.Probe, "_scores", lambda self: next(scores))
    options = {**TINY, "epochs": 3, "probe": folders, "probe_every": 1, "keep_best": "probe"}
    pretrain(pictures, tmp_path / "run", **options)
    assert read_checkpoint(tmp_path / "run/best.pt")["step"] == 8
    assert (
        "best.pt is of epoch 2, with the highest region kNN accuracy, 50.5%" in (tmp_path / "run/log.txt").read_text()
    )


def test_an_encoder_that_cannot_be_probed_does_not_end_the_run(pictures, folders, tmp_path, monkeypatch):
    def broken(self, part):
        raise torch.OutOfMemoryError("out of\nmemory")

    monkeypatch.setattr(probe.Probe, "_features", broken)
    monkeypatch.setattr(probe.Probe, "_rehearse", lambda *arguments: None)
    options = {**TINY, "probe": folders, "probe_every": 1, "keep_best": "probe"}
    assert pretrain(pictures, tmp_path / "run", **options).steps == 8
    log = (tmp_path / "run/log.txt").read_text()
    assert log.count("warning: the probe failed: out of memory. The run continues, and tries again") == 1
    assert "no best.pt: no epoch was probed" in log and not any("probe_knn" in row for row in rows(tmp_path / "run"))


# ---- what it costs


def test_as_many_images_are_taken_as_a_small_share_of_the_work_affords(monkeypatch):
    """And fewer for each rank more, for runs with larger images, and for images with boxes, which are seen twice."""
    asked = []

    def opened(data, *, image_size, train, test):
        asked.append((image_size, train + test))
        raise probe.EvaluationError("data: enough")

    monkeypatch.setattr(probe, "open_labelled", opened)

    def images(count: int, **options: object) -> tuple[int, int]:
        config = PretrainConfig.of(
            data="a", out="b", probe="c", **{**TINY, "crop_scale": (1.0, 1.0), **options}
        ).filled("moco_v2")
        with pytest.raises(ConfigError, match=r"^probe: enough$"):
            TrainState(config, count, torch.device("cpu"))
        return asked[-1]

    assert images(10_000, epochs=20) == (32, 3000)  # 1.5% of the passes of 4 for each of 5 × 10 000 images
    assert images(10_000, epochs=20, probe_every=2) == (32, 1200)
    assert images(10_000, epochs=2) == (32, 1200)
    assert images(10_000, epochs=20, crop_scale=(0.5, 0.5)) == (64, 750)
    assert images(10**7, epochs=20) == (32, 3999) and images(16) == (32, 150)
    assert images(16, probe_images=12) == (32, 12)
    monkeypatch.setattr(probe, "world_size", lambda: 2)
    assert images(10_000, epochs=20) == (32, 1500)
    assert [parts_of(n) for n in (4, 9, 100)] == [(2, 1), (6, 3), (66, 33)]


def test_what_is_used_and_what_it_takes_is_told(folders):
    state = state_of(probe=str(folders), probe_images=12)
    (line, warning, *rest) = state.monitors.lines()
    assert line.startswith("probe: 8 of 30 training and 4 of 12 test images of ") and " of the work" in line
    assert warning.startswith("warning: the probe takes about ") and "Raise --probe-every" in warning and rest == []
    many = TrainState(state.config, 10**6, torch.device("cpu"))
    assert len(many.monitors.lines()) == 1


def test_images_are_read_once_and_seen_as_in_an_evaluation(coco):
    data = open_labelled(str(coco))
    torch.manual_seed(0)
    encoder = Encoder(torch.nn.Conv2d(3, 4, 8, 8), 4, 8)
    for form in (Input(64), Input(48), Input(48, whole=True)):
        held = HeldScenes.read(data.train, form)
        expected = extract_features(encoder, data.train, form)
        found = held.features(encoder, batch_size=5)
        assert torch.equal(found.labels, expected.labels)
        torch.testing.assert_close(found.x, expected.x, atol=0.01, rtol=0.01)
    assert held.images.dtype == torch.uint8 and encoder.training


# ---- what is refused, before anything is written


def unwritten(pictures: Path, out: Path, **options: object) -> str:
    with pytest.raises(ConfigError) as caught:
        pretrain(pictures, out, **{**TINY, **options})
    assert "\n" not in str(caught.value) and not out.exists()
    return str(caught.value)


def test_bad_probes_are_one_line_and_nothing_is_written(pictures, folders, tmp_path):
    out = tmp_path / "run"
    assert unwritten(pictures, out, probe=tmp_path / "nowhere").startswith("probe: ")
    told = unwritten(pictures, out, probe=pictures / "000.png")
    assert told.startswith("probe: ")
    assert unwritten(pictures, out, probe="").startswith("probe is empty. Name labelled data")
    told = unwritten(pictures, out, keep_best="probe")
    assert told == "keep_best must be off or loss without labelled data. Name them with `probe`"
    assert unwritten(pictures, out, probe=folders, probe_every=0).startswith("probe_every must be at least 1")
    assert unwritten(pictures, out, probe=folders, probe_images=2).startswith("probe_images must be at least 4")
    assert pretrain(pictures, out, probe_every=3, **{**TINY, "epochs": 1}).steps == 4  # harmless without a probe


def test_an_encoder_that_takes_no_whole_images_is_told_before_the_run(pictures, folders, tmp_path, monkeypatch):
    forward = Encoder.forward

    def small(self, images):
        if images.shape[-1] > 32:
            raise RuntimeError("too\nlarge")
        return forward(self, images)

    monkeypatch.setattr(Encoder, "forward", small)
    told = unwritten(pictures, tmp_path / "run", probe=folders)
    assert told.startswith("probe: encoder test_resnet fails on images of 64 pixels (too large). Leave the probe out")


def test_images_without_labels_are_no_probe(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("MASKCO_CACHE", str(tmp_path / "cache"))
    import tarfile

    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(pictures / "000.png", "000.png")
    told = unwritten(pictures, tmp_path / "run", probe=tmp_path / "a.tar")
    assert told.startswith("probe: ") and "has no labels. Give a folder by class, COCO" in told
    unwritten(pictures, tmp_path / "run", probe=pictures)


def test_classes_that_one_part_lacks(pictures, folders, tmp_path):
    """Told if some test images can still be right, refused if none can."""
    lacking = tmp_path / "lacking"
    shutil.copytree(folders, lacking)
    shutil.rmtree(lacking / "train/blue")
    (lacking / "train/blue").mkdir()
    try:
        data = open_labelled(str(lacking))
    except Exception as error:  # a source may refuse what has no images by itself
        assert unwritten(pictures, tmp_path / "refused", probe=lacking) == f"probe: {str(error).removeprefix('data: ')}"
    else:
        assert len(data.classes) == 3
        pretrain(pictures, tmp_path / "told", probe=lacking, **TINY)
        log = (tmp_path / "told/log.txt").read_text()
        assert log.count("warning: the probe has no training images of 1 of 3 classes (blue)") == 1


@pytest.mark.parametrize(
    ("train", "test", "told"),
    [
        ((0, 0, 1), (0, 1, 2), "warning: the probe has no training images of 1 of 3 classes (blue)"),
        ((0, 0, 1), (2, 2, 2), "no class of the test images of coco has training images"),
        ((0, 0, 0), (0, 1, 2), "are all of one class"),
    ],
)
def test_classes_of_boxes_that_one_part_lacks(pictures, coco, tmp_path, train, test, told):
    copy = tmp_path / "coco"
    shutil.copytree(coco, copy)
    for part, labels in (("train2017", train), ("val2017", test)):
        path = copy / f"annotations/instances_{part}.json"
        content = json.loads(path.read_text())
        for index, annotation in enumerate(content["annotations"]):
            annotation["category_id"] = 10 * labels[index % 3] + 1
        path.write_text(json.dumps(content))
    if told.startswith("warning"):
        pretrain(pictures, tmp_path / "run", probe=copy, **TINY)
        assert (tmp_path / "run/log.txt").read_text().count(told) == 1
    else:
        assert told in unwritten(pictures, tmp_path / "run", probe=copy)


def test_unreadable_images_are_told_and_more_than_half_refused(pictures, folders, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(folders, damaged)
    files = sorted((damaged / "train").rglob("*.png"))
    files[0].write_bytes(files[0].read_bytes()[:100])
    state = state_of(probe=str(damaged))
    assert any("warning: 1 images of the probe cannot be read. The first: " in line for line in state.monitors.lines())
    for file in files:
        file.write_bytes(file.read_bytes()[:100])
    told = unwritten(pictures, tmp_path / "run", probe=damaged)
    assert told.startswith("probe: none of the 30 training images could be read. The first that could not: ")


def test_a_probe_set_is_the_same_only_for_the_same_images(folders, coco):
    def fingerprint(**options: object) -> str:
        return ProbeSet.open(state_of(**options)).fingerprint

    own = fingerprint(probe=str(folders))
    assert own == fingerprint(probe=str(folders), lr=0.5)
    others = [{"probe": str(coco)}, {"probe": str(folders), "probe_images": 12}]
    assert own not in [fingerprint(**options) for options in others]
    assert len(encoders(state_of().method)) == 2
