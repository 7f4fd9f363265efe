"""VOCdevkit as a source: parts, boxes that count from 1, difficult objects, and damaged or hostile files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from maskco.data.sources import SourceError, open_labelled, open_source
from maskco.data.sources.coco import CocoSource
from voc_devkit import write_devkit, write_year, xml

LABELS = Path("VOC2007/Annotations/000001.xml")


def test_pretraining_takes_trainval_of_all_years_and_one_year_alone(tmp_path: Path) -> None:
    devkit = write_devkit(tmp_path)
    source = open_source(devkit)
    assert [source.name(index) for index in range(len(source))] == [
        "VOC2007/JPEGImages/000001.jpg",
        "VOC2007/JPEGImages/000002.jpg",
        "VOC2012/JPEGImages/2008_000001.jpg",
    ]
    assert source[0].size == (50, 40)
    assert [open_source(devkit / "VOC2012").name(0)] == ["JPEGImages/2008_000001.jpg"]


def test_boxes_count_from_0_and_difficult_objects_are_set_apart(tmp_path: Path) -> None:
    found = open_labelled(write_devkit(tmp_path))
    train, test = found.parts
    assert found.classes == ("cat", "dog") and (train.name, test.name) == ("trainval", "test")
    assert train.boxes is not None and train.crowds is not None
    assert torch.equal(train.boxes[0], torch.tensor([[0.0, 0, 20, 30], [9, 4, 50, 40]])), "cut off at the border"
    assert train.labels[0].tolist() == [1, 0]
    assert train.crowds[0].boxes.tolist() == [[1, 1, 5, 5]] and train.crowds[0].crowd.tolist() == [True]
    assert len(train.source) == 3 and len(test.source) == 1
    assert found.notes == ("VOC2007, VOC2012: learned from trainval, tested on test",)


def test_without_test_images_val_is_tested_on(tmp_path: Path) -> None:
    write_year(tmp_path / "VOC2012", {"2008_000001": xml(("dog", 1, 1, 9, 9)), "2008_000002": xml(("dog", 1, 1, 9, 9))},
               train=["2008_000001"], val=["2008_000002"])  # fmt: skip
    found = open_labelled(tmp_path)
    assert [part.name for part in found.parts] == ["train", "val"] and len(found.parts[1].source) == 1


def test_parts_of_the_body_and_coco_s_layout_are_not_taken_for_objects_or_voc(tmp_path: Path) -> None:
    body = "<part><name>head</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>4</xmax><ymax>4</ymax></bndbox></part>"
    devkit = write_devkit(tmp_path)
    path = devkit / LABELS
    path.write_text(path.read_text().replace("</difficult>", f"</difficult>{body}"))
    train = open_labelled(devkit).parts[0]
    assert len(train.labels[0]) == 2
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances_train.json").write_text('{"images": [], "annotations": [], "categories": []}')
    with pytest.raises(SourceError, match="lists no"):
        assert isinstance(open_source(tmp_path), CocoSource)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("", "no element found"),
        ("<annotation><object>", "no element found"),
        ("<annotation><object><name>dog</name></object></annotation>", "an object without name or box"),
        (xml(("dog", 9, 9, 3, 20)), "the box of a 'dog' has no area"),
        (xml(("dog", "nan", 9, 30, 20)), "the box of a 'dog' has no area"),
        (xml(("dog", "x", 9, 30, 20)), "could not convert string to float"),
        ('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]><annotation>&x;</annotation>', "a document type"),
        ('<!DOCTYPE a [<!ENTITY x "y"><!ENTITY z "&x;&x;">]><a>&z;</a>', "it declares a document type"),
    ],
)
def test_a_damaged_or_hostile_annotation_is_named_in_one_line(tmp_path: Path, damage: str, told: str) -> None:
    devkit = write_devkit(tmp_path)
    (devkit / LABELS).write_text(damage)
    with pytest.raises(SourceError, match=rf"000001\.xml' is no annotation of VOC \(.*{told}") as raised:
        open_labelled(devkit)
    assert "\n" not in str(raised.value)
    assert len(open_source(devkit)) == 3, "pretraining does not read them"


@pytest.mark.parametrize(
    ("size", "orientation", "box", "note"),
    [
        ((25, 20), 1, [0, 0, 10, 15], "2 images have another size"),
        ((50, 40), 6, [10, 0, 40, 20], "2 images are turned by EXIF after annotation"),
        ((40, 50), 6, [0, 0, 20, 30], ""),
    ],
)
def test_boxes_follow_resized_and_turned_images(tmp_path: Path, size, orientation: int, box, note: str) -> None:
    devkit, exif = write_devkit(tmp_path), Image.Exif()
    exif[0x0112] = orientation
    for name in ("000001", "000002"):
        Image.new("RGB", size).save(devkit / f"VOC2007/JPEGImages/{name}.jpg", exif=exif)
    found = open_labelled(devkit)
    train = found.parts[0]
    assert train.boxes is not None and train.boxes[0][0].tolist() == box
    assert [line.startswith(f"trainval: {note}") for line in found.notes[1:]] == [True] * bool(note)


def test_sizes_and_boxes_that_do_not_fit_the_image_are_refused(tmp_path: Path) -> None:
    devkit = write_devkit(tmp_path)
    path = devkit / LABELS
    size = "<size><width>50</width><height>40</height><depth>3</depth></size>"
    path.write_text(xml(("dog", 1, 1, 20, 30)).replace(size, ""))
    assert len(open_labelled(devkit).parts[0].labels[0]) == 1
    path.write_text(xml(("dog", 60, 1, 70, 30)).replace(size, ""))
    with pytest.raises(SourceError, match=r"000001\.xml' has a 'dog' whose box is outside of the image\. Correct it$"):
        open_labelled(devkit)
    path.write_text(xml(("dog", 1, 1, 20, 30)).replace("<width>50<", "<width>70<"))
    with pytest.raises(
        SourceError, match=r"lists 'VOC2007/JPEGImages/000001\.jpg' as 70 × 40 pixels, and the image has"
    ):
        open_labelled(devkit)
    assert len(open_source(devkit)) == 3, "pretraining does not look at boxes"


@pytest.mark.parametrize(("box", "fits"), [((10, 5, 50, 30), True), ((1, 1, 20, 48), False)])
def test_a_size_listed_the_wrong_way_round_is_noted_if_boxes_fit_the_image(tmp_path: Path, box, fits: bool) -> None:
    devkit = write_devkit(tmp_path)
    text = xml(("dog", *box)).replace("<width>50</width><height>40<", "<width>40</width><height>50<")
    (devkit / LABELS).write_text(text)
    if not fits:
        with pytest.raises(SourceError, match="as 40 × 50 pixels, and the image has 50 × 40"):
            open_labelled(devkit)
        return
    found = open_labelled(devkit)
    train = found.parts[0]
    assert train.boxes is not None and train.boxes[0][0].tolist() == [9, 4, 50, 30]
    assert found.notes[1].startswith("trainval: 1 images list width as height (first 'VOC2007/JPEGImages/000001.jpg')")


def test_what_is_missing_is_counted_or_named(tmp_path: Path) -> None:
    devkit = write_devkit(tmp_path)
    (devkit / "VOC2007/JPEGImages/000002.jpg").unlink()
    assert dict(open_source(devkit).left_out) == {"missing images": 1}
    with pytest.raises(SourceError, match=r"1 missing images, first 'VOC2007/JPEGImages/000002.jpg'"):
        open_labelled(devkit)
    Image.new("RGB", (50, 40)).save(devkit / "VOC2007/JPEGImages/000002.jpg")
    (devkit / "VOC2007/Annotations/000002.xml").unlink()
    with pytest.raises(
        SourceError, match=r"^data: '[^']*000002.xml' cannot be read \(No such file[^)]*\). Restore it$"
    ):
        open_labelled(devkit)
    (devkit / "VOC2007/ImageSets/Main/trainval.txt").write_text("../../secret\n")
    with pytest.raises(SourceError, match=r"is no list of VOC, since it has the line '../../secret'"):
        open_source(devkit)


def test_a_class_that_only_test_images_have_is_refused(tmp_path: Path) -> None:
    devkit = write_devkit(tmp_path)
    (devkit / "VOC2007/Annotations/000003.xml").write_text(xml(("zebra", 1, 1, 9, 9)))
    with pytest.raises(SourceError, match=r"000003.xml' has the class 'zebra', which no training image has"):
        open_labelled(devkit)
