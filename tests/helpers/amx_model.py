"""The CPU ops compiled with a model of AMX's tile registers in place of its instructions, which few CPUs have."""

from __future__ import annotations

import ctypes
import importlib
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

import maskco

CSRC = Path(__file__).resolve().parents[2] / "csrc"
SOURCES = ["schema.cpp", "cpu/info_nce/info_nce.cpp"]
SOURCES += [f"cpu/contrast/{loss}.cpp" for loss in ("clip", "siglip", "supcon")]


class AmxModel(NamedTuple):
    ops: object  # torch.ops.maskco_amx: info_nce and the losses over all pairs
    products: Callable[[], int]  # how many pairs of tile registers have been multiplied so far


def missing() -> str:
    """What the model needs and this machine or folder does not have, or ""."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return "AMX is for Linux on x86-64"
    if not CSRC.exists():
        return "the sources are not here"
    if shutil.which("g++") is None:
        return "no g++"
    version = subprocess.run(["g++", "-dumpversion"], capture_output=True, text=True, check=True).stdout
    if int(version.split(".")[0]) < 11:
        return "AMX needs GCC 11"
    return "this CPU has no AVX2" if maskco.build_info()["cpu_kernels"] == "SSE2" else ""


def build(folder: Path) -> AmxModel:
    """Compiles the ops in `folder`, and registers them with their Python parts: once in a process."""
    torch_root = Path(torch.__file__).parent
    major, minor = map(int, maskco.build_info()["torch_abi_target"].split("."))
    flags = [
        *("-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-fopenmp-simd", "-DMASKCO_AMX_MODEL"),
        *(f"-DTORCH_TARGET_VERSION={major << 56 | minor << 48:#x}", f"-I{CSRC}", "-isystem", f"{torch_root}/include"),
    ]

    def compiled(source: str) -> str:
        target = str(folder / f"{Path(source).stem}.o")
        subprocess.run(["g++", *flags, "-c", str(CSRC / source), "-o", target], check=True)
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, SOURCES))
    library = str(folder / "maskco_amx.so")
    subprocess.run(
        ["g++", "-shared", "-Wl,-z,defs", "-o", library, *objects, f"-L{torch_root}/lib", "-ltorch_cpu"], check=True
    )
    torch.ops.load_library(library)
    for family in ("contrastive", "clip", "siglip", "supcon"):
        importlib.import_module(f"maskco.ops.{family}").register("maskco_amx")
    products = ctypes.CDLL(library).maskco_amx_products
    products.restype = ctypes.c_int64
    return AmxModel(torch.ops.maskco_amx, products)
