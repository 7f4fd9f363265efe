"""ptxsim: runs the PTX of CUDA kernels on the CPU, checks every access, and counts what they do."""

from .halfs import bf16_to_f32, f32_to_bf16, f32_to_tf32
from .module import (
    DEFAULT_CHECKS,
    Finding,
    Kernel,
    Module,
    Pointer,
    PtxSimWarning,
    Report,
    SimError,
    compile,
    load_ptx,
    occupancy,
    resources,
)
from .parser import PtxError
from .runtime import CudaError, Extension, Launch, build_sim_extension, device

__all__ = [
    "DEFAULT_CHECKS",
    "CudaError",
    "Extension",
    "Finding",
    "Kernel",
    "Launch",
    "Module",
    "Pointer",
    "PtxError",
    "PtxSimWarning",
    "Report",
    "SimError",
    "bf16_to_f32",
    "build_sim_extension",
    "compile",
    "device",
    "f32_to_bf16",
    "f32_to_tf32",
    "load_ptx",
    "occupancy",
    "resources",
]
