"""Loads the compiled ops and says which implementation a device gets.

`_C` (schemas, CPU) must load; `_C_cuda` is loaded where it was built and torch has CUDA. Tensors on a device without
compiled kernels run the plain-torch reference after one warning, or raise if MASKCO_REQUIRE_KERNELS=1.
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
                f"{package} is a source folder: run elsewhere, or install it with pip install --no-build-isolation -e ."
            )
        else:
            advice = "reinstall maskco in this environment"
        raise ImportError(f"maskco's compiled ops could not be loaded ({error}); {advice}") from error


def _load_cuda() -> tuple[ModuleType | None, str]:
    """The CUDA module, or None and why not."""
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
    """The namespace of compiled ops for tensors on `device`, or None where the reference has to do."""
    if device.type in ("cpu", "meta"):
        return torch.ops.maskco
    if device.type == "cuda" and _C_cuda is not None and (torch.compiler.is_compiling() or _runs_on(device.index)):
        return torch.ops.maskco
    if os.environ.get("MASKCO_REQUIRE_KERNELS") == "1":
        raise MissingKernelsError(_missing(device.type))
    _warn_once(device.type)
    return None


def keep_logits(ops: Any, device: torch.device) -> bool:
    """Whether these ops can keep logits for the backward pass: the CPU's."""
    return ops is torch.ops.maskco and device.type in ("cpu", "meta")


@functools.cache
def _runs_on(index: int | None) -> bool:
    """Whether the CUDA kernels were built for this GPU. Without a GPU (fake tensors): yes."""
    if _C_cuda is None:
        return False
    if not torch.cuda.is_available():
        return True
    capability = torch.cuda.get_device_capability(index)
    return any(_arch_runs_on(arch, capability) for arch in _C_cuda.build_info()["cuda_archs"].split())


def _arch_runs_on(arch: str, capability: tuple[int, int]) -> bool:
    """Of an entry in CMake's notation: "90-real" is machine code, which serves its major version from its minor on,
    "90-virtual" is PTX, which the driver compiles for this and all later GPUs, "90" is both."""
    found = re.fullmatch(r"(\d+)(\d)(-real)?(-virtual)?", arch)
    if found is None:  # "native", "all", "90a"
        return True
    built_for = int(found[1]), int(found[2])
    return built_for <= capability and (found[3] is None or built_for[0] == capability[0])


@functools.cache
def _warn_once(device_type: str) -> None:
    warnings.warn(_missing(device_type) + "; the plain-torch reference runs instead, slower", stacklevel=4)


def _missing(device_type: str) -> str:
    reason = "only CPU and CUDA kernels exist"
    if device_type == "cuda":
        reason = cuda_status if _C_cuda is None else f"built for {_C_cuda.build_info()['cuda_archs']}, not for this GPU"
    return f"maskco has no compiled kernels for {device_type} tensors ({reason})"


def build_info() -> dict[str, str]:
    """What was built, with what and why, and what of it runs here (`maskco info` prints it)."""
    info = dict(_C.build_info()) | (dict(_C_cuda.build_info()) if _C_cuda is not None else {})
    info["torch_running"] = torch.__version__
    info["cuda_kernels"] = cuda_status
    info["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return info
