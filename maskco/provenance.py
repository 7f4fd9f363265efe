"""Origin of a figure: versions, commit and device. Everything that writes results adds them."""

from __future__ import annotations

import contextlib
import platform
import subprocess
from collections.abc import Callable, Iterable
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from maskco.version import __version__

PACKAGES = ("maskco", "torch", "torchvision", "timm", "torchmetrics", "pycocotools")


def provenance() -> dict[str, Any]:
    """The versions of what computed, and the commit of the source tree."""
    return {"versions": versions(PACKAGES), "commit": commit()}


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of those packages that are installed."""
    found = {}
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = OWN[package]() if package in OWN else version(package)
    return found


def _torch() -> str:
    import torch

    return torch.__version__  # with its CUDA, which the package's version lacks


OWN: dict[str, Callable[[], str]] = {"maskco": lambda: __version__, "torch": _torch}


@lru_cache
def commit() -> str | None:
    """The commit of the source tree that this file is tracked in. None for an installed package.

    It ends with "-dirty" if tracked files other than committed results are changed.
    """
    here = Path(__file__).resolve()
    try:
        for command in (["ls-files", "--error-unmatch", here.name], ["rev-parse", "--short=12", "HEAD"]):
            done = subprocess.run(["git", *command], cwd=here.parent, capture_output=True, text=True, check=True)
        changed = subprocess.run(
            ["git", "diff", "--quiet", "HEAD", "--", ":/", ":!/benchmarks/results"], cwd=here.parent
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip() + ("-dirty" if changed.returncode else "")


def device_name(device: Any) -> str:
    """The GPU's or the CPU's name. device: a torch.device."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
