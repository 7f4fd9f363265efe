"""The comparison with compute-sanitizer: verdicts of the simulator, and what is read from the other tool's output."""

from pathlib import Path

import pytest

import ptxsim
from ptxsim import compare

# Reports in the format of NVIDIA's documentation. The lines are taken from the user manual's
# "Compute Sanitizer Tool Examples". They were not recorded here, because that needs a GPU.
MEMCHECK = """\
========= COMPUTE-SANITIZER
Mallocing memory
========= Invalid __global__ write of size 4 bytes
=========     at unaligned_kernel()+0x50
=========     by thread (0,0,0) in block (0,0,0)
=========     Address 0x710fdca00001 is misaligned
=========     and is inside the nearest allocation at 0x710fdca00000 of size 4 bytes
=========
Running unaligned_kernel: no error
"""
OUT_OF_BOUNDS = """\
========= Invalid __global__ write of size 4 bytes
=========     at out_of_bounds_kernel()+0x90
=========     by thread (0,0,0) in block (0,0,0)
=========     Address 0x87654320 is out of bounds
"""
RACECHECK = """\
========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at sumKernel(int *, int *)+0x90 in block_error.cu:41
=========     and Read access at sumKernel(int *, int *)+0x100 in block_error.cu:51 [508 hazards]
=========
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""
HAZARD = """\
========= Warning: (Warp Level Programming) Potential RAW hazard detected at __shared__ 0x8c in block (0,0,0) :
=========     Write Thread (35,0,0) at sumKernel(int *, int *)+0x90 in warp_error.cu:44
========= RACECHECK SUMMARY: 1 hazard displayed (0 errors, 1 warning)
"""
INITCHECK = """\
========= Uninitialized __global__ memory read of size 4 bytes
=========     at vectorAdd(int *)+0x70 in memset_error.cu:41
=========     by thread (31,0,0) in block (1,0,0)
=========     Address 0x7f3c7ec000fc
========= ERROR SUMMARY: 1 error
"""
DIVERGENT = """\
========= Barrier error detected. Divergent thread(s) in block.
=========     at [clone myKernel(int *, int *)] outlineSync()+0x11f0 in test.cu:42
=========     by thread (32,0,0) in block (0,0,0)
========= ERROR SUMMARY: 32 errors
"""
SYNCWARP = """\
========= Barrier error detected. Invalid arguments
=========     at __cuda_sm70_warpsync+0x30
=========     by thread (0,0,0) in block (0,0,0)
========= ERROR SUMMARY: 1 error
"""
SUMMARY = "========= ERROR SUMMARY: 1 error\n"


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        (MEMCHECK + SUMMARY, ["misaligned"]),
        (MEMCHECK + OUT_OF_BOUNDS + "========= ERROR SUMMARY: 2 errors\n", ["misaligned", "out-of-bounds"]),
        (OUT_OF_BOUNDS + MEMCHECK + "========= ERROR SUMMARY: 2 errors\n", ["misaligned", "out-of-bounds"]),
        (RACECHECK, ["race"]),
        (HAZARD, ["race"]),
        (INITCHECK, ["uninitialised-global"]),
        (DIVERGENT, ["barrier"]),
        (SYNCWARP, ["warp-sync"]),
        ("========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n", []),
        ("========= Program hit cudaErrorMemoryAllocation (error 2)\n" + SUMMARY, ["other"]),
    ],
)
def test_reports_of_compute_sanitizer(text, kinds):
    assert compare.parse_sanitizer(text) == kinds


def test_output_without_a_summary_is_an_error():
    with pytest.raises(ValueError, match="no summary"):
        compare.parse_sanitizer("========= COMPUTE-SANITIZER\n========= Error: process didn't terminate successfully\n")


def test_every_planted_fault_is_found_and_good_kernels_are_silent(monkeypatch, capsys):
    monkeypatch.setattr(compare, "missing_for_gpu", lambda: "no GPU")
    monkeypatch.setattr("sys.argv", ["compare"])
    compare.main()
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) == len(compare.CASES) >= 10
    assert all(line.endswith("not run: no GPU") and "(!)" not in line for line in lines)
    assert sum(bool(case.kinds) for case in compare.CASES) >= 8


def test_a_verdict_that_is_not_the_expected_one_fails(monkeypatch, capsys):
    monkeypatch.setattr(compare, "missing_for_gpu", lambda: "no GPU")
    monkeypatch.setattr(compare, "CASES", (compare.Case("copy", ("race",), grid=2, n=200),))
    monkeypatch.setattr("sys.argv", ["compare"])
    with pytest.raises(SystemExit, match="1 of 1 kernels"):
        compare.main()
    assert "- (!)" in capsys.readouterr().out


def test_host_program_names_every_kernel():
    source = Path(compare.SOURCE).read_text()
    kernels = ptxsim.compile(compare.SOURCE, flags=["-DPTXSIM"]).kernels
    assert set(kernels) == {case.kernel for case in compare.CASES}
    assert all(f"KERNEL({name})," in source for name in kernels)
