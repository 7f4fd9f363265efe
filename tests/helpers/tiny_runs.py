"""Tiny runs: 16 small images, timm's smallest ResNet, a few steps."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskco.config import find_method

TINY: dict[str, Any] = {
    "encoder": "test_resnet",
    "image_size": 32,
    "batch_size": 4,
    "queue_size": 12,
    "dim": 8,
    "epochs": 2,
    "mask_head_depth": 1,
    "regions": 2,
    "workers": 0,
    "log_every": 3,
    "device": "cpu",
    "lr": 1.0,
}


def tiny(method: str, **options: Any) -> dict[str, Any]:
    """TINY and other options for any method: without those of MaskCo that it lacks."""
    other = {field.name for field in fields(find_method("maskco").Options)}
    other -= {field.name for field in fields(find_method(method).Options)}
    return {"method": method, **{name: value for name, value in {**TINY, **options}.items() if name not in other}}


def make_pictures(folder: Path, count: int = 16, broken: int = 0) -> Path:
    """Noise of several sizes, of which the first `broken` are cut off."""
    random = np.random.default_rng(0)
    (folder / "nested").mkdir(parents=True)
    for index in range(count):
        path = folder / ("nested" if index % 2 else "") / f"{index:03}.png"
        Image.fromarray(random.integers(0, 255, (40, 48 + index, 3), dtype=np.uint8)).save(path)
        if index < broken:
            path.write_bytes(path.read_bytes()[:300])
    return folder


def rows(run: Path) -> list[dict[str, float]]:
    """metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("images_per_s", "seconds")} for line in lines]
