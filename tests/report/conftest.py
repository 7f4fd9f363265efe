"""Small runs of the real loop, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from maskco import pretrain
from tiny_runs import tiny

OPTIONS = {
    "encoder": "test_resnet", "stage": 2, "image_size": 32, "regions": 2, "queue_size": 64, "dim": 16, "batch_size": 8,
    "epochs": 1, "log_every": 1, "workers": 0, "device": "cpu", "save_every_minutes": 0, "lr": 0.0,
}  # fmt: skip


@pytest.fixture(scope="session")
def folder_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps on 16 images of several sizes. The learning rate is 0: the encoder ends as it began."""
    root = tmp_path_factory.mktemp("folder")
    (root / "images").mkdir()
    generator = torch.Generator().manual_seed(0)
    for index in range(16):
        coarse = torch.randint(256, (4, 6, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(coarse.numpy()).resize((60 + 4 * index, 48)).save(root / f"images/{index:02}.png")
    return pretrain(data=root / "images", out=root / "run", **OPTIONS).out


@pytest.fixture(scope="session")
def plain_run(tmp_path_factory: pytest.TempPathFactory, folder_run: Path) -> Path:
    """A run of a method without a queue and without regions."""
    out = tmp_path_factory.mktemp("plain") / "plain run"
    return Path(pretrain(data=folder_run.parent / "images", out=out, **tiny("simclr", **OPTIONS)).out)
