"""ptxsim: runs the PTX of CUDA kernels on the CPU, checks every access, and counts what they do."""

from .device import device
from .extension import Extension, build_sim_extension
from .halfs import bf16_to_f32, f32_to_bf16, f32_to_tf32
from .kernel import Kernel
from .limits import occupancy
from .memory import Pointer
from .module import Module, compile, load_ptx
from .nvcc import resources
from .options import DEFAULT_CHECKS, LaunchOptions
from .parser import PtxError
from .report import Finding, PtxSimWarning, Report, SimError
from .runtime import CudaError, Launch

__all__ = [
    "DEFAULT_CHECKS",
    "CudaError",
    "Extension",
    "Finding",
    "Kernel",
    "Launch",
    "LaunchOptions",
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
