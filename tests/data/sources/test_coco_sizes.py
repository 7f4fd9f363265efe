"""Boxes of images that were resized or turned since they were annotated lie where the objects are, or are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maskco.data.sources import SourceError
from maskco.data.sources.coco import CocoSource
from maskco.evaluate.datasets import open_labelled

BOX = (40, 30, 50, 20)  # x, y, width, height in the image as annotated, which has 200 × 120 pixels
SIZE = (200, 120)


def annotated(size: tuple[int, int] = SIZE, box: tuple[int, ...] = BOX) -> Image.Image:
    """Black, with one bright box."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    x, y, w, h = box
    pixels[y : y + h, x : x + w] = 255
    return Image.fromarray(pixels)


def save(image: Image.Image, path: Path, orientation: int = 1) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, **({"quality": 95} if path.suffix == ".jpg" else {}))


def turned_back(image: Image.Image, orientation: int) -> Image.Image:
    """The stored image that this orientation shows as `image`."""
    turns = Image.Transpose
    undo = {
        2: turns.FLIP_LEFT_RIGHT,
        3: turns.ROTATE_180,
        4: turns.FLIP_TOP_BOTTOM,
        5: turns.TRANSPOSE,
        6: turns.ROTATE_90,
        7: turns.TRANSVERSE,
        8: turns.ROTATE_270,
    }
    return image.transpose(undo[orientation]) if orientation in undo else image


def write(root: Path, listed: dict[str, Any], boxes: dict[str, Any] | None = None) -> Path:
    """An annotation file of images that lie in `root/images` already, each with its listed size or None."""
    sizes = {name: dict(zip(("width", "height"), size, strict=True)) if size else {} for name, size in listed.items()}
    images = [{"id": i, "file_name": name, **size} for i, (name, size) in enumerate(sizes.items())]
    annotations = [
        {"image_id": i, "category_id": 1, "bbox": (boxes or {}).get(name, BOX)} for i, name in enumerate(sizes)
    ]
    path = root / "annotations/instances_train.json"
    path.parent.mkdir(exist_ok=True)
    categories = [{"id": 1, "name": "thing"}]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def bright(source: CocoSource, index: int) -> torch.Tensor:
    """The box around what is bright in the upright image."""
    ys, xs = (np.asarray(source[index])[..., 0] > 127).nonzero()
    return torch.tensor([[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]], dtype=torch.float32)


def assert_boxes_fit(source: CocoSource, atol: float) -> None:
    for index, objects in enumerate(source.objects):
        torch.testing.assert_close(objects.boxes, bright(source, index), atol=atol, rtol=0)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_of_the_stored_image_turn_with_it(tmp_path: Path, orientation: int, suffix: str) -> None:
    save(annotated(), tmp_path / f"images/a.{suffix}", orientation)
    source = CocoSource(write(tmp_path, {f"a.{suffix}": SIZE}))
    assert source[0].size == (SIZE if orientation < 5 else SIZE[::-1])
    assert_boxes_fit(source, atol=2)
    assert any("1 images are turned by EXIF after" in note for note in source.notes) == (orientation > 1)
    assert any("fits both ways" in note for note in source.notes) == (orientation in (2, 3, 4))


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_boxes_of_the_upright_image_stay(tmp_path: Path, orientation: int) -> None:
    save(turned_back(annotated(), orientation), tmp_path / "images/a.jpg", orientation)
    source = CocoSource(write(tmp_path, {"a.jpg": SIZE}))
    assert_boxes_fit(source, atol=2)
    assert source.notes == []


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("side", [(800, 480), (100, 60), (333, 200), (67, 40), (1333, 800)])
def test_boxes_of_resized_images_are_scaled_and_then_turned(tmp_path: Path, side: tuple, orientation: int) -> None:
    save(annotated().resize(side), tmp_path / "images/a.png", orientation)
    source = CocoSource(write(tmp_path, {"a.png": SIZE}))
    assert_boxes_fit(source, atol=1.5)
    assert source.notes[0].startswith("1 images have another size than the annotation file lists")
    assert "'a.png'" in source.notes[0]


def test_boxes_of_the_upright_image_are_scaled_after_turning(tmp_path: Path) -> None:
    save(turned_back(annotated().resize((600, 360)), 8), tmp_path / "images/a.png", 8)
    assert_boxes_fit(CocoSource(write(tmp_path, {"a.png": SIZE})), atol=1.5)


@pytest.mark.parametrize(
    ("size", "orientation", "shown"),
    [
        ((160, 120), 1, "160 × 120"),
        (SIZE[::-1], 1, "120 × 200"),  # turned without a word in EXIF: nobody knows which way
        (SIZE[::-1], 3, r"120 × 200 \(EXIF orientation 3\)"),
        ((200, 200), 1, "200 × 200"),
        ((200, 200), 6, r"200 × 200 \(EXIF orientation 6\)"),
        ((224, 224), 1, "224 × 224"),
    ],
)
def test_what_neither_resizing_nor_exif_explains_is_refused(tmp_path, size: tuple, orientation: int, shown) -> None:
    save(annotated(), tmp_path / "images/a.png")
    save(annotated(size), tmp_path / "images/b.png", orientation)
    source = CocoSource(write(tmp_path, {"a.png": SIZE, "b.png": SIZE}))
    with pytest.raises(
        SourceError, match=rf"'b\.png' as 200 × 120 pixels, and the image has {shown}\. Neither"
    ) as caught:
        _ = source.objects
    assert "\n" not in str(caught.value)
    with pytest.raises(SourceError, match="Neither resizing nor EXIF explains it"):
        open_labelled(str(tmp_path))
    assert len(CocoSource(source.path)) == 2, "pretraining never looks at boxes"


def test_without_a_listed_size_boxes_are_of_the_stored_image(tmp_path: Path) -> None:
    save(annotated(), tmp_path / "images/a.png")
    save(annotated(), tmp_path / "images/b.png", 6)
    assert_boxes_fit(CocoSource(write(tmp_path, {"a.png": None, "b.png": None})), atol=1)


def test_where_the_size_fits_both_ways_the_other_images_tell(tmp_path: Path) -> None:
    """Upright files, of which one is turned by 180° and one is square."""
    square = (120, 120)
    box = (10, 30, 50, 20)
    for name, image, orientation in (
        ("a.png", annotated(), 6),
        ("b.png", annotated(), 3),
        ("c.png", annotated(square, box), 8),
    ):
        save(turned_back(image, orientation), tmp_path / f"images/{name}", orientation)
    source = CocoSource(write(tmp_path, {"a.png": SIZE, "b.png": SIZE, "c.png": square}, {"c.png": box}))
    assert_boxes_fit(source, atol=1)
    assert source.notes == [
        "2 images are turned by EXIF, and their size fits both ways (first 'b.png'). "
        "Their boxes were taken as of the upright image"
    ]


def test_an_image_that_cannot_be_read_keeps_its_boxes_until_it_is(tmp_path: Path) -> None:
    save(annotated(), tmp_path / "images/a.png")
    (tmp_path / "images/b.png").write_bytes(b"broken")
    source = CocoSource(write(tmp_path, {"a.png": SIZE, "b.png": SIZE}))
    assert [o.boxes.tolist() for o in source.objects] == [[[40, 30, 90, 50]]] * 2


def test_garbage_as_an_orientation_turns_nothing(tmp_path: Path) -> None:
    save(annotated(), tmp_path / "images/a.png", 9)
    source = CocoSource(write(tmp_path, {"a.png": SIZE}))
    assert source.open(0).size == SIZE[::-1]
    assert_boxes_fit(source, atol=0)


def test_boxes_outside_of_their_images_have_no_score(tmp_path: Path) -> None:
    """No size is listed, and the images are much smaller than what was annotated."""
    save(annotated().resize((50, 30)), tmp_path / "images/a.png")
    save(annotated().resize((50, 30)), tmp_path / "images/b.png")
    write(tmp_path, {"a.png": None, "b.png": None}, {"b.png": (5, 5, 9, 9)})
    with pytest.raises(SourceError, match=r"1 boxes outside of their image \(first: 'annotations\[0\]'\)"):
        open_labelled(str(tmp_path))


def test_evaluation_says_what_was_done_to_boxes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        save(annotated().resize((400, 240)), tmp_path / f"images/{name}")
    write(tmp_path, {"a.png": SIZE, "b.png": SIZE}, {"b.png": (1, 1, 0, 5)})
    notes = open_labelled(str(tmp_path)).notes
    assert "instances_train.json: 2 images have another size than the annotation file lists" in notes[1]
    assert notes[2] == "instances_train.json: left out of the data: 1 boxes without area, first 'annotations[1]'"
