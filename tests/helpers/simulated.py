"""The CUDA ops compiled for the simulated device of tools/ptxsim, and the tile shapes that their kernels have."""

from __future__ import annotations

import functools
import importlib
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch

CSRC = Path(__file__).resolve().parents[2] / "csrc"
FAMILIES = ("contrastive", "clip", "supcon", "siglip", "queue", "region_pool")


class FlashShape(NamedTuple):
    """As in csrc/cuda/info_nce/shapes.h."""

    warps: int
    row_blocks: int
    columns: int
    blocks_per_sm: int

    def __str__(self) -> str:  # as in a kernel's name
        return ", ".join(map(str, self))


class FlashEntry(NamedTuple):
    """A row of the table there: what the tensor-core kernels of info_nce are made from."""

    element_size: int
    channels: int
    small: FlashShape
    large: FlashShape


def flash_table() -> list[FlashEntry]:
    """The table of csrc/cuda/info_nce/shapes.h, empty where only the package is there and no source."""
    path = CSRC / "cuda/info_nce/shapes.h"
    if not path.exists():
        return []
    rows = re.findall(r"^ *\{(\d), (\d+), \{([\d, ]+)\}, \{([\d, ]+)\}\},$", path.read_text(), re.MULTILINE)
    shapes = [[FlashShape(*map(int, shape.split(","))) for shape in row[2:]] for row in rows]
    return [FlashEntry(int(row[0]), int(row[1]), *both) for row, both in zip(rows, shapes, strict=True)]


@functools.cache
def simulated_ops(*flash_flags: str) -> object:
    """torch.ops.maskco_sim: csrc/cuda compiled for the simulated runtime, with the Python parts of every op.

    flash_flags: nvcc's, for flash.cu alone, so that all else comes from the cache.
    """
    import ptxsim

    families = [importlib.import_module(f"maskco.ops.{name}") for name in FAMILIES]
    sources = [CSRC / "schema.cpp", *sorted((CSRC / "cuda").glob("*/*.cu"))]
    ptxsim.build_sim_extension(
        "maskco_sim", [str(s) for s in sources], [str(CSRC)], file_flags={"flash.cu": flash_flags}, arch="sm_80"
    )
    for family in families:
        family.register("maskco_sim")
    return torch.ops.maskco_sim


def kernel_names(simulated: Any) -> list[str]:
    """The kernels that were launched, such as "contrast_read"."""
    return [launch.kernel.split("_kernel")[0].split("::")[-1].split(" ")[-1] for launch in simulated.launches]
