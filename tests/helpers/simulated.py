"""The CUDA ops compiled for the simulated device of tests/ptxsim."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path

import torch

CSRC = Path(__file__).resolve().parents[2] / "csrc"


@functools.cache
def simulated_ops() -> object:
    """torch.ops.maskco_sim: csrc/cuda compiled for the simulated runtime, with the Python parts of every op."""
    import ptxsim

    families = [importlib.import_module(f"maskco.ops.{name}") for name in ("contrastive", "queue", "region_pool")]

    sources = [CSRC / "schema.cpp", *sorted((CSRC / "cuda").glob("*/*.cu"))]
    ptxsim.build_sim_extension("maskco_sim", [str(s) for s in sources], [str(CSRC)], arch="sm_80")
    for family in families:
        family.register("maskco_sim")
    return torch.ops.maskco_sim
