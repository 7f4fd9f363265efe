"""A COCO annotation file, read and checked once. Errors name the entry and field.

Fields that are not named here are ignored, such as ids of annotations, polygons and masks. Numbers may be written as
1 or 1.0, but not as text or true. NaN and Infinity, which Python's writers put into JSON, may be in ignored fields.
"""

from __future__ import annotations

import json
import math
import ntpath
import os
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from maskco.data.sources.base import SourceError, check_regular

Id = int | float | str  # whole numbers or text, the same throughout a file


class ListedImage(msgspec.Struct, gc=False):
    id: Id
    file_name: str
    width: int | float | None = None
    height: int | float | None = None


class Category(msgspec.Struct, gc=False):
    id: Id
    name: str


class Annotation(msgspec.Struct, gc=False):
    image_id: Id
    category_id: Id | UnsetType = UNSET  # captions have none, and no box
    bbox: tuple[float, float, float, float] | UnsetType = UNSET  # x, y, width, height
    iscrowd: bool | int | float = False


class CocoFile(msgspec.Struct, gc=False):
    images: list[ListedImage]
    annotations: list[Annotation] = []
    categories: list[Category] = []


def read_coco(path: Path) -> CocoFile:
    """Raises SourceError, which names file, entry and field."""
    check_regular(path)
    content = _parse(path)

    def check(condition: bool, place: str, problem: str) -> None:
        if not condition:
            raise SourceError(f"data: {str(path)!r}, {place}: {problem}. Correct the file")

    if not content.images:
        raise SourceError(f"data: {str(path)!r} lists no images. Correct the file")
    image_ids = _unique_ids(content.images, "images", check)
    _unique_ids(content.categories, "categories", check)
    ids_are_text = isinstance(content.images[0].id, str)
    for index, image in enumerate(content.images):
        place, name = f"images[{index}]", image.file_name
        check(bool(name) and "\0" not in name, f"{place}.file_name", f"{name!r} is no file's name")
        inside = not os.path.isabs(name) and not ntpath.splitdrive(name)[0]
        inside = inside and os.path.normpath(name).split(os.sep)[0] != os.pardir
        check(inside, f"{place}.file_name", f"{name!r} leads out of the folder of images, to which it must be relative")
        check(
            (image.width is None) == (image.height is None), place, "width and height go together, and one is missing"
        )
        for field in ("width", "height"):
            value = getattr(image, field)
            is_size = value is None or (math.isfinite(value) and value >= 1 and value == int(value) and value < 2**31)
            check(is_size, f"{place}.{field}", f"expected whole pixels, 1 or more, got {value!r}")
    for index, annotation in enumerate(content.annotations):
        if annotation.image_id not in image_ids and isinstance(annotation.image_id, str) != ids_are_text:
            kinds = ("a number", "text") if ids_are_text else ("text", "a number")
            place = f"annotations[{index}].image_id"
            check(False, place, f"{annotation.image_id!r} is {kinds[0]}, and the images' ids are {kinds[1]}")
        if annotation.bbox is not UNSET and not all(map(math.isfinite, annotation.bbox)):
            check(False, f"annotations[{index}].bbox", f"expected finite numbers, got {list(annotation.bbox)}")
        if annotation.iscrowd not in (0, 1):
            check(False, f"annotations[{index}].iscrowd", f"expected 0 or 1, got {annotation.iscrowd!r}")
    return content


def _unique_ids(entries: list[Any], table: str, check: Any) -> dict[Id, int]:
    first: dict[Id, int] = {}
    for index, entry in enumerate(entries):
        place, own = f"{table}[{index}].id", entry.id
        if isinstance(own, float):
            check(own.is_integer(), place, f"expected a whole number or text, got {own!r}")
        same_kind = isinstance(own, str) == isinstance(entries[0].id, str)
        check(same_kind, place, f"{own!r} is of another type than {entries[0].id!r} of {table}[0]")
        check(own not in first, place, f"{own!r} is the id of {table}[{first.get(own)}] too")
        first[own] = index
    return first


def _parse(path: Path) -> CocoFile:
    try:
        data = path.read_bytes()
        encoding = json.detect_encoding(data)  # with a mark of its encoding, as Windows writes it, too
        try:
            return msgspec.json.decode(data if encoding == "utf-8" else data.decode(encoding), type=CocoFile)
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:  # either no JSON, or as Python writes it: NaN and half surrogate pairs
            return msgspec.convert(json.loads(data.decode(encoding)), type=CocoFile)
    except msgspec.ValidationError as error:
        problem, _, place = str(error).replace("`", "").partition(" - at $.")
        if not place:
            raise SourceError(
                f"data: {str(path)!r} is no COCO annotation file: {problem}. Give another file"
            ) from error
        raise SourceError(f"data: {str(path)!r}, {place}: {problem}. Correct the file") from error
    except RecursionError as error:
        raise SourceError(
            f"data: {str(path)!r} cannot be read as JSON: it is nested too deeply. Correct the file"
        ) from error
    except (OSError, ValueError) as error:
        reason, remedy = (
            (error.strerror, "Check the path") if isinstance(error, OSError) else (str(error), "Correct the file")
        )
        raise SourceError(f"data: {str(path)!r} cannot be read as JSON: {reason}. {remedy}") from error
