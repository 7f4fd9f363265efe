"""What devices allow: resources of an SM, occupancy, and why a device would refuse a launch."""

import re
from typing import NamedTuple

import numpy as np


class DeviceLimits(NamedTuple):
    """Of one SM, except for `shared_per_block`, `sms` (of the device) and `l2_mib` (MiB)."""

    registers: int
    shared: int  # bytes
    shared_per_block: int  # bytes, the most that a kernel can opt in to
    threads: int
    blocks: int
    sms: int
    l2_mib: int


_LIMITS = {  # by compute capability
    75: DeviceLimits(65536, 64 << 10, 64 << 10, 1024, 16, 40, 4),
    80: DeviceLimits(65536, 164 << 10, 163 << 10, 2048, 32, 108, 40),
    86: DeviceLimits(65536, 100 << 10, 99 << 10, 1536, 16, 84, 6),
    87: DeviceLimits(65536, 164 << 10, 163 << 10, 1536, 16, 16, 4),
    89: DeviceLimits(65536, 100 << 10, 99 << 10, 1536, 24, 128, 72),
    90: DeviceLimits(65536, 228 << 10, 227 << 10, 2048, 32, 132, 50),
    100: DeviceLimits(65536, 228 << 10, 227 << 10, 2048, 32, 148, 126),
    120: DeviceLimits(65536, 100 << 10, 99 << 10, 1536, 24, 170, 96),
}


def capability(arch):
    """80 for "sm_80" and "sm_80a"."""
    return int(re.sub(r"\D", "", arch) or 80)


def limits_of(arch):
    """The DeviceLimits of an architecture, or of the newest one before it."""
    number = capability(arch)
    return _LIMITS[max(k for k in _LIMITS if k <= max(number, min(_LIMITS)))]


def registers_per_warp(registers):
    """Registers that a warp takes, with `registers` a thread: multiples of 256."""
    return (registers * 32 + 255) // 256 * 256


def occupancy(arch, regs, shared, threads):
    """(blocks per SM, warps per SM, warps the SM can hold, what limits) for one kernel configuration.

    regs: registers a thread; shared: bytes a block, static and dynamic; threads: of a block.
    """
    sm = limits_of(arch)
    warps = (threads + 31) // 32
    blocks = {
        "threads": sm.threads // 32 // warps,
        "blocks": sm.blocks,
        "registers": (sm.registers // 4 // registers_per_warp(regs)) * 4 // warps if regs else sm.blocks,
        # every block takes 1 KiB more, in units of 128 bytes
        "shared memory": sm.shared // ((shared + 1024 + 127) // 128 * 128) if shared else sm.blocks,
    }
    n = min(blocks.values())
    return n, n * warps, sm.threads // 32, min(blocks, key=blocks.get)


def config_error(kernel, grid, block, shared, arch, max_dynamic=None, max_threads=1024):
    """Why a device would refuse the launch: (name of the CUDA error, text), or None.

    shared: dynamic bytes; max_dynamic: how many the host opted in to.
    """
    threads, static, limit = int(np.prod(block)), kernel.static_shared, limits_of(arch).shared_per_block
    invalid = "cudaErrorInvalidConfiguration"
    if threads < 1 or threads > max_threads or block[2] > 64:
        return invalid, f"block {block} is not launchable"
    if min(grid) < 1 or grid[0] >= 1 << 31 or grid[1] > 65535 or grid[2] > 65535:
        return invalid, f"grid {grid} is not launchable"
    if kernel.reqntid and tuple(block) != kernel.reqntid:
        return invalid, f"kernel requires block {kernel.reqntid}"
    if kernel.max_threads and threads > kernel.max_threads:
        return "cudaErrorLaunchOutOfResources", (
            f"block of {threads} threads, but the kernel is compiled for at most {kernel.max_threads} "
            "(__launch_bounds__)"
        )
    if shared + static > limit or static > 48 * 1024:
        return "cudaErrorInvalidValue", (
            f"{static} static + {shared} dynamic bytes of shared memory exceed what a block can have "
            f"({limit} on {arch}, 48 KiB static)"
        )
    if max_dynamic is not None and shared > max_dynamic:
        return "cudaErrorInvalidValue", (
            f"{shared} bytes of dynamic shared memory, but the kernel may have {max_dynamic}: "
            "cudaFuncSetAttribute(cudaFuncAttributeMaxDynamicSharedMemorySize) is missing or too small"
        )
    return None
