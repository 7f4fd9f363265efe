"""Loads the compiled ops and chooses the implementation for a device.

`_C` (schemas, CPU) must load. `_C_cuda` is loaded if it was built and torch has CUDA. On a device without compiled
kernels, the plain-torch reference runs after one warning. With MASKCO_REQUIRE_KERNELS=1 this is an error instead.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import torch


class MissingKernelsError(RuntimeError):
    """MASKCO_REQUIRE_KERNELS=1, and this device has no compiled kernels."""


def _load_cpu() -> ModuleType:
    try:
        return importlib.import_module("maskco._C")
    except ImportError as error:
        package = Path(__file__).parent
        if (package.parent / "CMakeLists.txt").exists():
            advice = (
                f"{package} is a source folder. Run elsewhere, or install it with pip install --no-build-isolation -e ."
            )
        else:
            advice = "Reinstall maskco in this environment"
        raise ImportError(f"maskco's compiled ops could not be loaded ({error}). {advice}") from error


def _load_cuda() -> tuple[ModuleType | None, str]:
    """The CUDA module or None, and its status in words."""
    if importlib.util.find_spec("maskco._C_cuda") is None:
        return None, _C.build_info()["cuda"]
    if torch.version.cuda is None:
        return None, f"built, but torch {torch.__version__} is a CPU build"
    try:
        return importlib.import_module("maskco._C_cuda"), "loaded"
    except ImportError as error:
        return None, f"built, but could not be loaded: {error}"


_C = _load_cpu()
_C_cuda, cuda_status = _load_cuda()


def kernels(device: torch.device) -> Any | None:
    """The namespace of compiled ops for tensors on `device`, or None if the reference has to run."""
    if device.type in ("cpu", "meta"):
        return torch.ops.maskco
    if device.type == "cuda" and _C_cuda is not None and (torch.compiler.is_compiling() or _runs_on(device.index)):
        return torch.ops.maskco
    if os.environ.get("MASKCO_REQUIRE_KERNELS") == "1":
        raise MissingKernelsError(_missing(device.type))
    _warn_once(device.type)
    return None


def keep_logits(ops: Any, device: torch.device) -> bool:
    """Whether these ops can keep logits for the backward pass. Only those of the CPU can."""
    return ops is torch.ops.maskco and device.type in ("cpu", "meta")


@functools.cache
def _runs_on(index: int | None) -> bool:
    """Whether the CUDA kernels were built for this GPU. True without a GPU, for fake tensors."""
    if _C_cuda is None:
        return False
    if not torch.cuda.is_available():
        return True
    capability = torch.cuda.get_device_capability(index)
    return any(_arch_runs_on(arch, capability) for arch in _C_cuda.build_info()["cuda_archs"].split())


def _arch_runs_on(arch: str, capability: tuple[int, int]) -> bool:
    """Whether code for an architecture in CMake's notation runs on a GPU of this compute capability.

    "90-real" is machine code, for GPUs of the same major version and this minor version or later. "90-virtual" is PTX,
    which the driver compiles for this and all later GPUs. "90" is both.
    """
    found = re.fullmatch(r"(\d+)(\d)(-real)?(-virtual)?", arch)
    if found is None:  # "native", "all", "90a"
        return True
    built_for = int(found[1]), int(found[2])
    return built_for <= capability and (found[3] is None or built_for[0] == capability[0])


@functools.cache
def _warn_once(device_type: str) -> None:
    warnings.warn(_missing(device_type) + ". The slower plain-torch reference runs instead", stacklevel=4)


def _missing(device_type: str) -> str:
    reason = "only CPU and CUDA kernels exist"
    if device_type == "cuda":
        reason = cuda_status if _C_cuda is None else f"built for {_C_cuda.build_info()['cuda_archs']}, not for this GPU"
    return f"maskco has no compiled kernels for {device_type} tensors ({reason})"


def build_info() -> dict[str, str]:
    """The build: kernels, tools and reasons, and the kernels that run on this machine. `maskco info` prints it."""
    info = dict(_C.build_info()) | (dict(_C_cuda.build_info()) if _C_cuda is not None else {})
    info["torch_running"] = torch.__version__
    info["cuda_kernels"] = cuda_status
    info["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return info
