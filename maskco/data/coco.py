"""Pictures and labelled boxes of a COCO annotation file. Plain JSON: reading it needs no pycocotools.

    pictures = CocoSource("COCO/annotations/instances_val2017.json")
    image, (boxes, labels, crowd) = pictures[0], pictures.objects[0]
    pictures.categories[labels[0]]                                           # "person"

Pretraining takes the pictures and never looks at the boxes; they are for evaluation.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskco.data.sources import PictureFiles, SourceError

log = logging.getLogger(__name__)


class Objects(NamedTuple):
    """What is annotated in one picture."""

    boxes: Tensor  # float32 [n, 4]: x1, y1, x2, y2 in pixels, inside the picture
    labels: Tensor  # int64 [n]: index into `CocoSource.categories`
    crowd: Tensor  # bool [n]: the box surrounds a group; training leaves these out, COCO's mAP ignores matches to them


class CocoSource(PictureFiles):
    """The pictures that a COCO annotation file lists, in order of their ids; a `maskco.data.sources.Source`.

    They are looked for in the folder named like what follows `instances_` (beside `annotations/`, or in `images/`),
    then in `images/` and beside `annotations/`. What the file says wrongly is left out, counted in `left_out` and
    warned of: pictures that are missing, boxes without area, and boxes of unknown pictures or categories.

    Raises SourceError if the file is not COCO's, lists nothing, or none of its pictures exists.

    Args:
        annotations: `.../annotations/instances_<split>.json`.
        pictures: the folder of the pictures, if it is another than those named above.
    """

    def __init__(self, annotations: str | Path, pictures: str | Path | None = None) -> None:
        path = Path(annotations)
        content = _read(path)
        listed = {}
        for image in content["images"]:
            if not isinstance(image, dict) or not isinstance(image.get("file_name"), str) or "id" not in image:
                raise SourceError(f"data: {str(path)!r} lists a picture without id or file_name: {str(image)[:80]}")
            listed[image["id"]] = image
        self.root = _folder(path, [image["file_name"] for image in listed.values()], pictures)
        present = {number: image for number, image in listed.items() if (self.root / image["file_name"]).is_file()}
        self.image_ids = sorted(present)
        self.names = [present[number]["file_name"] for number in self.image_ids]

        categories = sorted((int(c["id"]), str(c["name"])) for c in content.get("categories", ()))
        self.category_ids = tuple(number for number, _ in categories)  # as in the file; COCO's own have gaps
        self.categories = tuple(name for _, name in categories)

        self.left_out: Counter[str] = Counter()
        missing = [image["file_name"] for number, image in listed.items() if number not in present]
        if missing:
            self.left_out[f"missing pictures (first: {missing[0]})"] = len(missing)
        self.objects = self._objects(content.get("annotations", ()), listed)
        if self.left_out:
            counts = ", ".join(f"{count} {what}" for what, count in self.left_out.items())
            log.warning("%s: left out %s", path, counts)

    def _objects(self, annotations: list[dict[str, Any]], listed: dict[int, dict[str, Any]]) -> list[Objects]:
        label_of = {number: label for label, number in enumerate(self.category_ids)}
        found: dict[int, list[tuple[list[float], int, bool]]] = {number: [] for number in self.image_ids}
        for annotation in annotations:
            image, category = annotation.get("image_id"), annotation.get("category_id")
            if image not in listed:
                self.left_out["boxes of unknown pictures"] += 1
            elif category not in label_of:
                self.left_out["boxes of unknown categories"] += 1
            elif (box := _corners(annotation.get("bbox"), listed[image])) is None:
                self.left_out["boxes without area"] += 1
            elif image in found:
                found[image].append((box, label_of[category], bool(annotation.get("iscrowd", 0))))
        objects = []
        for number in self.image_ids:
            boxes, labels, crowd = zip(*found[number], strict=True) if found[number] else ((), (), ())
            objects.append(
                Objects(
                    torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
                    torch.tensor(labels, dtype=torch.int64),
                    torch.tensor(crowd, dtype=torch.bool),
                )
            )
        return objects


def annotation_files(root: str | Path) -> list[Path]:
    """The `annotations/instances_*.json` of a folder in COCO's layout, sorted by name; none in any other folder."""
    return sorted(Path(root).glob("annotations/instances_*.json"))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(f"data: {str(path)!r} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise SourceError(f"data: {str(path)!r} is no COCO annotation file: it has no list of images")
    if not content["images"]:
        raise SourceError(f"data: {str(path)!r} lists no pictures")
    return content


def _folder(annotations: Path, names: list[str], given: str | Path | None) -> Path:
    """The first folder that holds any of the named pictures."""
    root, split = annotations.absolute().parent.parent, annotations.stem.split("_", 1)[-1]
    folders = [root / split, root / "images" / split, root / "images", root] if given is None else [Path(given)]
    for folder in folders:
        if folder.is_dir() and any((folder / name).is_file() for name in names):
            return folder
    raise SourceError(
        f"data: none of the {len(names)} pictures that {str(annotations)!r} lists exists "
        f"(looked for {names[0]!r} in {', '.join(map(str, folders))})"
    )


def _corners(box: Any, image: dict[str, Any]) -> list[float] | None:
    """x, y, width, height as the corners x1, y1, x2, y2 inside the picture; None if nothing of it is there."""
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, (int, float)) for v in box):
        return None
    x, y, width, height = box
    x1, y1 = max(x, 0.0), max(y, 0.0)
    x2, y2 = min(x + width, image.get("width", math.inf)), min(y + height, image.get("height", math.inf))
    corners = [x1, y1, x2, y2]
    return corners if x1 < x2 and y1 < y2 and all(map(math.isfinite, corners)) else None
