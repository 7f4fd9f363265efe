"""COCO's layout: boxes and labels as evaluation needs them, and everything a file may say wrongly."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from maskco.data.coco import CocoSource, annotation_files
from maskco.data.sources import SourceError

CATEGORIES = [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]


def write_coco(root: Path, annotations: list[dict[str, Any]], *, pictures: str = "val2017", **changes: Any) -> Path:
    """Two pictures of 80×60 (ids 7 and 3) and a file that lists them, with the given annotations."""
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
    assert not source.left_out


def test_what_the_file_says_wrongly_is_left_out_counted_and_named(tmp_path, caplog) -> None:
    good = box(7, 18, [1, 2, 3, 4])
    wrong = [
        box(7, 2, [1, 2, 3, 4]),
        box(99, 1, [1, 2, 3, 4]),
        *(box(7, 1, b) for b in ([1, 2, 0, 4], [80, 2, 3, 4], [1, 2, float("nan"), 4], [1, 2, 3], None)),
    ]
    path = write_coco(tmp_path, [wrong[0], good, *wrong[1:], box(3, 1, [0, 0, 5, 5])])
    (tmp_path / "val2017/3.png").unlink()
    with caplog.at_level(logging.WARNING):
        source = CocoSource(path)
    assert source.names == ["7.png"] and torch.equal(source.objects[0].boxes, torch.tensor([[1.0, 2, 4, 6]]))
    assert sorted(source.left_out.values()) == [1, 1, 1, 5]
    assert "1 missing pictures (first: 3.png), 1 boxes of unknown categories" in caplog.text
    assert caplog.text.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": []}, "lists no pictures"),
        ({"images": None}, "no list of images"),
        ({"images": [{"id": 1}]}, "without id or file_name"),
        ({"images": [{"id": 1, "file_name": "gone.jpg"}]}, r"none of the 1 pictures .*\(looked for 'gone.jpg' in"),
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
    assert annotation_files(tmp_path) == [path] and annotation_files(tmp_path / "elsewhere") == []
