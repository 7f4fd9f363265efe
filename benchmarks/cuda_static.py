"""What can be said of the CUDA kernels without a GPU, and budgets that tests hold them to.

- `kernels`: registers, spills and shared memory of every kernel as ptxas compiles it for each architecture, and of
  kernels named "flash" the tensor-core instructions.
- `cases`: the benchmark's cases, cut down, run on the simulated device (tests/ptxsim): sectors of global memory against
  the least, coalescing, bank conflicts, launches, and the occupancy that registers and shared memory allow.
- `predictions`: a roofline for the benchmark's cases in full size. PREDICTED, never measured: the least bytes times the
  ratio seen in the simulation, and its operations scaled up, at 80% of the published bandwidth and arithmetic rate.

python -m benchmarks.cuda_static [--json FILE] [--archs 80 90 …]      needs nvcc; some minutes
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import math
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import _commit
from benchmarks.region_pool import LAYOUTS, STRIDE, Shape, box_inputs, label_inputs, mask_inputs
from maskco import _ext
from maskco.ops import box_pool, masked_pool, queue_push_

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # the simulator

Row = dict[str, Any]
ARCHS = (80, 86, 89, 90, 100, 120)
BUDGETS = {
    "spill_bytes": {  # at most, by a part of the kernel's name, on any architecture
        "info_nce_flash_kernel": 72,
        "info_nce_absorb_kernel": 64,
        "": 0,
    },
    "registers": {  # at most, by a part of the kernel's name; "float64": of kernels that sum in it
        "pool_kernel": 128,
        "spread_kernel": 128,
        "box_weights_kernel": 80,
        "total_kernel": 64,
        "queue_push_kernel": 80,
        "float64": 208,
    },
    "sectors": 1.15,  # of global memory, over the least
    "coalescing": 0.9,  # least sectors of the accesses over those that they touch
    "bank_conflicts": 1.1,
    "launches": 2,
    "blocks_per_sm": 2,  # on A100 and H100
}
GPUS = {  # published figures of the SXM modules
    "A100": {"arch": "sm_80", "sms": 108, "ghz": 1.41, "bytes_per_s": 2.039e12, "float32_flops": 19.5e12},
    "H100": {"arch": "sm_90", "sms": 132, "ghz": 1.755, "bytes_per_s": 3.35e12, "float32_flops": 66.9e12},
}
REACHED = 0.8  # of each


# ---- kernels: what ptxas makes of them ----


def compile_kernels(archs: Sequence[int], sources: Sequence[Path]) -> list[Row]:
    """Every kernel of the sources on every architecture."""
    from ptxsim.module import _demangle, nvcc_path, parse_ptxas

    include = Path(torch.__file__).parent / "include"
    flags = ["-std=c++17", "-O3", "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020b000000000000", f"-I{ROOT / 'csrc'}"]
    flags += [f"-I{include}", f"-I{include / 'torch/csrc/api/include'}"]
    flags += [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    rows = []
    for source in sources:
        with tempfile.TemporaryDirectory() as folder:
            binary = Path(folder) / "kernels.fatbin"
            command = [nvcc_path(), "-fatbin", "-Xptxas", "-v", *flags, str(source), "-o", str(binary)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"nvcc failed on {source.name}:\n{done.stderr}")
            found = parse_ptxas(done.stderr)
            tensor = tensor_instructions(binary) if any("flash" in k["name"] for k in found) else {}
        names = _demangle([k["name"] for k in found])
        for k in found:
            row = {"kernel": short_name(names[k["name"]]), "arch": k["arch"], "registers": k["registers"]}
            row |= {"spill_bytes": k["spill_stores"] + k["spill_loads"], "static_shared": k["shared"]}
            if "flash" in k["name"]:
                row["tensor_instructions"] = tensor.get((k["arch"], k["name"]), 0)
            rows.append(row)
    return rows


def short_name(demangled: str) -> str:
    """Without return type, namespaces and parameters."""
    name = re.sub(r"\(anonymous namespace\)::|maskco::", "", demangled)
    return name.removeprefix("void ").split("(")[0].replace(" >", ">")


def tensor_instructions(binary: Path) -> dict[tuple[str, str], int]:
    """(arch, mangled kernel) → tensor-core instructions in its machine code."""
    tool = cuobjdump()
    if tool is None:
        raise RuntimeError("cuobjdump is missing: it comes with the CUDA toolkit, and with triton")
    machine_code = subprocess.run([tool, "-sass", str(binary)], capture_output=True, text=True, check=True).stdout
    counts: dict[tuple[str, str], int] = {}
    arch = kernel = ""
    for line in machine_code.splitlines():
        if found := re.search(r"arch = (sm_\d+)", line):
            arch = found[1]
        elif found := re.search(r"Function : (\S+)", line):
            kernel = found[1]
        elif re.search(r"\b(HMMA|HGMMA)\b", line):
            counts[arch, kernel] = counts.get((arch, kernel), 0) + 1
    return counts


def cuobjdump() -> str | None:
    if (found := shutil.which("cuobjdump")) is not None:
        return found
    triton = importlib.util.find_spec("triton")
    if triton is None or triton.origin is None:
        return None
    inside = Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump"
    return str(inside) if inside.exists() else None


# ---- cases: what the kernels do on the simulated device ----


@dataclass(frozen=True)
class Case:
    """A case of the benchmarks, and the part of it that is simulated, on as many of the GPU's SMs."""

    kind: str  # boxes, soft masks, labels, queue
    full: Shape  # features [B, C, H, W]; of a queue (keys, rows, channels)
    part: Shape
    regions: int
    sms: int
    dtype: str = "float32"
    layout: str = "NCHW"

    @property
    def name(self) -> str:
        size = "×".join(map(str, self.full))
        return (
            f"{self.regions} {self.kind}, {size} {self.layout}, {self.dtype}"
            if self.regions
            else f"queue, {size}, {self.dtype}"
        )

    @property
    def scale(self) -> float:
        return math.prod(self.full) / math.prod(self.part) if self.regions else self.full[0] / self.part[0]


def all_cases() -> list[Case]:
    regional = [
        ("boxes", (64, 512, 7, 7), (2, 512, 7, 7), 4, 4),
        ("boxes", (64, 2048, 14, 14), (1, 1024, 14, 14), 16, 1),
        ("boxes", (32, 256, 56, 56), (1, 64, 56, 56), 8, 1),
        ("soft masks", (64, 2048, 14, 14), (1, 1024, 14, 14), 16, 1),
        ("labels", (16, 256, 56, 56), (1, 64, 56, 56), 21, 2),
    ]
    return [
        *(Case(*case, dtype, layout) for case in regional for layout in LAYOUTS for dtype in ("float32", "bfloat16")),
        *(Case("queue", (256, 65536, 128), (256, 1024, 128), 0, 108, dtype) for dtype in ("float32", "bfloat16")),
    ]


@contextlib.contextmanager
def simulated_kernels() -> Iterator[None]:
    """Within it the ops run the CUDA code, on CPU tensors."""
    from conftest import simulated_ops

    ops, kernels = simulated_ops(), _ext.kernels
    _ext.kernels = lambda device: ops
    try:
        yield
    finally:
        _ext.kernels = kernels


def simulate(case: Case) -> list[Row]:
    """The passes of a case: their launches' counts, and the bytes that any implementation has to read and write."""
    import ptxsim

    dtype = getattr(torch, case.dtype)
    if case.kind == "queue":
        count, size, channels = case.part
        queue, keys = torch.zeros(size, channels, dtype=dtype), torch.randn(count, channels).to(dtype)
        cursor = torch.zeros(2, dtype=torch.int64)
        with ptxsim.device("sm_80", sms=case.sms, strict=True) as device:
            queue_push_(queue, cursor, keys, normalize=True)
        return [summary(case, "push", device.launches, 2 * size_of(keys) + 2 * size_of(cursor))]
    inputs = {"boxes": box_inputs, "soft masks": mask_inputs, "labels": label_inputs}[case.kind](
        case.part, case.regions, case.layout, torch.device("cpu"), dtype
    )
    features, upstream = inputs["features"].requires_grad_(), inputs["grad_output"]
    with ptxsim.device("sm_80", sms=case.sms, strict=True) as forward:
        if case.kind == "boxes":
            regions = inputs["boxes"].float()
            output = box_pool(features, regions, spatial_scale=1 / STRIDE)
        elif case.kind == "labels":
            regions = inputs["labels"]
            output = masked_pool(features, regions, num_regions=case.regions)
        else:
            regions = inputs["masks"]
            output = masked_pool(features, regions)
    with ptxsim.device("sm_80", sms=case.sms, strict=True) as backward:
        output.backward(upstream)
    least = size_of(features) + size_of(output) + size_of(regions)
    return [summary(case, "forward", forward.launches, least), summary(case, "backward", backward.launches, least)]


def size_of(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def summary(case: Case, on: str, launches: list[Any], least_bytes: int) -> Row:
    """The counts of all launches together, without the polls of a grid barrier: how many there are says nothing."""
    reports = [launch.report for launch in launches]
    accesses = [a for r in reports for a in r.accesses() if "sectors" in a and "acquire" not in a["op"]]
    sectors, least_sectors = (sum(a[key] for a in accesses) for key in ("sectors", "min_sectors"))
    wavefronts, least_wavefronts = (
        sum(getattr(r, key) for r in reports) for key in ("shared_wavefronts", "shared_min_wavefronts")
    )
    return {
        "case": case.name,
        "pass": on,
        "simulated": "×".join(map(str, case.part)),
        "launches": len(launches),
        "least_bytes": least_bytes,
        "sectors": round(32 * sectors / least_bytes, 3),
        "coalescing": round(least_sectors / sectors, 3),
        "bank_conflicts": round(wavefronts / least_wavefronts, 3) if least_wavefronts else 1.0,
        "flops": sum(r.flops for r in reports),
        "warp_instructions": sum(r.warp_instructions for r in reports),
        "shared_wavefronts": wavefronts,
        "kernels": [
            {"kernel": short_name(x.kernel), "grid": x.grid[0], "block": x.block[0], "dynamic_shared": x.shared}
            for x in launches
        ],
    }


def add_occupancy(cases: Sequence[Row], kernels: Sequence[Row]) -> None:
    """Blocks that fit on an SM, by the registers and shared memory of each launch."""
    from ptxsim.module import occupancy

    for launch in (launch for row in cases for launch in row["kernels"]):
        launch["blocks_per_sm"] = {
            k["arch"]: occupancy(
                k["arch"], k["registers"], k["static_shared"] + launch["dynamic_shared"], launch["block"]
            )[0]
            for k in kernels
            if k["kernel"] == launch["kernel"]
        }


# ---- predictions ----


def predict(case: Case, row: Row) -> Row:
    """PREDICTED microseconds in full size, and what bounds them: at 80% of published rates. Nothing is measured.

    Without the launches themselves, some microseconds each.
    """
    prediction: Row = {"case": row["case"], "pass": row["pass"]}
    for gpu, has in GPUS.items():
        per_clock = has["sms"] * has["ghz"] * 1e9 * REACHED
        seconds = {
            "memory": row["least_bytes"] * row["sectors"] / (has["bytes_per_s"] * REACHED),
            "float32": row["flops"] / (has["float32_flops"] * REACHED),
            "instructions": row["warp_instructions"] / (4 * per_clock),  # four schedulers an SM
            "shared memory": row["shared_wavefronts"] / per_clock,
        }
        bound = max(seconds, key=lambda each: seconds[each])
        prediction[gpu] = {"us": float(f"{seconds[bound] * case.scale * 1e6:.3g}"), "bound": bound}
    return prediction


# ---- budgets ----


def broken_by_kernels(kernels: Sequence[Row]) -> list[str]:
    broken = []
    for k in kernels:
        name = f"{k['kernel']} on {k['arch']}"
        if k["spill_bytes"] > next(limit for part, limit in BUDGETS["spill_bytes"].items() if part in k["kernel"]):
            broken.append(f"{name} spills {k['spill_bytes']} bytes")
        limits = [limit for part, limit in BUDGETS["registers"].items() if part in k["kernel"]]
        if "double" in k["kernel"]:
            limits = [BUDGETS["registers"]["float64"]]
        if limits and k["registers"] > limits[0]:
            broken.append(f"{name} has {k['registers']} registers, {limits[0]} are allowed")
        if k.get("tensor_instructions") == 0:
            broken.append(f"{name} has no tensor-core instructions")
    return broken


def broken_by_cases(cases: Sequence[Row]) -> list[str]:
    broken = []
    for row in cases:
        name = f"{row['case']}, {row['pass']}"
        broken += [
            f"{name}: {key} {row[key]}, allowed {BUDGETS[key]}"
            for key in ("sectors", "bank_conflicts", "launches")
            if row[key] > BUDGETS[key]
        ]
        if row["coalescing"] < BUDGETS["coalescing"]:
            broken.append(f"{name}: coalescing {row['coalescing']}, wanted {BUDGETS['coalescing']}")
        broken += [
            f"{name}: {blocks} block of {launch['kernel']} on an SM of {arch}, wanted {BUDGETS['blocks_per_sm']}"
            for launch in row["kernels"]
            for arch, blocks in launch.get("blocks_per_sm", {}).items()
            if arch in ("sm_80", "sm_90") and blocks < BUDGETS["blocks_per_sm"]
        ]
    return broken


def sources() -> list[Path]:
    return sorted((ROOT / "csrc/cuda").glob("*.cu"))


def nvcc_version() -> str:
    from ptxsim.module import nvcc_path

    text = subprocess.run([nvcc_path(), "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"V([\d.]+)", text)[1]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda_static", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--archs", type=int, nargs="+", default=ARCHS, help="compute capabilities, as in sm_80")
    options = parser.parse_args()

    cases = all_cases()
    with simulated_kernels():
        rows = [(case, row) for case in cases for row in simulate(case)]
    case_rows = [row for _, row in rows]
    predictions = [predict(case, row) for case, row in rows]
    print(f"{'simulated':<52} {'pass':<9} {'sectors':>7} {'coalesc.':>8} {'banks':>6} {'launches':>8}   PREDICTED µs")
    for row, prediction in zip(case_rows, predictions, strict=True):
        times = "  ".join(f"{gpu} {prediction[gpu]['us']:g} ({prediction[gpu]['bound']})" for gpu in GPUS)
        counts = f"{row['sectors']:>7.2f} {row['coalescing']:>8.2f} {row['bank_conflicts']:>6.2f} {row['launches']:>8}"
        print(f"{row['case']:<52} {row['pass']:<9} {counts}   {times}", flush=True)

    kernels = compile_kernels(options.archs, sources())
    add_occupancy(case_rows, kernels)
    print(f"\n{'kernel':<76} registers (spilled bytes) on {', '.join(f'sm_{a}' for a in options.archs)}")
    for name in dict.fromkeys(k["kernel"] for k in kernels):
        found = [k for k in kernels if k["kernel"] == name]
        cells = (f"{k['registers']}{' (' + str(k['spill_bytes']) + ')' if k['spill_bytes'] else ''}" for k in found)
        tensor = {k["tensor_instructions"] for k in found if "tensor_instructions" in k}
        print(f"{name:<76} {' '.join(cells)}{f'  tensor instructions {sorted(tensor)}' if tensor else ''}")
    broken = broken_by_kernels(kernels) + broken_by_cases(case_rows)
    print("\nbroken budgets:" if broken else "\nevery budget is kept", *broken, sep="\n  ")

    if options.json is not None:
        versions = {"nvcc": nvcc_version(), "torch": torch.__version__, "python": platform.python_version()}
        results = {
            "meta": {"commit": _commit(), "versions": versions, "archs": list(options.archs)},
            "budgets": BUDGETS,
        }
        results |= {"broken": broken, "kernels": kernels, "cases": case_rows, "predictions": predictions}
        results["about predictions"] = " ".join(predict.__doc__.split())
        options.json.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        print(f"wrote {options.json}")


if __name__ == "__main__":
    main()
