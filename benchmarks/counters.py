"""Throughput and occupancy of the main CUDA kernels, by Nsight Compute.

    python -m benchmarks.counters --json benchmarks/results/counters_cuda.json     needs a GPU and ncu

ncu runs each kernel several times, with its caches emptied, and at the clocks that the GPU has.
"""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from benchmarks import contrast, harness, info_nce
from benchmarks.cases import OURS
from maskco.console import one_line_errors
from maskco.errors import ConfigError, UserError

Row = dict[str, Any]
KERNELS = "regex:flash|contrast_read|contrast_weigh|contrast_sigmoid"
METRICS = ("Duration", "Memory Throughput", "Compute (SM) Throughput", "Achieved Occupancy", "Theoretical Occupancy")
NCU = ("ncu", "--csv", "--print-units", "base", "--clock-control", "none", "--section", "SpeedOfLight",
       "--section", "Occupancy", "-k", KERNELS)  # fmt: skip
DTYPES = ("float32", "bfloat16")
CHILD = "import sys; from benchmarks.counters import steps; steps(sys.argv[1])"
DENIED = "ERR_NVGPUCTRPERM"  # how ncu says that only an administrator may read the counters


@dataclass
class Options:
    json: Path
    """Write the rows here."""


class Denied(UserError):
    """The GPU's counters may not be read, which is how drivers are installed."""


def steps(dtype: str, device: str = "cuda", keys: int = 65536, rows: int = 4096) -> None:
    """A forward and backward pass of `info_nce` over a queue, and of each loss over all pairs: what ncu watches."""
    of = getattr(torch, dtype)
    cases = [info_nce.with_queue(256, keys, 128)]
    cases += [contrast.all_pairs(loss, rows, contrast.DRAWN, of) for loss in contrast.LOSSES]
    for case in cases:
        ours = next(each for each in case.implementations if each.name == OURS)
        passes = ours.build(case.make_inputs(torch.device(device), of))
        assert passes.training and passes.backward
        passes.backward(passes.training())


def rows_of(text: str, **common: str) -> list[Row]:
    """A row for each launch in what `ncu --csv` printed; figures by metric and unit."""
    lines = [line for line in text.splitlines() if line.startswith('"')]  # the others are ncu's progress
    rows: dict[str, Row] = {}
    for line in csv.DictReader(lines):
        name = re.search(r"\w+(?=<|\()", line["Kernel Name"])
        row = {**common, "kernel": name[0] if name else line["Kernel Name"], "grid": line["Grid Size"], "figures": {}}
        row = rows.setdefault(line["ID"], row)
        metric, unit, value = (line[f"Metric {part}"] for part in ("Name", "Unit", "Value"))
        if metric in METRICS:
            row["figures"][f"{metric}, {unit}"] = float(value.replace(",", ""))
    return list(rows.values())


def measure(dtype: str) -> list[Row]:
    """Raises Denied, or UserError with ncu's words if it fails or finds no kernel of ours."""
    done = subprocess.run([*NCU, sys.executable, "-c", CHILD, dtype], capture_output=True, text=True)
    if DENIED in done.stdout + done.stderr:
        raise Denied("ncu may not read the GPU's counters. Run as root, or load the driver with "
                     "NVreg_RestrictProfilingToAdminUsers=0")  # fmt: skip
    rows = rows_of(done.stdout, op="counters", dtype=dtype, device="cuda")
    if done.returncode or not rows:
        raise UserError(f"ncu failed in {dtype}: {' '.join((done.stdout + done.stderr).split()[-60:])}")
    return rows


def main() -> None:
    with one_line_errors():
        options = tyro.cli(Options, prog="python -m benchmarks.counters")
        harness.check_device("cuda")
        if shutil.which("ncu") is None:
            raise ConfigError("ncu is not on PATH. Install Nsight Compute, which comes with CUDA")
        meta = harness.metadata(harness.Options(device="cuda"))
        try:
            rows = [row for dtype in DTYPES for row in measure(dtype)]
        except Denied as denied:  # no reason for the whole step to fail
            print(f"nothing was measured: {denied}")
            return
        harness.write_results(options.json, meta, rows)


if __name__ == "__main__":
    main()
