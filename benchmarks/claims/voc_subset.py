"""The subset of Pascal VOC that the benchmark uses, made of VOCdevkit: whoever has VOC 2007 and 2012 gets the same.

    python -m benchmarks.claims --sets voc --images voc=VOCdevkit --quick
    python -m benchmarks.claims.voc_subset --of SUBSET       # writes the list of names from a subset in COCO's layout

The list names 6,723 images and their part. It has all of VOC 2007's test images but those that are kept apart, so that
whoever pretrains on it must not report scores on VOC 2007 test.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from PIL import Image

from maskco.console import one_line_errors
from maskco.data.cache import one_at_a_time
from maskco.data.sources.voc import ANNOTATIONS, IMAGES, MAIN, Thing, read_annotation
from maskco.errors import UserError
from maskco.files import write_atomically

NAMES = Path(__file__).with_name("voc_names.txt")
SIDES, QUALITY = (256, 208), 85  # of the longer side in pixels, shrunk to one after the other; of JPEG
PARTS = ("train", "val")


@dataclass
class Options:
    of: Path
    """A subset in COCO's layout: annotations/instances_train2017.json and instances_val2017.json."""
    out: Path = NAMES
    """The list to write."""


def main() -> None:
    with one_line_errors():
        options = tyro.cli(Options, prog="python -m benchmarks.claims.voc_subset")
        lines = []
        for part in PARTS:
            images = json.loads((options.of / f"annotations/instances_{part}2017.json").read_text())["images"]
            names = [Path(image["file_name"]).stem for image in sorted(images, key=lambda image: image["id"])]
            lines += [f"# {part}", *names]
        write_atomically(options.out, lambda file: file.write("\n".join([*lines, ""]).encode()))


def is_devkit(root: Path) -> bool:
    return any(root.glob(f"VOC*/{MAIN}"))


def subset(devkit: Path, folder: Path, names: Path = NAMES) -> Path:
    """The folder, below `folder`, of the subset in COCO's layout. It is made once of a devkit. Raises UserError."""
    parts = read_names(names)
    for year in sorted({year_of(name) for own in parts.values() for name in own}):
        if not all((devkit / year / inside).is_dir() for inside in (ANNOTATIONS, IMAGES)):
            raise UserError(
                f"images: {devkit} has no whole {year}. Unpack VOC 2007's trainval and test, and VOC 2012's trainval"
            )
    made = folder / f"voc-subset-{hashlib.sha256(repr((str(devkit.absolute()), parts)).encode()).hexdigest()[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(made):
        if not made.exists():
            partial = folder / f"{made.name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            things = {name: things_of(devkit, name) for own in parts.values() for name in own}
            classes = sorted({thing.name for own in things.values() for thing in own})
            for part, own in parts.items():
                _write_part(devkit, partial, part, {name: things[name] for name in own}, classes)
            partial.rename(made)
    return made


def year_of(name: str) -> str:
    """The folder of an image. (Names of 2007 are numbers alone.)"""
    return "VOC2012" if "_" in name else "VOC2007"


def things_of(devkit: Path, name: str) -> list[Thing]:
    return read_annotation(devkit / year_of(name) / ANNOTATIONS / f"{name}.xml").things


def read_names(path: Path) -> dict[str, list[str]]:
    """The names of each part's images, in their order."""
    parts: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").split("\n"):
        if line.startswith("# "):
            parts[line[2:]] = own = []
        elif line:
            own.append(line)
    return parts


def _write_part(
    devkit: Path, folder: Path, part: str, things: Mapping[str, Sequence[Thing]], classes: Sequence[str]
) -> None:
    (folder / f"{part}2017").mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    images, found = [], []
    for number, (name, own) in enumerate(things.items(), start=1):
        year = devkit / year_of(name)
        try:
            with Image.open(year / IMAGES / f"{name}.jpg") as image:
                original, small = image.size, shrunk(image.convert("RGB"))
        except OSError as error:
            raise UserError(f"images: {year / IMAGES / name}.jpg cannot be read. Unpack {year.name} again") from error
        small.save(folder / f"{part}2017" / f"{name}.jpg", quality=QUALITY)
        images.append({"id": number, "file_name": f"{name}.jpg", "width": small.width, "height": small.height})
        found += [(number, scaled(thing, original, small.size), thing.name) for thing in own]
    write_json(folder / f"annotations/instances_{part}2017.json", images, found, classes)


def shrunk(image: Image.Image) -> Image.Image:
    """(Shrunk at once, a quarter of the images would be a pixel higher or lower than those that were measured.)"""
    for side in SIDES:
        factor = min(side / max(image.size), 1)
        size = round(image.width * factor), round(image.height * factor)
        image = image.resize(size, Image.Resampling.LANCZOS)
    return image


def scaled(thing: Thing, original: tuple[int, int], new: tuple[int, int]) -> list[float]:
    """x, y, width and height in the shrunk image, cut off at its border: some of VOC's boxes end a pixel outside."""
    x1, y1, x2, y2 = (min(end, side) for end, side in zip(thing.box, original * 2, strict=True))
    across, down = new[0] / original[0], new[1] / original[1]
    return [round(value, 2) for value in (x1 * across, y1 * down, (x2 - x1) * across, (y2 - y1) * down)]


def write_json(
    path: Path, images: list[dict[str, Any]], found: list[tuple[int, list[float], str]], classes: Sequence[str]
) -> None:
    """In COCO's format. found: image's id, box, and class, of each object."""
    annotations = [
        {"id": number, "image_id": image, "category_id": classes.index(name) + 1, "bbox": box, "iscrowd": 0}
        for number, (image, box, name) in enumerate(found, start=1)
    ]
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    main()
