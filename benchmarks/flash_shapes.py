"""Builds `info_nce` with other tile shapes for its tensor-core kernels, and times each beside the table's own.

python -m benchmarks.flash_shapes 2:128:8x1x64x1 2:128:4x1x32x2 4:64:8x1x32x1      needs nvcc and a GPU

A shape is what -DMASKCO_FLASH_SHAPE takes: bytes of an element : channels : warps x blocks of 16 rows x columns x
blocks an SM (csrc/cuda/info_nce/shapes.h). A build takes some minutes.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import maskco
from benchmarks.cases import ALSO_QUICK, BACKWARD, BOTH, FORWARD, OURS
from benchmarks.harness import check_device
from benchmarks.harness import main as harness_main
from benchmarks.info_nce import OURS_HERE, PRODUCTS, with_queue
from maskco.console import one_line_errors
from maskco.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
DTYPES = {"2": "bfloat16", "4": "float32"}
CHILD = """
import importlib.util, sys
import torch  # first: the module needs its libraries
spec = importlib.util.spec_from_file_location("maskco._C_cuda", sys.argv.pop(1))
sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules[spec.name])  # in place of the installed one
from benchmarks.flash_shapes import time
time(int(sys.argv.pop(1)))
"""


def build(shape: str, folder: Path, archs: str) -> Path:
    """The module `_C_cuda` with this shape, or with "" the table's. Raises ConfigError with the compiler's words."""
    configure = ["cmake", "-S", str(ROOT), "-B", str(folder), f"-DMASKCO_FLASH_SHAPE={shape}", "-DMASKCO_CUDA=ON"]
    configure += [f"-DCMAKE_CUDA_ARCHITECTURES={archs}", f"-DSKBUILD_PROJECT_VERSION={maskco.__version__}"]
    configure += [f"-DPython_EXECUTABLE={sys.executable}"]
    pybind11 = subprocess.run([sys.executable, "-m", "pybind11", "--cmakedir"], capture_output=True, text=True)
    if pybind11.returncode == 0:
        configure.append(f"-Dpybind11_DIR={pybind11.stdout.strip()}")
    for command in (configure, ["cmake", "--build", str(folder), "--target", "_C_cuda"]):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise ConfigError(f"shape {shape}: {' '.join(command[:2])} failed: {' '.join(done.stdout.split()[-60:])}")
    return next(folder.glob("_C_cuda.*"))


def time(channels: int) -> None:
    """The command line of one build's benchmark: the case that the README's first row has, of so many channels."""
    case = with_queue(256, 65536, channels, suites=ALSO_QUICK)
    harness_main("benchmarks.flash_shapes", lambda: [replace(case, implementations=(OURS_HERE, PRODUCTS))])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flash_shapes", description=__doc__.splitlines()[0])
    parser.add_argument("shapes", nargs="+", help="such as 2:128:8x1x64x1")
    parser.add_argument("--out", type=Path, default=ROOT / "build/flash_shapes", help="default: %(default)s")
    parser.add_argument("--archs", default="native", help="as CMAKE_CUDA_ARCHITECTURES; default: %(default)s")
    parser.add_argument("--device", default="cuda", help="cpu shows that everything runs; default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="short samples")
    options = parser.parse_args()
    for shape in options.shapes:
        if not re.fullmatch(r"[24]:\d+:\d+x\d+x\d+x\d+", shape):
            raise ConfigError(f"shapes must be like 2:128:8x1x64x1, got {shape!r}")
    check_device(options.device)

    print(f"{'shape':<20} {'dtype':<9} {'forward':>8} {'backward':>8} {'both':>8}   ms")
    for size, channels in dict.fromkeys(tuple(shape.split(":")[:2]) for shape in options.shapes):
        own = [shape for shape in options.shapes if shape.startswith(f"{size}:{channels}:")]
        for shape in ("", *own):
            module = build(shape, options.out, options.archs)
            results = options.out / f"{shape.replace(':', '_') or f'{size}_{channels}_table'}.json"
            command = [sys.executable, "-c", CHILD, str(module), channels, "--device", options.device, "--no-memory"]
            command += ["--dtype", DTYPES[size], "--json", str(results), *(["--quick"] if options.quick else [])]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            if done.returncode:
                raise ConfigError(f"shape {shape or 'table'}: {done.stderr.strip().splitlines()[-1]}")
            rows = {
                row["pass"]: row["median_ms"] for row in json.loads(results.read_text())["rows"] if row["impl"] == OURS
            }
            times = " ".join(f"{rows[each]:>8.3f}" for each in (FORWARD, BACKWARD, BOTH))
            print(f"{shape or f'{size}:{channels}, the table':<20} {DTYPES[size]:<9} {times}", flush=True)


if __name__ == "__main__":
    with one_line_errors():
        main()
