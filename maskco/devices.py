"""Default device and number of loading workers of a command, and what of torch's settings it cannot run under."""

from __future__ import annotations

import os

import torch

from maskco.errors import ConfigError

AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}  # by the names of the option `amp`


def usable_device(name: str) -> torch.device:
    """torch's device of this name. "auto" is CUDA where there is a GPU, else the CPU. Raises ConfigError.

    It is tested by a sum. A device that cannot add, such as meta, trains nothing.
    """
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.ones(2, device=device).sum().item()
    except Exception as error:  # torch raises almost anything for a device that was not built in
        reason = (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0]
        raise ConfigError(
            f"device: {name!r} cannot be used here ({reason[:150]}). Take 'auto', which uses a GPU if there is one"
        ) from error
    return device


def check_caller(*, learns: bool = False) -> None:
    """Raises ConfigError under settings of the calling code that would reach into every step.

    learns: gradients are needed.
    """
    kinds = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    for set_so, what, advice in (
        (learns and not torch.is_grad_enabled(), "no_grad or inference_mode", "Call it outside"),
        (kinds, "autocast", "Call it outside, and choose `amp`"),
        (dtype != torch.float32, f"default dtype {dtype}", "Reset it"),
        (device.type != "cpu", f"default device {device}", "Reset it, and choose `device`"),
    ):
        if set_so:
            raise ConfigError(f"this cannot run under torch's {what}. {advice}")


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers() -> int:
    """Processes that load images: one for each core of the rank's share, at most 8."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return min(max(usable_cores() // ranks, 1), 8)
