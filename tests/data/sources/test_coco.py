"""COCO's layout: boxes and labels as evaluation needs them, and everything a file may say wrongly."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from maskco.data.sources import SourceError
from maskco.data.sources.coco import CocoSource

CATEGORIES = [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]


def write_coco(root: Path, annotations: list[dict[str, Any]], *, pictures: str = "val2017", **changes: Any) -> Path:
    """Two images of 80×60 (ids 7 and 3) and a file that lists them, with the given annotations."""
    (root / pictures).mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    images = [{"id": number, "file_name": f"{number}.png", "width": 80, "height": 60} for number in (7, 3)]
    for image in images:
        Image.new("RGB", (80, 60), (image["id"], 0, 0)).save(root / pictures / image["file_name"])
    path = root / "annotations/instances_val2017.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": CATEGORIES} | changes))
    return path


def box(image: int, category: int, bbox: Any, **more: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": bbox} | more


@pytest.mark.parametrize("pictures", ["val2017", "images/val2017", "images", "."])
def test_boxes_are_corners_and_labels_have_no_gaps(tmp_path: Path, pictures: str) -> None:
    annotations = [box(3, 90, [10, 20, 30, 5.5]), box(3, 1, [-4, 50, 10, 20], iscrowd=1)]
    source = CocoSource(write_coco(tmp_path, annotations, pictures=pictures))
    assert len(source) == 2 and source.image_ids == [3, 7] and source.name(0) == "3.png"
    assert source[1].getpixel((0, 0)) == (7, 0, 0)
    assert source.categories == ("person", "dog", "toothbrush") and source.category_ids == (1, 18, 90)
    boxes, labels, crowd = source.objects[0]
    assert torch.equal(boxes, torch.tensor([[10, 20, 40, 25.5], [0, 50, 6, 60]])), "xyxy, cut off at the border"
    assert labels.tolist() == [2, 0] and crowd.tolist() == [False, True]
    assert source.objects[1].boxes.shape == (0, 4) and source.objects[1].labels.dtype == torch.int64
    assert not source.left_out and not source.boxes_left_out and not source.notes


def test_what_the_file_says_wrongly_is_left_out_counted_and_named(tmp_path: Path) -> None:
    good = box(7, 18, [1, 2, 3, 4])
    wrong = [
        box(7, 2, [1, 2, 3, 4]),
        box(99, 1, [1, 2, 3, 4]),
        {"image_id": 7, "caption": "a dog"},
        *(box(7, 1, b) for b in ([1, 2, 0, 4], [1, 2, 3, -4], [5, 5, 1e-12, 3], [80, 2, 3, 4], [1, -9, 3, 4])),
    ]
    path = write_coco(tmp_path, [wrong[0], good, *wrong[1:], box(3, 1, [0, 0, 5, 5])])
    (tmp_path / "val2017/3.png").unlink()
    source = CocoSource(path)
    assert source.names == ["7.png"] and source.left_out.lines() == [
        "left out of the data: 1 missing images, first '3.png'"
    ]
    assert torch.equal(source.objects[0].boxes, torch.tensor([[1.0, 2, 4, 6]]))
    assert source.boxes_left_out == {
        "boxes of unknown categories": 1,
        "boxes of unknown images": 1,
        "annotations without box or category": 1,
        "boxes without area": 3,
        "boxes outside of their image": 2,
    }
    assert source.boxes_left_out.first["boxes without area"] == "annotations[4]"


def test_files_that_cannot_be_read_are_left_out_by_kind(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [])
    content = json.loads(path.read_text())
    names = ["fifo.jpg", "folder.jpg", "shot.NEF"]
    content["images"] += [{"id": 100 + i, "file_name": name} for i, name in enumerate(names)]
    path.write_text(json.dumps(content))
    os.mkfifo(tmp_path / "val2017/fifo.jpg")
    (tmp_path / "val2017/folder.jpg").mkdir()
    (tmp_path / "val2017/shot.NEF").touch()
    source = CocoSource(path)
    assert source.names == ["3.png", "7.png"]
    assert source.left_out == {
        "pipes, sockets, devices or folders": 2,
        ".nef (convert camera raw to TIFF or JPEG)": 1,
    }


def test_categories_of_one_name_are_one(tmp_path: Path) -> None:
    """As some exporters write it: the group's name first, then the class of that name."""
    categories = [{"id": 0, "name": "dog"}, {"id": 2, "name": "cat"}, {"id": 1, "name": "dog"}]
    source = CocoSource(write_coco(tmp_path, [box(3, 1, [0, 0, 5, 5]), box(3, 2, [0, 0, 5, 5])], categories=categories))
    assert source.categories == ("dog", "cat") and source.category_ids == (0, 2)
    assert source.objects[0].labels.tolist() == [0, 1]
    assert source.notes == ["1 categories have the name of another. Each name is one class"]


def test_a_file_without_annotations_has_no_objects(tmp_path: Path) -> None:
    assert [len(o.boxes) for o in CocoSource(write_coco(tmp_path, [])).objects] == [0, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": []}, "lists no images"),
        ({"images": None}, "images: Expected array, got null"),
        ({"images": [{"id": 1}]}, r"images\[0\]: Object missing required field file_name"),
        ({"images": [{"id": 1, "file_name": "gone.jpg"}]}, r"none of the 1 images .*\(looked for 'gone.jpg' in"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_one_line(tmp_path: Path, changes: dict, message: str) -> None:
    path = write_coco(tmp_path, [], **changes)
    with pytest.raises(SourceError, match=message) as caught:
        CocoSource(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_json_is_refused(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [])
    path.write_text("{")
    with pytest.raises(SourceError, match="cannot be read as JSON"):
        CocoSource(path)
    with pytest.raises(SourceError, match=r"none\.json"):
        CocoSource(tmp_path / "none.json")


def test_another_folder_of_pictures_can_be_named(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [], pictures="elsewhere/deep")
    assert len(CocoSource(path, tmp_path / "elsewhere/deep")) == 2
