"""The budgets of benchmarks/cuda_static.py: in the committed results, in simulated runs, in what nvcc makes now."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import warnings
from pathlib import Path

import pytest

import maskco
from benchmarks import cuda_cases, cuda_static, roofline
from nightly import nightly
from simulated import flash_table

CASES = cuda_cases.all_cases()
RERUN = "run python -m benchmarks.cuda_static --update"
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")


@pytest.fixture(scope="module")
def committed() -> dict:
    return json.loads(roofline.RESULTS.read_text())


@pytest.fixture
def current(committed) -> dict:
    """The committed results, of what is here now."""
    require_current(committed)
    return committed


def require_current(results: dict) -> None:
    """Results that are out of date are a warning and skip the test; in CI, which sets the variable, they fail it."""
    if changed := cuda_static.out_of_date(results):
        message = f"{roofline.RESULTS.name} is of other {', '.join(changed)}: {RERUN}"
        if os.environ.get("MASKCO_REQUIRE_CUDA_STATIC") == "1":
            pytest.fail(message)
        warnings.warn(message, stacklevel=2)
        pytest.skip(message)


def test_results_out_of_date_are_a_warning_and_in_ci_a_failure(committed, monkeypatch):
    older = committed | {"meta": committed["meta"] | {"source": "of another tile", "archs": [80]}}
    monkeypatch.delenv("MASKCO_REQUIRE_CUDA_STATIC", raising=False)
    with (
        pytest.raises(pytest.skip.Exception),
        pytest.warns(UserWarning, match=f"other kernels, architectures.*{RERUN}"),
    ):
        require_current(older)
    monkeypatch.setenv("MASKCO_REQUIRE_CUDA_STATIC", "1")
    with pytest.raises(pytest.fail.Exception, match=RERUN):
        require_current(older)


def test_only_what_a_kernel_can_see_makes_results_old(tmp_path, monkeypatch):
    for path in ("csrc/cuda/sum/sum.cu", "csrc/common/roi_samples.h"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("int threads = 128;\n")
    file = tmp_path / "csrc/cuda/sum/sum.cu"
    monkeypatch.setattr(cuda_static, "ROOT", tmp_path)
    first = cuda_static.source_hash()
    file.write_text(
        'STD_TORCH_CHECK(size(x) > 0,\n                "x is empty");\nint  threads = 128; // a warp each\n'
    )
    assert cuda_static.source_hash() == first
    file.write_text('STD_TORCH_CHECK(size(x) > 0, "x is empty");\nint threads = 256;\n')
    assert cuda_static.source_hash() != first


def marks(case: cuda_cases.Case) -> list[pytest.MarkDecorator]:
    """Those of tens of seconds are for CI."""
    return [pytest.mark.slow] if case.name.startswith("info_nce") and case.name.endswith("float32") else []


def test_committed_results_keep_the_budgets(current):
    assert current["broken"] == []
    assert cuda_static.broken_by_kernels(current["kernels"]) == []
    assert cuda_static.broken_by_cases(current["cases"]) == []
    assert cuda_static.broken_by_flash(current["flash"]) == []


def test_every_flash_kernel_is_judged(current):
    kernels = {k["kernel"] for k in current["kernels"] if "flash" in k["kernel"]}
    assert kernels == {launch["kernel"] for launch in current["flash"]}
    for arch in cuda_static.ARCHS:  # of each entry two products (float16, bfloat16; TF32 once, thrice); three kernels
        assert sum(f"sm_{arch}" in launch["warps_per_sm"] for launch in current["flash"]) == 2 * 3 * len(flash_table())
    assert all("tensor_instructions" in k for k in current["kernels"] if k["kernel"] in kernels)


def test_the_page_has_the_roofline(committed):
    assert committed["predictions"] == [roofline.predict(row) for row in committed["cases"]]
    assert roofline.table(committed) in roofline.PAGE.read_text()


def test_an_update_replaces_the_table_alone(committed, tmp_path):
    page = tmp_path / "gpu.md"
    page.write_text(before := roofline.PAGE.read_text())
    roofline.fill_page(committed | {"cases": committed["cases"][:1], "predictions": committed["predictions"][:1]}, page)
    lines = page.read_text().splitlines()
    removed = len(before.splitlines()) - len(lines)
    assert removed == len(committed["cases"]) - 1 and lines[-1] == before.splitlines()[-1]
    roofline.fill_page(committed, page)
    assert page.read_text() == before


@needs_nvcc
@pytest.mark.sim
@pytest.mark.parametrize("case", [pytest.param(case, id=case.name, marks=marks(case)) for case in CASES])
def test_simulated_cases_keep_the_budgets(case):
    with cuda_cases.simulated_kernels():
        rows = cuda_cases.simulate(case)
    assert cuda_static.broken_by_cases(rows) == []


@pytest.mark.skipif(maskco.build_info()["cuda_kernels"] != "loaded", reason="no CUDA kernels")
@pytest.mark.skipif(cuda_static.cuobjdump() is None, reason="no cuobjdump")
def test_built_kernels_keep_the_budgets(committed):
    kernels = cuda_static.built_kernels(Path(importlib.util.find_spec("maskco._C_cuda").origin))
    assert {k["kernel"] for k in kernels} >= {k["kernel"] for k in committed["kernels"]}
    assert cuda_static.broken_by_kernels(kernels) == []


@needs_nvcc
@pytest.mark.slow
@pytest.mark.timeout(1200)
@nightly
@pytest.mark.parametrize("source", cuda_static.sources(), ids=lambda path: path.name)
def test_kernels_keep_the_budgets_when_compiled(source, committed):
    kernels = cuda_static.compile_kernels((80,), [source])
    assert bool(kernels) == ("_kernel<" in source.read_text())
    assert cuda_static.broken_by_kernels(kernels) == []
    require_current(committed)
    assert {k["kernel"] for k in kernels} <= {k["kernel"] for k in committed["kernels"]}


def test_broken_budgets_are_named():
    kernel = {"kernel": "pool_kernel<float>", "arch": "sm_90", "registers": 128, "spill_bytes": 0}
    assert cuda_static.broken_by_kernels([kernel]) == []
    for change, message in (
        ({"spill_bytes": 8}, "pool_kernel<float> on sm_90 spills 8 bytes"),
        ({"stack": 8}, "pool_kernel<float> on sm_90 has a stack of 8 bytes, 0 are allowed"),
        ({"registers": 129}, "pool_kernel<float> on sm_90 has 129 registers, 128 are allowed"),
        (
            {"tensor_instructions": 0},
            "pool_kernel<float> on sm_90 has no tensor-core instructions in its loop over tiles",
        ),
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
        ({"bank_conflicts": 1.2}, "4 boxes, forward: bank_conflicts 1.2, allowed 1.1"),
        ({"launches": 3}, "4 boxes, forward: launches 3, allowed 2"),
        ({"coalescing": 0.5}, "4 boxes, forward: coalescing 0.5, wanted 0.9"),
        (
            {"kernels": [{"kernel": "pool_kernel", "blocks_per_sm": {"sm_80": 1}}]},
            "4 boxes, forward: 1 block of pool_kernel on an SM of sm_80, wanted 2",
        ),
    ):
        assert cuda_static.broken_by_cases([case | change]) == [message]
    for shape, warps, planned in (("64, 4, 2, 32, 2", 4, 8), ("32, 4, 2, 32, 3", 8, 12), ("64, 4, 1, 32, 1", 4, 8)):
        kernel = f"info_nce_flash_kernel<Flash<HalfProduct<__half>, {shape}>, true, __half>"
        launch = {"kernel": kernel, "warps_per_sm": {"sm_86": planned, "sm_90": planned}}
        assert cuda_static.broken_by_flash([launch]) == []
        assert cuda_static.broken_by_flash([launch | {"warps_per_sm": {"sm_86": warps, "sm_90": planned}}]) == [
            f"{kernel}: {warps} warps on an SM of sm_86, planned {planned}"
        ]


def test_tensor_instructions_count_in_the_loop_over_tiles_alone():
    code = [(0x00, "HMMA R0, R1"), (0x10, "LDGSTS [R2]"), (0x20, "HMMA R0, R1"), (0x30, "@P0 BRA 0x10"), (0x40, "EXIT")]
    assert cuda_static.in_loop_over_tiles(code) == 1
    assert cuda_static.in_loop_over_tiles([*code, (0x50, "BRA 0x00")]) == 1  # a rare branch's way back
    assert cuda_static.in_loop_over_tiles([code[0], code[2], (0x30, "@P0 BRA 0x00")]) == 0  # copies nothing


def test_the_slowest_part_bounds_a_prediction():
    kernel = {"scale": 2, "sectors": 0, "tensor_flops": {"16": 312e6}, "flops": 0, "instructions": 0}
    row = {"case": "", "pass": "", "full_bytes": 0, "kernels": [kernel | {"shared_wavefronts": 0}] * 2, "products": []}
    assert roofline.predict(row)["A100"] == {"us": 5.0, "bound": "tensor cores"}  # 2 · 2 · 1 µs / 0.8
    assert roofline.predict(row | {"full_bytes": 1.8e9})["A100"] == {"us": 1250.0, "bound": "memory"}
    product = {"kind": "16", "flops": 312e6, "bytes": 1.8e8}  # 1 µs of tensor cores, 100 of memory
    assert roofline.predict(row | {"products": [product]})["A100"] == {"us": 130.0, "bound": "cuBLAS"}
