"""Folders by class: parts under any common name, and layouts that could be read in two ways."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from labelled import colored, make_class_folders, save
from maskco.data.sources import SourceError
from maskco.data.sources.labelled import part_of
from maskco.evaluate.datasets import open_labelled


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "val"),
        ("Train", "Val"),
        ("TRAIN", "TEST"),
        ("training", "validation"),
        ("Training ", "valid"),
        ("train ", "testing"),
        ("training_set", "test_set"),
        ("train2017", "val2017"),
        ("train-images", "test-images"),
    ],
)
def test_parts_are_recognised(tmp_path: Path, train: str, test: str) -> None:
    found = open_labelled(str(make_class_folders(tmp_path, {train: 9, test: 3})))
    assert found.classes == ("blue", "green", "red") and (len(found.train), len(found.test)) == (9, 3)
    assert not found.notes


def test_of_three_parts_it_is_said_which_two_are_used(tmp_path: Path) -> None:
    found = open_labelled(str(make_class_folders(tmp_path, {"Train": 9, "val": 6, "test": 3})))
    assert (len(found.train), len(found.test)) == (9, 6)
    assert found.notes == ("learned from Train, tested on val. Not used: test",)
    shutil.rmtree(tmp_path / "Train")
    assert open_labelled(str(tmp_path)).notes == ("learned from val, tested on test",)


@pytest.mark.parametrize("other", ["extra", "cats", "unlabelled", "dev"])
def test_what_lies_beside_the_parts_and_could_be_a_class_is_refused(tmp_path: Path, other: str) -> None:
    root = make_class_folders(tmp_path, {"Train": 6, "Val": 6})
    (root / other / "deep").mkdir(parents=True)
    (root / other / "readme.txt").write_text("no image")
    assert len(open_labelled(str(root)).classes) == 3  # no image, no class
    save(colored(1, 0)[0].image, root / other / "deep" / "x.png")
    refused(root, rf"{other!r} lies next to 'Train' .* not clear which are classes and which parts\. Move all")


def test_a_class_that_is_called_like_a_part(tmp_path: Path) -> None:
    """Of vehicles, "train" is one: at the top it cannot be told from a part, below all parts it can."""
    image = colored(1, 0)[0].image
    for name in ("car", "train", "bus"):
        save(image, tmp_path / "top" / name / "x.png")
        for part in ("train", "val"):
            save(image, tmp_path / "parts" / part / name / "x.png")
    refused(tmp_path / "top", "'bus' lies next to 'train'")
    assert open_labelled(str(tmp_path / "parts")).classes == ("bus", "car", "train")
    shutil.rmtree(tmp_path / "parts/val/train")
    refused(tmp_path / "parts", "'train' among the classes of .* is named as a part")


@pytest.mark.parametrize("stray", ["val", "Test", "validation"])
def test_a_part_among_the_classes_is_refused(tmp_path: Path, stray: str) -> None:
    root = make_class_folders(tmp_path, {"train": 6, "val": 6, f"train/{stray}": 6, f"val/{stray}": 6})
    refused(root, f"'{stray}' among the classes of .* is named as a part")


def test_two_folders_for_one_part_are_refused(tmp_path: Path) -> None:
    for index, (one, two) in enumerate((("Train", "train"), ("val", "valid"), ("test", "testing"))):
        root = make_class_folders(tmp_path / str(index), {"train": 6, one: 6, two: 6})
        refused(root, rf"holds both '{one}' and '{two}'\. Keep one of them")


@pytest.mark.parametrize(("one", "two"), [("Cat", "cat"), ("cat", "cat "), ("caf\u00e9", "cafe\u0301")])
def test_classes_that_differ_only_in_case_spaces_or_encoding_are_refused(tmp_path: Path, one: str, two: str) -> None:
    root, image = tmp_path / "set", colored(1, 0)[0].image
    for name in (one, two, "dog"):
        save(image, root / "train" / name / "x.png")
    refused(root, "differ only in case, spaces or encoding")
    shutil.rmtree(root / "train" / two)
    for name in (two, "dog"):
        save(image, root / "val" / name / "x.png")
    refused(root, r"has no folder in .*, which has .*\. Rename one of them")


def test_parts_under_other_names_are_not_taken_for_classes(tmp_path: Path) -> None:
    refused(make_class_folders(tmp_path / "folds", {"fold1": 6, "fold2": 6}), "'fold1', 'fold2' … .* all hold 'blue'")
    root = tmp_path / "deep"  # one folder inside each class, as Tiny ImageNet has it, is no part
    for name in ("cat", "dog"):
        for index in range(3):
            save(colored(1, index)[0].image, root / name / "images" / f"{index}.png")
    assert open_labelled(str(root)).classes == ("cat", "dog")


def test_coco_s_parts(tmp_path: Path) -> None:
    from labelled import make_coco

    found = open_labelled(str(make_coco(tmp_path / "a", {"Train": 4, "Val": 3})))
    assert (len(found.train), len(found.test)) == (4, 3) and not found.notes
    found = open_labelled(str(make_coco(tmp_path / "b", {"train": 4, "test": 3})))
    assert (len(found.train), len(found.test)) == (4, 3) and not found.notes
    found = open_labelled(str(make_coco(tmp_path / "c", {"train": 4, "val": 3, "test": 2})))
    assert len(found.test) == 3 and found.notes == ("not used: instances_test.json",)


def test_a_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_class_folders(tmp_path / "set", {"train": 6, "val": 3})
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_labelled("~/set").name == "set"


def test_words_that_name_no_part() -> None:
    assert not any(map(part_of, ("trainer", "tests tube", "value", "contest", "trains", "tester", "restrain", "cat")))


def refused(root: Path, message: str) -> None:
    with pytest.raises(SourceError, match=message) as error:
        open_labelled(str(root))
    assert "\n" not in str(error.value)
