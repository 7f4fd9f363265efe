"""TensorBoard's event files in the run folder. Every run has them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from maskco.config import PretrainConfig
from maskco.runs.folder import TENSORBOARD
from maskco.runs.loggers.base import Begun, Logger, Past, Row, Status, numbers
from maskco.runs.trust import own_file


class TensorBoardLogger(Logger):
    package = "tensorboard"

    def begin(self, run: Path, config: PretrainConfig, past: Past) -> Begun:
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        folder = own_file(run, TENSORBOARD)
        done = past.step if folder.is_dir() and any(folder.iterdir()) else 0
        self._writer = SummaryWriter(str(folder), purge_step=done + 1)  # which hides the rows past it
        return Begun(last_step=done)

    def add(self, rows: Sequence[Row]) -> None:
        for row in rows:
            for name, value in numbers(row).items():
                self._writer.add_scalar(name, value, row["step"])

    def add_picture(self, path: Path, step: int) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            self._writer.add_image(path.stem, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self, status: Status) -> None:
        if hasattr(self, "_writer"):
            self._writer.close()
