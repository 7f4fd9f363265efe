"""A tiny VOCdevkit: images of 50 × 40 pixels and a few boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

SIZE = (50, 40)


def xml(*objects: tuple[object, ...]) -> str:
    """An annotation: (name, xmin, ymin, xmax, ymax) of each object, and True if it is difficult."""
    width, height = SIZE
    text = f"<annotation><size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    for name, x1, y1, x2, y2, *difficult in objects:
        box = f"<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
        text += (
            f"<object><name>{name}</name><difficult>{int(bool(difficult))}</difficult><bndbox>{box}</bndbox></object>"
        )
    return text + "</annotation>"


def write_year(folder: Path, annotations: Mapping[str, str], **parts: Sequence[str]) -> None:
    """One year. parts: names of the images of each list."""
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for index, (name, text) in enumerate(annotations.items()):
        Image.new("RGB", SIZE, (60 + 40 * index, 90, 120)).save(folder / f"JPEGImages/{name}.jpg")
        (folder / f"Annotations/{name}.xml").write_text(text)
    for part, names in parts.items():
        (folder / f"ImageSets/Main/{part}.txt").write_text("".join(f"{name}\n" for name in names))
        (folder / f"ImageSets/Main/dog_{part}.txt").write_text("".join(f"{name} -1\n" for name in names))


def write_devkit(root: Path) -> Path:
    """VOC 2007 with a test image, and VOC 2012."""
    first = xml(("dog", 1, 1, 20, 30), ("cat", 10, 5, 51, 41), ("dog", 2, 2, 5, 5, True))
    annotations = {"000001": first, "000002": xml(("cat", 5, 5, 30, 30)), "000003": xml(("dog", 11, 11, 40, 40))}
    devkit = root / "VOCdevkit"
    write_year(devkit / "VOC2007", annotations, trainval=["000001", "000002"], train=["000001"], test=["000003"])
    write_year(devkit / "VOC2012", {"2008_000001": xml(("dog", 11, 11, 40, 40))}, trainval=["2008_000001"])
    return devkit
