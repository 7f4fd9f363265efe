"""Pascal VOC as it comes: `VOCdevkit` with VOC2007, VOC2012 …, or one of these (Everingham et al., IJCV 2010).

    VOC2007/JPEGImages/*.jpg
    VOC2007/Annotations/*.xml
    VOC2007/ImageSets/Main/{trainval,train,val,test}.txt       the names of each part's images

Pretraining takes the images of trainval of all years. Evaluation learns from these and tests on a year's test images.
Without test images, it learns from train and tests on val. Objects marked difficult are left out of training and
ignored in detection's mAP, as in VOC's own evaluation.
"""

from __future__ import annotations

import math
import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.parsers import expat

import numpy as np
import torch

from maskco.data.sources.base import SourceError, check_regular
from maskco.data.sources.coco_sizes import Stored, checked_frames, place_boxes, read_headers
from maskco.data.sources.files import ImageFiles
from maskco.data.sources.labelled import LabelledData, LabelledPart, Objects, Wanted
from maskco.data.sources.left_out import LeftOut

MAIN = os.path.join("ImageSets", "Main")  # lists for classification and detection
IMAGES, ANNOTATIONS = "JPEGImages", "Annotations"
LARGEST_FILE = 4 << 20  # bytes of an annotation or a list; VOC's have a few thousand


def open_source(data: str) -> VOCSource:
    """The images of trainval, or of train where there is no such list."""
    root = _checked(data)
    return VOCSource(root, _listed(root, "trainval") or _listed(root, "train"))


def open_labelled(data: str, wanted: Wanted) -> LabelledData:
    """Boxes follow images that were resized or that EXIF turns, as COCO's do.

    Raises SourceError if an image is missing, an annotation is missing or damaged, or a size or box does not fit.
    """
    root = _checked(data)
    test = _listed(root, "test")
    names = ("trainval", "test") if test else ("train", "val")
    sources = [VOCSource(root, listed) for listed in (_listed(root, names[0]), test or _listed(root, "val"))]
    placed = [_placed(source) for source in sources]
    annotated = [things for things, _ in placed]
    classes = tuple(sorted({thing.name for things in annotated[0] for thing in things}))
    label_of = {name: label for label, name in enumerate(classes)}
    for source, part in zip(sources, annotated, strict=True):
        if source.left_out:
            raise SourceError(f"data: {str(root)!r} lacks images ({source.left_out.lines()[0]}). Restore them")
        for index, things in enumerate(part):
            if unknown := [thing.name for thing in things if thing.name not in label_of]:
                raise SourceError(
                    f"data: {str(source.annotation(index))!r} has the class {unknown[0]!r}, which no training image "
                    "has. Correct it, or add training images of the class"
                )
    parts = tuple(_part(*each, label_of) for each in zip(names, sources, annotated, strict=True))
    years = ", ".join(year.name for year in _years(root))
    notes = [f"{years}: learned from {names[0]}, tested on {names[1]}"]
    notes += [f"{name}: {line}" for name, (_, lines) in zip(names, placed, strict=True) for line in lines]
    return LabelledData(root.resolve().name, classes, parts, tuple(notes))


class Thing(NamedTuple):
    """An annotated object."""

    name: str
    box: tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels from 0, the right and lower border outside
    difficult: bool


class Annotation(NamedTuple):
    things: list[Thing]
    size: tuple[int, int] | None  # width and height of the image that the boxes are of, if it is given


class VOCSource(ImageFiles):
    """Images of VOC by their paths below a folder. Those that are missing are counted in `left_out`."""

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.root, self.left_out, self.names = root, LeftOut(), []
        for name in names:
            path = root / name
            check_regular(path)
            if path.is_file():
                self.names.append(name)
            else:
                self.left_out.add("missing images", name)
        if not self.names:
            raise SourceError(
                f"data: the lists in {MAIN} of {str(root)!r} name no image that is there. Unpack VOC again"
            )

    def annotation(self, index: int) -> Path:
        image = self.root / self.names[index]
        return image.parent.parent / ANNOTATIONS / f"{image.stem}.xml"


def read_annotation(path: Path) -> Annotation:
    """The objects of an image, and the size that is given. VOC counts pixels from 1 and includes the last.

    Document types are refused, and with them entities, which can grow to any size or read files.
    Raises SourceError.
    """
    builder, parser = ET.TreeBuilder(), expat.ParserCreate()
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = _refuse_document_type
    content = _read(path)
    try:
        parser.Parse(content, True)
        tree = builder.close()
        width, height = (float(tree.findtext(f"size/{side}") or "nan") for side in ("width", "height"))
        given = 1 <= width < math.inf and 1 <= height < math.inf  # (some tools write 0)
        size = (int(width), int(height)) if given else None
        return Annotation([_thing(node) for node in tree.iter("object")], size)
    except (expat.ExpatError, AssertionError, ValueError) as error:
        raise SourceError(f"data: {str(path)!r} is no annotation of VOC ({error}). Restore it") from error


def _refuse_document_type(*_: object) -> None:
    raise ValueError("it declares a document type")


def _thing(node: ET.Element) -> Thing:
    """Raises ValueError."""
    name, box = (node.findtext("name") or "").strip(), node.find("bndbox")  # (parts of the body have boxes below)
    if not name or box is None:
        raise ValueError("an object without name or box")
    x1, y1, x2, y2 = (float(box.findtext(side) or "nan") for side in ("xmin", "ymin", "xmax", "ymax"))
    x1, y1 = max(x1 - 1, 0.0), max(y1 - 1, 0.0)
    if not all(map(math.isfinite, (x1, y1, x2, y2))) or x2 <= x1 or y2 <= y1:
        raise ValueError(f"the box of a {name!r} has no area")
    return Thing(name, (x1, y1, x2, y2), (node.findtext("difficult") or "0").strip() == "1")


def _placed(source: VOCSource) -> tuple[list[list[Thing]], list[str]]:
    """The objects of each image, with boxes in the upright image, and notes as `find_frames` has them.

    Raises SourceError for sizes that nothing explains and for boxes outside of their image.
    """
    found = [read_annotation(source.annotation(index)) for index in range(len(source))]
    annotated = [index for index, each in enumerate(found) if each.things]
    names = [source.names[index] for index in annotated]
    headers = read_headers([source.root / name for name in names])
    swapped = [_is_swapped(found[index], header) for index, header in zip(annotated, headers, strict=True)]
    sizes = [None if wrong else found[index].size for index, wrong in zip(annotated, swapped, strict=True)]
    frames, notes = checked_frames(source.root, names, sizes, headers)
    if any(swapped):
        first = names[swapped.index(True)]
        notes.append(f"{sum(swapped)} images list width as height (first {first!r}). Their boxes fit the stored image")
    boxes = np.array([thing.box for each in found for thing in each.things], float).reshape(-1, 4)
    boxes[:, 2:] -= boxes[:, :2]
    image = np.repeat(np.arange(len(annotated)), [len(found[index].things) for index in annotated])
    corners = iter(place_boxes(boxes, image, frames).astype(np.float32).tolist())
    result: list[list[Thing]] = []
    for index, each in enumerate(found):
        result.append([thing._replace(box=tuple(next(corners))) for thing in each.things])
        for thing in result[-1]:
            x1, y1, x2, y2 = thing.box
            if not (x1 < x2 and y1 < y2):
                raise SourceError(
                    f"data: {str(source.annotation(index))!r} has a {thing.name!r} whose box is outside of the image. "
                    "Correct it"
                )
    return result, notes


def _is_swapped(annotation: Annotation, header: Stored | None) -> bool:
    """Whether width and height are listed the wrong way round. That all boxes fit the stored image tells so."""
    if header is None or header.orientation != 1 or annotation.size != (header.height, header.width):
        return False
    if header.width == header.height:
        return False
    fits = (box[2] <= header.width + 1 and box[3] <= header.height + 1 for _, box, _ in annotation.things)
    return all(fits)  # (some of VOC's own boxes end a pixel outside)


def _part(name: str, source: VOCSource, annotated: list[list[Thing]], label_of: dict[str, int]) -> LabelledPart:
    def objects(things: list[Thing], difficult: bool) -> Objects:
        chosen = [thing for thing in things if thing.difficult == difficult]
        boxes = torch.tensor([thing.box for thing in chosen], dtype=torch.float32).reshape(-1, 4)
        labels = torch.tensor([label_of[thing.name] for thing in chosen], dtype=torch.long)
        return Objects(boxes, labels, torch.full((len(chosen),), difficult))

    usual = [objects(things, False) for things in annotated]
    return LabelledPart(
        name,
        source,
        labels=[each.labels for each in usual],
        boxes=[each.boxes for each in usual],
        crowds=[objects(things, True) for things in annotated],
    )


def _checked(data: str) -> Path:
    if not _years(Path(data)):
        raise SourceError(f"data: {data!r} has {MAIN} without {IMAGES}. Unpack VOC again")
    return Path(data)


def _years(root: Path) -> list[Path]:
    def is_year(folder: Path) -> bool:
        return (folder / MAIN).is_dir() and (folder / IMAGES).is_dir()

    if is_year(root):
        return [root]
    try:
        return sorted(folder for folder in root.iterdir() if re.fullmatch(r"VOC\d{4}", folder.name) and is_year(folder))
    except OSError:  # the opener will report it
        return []


def _listed(root: Path, part: str) -> list[str]:
    """Paths of a part's images of all years, below root. Empty if no year has such a list."""
    return [name for year in _years(root) for name in _names(root, year, part)]


def _names(root: Path, year: Path, part: str) -> Iterator[str]:
    path = year / MAIN / f"{part}.txt"
    if not path.exists():
        return
    for line in _read(path).decode("utf-8", "replace").splitlines():
        if line.strip():
            name = line.split()[0]
            if not re.fullmatch(r"[\w-]+", name):
                raise SourceError(
                    f"data: {str(path)!r} is no list of VOC, since it has the line {line[:40]!r}. Restore it"
                )
            yield str((year / IMAGES / f"{name}.jpg").relative_to(root))


def _read(path: Path) -> bytes:
    check_regular(path)
    try:
        if path.stat().st_size > LARGEST_FILE:
            size = f"{LARGEST_FILE >> 20} MiB"
            raise SourceError(f"data: {str(path)!r} has more than {size}, which no file of VOC has. Restore it")
        return path.read_bytes()
    except OSError as error:
        raise SourceError(f"data: {str(path)!r} cannot be read ({error.strerror}). Restore it") from error
