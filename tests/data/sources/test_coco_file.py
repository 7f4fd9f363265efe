"""Annotation files of others: each is either read rightly or refused in one line that names file, entry and field."""

from __future__ import annotations

import codecs
import copy
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from maskco.data.sources import SourceError, open_source
from maskco.data.sources.coco import CocoSource

SOUND: dict[str, Any] = {
    "images": [
        {"id": 1, "file_name": "a.png", "width": 80, "height": 60},
        {"id": 2, "file_name": "b.png", "width": 80, "height": 60},
    ],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 40], "iscrowd": 0},
        {"id": 2, "image_id": 2, "category_id": 2, "bbox": [1.5, 2, 30, 40], "iscrowd": 1},
    ],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
}
GONE = object()


def put(place: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """A change of one field, such as "images.0.id"; GONE removes it."""

    def change(content: Any) -> None:
        *way, last = (int(part) if part.isdecimal() else part for part in place.split("."))
        for part in way:
            content = content[part]
        if value is GONE:
            del content[last]
        else:
            content[last] = value

    return change


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    (tmp_path / "annotations").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (80, 60)).save(tmp_path / f"images/{name}.png")
    return tmp_path / "annotations/instances_train.json"


def write(path: Path, *changes: Callable[[dict[str, Any]], None]) -> Path:
    content = copy.deepcopy(SOUND)
    for change in changes:
        change(content)
    path.write_text(json.dumps(content))
    return path


REFUSED = [
    # null, text, list, true where a number or a name is meant
    *[(put("images.1.id", value), r"images\[1\]\.id: ") for value in (None, [1], True, {"a": 1}, 1.5, float("nan"))],
    *[(put("images.0.file_name", value), r"images\[0\]\.file_name: ") for value in (None, 7, ["a.png"], "", "a\0.png")],
    *[(put("images.0.width", value), r"images\[0\]\.width: ") for value in ("80", [80], True, 0, -80, 80.5, 1e300)],
    (put("images.0.height", float("inf")), r"images\[0\]\.height: "),
    (put("images.0.height", None), r"images\[0\]: width and height go together"),
    *[(put("annotations.1.image_id", value), r"annotations\[1\]\.image_id: ") for value in (None, "2", [2], True)],
    *[(put("annotations.0.category_id", value), r"annotations\[0\]\.category_id: ") for value in (None, [1], False)],
    *[
        (put("annotations.0.bbox", value), r"annotations\[0\]\.bbox: ")
        for value in (None, "1 2 3 4", 7, [], [1, 2, 3], [1, 2, 3, 4, 5], {"x": 1})
    ],
    *[
        (put("annotations.0.bbox.2", value), r"annotations\[0\]\.bbox(\[2\])?: ")
        for value in (None, "30", [30], True, float("nan"), float("-inf"), 10**400)
    ],
    *[(put("annotations.1.iscrowd", value), r"annotations\[1\]\.iscrowd: ") for value in ("0", None, [0], 2, 0.5)],
    *[(put("categories.1.name", value), r"categories\[1\]\.name: ") for value in (None, 3, ["dog"])],
    *[(put("categories.1.id", value), r"categories\[1\]\.id: ") for value in (None, "2", True, [2])],
    # missing
    (put("images.0.id", GONE), r"images\[0\]: Object missing required field id"),
    (put("images.0.file_name", GONE), r"images\[0\]: Object missing required field file_name"),
    (put("annotations.0.image_id", GONE), r"annotations\[0\]: Object missing required field image_id"),
    (put("categories.0.name", GONE), r"categories\[0\]: Object missing required field name"),
    (put("images", GONE), "no COCO annotation file: Object missing required field images"),
    # the same twice, mixed
    (put("images.1.id", 1), r"images\[1\]\.id: 1 is the id of images\[0\] too"),
    (put("images.1.id", 1.0), r"images\[1\]\.id: 1\.0 is the id of images\[0\] too"),
    (put("images.1.id", "2"), r"images\[1\]\.id: '2' is of another type than 1"),
    (put("categories.1.id", 1), r"categories\[1\]\.id: 1 is the id of categories\[0\] too"),
    # names that lead out of the folder
    *[
        (put("images.1.file_name", name), r"images\[1\]\.file_name: .* leads out of the folder")
        for name in ("../b.png", "x/../../b.png", "/etc/passwd", "C:\\b.png", "..")
    ],
    # other shapes
    *[(put(table, value), rf"{table}: Expected array") for table in SOUND for value in (None, {"0": {}}, "x", 3)],
    *[(put(f"{table}.0", value), rf"{table}\[0\]: Expected object") for table in SOUND for value in (None, [], "x", 3)],
    (put("images", []), "lists no images"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_a_wrong_field_is_named_with_file_and_entry(path: Path, change: Callable, message: str) -> None:
    write(path, change)
    with pytest.raises(SourceError, match=re.escape(str(path)) + ".*" + message) as caught:
        CocoSource(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400 + len(str(path))


WHOLE = json.dumps(SOUND)
DEEP = '{"x": ' + "[" * 100_000


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        WHOLE[:-9],
        "[]",
        f"[{WHOLE}]",
        "null",
        "7",
        '"x"',
        "not JSON",
        f"{WHOLE}x",
        DEEP,
        DEEP + "]" * 100_000 + "}",
    ],
)
def test_what_is_no_such_json_is_refused_in_one_line(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(SourceError, match=r"cannot be read as JSON|no COCO annotation file|images: ") as caught:
        open_source(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_bytes_of_no_encoding_folders_and_pipes_are_refused(path: Path) -> None:
    path.write_bytes(json.dumps(SOUND).replace('"cat"', '"ä"').encode("latin-1"))
    (path.parent / "folder.json").mkdir()
    os.mkfifo(path.parent / "fifo.json")
    for name, message in ((path.name, "cannot be read as JSON"), ("folder.json", "."), ("fifo.json", "is a pipe")):
        with pytest.raises(SourceError, match=message) as caught:
            CocoSource(path.with_name(name))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        *[put(f"{table}.0.id", 1.0) for table in SOUND],
        put("annotations.1.id", 1),  # annotations' ids are of no use here, so they need not differ
        put("annotations.0.id", None),
        put("annotations.1.iscrowd", True),
        put("annotations.1.iscrowd", 1.0),
        put("images.0.width", 80.0),
        put("annotations.0.segmentation", [[1, 2, 3, 4, 5, 6]]),
        put("annotations.0.segmentation", {"counts": "abc", "size": [60, 80]}),
        put("annotations.0.score", float("nan")),
        put("info", {"year": None, "text": "\ud800"}),
        put("licenses", None),
        put("annotations.0.bbox", [1.0, 2, 30, 40.0]),
        put("images.1.file_name", "./b.png"),
    ],
)
def test_what_does_not_matter_is_read_rightly(path: Path, change: Callable) -> None:
    source = CocoSource(write(path, change))
    assert [os.path.basename(name) for name in source.names] == ["a.png", "b.png"]
    assert [o.boxes.tolist() for o in source.objects] == [[[1, 2, 31, 42]], [[1.5, 2, 31.5, 42]]]
    assert [o.crowd.tolist() for o in source.objects] == [[False], [True]] and not source.left_out


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32-be"])
def test_marks_of_an_encoding_are_understood(path: Path, encoding: str) -> None:
    mark = codecs.BOM_UTF32_BE if encoding == "utf-32-be" else b""
    path.write_bytes(mark + json.dumps(SOUND).replace('"cat"', '"Kätzchen"').encode(encoding))
    assert CocoSource(path).categories == ("Kätzchen", "dog")


def test_ids_may_be_text_or_huge(path: Path) -> None:
    for first, second in (("000a", "000b"), (10**40, 10**40 + 1)):
        changes = [put(f"images.{i}.id", own) for i, own in enumerate((second, first))]
        changes += [put(f"annotations.{i}.image_id", own) for i, own in enumerate((second, first))]
        source = CocoSource(write(path, *changes))
        assert source.names == ["b.png", "a.png"] and source.objects[1].boxes.tolist() == [[1, 2, 31, 42]]
