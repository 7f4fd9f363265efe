"""Runs as they lie on disk after training, made without training, and what their encoders see."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor

from maskco.config import PretrainConfig
from maskco.methods import build_method
from maskco.runs.checkpoint import load_run, save_checkpoint

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def make_run(folder: Path, data: str = "photos", **options) -> Path:
    """A run whose encoder has seen something: no batch norm is as it began."""
    folder.mkdir()
    options = {"image_size": 64, "dim": 8, "queue_size": 8} | options
    config = PretrainConfig.of(data=data, out=str(folder), **options)
    torch.manual_seed(1)
    method = build_method(config)
    with torch.no_grad():
        method.encoder.train()(torch.rand(4, 3, 64, 64))
    save_checkpoint(folder / "last.pt", {"config": config.to_dict(), "method": method.state_dict(), "step": 1234})
    return folder


@functools.cache
def own_maps(run: Path) -> Tensor:
    """The encoder's maps of IMAGES, kept: no test changes a run."""
    _, method, _ = load_run(run)
    with torch.no_grad():
        return method.encoder(IMAGES)
