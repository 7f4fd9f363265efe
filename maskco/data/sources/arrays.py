"""Images in one NumPy file. It suits small images, such as CIFAR's, since no files have to be opened and decoded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from maskco.data.sources.base import SourceError, check_regular
from maskco.data.sources.left_out import LeftOut


def open_source(data: str) -> ArraySource:
    return ArraySource(data)


class ArraySource:
    """The images of a `.npy` file: uint8 [N, H, W, 3], red green blue. The file is mapped, not read into memory.

    Raises SourceError for another kind of file or array.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self.left_out = Path(path), LeftOut()
        check_regular(self.path)
        try:
            self.pictures = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError as error:
            raise SourceError(f"data: no such file {str(path)!r}. Check the path") from error
        except Exception as error:  # NumPy parses the header as Python's literals, and what fails there is no one kind
            reason = " ".join(str(error).split()) or type(error).__name__
            raise SourceError(
                f"data: {str(path)!r} is not a NumPy array file, or a damaged one ({reason}). Write it by numpy.save"
            ) from error
        if not isinstance(self.pictures, np.ndarray):
            raise SourceError(f"data: {str(path)!r} is an archive of arrays (.npz). Write one of them by numpy.save")
        shape, kind = self.pictures.shape, self.pictures.dtype
        if kind != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
            raise SourceError(
                f"data: {str(path)!r} must hold images as uint8 [N, H, W, 3], red green blue, and it holds {kind} "
                f"{list(shape)}. Convert them"
            )

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(self.pictures[index].copy()).permute(2, 0, 1)  # [3, H, W]

    def name(self, index: int) -> str:
        return f"{self.path.name}/{index}"
