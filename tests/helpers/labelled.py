"""Made-up labelled sets: three colors are the classes."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from maskco.data.sources.demo import Scene

COLOURS = torch.tensor([[200, 40, 40], [40, 200, 40], [40, 40, 200]])
NAMES = ("red", "green", "blue")


def colored(count: int, seed: int, *, boxes: int = 2, side: int = 32) -> list[Scene]:
    """Noise with squares of a color in two corners: the class is which of the three colors it is."""
    generator = torch.Generator().manual_seed(seed)
    scenes, size = [], side * 7 // 16
    for _ in range(count):
        image = torch.randint(256, (3, side, side), generator=generator)
        labels = torch.randint(3, (boxes,), generator=generator)
        corners = torch.tensor([[side // 16, side // 16], [side // 2, side // 2]])[:boxes]
        for (x, y), label in zip(corners.tolist(), labels.tolist(), strict=True):
            image[:, y : y + size, x : x + size] = COLOURS[label][:, None, None]
        scenes.append(Scene(image.byte(), torch.cat([corners, corners + size], 1).float(), labels))
    return scenes


def save(image: Tensor, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)


def make_class_folders(root: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """root/PART/COLOUR/n.png: noise around one color, of several sizes; with `""` for PART root/COLOUR/n.png."""
    generator = torch.Generator().manual_seed(seed)
    for part, count in counts.items():
        for index in range(count):
            noise = torch.randint(-40, 40, (3, 32 + index % 3, 40), generator=generator)
            label = index % len(NAMES)
            picture = (COLOURS[label][:, None, None] + noise).clamp(0, 255).byte()
            save(picture, root / part / NAMES[label] / f"{index}.png")
    return root


def make_coco(root: Path, parts: dict[str, int], *, seed: int = 0, side: int = 64) -> Path:
    """A folder in COCO's layout; category ids have gaps, and one crowd lies in the first image of each part."""
    for offset, (part, count) in enumerate(parts.items()):
        images, annotations = [], []
        for index, (image, boxes, labels) in enumerate(colored(count, seed + offset, side=side)):
            save(image, root / part / f"{index:03}.png")
            images.append({"id": index, "file_name": f"{index:03}.png", "width": side, "height": side})
            for (x1, y1, x2, y2), label in zip(boxes.tolist(), labels.tolist(), strict=True):
                annotations.append(
                    {"image_id": index, "category_id": 10 * label + 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}
                )
        crowd = {"image_id": 0, "category_id": 1, "bbox": [0, side // 2, 10, 10], "iscrowd": 1}
        write_coco(root, part, images, [*annotations, crowd])
    return root


def write_coco(root: Path, part: str, images: list[dict], annotations: list[dict]) -> None:
    annotations = [
        {"id": i, "iscrowd": 0, **a, "area": a["bbox"][2] * a["bbox"][3]} for i, a in enumerate(annotations, 1)
    ]
    categories = [{"id": 10 * label + 1, "name": name} for label, name in enumerate(NAMES)]
    path = root / "annotations" / f"instances_{part}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
