"""The budgets of benchmarks/cuda_static.py: in the committed results, in simulated runs, in what nvcc makes now."""

from __future__ import annotations

import json
import shutil

import pytest

from benchmarks import cuda_static

RESULTS = cuda_static.ROOT / "benchmarks/results/cuda_static.json"
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
CASES = cuda_static.all_cases()


@pytest.fixture(scope="module")
def committed():
    return json.loads(RESULTS.read_text())


def test_committed_results_keep_the_budgets(committed):
    assert committed["budgets"] == cuda_static.BUDGETS and committed["broken"] == []
    assert committed["meta"]["archs"] == list(cuda_static.ARCHS)
    assert cuda_static.broken_by_kernels(committed["kernels"]) == []
    assert cuda_static.broken_by_cases(committed["cases"]) == []
    assert {row["case"] for row in committed["cases"]} == {case.name for case in CASES}


@needs_nvcc
@pytest.mark.sim
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_simulated_cases_keep_the_budgets(case, committed):
    with cuda_static.simulated_kernels():
        rows = cuda_static.simulate(case)
    assert cuda_static.broken_by_cases(rows) == []
    known = {(k["kernel"], k["arch"]) for k in committed["kernels"]}
    launched = {k["kernel"] for row in rows for k in row["kernels"]}
    for arch in cuda_static.ARCHS:
        assert launched <= {kernel for kernel, other in known if other == f"sm_{arch}"}, "rerun benchmarks.cuda_static"


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("source", cuda_static.sources(), ids=lambda path: path.name)
def test_kernels_keep_the_budgets_on_a100_and_h100(source, committed):
    kernels = cuda_static.compile_kernels((80, 90), [source])
    assert kernels and cuda_static.broken_by_kernels(kernels) == []
    assert {k["kernel"] for k in kernels} <= {k["kernel"] for k in committed["kernels"]}, "rerun benchmarks.cuda_static"


def test_broken_budgets_are_named():
    kernel = {"kernel": "pool_kernel<float>", "arch": "sm_90", "registers": 128, "spill_bytes": 0}
    assert cuda_static.broken_by_kernels([kernel]) == []
    for change, message in (
        ({"spill_bytes": 8}, "pool_kernel<float> on sm_90 spills 8 bytes"),
        ({"registers": 129}, "pool_kernel<float> on sm_90 has 129 registers, 128 are allowed"),
        ({"tensor_instructions": 0}, "pool_kernel<float> on sm_90 has no tensor-core instructions"),
    ):
        assert cuda_static.broken_by_kernels([kernel | change]) == [message]
    case = {
        "case": "4 boxes",
        "pass": "forward",
        "sectors": 1.1,
        "coalescing": 0.9,
        "bank_conflicts": 1.0,
        "launches": 2,
    }
    case["kernels"] = [{"kernel": "pool_kernel", "blocks_per_sm": {"sm_80": 2, "sm_86": 1}}]
    assert cuda_static.broken_by_cases([case]) == []
    for change, message in (
        ({"sectors": 1.2}, "4 boxes, forward: sectors 1.2, allowed 1.15"),
        ({"launches": 3}, "4 boxes, forward: launches 3, allowed 2"),
        ({"coalescing": 0.5}, "4 boxes, forward: coalescing 0.5, wanted 0.9"),
        (
            {"kernels": [{"kernel": "pool_kernel", "blocks_per_sm": {"sm_80": 1}}]},
            "4 boxes, forward: 1 block of pool_kernel on an SM of sm_80, wanted 2",
        ),
    ):
        assert cuda_static.broken_by_cases([case | change]) == [message]
