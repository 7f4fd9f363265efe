"""What can be said of the CUDA kernels without a GPU, and budgets that tests hold them to.

- `kernels`: registers, spills and shared memory of every kernel as ptxas compiles it for each architecture, and of the
  flash kernels the tensor-core instructions in the loop over tiles.
- `cases`: the benchmarks' cases, cut down, on the simulated device (cuda_cases.py): sectors of global memory against
  what has to be asked for, coalescing, bank conflicts, launches, and the blocks that fit on an SM.
- `flash`: the warps of every flash kernel that fit on an SM, by registers and shared memory, where the table of shapes
  (csrc/cuda/info_nce/shapes.h) has it launched.
- `predictions`: a roofline (roofline.py). PREDICTED, never measured.

python -m benchmarks.cuda_static [--update | --json FILE] [--archs 80 90 …]      needs nvcc; a quarter of an hour
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from benchmarks import roofline
from benchmarks.cuda_cases import Row, all_cases, flash_launches, short_name, simulate, simulated_kernels
from benchmarks.roofline import GPUS, RESULTS, predict
from maskco.console import one_line_errors
from maskco.provenance import commit

ROOT = Path(__file__).resolve().parent.parent
ARCHS = (80, 86, 89, 90, 100, 120)
NO_CUOBJDUMP = "cuobjdump is missing. It comes with the CUDA toolkit, and with triton"
BUDGETS = {
    "spill_bytes": 0,
    "registers": {  # at most, by a pattern of the kernel's name; "float64": of kernels that sum in it
        "pool_kernel": 128,
        "spread_kernel": 128,
        "box_weights_kernel": 80,
        "total_kernel": 64,
        "queue_push_kernel": 80,
        "sigmoid_kernel": 208,
        "float64": 208,
    },
    "sectors": 1.15,  # of global memory, over what has to be asked for
    "coalescing": 0.9,  # least sectors of the accesses over those that they touch
    "bank_conflicts": 1.1,
    "launches": 2,  # of a pass; with sweeps over all pairs, around which there are small steps, more
    "sweep_launches": 8,
    "blocks_per_sm": 2,  # on A100 and H100; of sweeps one of eight warps
    # (of flash kernels as many as the table of shapes plans, on all)
    # Of flash kernels, at least. The sums of 16 rows of 256 channels fill half of a thread's registers, so 8 warps are
    # planned. In float32 their rows take 96 or 128 KiB of shared memory where there are 192 or 256 channels: SMs of
    # 100 KiB (8.6, 8.9, 12.0) have room for those of 4 warps.
    "warps_per_sm": {r"Tf32Product<\d>, (192|256), 4,": 4, "": 8},
}

STACK = {"box_weights_kernel": 96, "": 0}  # bytes of local arrays in a built module, at most; spills would need more


# ---- kernels: what ptxas makes of them ----


def compile_kernels(archs: Sequence[int], sources: Sequence[Path]) -> list[Row]:
    """Every kernel of the sources on every architecture."""
    from ptxsim.nvcc import demangle, nvcc_path, parse_ptxas

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
        names = demangle([k["name"] for k in found])
        for k in found:
            row = {"kernel": short_name(names[k["name"]]), "arch": k["arch"], "registers": k["registers"]}
            row |= {"spill_bytes": k["spill_stores"] + k["spill_loads"], "static_shared": k["shared"]}
            if "flash" in k["name"]:
                row["tensor_instructions"] = tensor.get((k["arch"], k["name"]), 0)
            rows.append(row)
    return rows


def built_kernels(module: Path) -> list[Row]:
    """Every kernel in a built module. It says how large the stack is, which holds spills."""
    from ptxsim.nvcc import demangle

    tool = cuobjdump()
    if tool is None:
        raise RuntimeError(NO_CUOBJDUMP)
    lines = subprocess.run([tool, "-res-usage", str(module)], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"arch = (sm_\d+)|Function (\S+):\s+REG:(\d+) STACK:(\d+)", lines)
    names = demangle([name for _, name, *_ in found if name])
    rows, arch = [], ""
    for header, name, registers, stack in found:
        arch = header or arch
        if name:
            row = {"kernel": short_name(names[name]), "arch": arch, "registers": int(registers), "stack": int(stack)}
            rows.append(row)
    return rows


def tensor_instructions(binary: Path) -> dict[tuple[str, str], int]:
    """(arch, mangled kernel) → tensor-core instructions in the machine code of its loop over tiles, which is also
    the one that copies to shared memory."""
    tool = cuobjdump()
    if tool is None:
        raise RuntimeError(NO_CUOBJDUMP)
    machine_code = subprocess.run([tool, "-sass", str(binary)], capture_output=True, text=True, check=True).stdout
    return {key: in_loop_over_tiles(code) for key, code in functions(machine_code)}


def functions(machine_code: str) -> Iterator[tuple[tuple[str, str], list[tuple[int, str]]]]:
    """((arch, kernel), [(address, instruction), …]) of cuobjdump's output."""
    arch, key = "", ("", "")
    code: list[tuple[int, str]] = []
    for line in (*machine_code.splitlines(), "Function : end"):
        if found := re.search(r"Function : (\S+)", line):
            if code:
                yield key, code
            key, code = (arch, found[1]), []
        elif found := re.search(r"arch = (sm_\d+)", line):
            arch = found[1]
        elif found := re.match(r"\s*/\*([0-9a-f]{4,})\*/\s+(.*?);", line):
            code.append((int(found[1], 16), found[2]))


def in_loop_over_tiles(code: Sequence[tuple[int, str]]) -> int:
    def inside(loop: tuple[int, int], pattern: str) -> int:
        return sum(bool(re.search(pattern, text)) for address, text in code if loop[0] <= address <= loop[1])

    jumps = ((address, re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text)) for address, text in code)
    loops = [(int(to[1], 16), address) for address, to in jumps if to and int(to[1], 16) < address]
    # (rare branches jump back as well, from behind the kernel's end)
    copying = [loop for loop in loops if inside(loop, r"\bLDGSTS\b") and not inside(loop, r"\bEXIT\b")]
    return max((inside(loop, r"\b(HMMA|QMMA)\b") for loop in copying), default=0)


def cuobjdump() -> str | None:
    if (found := shutil.which("cuobjdump")) is not None:
        return found
    triton = importlib.util.find_spec("triton")
    if triton is None or triton.origin is None:
        return None
    inside = Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump"
    return str(inside) if inside.exists() else None


# ---- occupancy ----


def blocks_per_sm(launch: Row, kernels: Sequence[Row]) -> dict[str, int]:
    """Architecture → blocks of a launch that fit on an SM, by registers and shared memory."""
    from ptxsim.limits import occupancy

    found = {}
    for k in (k for k in kernels if k["kernel"] == launch["kernel"]):
        shared = k["static_shared"] + launch["dynamic_shared"]
        found[k["arch"]] = occupancy(k["arch"], k["registers"], shared, launch["block"])[0]
    return found


# ---- budgets ----


def limit_of(limits: dict[str, int], kernel: str) -> int | None:
    return next((limit for pattern, limit in limits.items() if re.search(pattern, kernel)), None)


def broken_by_kernels(kernels: Sequence[Row]) -> list[str]:
    broken = []
    for k in kernels:
        name = f"{k['kernel']} on {k['arch']}"
        if k.get("spill_bytes", 0) > BUDGETS["spill_bytes"]:
            broken.append(f"{name} spills {k['spill_bytes']} bytes")
        if k.get("stack", 0) > (limit := limit_of(STACK, k["kernel"])):
            broken.append(f"{name} has a stack of {k['stack']} bytes, {limit} are allowed")
        limit = limit_of(BUDGETS["registers"], "float64" if "double" in k["kernel"] else k["kernel"])
        if limit is not None and k["registers"] > limit:
            broken.append(f"{name} has {k['registers']} registers, {limit} are allowed")
        if k.get("tensor_instructions") == 0:
            broken.append(f"{name} has no tensor-core instructions in its loop over tiles")
    return broken


def broken_by_cases(cases: Sequence[Row]) -> list[str]:
    broken = []
    for row in cases:
        name = f"{row['case']}, {row['pass']}"
        sweeps = any("LogitTile" in launch["kernel"] for launch in row["kernels"])
        limits = {key: BUDGETS[key] for key in ("sectors", "bank_conflicts")}
        limits["launches"] = BUDGETS["sweep_launches" if sweeps else "launches"]
        broken += [f"{name}: {key} {row[key]}, allowed {limit}" for key, limit in limits.items() if row[key] > limit]
        if row["coalescing"] < BUDGETS["coalescing"]:
            broken.append(f"{name}: coalescing {row['coalescing']}, wanted {BUDGETS['coalescing']}")
        broken += [
            f"{name}: {blocks} block of {launch['kernel']} on an SM of {arch}, wanted {BUDGETS['blocks_per_sm']}"
            for launch in row["kernels"]
            for arch, blocks in launch.get("blocks_per_sm", {}).items()
            if arch in ("sm_80", "sm_90")
            and blocks < (1 if "LogitTile" in launch["kernel"] else BUDGETS["blocks_per_sm"])
        ]
    return broken


def broken_by_flash(launches: Sequence[Row]) -> list[str]:
    broken = []
    for launch in launches:
        warps, blocks = planned_by_table(launch["kernel"])
        planned = max(warps * blocks, limit_of(BUDGETS["warps_per_sm"], launch["kernel"]))
        broken += [
            f"{launch['kernel']}: {fit} warps on an SM of {arch}, planned {planned}"
            for arch, fit in launch["warps_per_sm"].items()
            if fit < planned
        ]
    return broken


def planned_by_table(kernel: str) -> tuple[int, int]:
    """Of a flash kernel, by the shape in its name: warps of a block, blocks on an SM."""
    warps, _, _, blocks = re.search(r", \d+, (\d+), (\d+), (\d+), (\d+)>", kernel).groups()
    return int(warps), int(blocks)


def sources() -> list[Path]:
    return sorted((ROOT / "csrc/cuda").glob("*/*.cu"))


def source_hash() -> str:
    """Of csrc/cuda, and of what device code includes besides, without comments, white space and the host's checks of
    arguments: what results are of."""
    found = hashlib.sha256()
    for path in (*sorted((ROOT / "csrc/cuda").rglob("*.*")), ROOT / "csrc/common/roi_samples.h"):
        code = re.sub(r"//.*", "", path.read_text())
        code = re.sub(r"STD_TORCH_CHECK\(.*?\);", "", code, flags=re.DOTALL)
        found.update("".join([str(path.relative_to(ROOT)), *code.split()]).encode())
    return found.hexdigest()[:16]


def out_of_date(results: Row) -> list[str]:
    """What was changed since the results were made."""
    meta, cases = results["meta"], {row["case"] for row in results["cases"]}
    now = {
        "kernels": meta["source"] == source_hash(),
        "architectures": meta["archs"] == list(ARCHS),
        "cases": cases == {case.name for case in all_cases()},
        "budgets": results["budgets"] == BUDGETS,
    }
    return [name for name, same in now.items() if not same]


def nvcc_version() -> str:
    from ptxsim.nvcc import nvcc_path

    text = subprocess.run([nvcc_path(), "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"V([\d.]+)", text)[1]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda_static", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument(
        "--update", action="store_true", help=f"write {RESULTS.name} and the table in docs/results/{roofline.PAGE.name}"
    )
    parser.add_argument("--archs", type=int, nargs="+", default=ARCHS, help="compute capabilities, as in sm_80")
    options = parser.parse_args()
    if options.update:
        options.json = RESULTS

    with simulated_kernels():
        cases = [row for case in all_cases() for row in simulate(case)]
        flash = flash_launches(options.archs)
    predictions = [predict(row) for row in cases]
    print(f"{'simulated':<52} {'pass':<9} {'sectors':>7} {'coalesc.':>8} {'banks':>6} {'launches':>8}   PREDICTED µs")
    for row, prediction in zip(cases, predictions, strict=True):
        times = "  ".join(f"{gpu} {prediction[gpu]['us']:g} ({prediction[gpu]['bound']})" for gpu in GPUS)
        counts = f"{row['sectors']:>7.2f} {row['coalescing']:>8.2f} {row['bank_conflicts']:>6.2f} {row['launches']:>8}"
        print(f"{row['case']:<52} {row['pass']:<9} {counts}   {times}", flush=True)

    kernels = compile_kernels(options.archs, sources())
    for launch in (x for row in cases for x in row["kernels"] if "flash" not in x["kernel"]):
        launch["blocks_per_sm"] = blocks_per_sm(launch, kernels)
    for launch in flash:
        blocks = blocks_per_sm(launch, kernels)
        launch["warps_per_sm"] = {arch: blocks[arch] * launch["block"] // 32 for arch in launch.pop("archs")}
    print(f"\n{'kernel':<86} registers (spilled bytes) on {', '.join(f'sm_{a}' for a in options.archs)}")
    for name in dict.fromkeys(k["kernel"] for k in kernels):
        found = [k for k in kernels if k["kernel"] == name]
        cells = (f"{k['registers']}{' (' + str(k['spill_bytes']) + ')' if k['spill_bytes'] else ''}" for k in found)
        tensor = {k["tensor_instructions"] for k in found if "tensor_instructions" in k}
        print(f"{name:<86} {' '.join(cells)}{f'  tensor instructions {sorted(tensor)}' if tensor else ''}")
    print(f"\n{'flash kernel, with ids':<86} warps on an SM, where it is launched")
    for launch in flash:
        warps = (f"{arch} {n}" for arch, n in launch["warps_per_sm"].items())
        print(f"{launch['kernel']:<86} {', '.join(warps)}")
    broken = broken_by_kernels(kernels) + broken_by_cases(cases) + broken_by_flash(flash)
    print("\nbroken budgets:" if broken else "\nevery budget is kept", *broken, sep="\n  ")

    if options.json is not None:
        versions = {"nvcc": nvcc_version(), "torch": torch.__version__, "python": platform.python_version()}
        meta = {"commit": commit(), "source": source_hash(), "versions": versions, "archs": list(options.archs)}
        results = {"meta": meta, "budgets": BUDGETS, "broken": broken, "kernels": kernels, "cases": cases}
        results |= {"flash": flash, "predictions": predictions, "about predictions": " ".join(roofline.__doc__.split())}
        options.json.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        print(f"wrote {options.json}")
        if options.update:
            roofline.fill_page(results)


if __name__ == "__main__":
    with one_line_errors():
        main()
