"""The CPU ops once more with the instruction sets that older CPUs have, each in a process of its own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

import maskco

TESTS = Path(__file__).parent
LEVELS = ["SSE2", "AVX2", "AVX-512", "AVX-512 with bfloat16", "AVX-512 with bfloat16 and AMX"]
LIMITS = [
    ({"ATEN_CPU_CAPABILITY": "default"}, "SSE2"),
    ({"ATEN_CPU_CAPABILITY": "avx2"}, "AVX2"),
    ({"ATEN_CPU_CAPABILITY": "avx512"}, "AVX-512"),
    ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, "AVX-512 with bfloat16"),
]


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="one instruction set only")
@pytest.mark.parametrize("limit, kernels", LIMITS, ids=[kernels for _, kernels in LIMITS])
def test_values_with(limit, kernels):
    available = maskco.build_info()["cpu_kernels"]
    if LEVELS.index(kernels) >= LEVELS.index(available):
        pytest.skip(f"this CPU has {available}, which all other tests run with")
    environment = os.environ | limit | {"PYTEST_ADDOPTS": ""}
    shown = subprocess.run(
        [sys.executable, "-c", "import maskco; print(maskco.build_info()['cpu_kernels'])"],
        env=environment, cwd=TESTS, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shown.stdout.strip() == kernels
    files = [
        str(TESTS / f"test_{name}.py") for name in ("info_nce", "pair_losses", "box_pool", "masked_pool", "queue_push")
    ]
    chosen = "(values or equals or ragged or strides or infinite) and not sim and not cuda"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen, *files],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
