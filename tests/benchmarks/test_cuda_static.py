"""The judging of budgets in benchmarks/cuda_static.py."""

from __future__ import annotations

from benchmarks import cuda_static


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
