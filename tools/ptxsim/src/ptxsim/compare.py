"""Runs planted faults and good kernels here and under compute-sanitizer, and prints both verdicts side by side.

    python -m ptxsim.compare [--arch sm_80]

The second column needs a GPU, nvcc's libraries and compute-sanitizer on the PATH. Without them it says what is missing.
"""

import argparse
import os
import re
import shutil
import subprocess
import tempfile
import warnings
from typing import NamedTuple

import numpy as np

from .build import HERE
from .module import compile
from .nvcc import nvcc_path
from .options import DEFAULT_CHECKS
from .report import SimError

SOURCE = os.path.join(HERE, "faults.cu")
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")


class Case(NamedTuple):
    """A kernel of faults.cu, and the kinds of findings that ptxsim has to report."""

    kernel: str
    kinds: tuple[str, ...] = ()
    grid: int = 1
    block: int = 128
    n: int = 128


CASES = (
    Case("copy", grid=2, n=200),
    Case("reverse"),
    Case("block_sum"),
    Case("atomic_sum"),
    Case("read_out_of_bounds", ("out-of-bounds",), grid=2, n=200),
    Case("write_out_of_bounds", ("out-of-bounds",)),
    Case("shared_out_of_bounds", ("out-of-bounds",)),
    Case("misaligned", ("misaligned",), block=64),
    Case("missing_barrier", ("race", "uninitialised-shared")),
    Case("missing_second_barrier", ("race",)),
    Case("unordered_writes", ("race",)),
    Case("uninitialised_shared", ("uninitialised-shared",)),
    Case("uninitialised_global"),  # not modelled: only initcheck finds it
    Case("divergent_barrier", ("barrier",)),
    Case("wrong_mask", ("warp-sync",), block=32, n=32),
)


def simulate(module, case):
    """Kinds of ptxsim's findings, sorted. A finding that ends the launch is the last one looked for."""
    x, y = np.zeros(case.n, np.float32), np.full(case.n, np.nan, np.float32)
    # (all that can be reported is, so that one launch finds as much as it can)
    checks = {kind: "warn" for kind in DEFAULT_CHECKS if kind not in ("warp-race", "misaligned")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return sorted(module.launch(case.kernel, case.grid, case.block, [x, y, case.n], checks=checks).kinds())
        except SimError as e:
            return sorted(e.report.kinds() | {e.kind})


# ---------------------------------------------------------------- compute-sanitizer
_KINDS = (  # beginnings of reports, after "========= "
    (r"Invalid __\w+__ .* of size", "out-of-bounds"),
    (r"(?:(?:Error|Warning): )?(?:\(.*\) )?(?:Race reported|Potential \w+ hazard)", "race"),
    (r"Uninitialized __(\w+)__ memory read", "uninitialised-{0}"),
    (r"Barrier error detected\. Invalid arguments", "warp-sync"),
    (r"Barrier error detected", "barrier"),
)


def parse_sanitizer(text):
    """Kinds of the errors in compute-sanitizer's output, in ptxsim's words and sorted.

    Raises:
        ValueError: the output has no summary, so the tool did not end as it should.
    """
    kinds = []
    for line in text.splitlines():
        if not line.startswith("========="):
            continue  # of the program
        line = line.removeprefix("=========").strip()
        for pattern, kind in _KINDS:
            match = re.match(pattern, line)
            if match:
                kinds.append(kind.format(*match.groups()))
                break
        if kinds and re.match(r"Address 0x[0-9a-f]+ is misaligned", line):
            kinds[-1] = "misaligned"  # (the first line of such a report is that of any wrong access)
    summary = re.search(r"(?:ERROR|RACECHECK) SUMMARY: ([\d,]+)", text)
    if not summary:
        raise ValueError(f"no summary in the output of compute-sanitizer:\n{text[-1000:]}")
    if int(summary[1].replace(",", "")) and not kinds:
        kinds.append("other")
    return sorted(set(kinds))


def missing_for_gpu():
    """What keeps compute-sanitizer from running here, or ""."""
    if not shutil.which("compute-sanitizer"):
        return "no compute-sanitizer"
    if not shutil.which("nvidia-smi") or subprocess.run(["nvidia-smi", "-L"], capture_output=True).returncode:
        return "no GPU"
    return ""


def sanitize(program, case):
    """Kinds of what the four tools find, sorted."""
    kinds = set()
    for tool in TOOLS:
        command = ["compute-sanitizer", "--tool", tool, program, case.kernel]
        command += [str(value) for value in (case.grid, case.block, case.n)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        kinds.update(parse_sanitizer(done.stdout + done.stderr))
    return sorted(kinds)


def _text(kinds):
    return ", ".join(kinds) or "-"


def main():
    parser = argparse.ArgumentParser(prog="python -m ptxsim.compare", description=__doc__.split("\n")[0])
    parser.add_argument("--arch", default="sm_80", help="architecture of the PTX for the simulator")
    args = parser.parse_args()
    module = compile(SOURCE, args.arch, flags=["-DPTXSIM"])
    missing = missing_for_gpu()
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="ptxsim-") as folder:
        program = os.path.join(folder, "faults")
        if not missing:
            subprocess.run([nvcc_path(), "-arch=native", "-lineinfo", SOURCE, "-o", program], check=True)
        print(f"{'kernel':26}{'expected of ptxsim':30}{'ptxsim':30}compute-sanitizer")
        for case in CASES:
            found = simulate(module, case)
            as_expected = found == sorted(case.kinds)
            wrong += not as_expected
            there = f"not run: {missing}" if missing else _text(sanitize(program, case))
            here = _text(found) + ("" if as_expected else " (!)")
            print(f"{case.kernel:26}{_text(case.kinds):30}{here:30}{there}")
    if wrong:
        raise SystemExit(f"ptxsim's findings differ from the expected ones for {wrong} of {len(CASES)} kernels")


if __name__ == "__main__":
    main()
