"""Labelled sets by their layout: parts, classes, boxes, and everything that can be wrong with them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from labelled import NAMES, colored, make_class_folders, make_coco, save
from maskco.data.sources import SourceError
from maskco.evaluate.datasets import CutOuts, LabelledSet, cut_out, open_labelled


def labels_of(part) -> list[list[int]]:
    return [scene.labels.tolist() for scene in part]


def test_pictures_by_class_have_one_label_and_all_of_them_is_the_box(tmp_path: Path) -> None:
    found = open_labelled(str(make_class_folders(tmp_path / "colors", {"train": 9, "val": 4})))
    assert (found.name, found.classes, found.has_boxes, found.notes) == ("colors", tuple(sorted(NAMES)), False, ())
    assert labels_of(found.train) == [[0]] * 3 + [[1]] * 3 + [[2]] * 3  # blue, green, red
    assert labels_of(found.test) == [[0], [1], [2], [2]]
    scene = found.test[0]
    assert scene.image.dtype == torch.uint8 and scene.boxes.tolist() == [[0, 0, 40, scene.image.shape[1]]]


@pytest.mark.parametrize("part", ["", "train"])
def test_without_a_part_to_test_on_a_fifth_is_held_out(tmp_path: Path, part: str) -> None:
    root = make_class_folders(tmp_path, {part: 15})
    first, again = open_labelled(str(root)), open_labelled(str(root))
    assert (len(first.train), len(first.test)) == (12, 3)
    assert set(first.train.indices).isdisjoint(first.test.indices)
    assert first.test.indices == again.test.indices and "held out" in first.notes[0]


def test_parts_are_cut_short_evenly(tmp_path: Path) -> None:
    root = make_class_folders(tmp_path, {"train": 12, "val": 6})
    found = open_labelled(str(root), train=6, test=3)
    assert labels_of(found.train) == [[0], [0], [1], [1], [2], [2]] and labels_of(found.test) == [[0], [1], [2]]


def test_coco_s_boxes_without_crowds(tmp_path: Path) -> None:
    found = open_labelled(str(make_coco(tmp_path / "coco", {"train2017": 5, "val2017": 3})))
    expected = colored(5, 0, side=64)
    assert found.classes == NAMES and found.has_boxes and (len(found.train), len(found.test)) == (5, 3)
    for scene, own in zip(found.train, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(scene, own, strict=True))
    assert [len(crowd.boxes) for crowd in found.test.crowds] == [1, 0, 0]


def test_one_coco_part_is_split_boxes_and_crowds_along(tmp_path: Path) -> None:
    found = open_labelled(str(make_coco(tmp_path, {"train2017": 10})))
    expected = colored(10, 0, side=64)
    for part in (found.train, found.test):
        assert [s.labels.tolist() for s in part] == [expected[i].labels.tolist() for i in part.indices]
    assert (len(found.train), len(found.test)) == (8, 2) and "only part" in found.notes[0]


def test_a_coco_file_by_itself_is_one_part(tmp_path: Path) -> None:
    root = make_coco(tmp_path, {"train2017": 5, "val2017": 10})
    found = open_labelled(str(root / "annotations/instances_val2017.json"))
    assert (len(found.train), len(found.test)) == (8, 2) and found.has_boxes
    assert found.notes[0].startswith("instances_val2017.json is the only part: a fifth of its images")


def test_boxes_cut_out_are_pictures_with_one_label() -> None:
    class Scenes(list):
        boxes = property(lambda self: [scene.boxes for scene in self])

    scenes = Scenes(colored(3, 0))
    cut = CutOuts(scenes, 24)
    assert len(cut) == 6 and [s.labels.tolist() for s in cut] == [[n] for s in scenes for n in s.labels.tolist()]
    inside = cut[3].image[:, 4:20, 4:20].float().mean((1, 2))
    corner = scenes[1].boxes[1].int().tolist()
    torch.testing.assert_close(inside, scenes[1].image[:, corner[1], corner[0]].float(), atol=1, rtol=0)


def test_a_cut_out_is_square_and_undistorted() -> None:
    image = torch.zeros(3, 40, 60, dtype=torch.uint8)
    image[:, 10:20, 20:50] = 255
    cut = cut_out(image, torch.tensor([20.0, 10.0, 50.0, 20.0]), 60, context=1)
    assert cut[0].sum(0).gt(0.5).all() and 18 <= cut[0, :, 30].sum() <= 22  # 30 × 10 pixels, twice as large


def break_coco(root: Path, change) -> Path:
    make_coco(root, {"train2017": 4, "val2017": 3})
    path = root / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return root


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["images"].append({"id": 99, "file_name": "gone.jpg"}),
            r"1 missing images \(first: 'gone.jpg'\)",
        ),
        (lambda c: c["annotations"][0].update(category_id=2), "1 boxes of unknown categories"),
        (lambda c: c["annotations"][0].update(image_id=77), "1 boxes of unknown images"),
        (lambda c: c["categories"][0].update(name="pink"), "do not have the same categories"),
        (lambda c: c.update(categories=[], annotations=[]), "names no categories"),
        (lambda c: c.update(images=[]), "lists no images"),
        (lambda c: c.pop("images"), "no COCO annotation file"),
    ],
)
def test_a_wrong_coco_file_is_refused_in_one_line(tmp_path: Path, change, message: str) -> None:
    refused(str(break_coco(tmp_path, change)), message)


def test_wrong_class_folders_are_refused_in_one_line(tmp_path: Path) -> None:
    for name, damage, message in (
        ("empty class", lambda root: (root / "train/white").mkdir(), "class 'white' has no image"),
        ("unknown class", lambda root: (root / "val/red").rename(root / "val/rouge"), "class 'rouge' of .* no folder"),
        ("loose", lambda root: save(colored(1, 0)[0].image, root / "train/x.png"), "'x.png' lies next to the class"),
    ):
        root = make_class_folders(tmp_path / name, {"train": 6, "val": 6})
        damage(root)
        refused(str(root), message)
    (tmp_path / "flat").mkdir()
    refused(str(tmp_path / "flat"), "is empty")
    save(colored(1, 0)[0].image, tmp_path / "flat/x.png")
    refused(str(tmp_path / "flat"), "expected a folder for each class")
    refused(str(tmp_path / "nowhere"), "no such folder")
    refused(
        str(make_coco(tmp_path / "two", {"train2014": 2, "train2017": 2, "val2017": 2})), "expected one instances_train"
    )


def test_what_is_left_out_of_class_folders_is_noted_once(tmp_path: Path) -> None:
    root = make_class_folders(tmp_path, {"train": 9})
    (root / "train/red/notes.txt").touch()
    os.mkfifo(root / "train/red/fifo.jpg")
    assert open_labelled(str(root)).notes[1:] == (
        "left out of the data: 1 pipes, sockets or devices, first 'red/fifo.jpg'; 1 .txt, first 'red/notes.txt'",
    )


def test_of_two_parts_each_says_what_it_leaves_out(tmp_path: Path) -> None:
    root = make_class_folders(tmp_path, {"train": 9, "val": 3})
    for part in ("train", "val"):
        (root / part / "red/notes.txt").touch()
    line = "left out of the data: 1 .txt, first 'red/notes.txt'"
    assert open_labelled(str(root)).notes == (f"train: {line}", f"val: {line}")


def refused(data: str, message: str) -> None:
    with pytest.raises(SourceError, match=message) as error:
        open_labelled(data)
    assert "\n" not in str(error.value)


def test_the_demo_says_how_many_scenes_it_has() -> None:
    found = open_labelled("demo", image_size=32, train=5, test=3)
    assert isinstance(found, LabelledSet) and (len(found.train), len(found.test)) == (5, 3) and found.has_boxes
