"""Runs the cases of one op: checks that implementations agree, times them, measures memory, prints, writes JSON."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from torch import Tensor

import maskco
from benchmarks import table
from benchmarks.cases import BACKWARD, BOTH, FORWARD, OURS, Case, Implementation, Inputs, Passes, Target
from benchmarks.memory import PeakMemory, Peaks, keep_freed_memory
from benchmarks.timing import best_ms, time_passes
from maskco.console import one_line_errors
from maskco.devices import usable_device
from maskco.errors import ConfigError
from maskco.memory import memory_errors
from maskco.option_values import Between
from maskco.provenance import commit, device_name, versions

PEERS = (
    "torchvision",
    "lightly",
    "info-nce-pytorch",
    "pytorch-metric-learning",
    "open-clip-torch",
    "liger-kernel",
    "cut-cross-entropy",
)
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
PASSES = (FORWARD, BACKWARD, BOTH)
MEMORY_ADVICE = "choose smaller cases, such as --quick"
BOUNDS = {  # of the options of all benchmarks
    "threads": Between(1, 1024),
    "repeats": Between(1, 10**6),
    "images": Between(1, 10**9),
    "image_size": Between(1, 100_000),
    "draws": Between(0, 10**6),
    "seeds": Between(1, 10**6),
    "jobs": Between(1, 1024),
}
Row = dict[str, Any]


@dataclass
class Options:
    device: str = "cpu"
    """cpu or cuda."""
    threads: int | None = None
    """CPU threads; torch's own choice if left out."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] | None = None
    """Run every case in this dtype instead of its own."""
    case: str = ""
    """Only cases whose name contains this."""
    impl: str = ""
    """Only implementations whose name contains this, and ours."""
    repeats: int = 7
    """Samples of each row; the median and the 20th and 80th percentiles are reported. Cases of seconds take fewer."""
    sweeps: bool = False
    """The scaling sweeps too (for the plots)."""
    memory: bool = True
    """Measure peak memory as well."""
    keep_freed: bool = False
    """On the CPU, let malloc keep freed memory, as jemalloc and tcmalloc do (see benchmarks/README.md)."""
    quick: bool = False
    """Small cases and short samples: shows that everything runs. The figures mean little."""
    json: Path | None = None
    """Write the rows here."""


def main(module: str, cases: Callable[[], list[Case]]) -> None:
    """The command line of the benchmark `module`; `cases()` declares what it compares."""
    with one_line_errors(), memory_errors(MEMORY_ADVICE):
        options = tyro.cli(Options, prog=f"python -m {module}")
        check_options(options)
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        if options.keep_freed and options.device == "cpu" and not keep_freed_memory():
            print("malloc cannot keep freed memory here: times include fetching it again", file=sys.stderr)
        meta = metadata(options)  # before: the load is the others' now
        if meta["multiply_add_gflops"]:
            print(
                f"one core's multiply-adds: at most {meta['multiply_add_gflops']} GFLOP/s in float32; "
                f"torch.mm on {meta['threads']}: {meta['mm_gflops']}"
            )
        if meta["ceilings"]:
            print(table.ceilings_line(meta["ceilings"]))
        rows = run(module, cases(), options)
        if options.json is not None:
            write_results(options.json, meta, rows)


def check_options(options: Any) -> None:
    """Raises ConfigError for a number out of bounds, or a device that is not there or not one for benchmarks."""
    check_bounds(options, *BOUNDS)
    if options.device not in ("cpu", "cuda"):
        raise ConfigError(f"device must be cpu or cuda, got {options.device!r}: CUDA_VISIBLE_DEVICES chooses the GPU")
    check_device(options.device)


def check_device(name: str) -> None:
    """Raises ConfigError if torch cannot compute on this device, with what to do."""
    try:
        usable_device(name)
    except ConfigError as error:
        problem = str(error).rpartition(". ")[0]
        raise ConfigError(f"{problem}. Check that nvidia-smi lists a GPU and that torch is a CUDA build") from error


def check_bounds(options: Any, *names: str) -> None:
    """Raises ConfigError for the first of these options that is out of bounds. Missing ones and None are left out."""
    for name in names:
        value = getattr(options, name, None)
        if value is not None and (wanted := BOUNDS[name].refuse(value)):
            raise ConfigError(f"{name} must be {wanted}, got {value}")


def run(module: str, cases: Sequence[Case], options: Options) -> list[Row]:
    device = torch.device(options.device)
    suite = "quick" if options.quick else "full"
    chosen = [c for c in cases if options.case in c.name and suite in c.suites and (options.sweeps or c.sweep is None)]
    if not chosen:
        raise ConfigError(f"case: none of {module} fits. There are: {', '.join(c.name for c in cases)}")
    memory = PeakMemory(module, device, torch.get_num_threads())
    table.print_heading(device_name(device), torch.get_num_threads())
    rows: list[Row] = []
    for case in chosen:
        found = _run_case(module, case, options, device, memory)
        table.print_case(found)
        rows += found
    memory.close()
    table.print_missed(rows)
    return rows


def _run_case(module: str, case: Case, options: Options, device: torch.device, memory: PeakMemory) -> list[Row]:
    dtype = case.dtype if options.dtype is None else getattr(torch, options.dtype)
    wanted = {BOTH} if case.sweep else set(case.passes)
    listed = [
        i
        for i in case.implementations
        if (options.impl in i.name or i.name == OURS)
        and i.only_on in (None, device.type)
        and not (options.quick and "compile" in i.name)  # compiling takes longer than all the rest
    ]
    inputs = case.make_inputs(device, dtype)
    torch._dynamo.reset()  # or else the next shape would be compiled as a dynamic one
    built, failed, gradients = _build([i for i in listed if not i.skip], inputs, dtype)
    repeats, sample_ms = (3, 1) if options.quick else (options.repeats, 10)
    times, not_timed = time_passes(built, device, wanted, repeats, sample_ms)
    failed |= not_timed | {i.name: i.skip for i in listed if i.skip}
    if OURS in failed:
        raise RuntimeError(f"{case.name}: {OURS} could not run: {failed[OURS]}")
    measured = {i.name: built[i.name] for i in listed if i.memory and i.name not in failed} if options.memory else {}
    peaks = memory.measure(case.name, measured, wanted, dtype) if measured else {}

    rows: list[Row] = []
    for implementation in listed:
        name = implementation.name
        common = {"op": module.split(".")[-1], "case": case.name, "dtype": str(dtype).removeprefix("torch.")}
        common |= {"device": device.type, "impl": name, "sweep": list(case.sweep) if case.sweep else None}
        common |= {"at": case.at} if case.at else {}
        if name in failed:
            rows.append(common | {"skipped": failed[name]})
            continue
        note = "; ".join(filter(None, (implementation.note, built[name].note)))
        rows += [
            common
            | {"pass": each, "note": note}
            | _figures(case, implementation, each, times, peaks, gradients.get(name))
            for each in PASSES
            if (name, each) in times
        ]
    if device.type == "cpu" and dtype == case.dtype and not options.quick:
        _judge(rows, case.targets)
    return rows


def _build(
    listed: list[Implementation], inputs: Inputs, dtype: torch.dtype
) -> tuple[dict[str, Passes], dict[str, str], dict[str, float]]:
    """Those that could be built, checked against ours; why the others could not; MiB of the gradients compared."""
    built: dict[str, Passes] = {}
    failed: dict[str, str] = {}
    gradients: dict[str, float] = {}
    expected: list[Tensor] = []
    for implementation in listed:  # ours is the first
        try:
            passes = implementation.build(inputs)
            results = _results(passes, implementation.agrees)
        except ImportError as error:
            failed[implementation.name] = f"not installed ({error.name})"
            continue
        except Exception as error:
            failed[implementation.name] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            continue
        built[implementation.name] = passes
        if len(results) > 1:
            gradients[implementation.name] = sum(gradient.nbytes for gradient in results[1:]) / 2**20
        expected = expected or results
        for result, other in zip(results, expected, strict=False):
            error = float((result.double() - other.double()).abs().max() / other.double().abs().max())
            if not error <= TOLERANCE[dtype]:
                raise AssertionError(f"{implementation.name} and {OURS} differ by {error:.2g} of the largest value")
    return built, failed, gradients


def _results(passes: Passes, compared: str) -> list[Tensor]:
    """The result, and its gradients."""
    if compared == "":
        return []
    if passes.training is None or passes.backward is None:
        return [passes.forward()]
    result = passes.training()
    return [result.detach(), *(passes.backward(result) if compared == "gradients" else ())]


def _figures(
    case: Case,
    implementation: Implementation,
    each: str,
    times: dict[tuple[str, str], list[float]],
    peaks: Peaks,
    gradients: float | None,
) -> Row:
    name = implementation.name
    p20, median, p80 = (float(f"{p:.5g}") for p in np.percentile(times[name, each], (20, 50, 80)))
    flops, ours = implementation.flops and case.flops.get(each), times.get((OURS, each))
    peak = peaks.get((name, each))
    beyond = max(0.0, peak - gradients) if peak is not None and gradients is not None and each == BOTH else None
    return {
        "median_ms": median,
        "p20_ms": p20,
        "p80_ms": p80,
        "samples": len(times[name, each]),
        "peak_mib": None if peak is None else round(peak, 2),
        "beyond_gradients_mib": None if beyond is None else round(beyond, 2),
        "gflops": round(flops / median / 1e6, 1) if flops else None,
        "ratio": float(f"{np.median(ours) / median:.4g}") if ours else None,
    }


def _judge(rows: list[Row], targets: Sequence[Target]) -> None:
    """Puts into each row its targets, what was reached, and whether that is enough."""
    by_key = {(row["impl"], row.get("pass")): row for row in rows}
    for target in targets:
        row, ours = by_key.get((target.implementation, target.on)), by_key[OURS, target.on]
        if row is None:
            continue
        if target.metric == "peak_ratio":
            value = ours["peak_mib"] / row["peak_mib"] if row["peak_mib"] and ours["peak_mib"] is not None else None
        elif target.metric.startswith("of "):
            value = row["median_ms"] / by_key[target.implementation, target.metric.removeprefix("of ")]["median_ms"]
        else:
            value = row[target.metric]
        if value is not None:
            judged = {"metric": target.metric, "limit": target.limit, "value": float(f"{value:.4g}")}
            row.setdefault("targets", []).append(judged | {"met": value <= target.limit})


def metadata(options: Options) -> dict[str, Any]:
    """What it takes to know later what the figures mean."""
    device = torch.device(options.device)
    return {
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": device_name(device),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "mm_gflops": _mm_gflops(device) if device.type == "cpu" else None,
        "multiply_add_gflops": _multiply_add_gflops() if device.type == "cpu" else None,
        "ceilings": ceilings(device) if device.type == "cuda" else None,
        "repeats": options.repeats,
        "quick": options.quick,
        "keep_freed": options.keep_freed,
        "build": maskco.build_info(),
        "versions": {"python": platform.python_version()} | versions(("numpy", "torch", "maskco", *PEERS)),
    }


def write_results(path: Path, meta: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """Writes a result file, as `benchmarks.tables` and `benchmarks.table` read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"meta": meta, "rows": rows}, indent=1) + "\n")
    print(f"\nwrote {path}")


def _mm_gflops(device: torch.device, dtype: torch.dtype = torch.float32, size: int = 1024) -> float:
    """GFLOP/s of the fastest of some products [size, size] @ [size, size]: what torch's mm can do here."""
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    best = best_ms(partial(torch.mm, a, b, out=torch.empty_like(a)), device, 20)
    return round(2 * size**3 / best / 1e6, 1)


def ceilings(device: torch.device, size: int = 8192, mib: int = 1024) -> dict[str, float]:
    """What a GPU reaches: a copy of so many MiB, in GB/s read and written, and products of square matrices, in TFLOP/s.

    TF32 is what torch takes for float32 under `set_float32_matmul_precision("high")`.
    """
    source = torch.empty(mib << 20, dtype=torch.uint8, device=device)
    copied = best_ms(partial(torch.empty_like(source).copy_, source), device, 20)
    found = {"copy_gbs": round(2 * source.nbytes / copied / 1e6, 1)}
    before = torch.get_float32_matmul_precision()
    try:
        for name, dtype, precision in (
            ("bf16_tflops", torch.bfloat16, before),
            ("tf32_tflops", torch.float32, "high"),
            ("float32_tflops", torch.float32, "highest"),
        ):
            torch.set_float32_matmul_precision(precision)
            found[name] = round(_mm_gflops(device, dtype, size) / 1e3, 2)
    finally:
        torch.set_float32_matmul_precision(before)
    return found


def _multiply_add_gflops() -> float | None:
    """GFLOP/s of float32 multiply-adds in one core's registers, by multiply_add.cpp; None without a C++ compiler."""
    compiler = os.environ.get("CXX", "c++")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "multiply_add"
        source = Path(__file__).parent / "multiply_add.cpp"
        try:
            subprocess.run([compiler, "-O3", "-march=native", "-std=c++17", source, "-o", program], check=True)
            return float(subprocess.run([program], capture_output=True, check=True).stdout)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"multiply_add.cpp was not run: {error}", file=sys.stderr)
            return None
