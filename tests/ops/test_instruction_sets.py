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
LEVELS = ["SSE2", "AVX2", "AVX-512", "AVX-512 with bfloat16"]


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="one instruction set only")
@pytest.mark.parametrize("capability, kernels", [("default", "SSE2"), ("avx2", "AVX2"), ("avx512", "AVX-512")])
def test_values_with(capability, kernels):
    available = maskco.build_info()["cpu_kernels"]
    if LEVELS.index(kernels) >= LEVELS.index(available):
        pytest.skip(f"this CPU has {available}, which all other tests run with")
    environment = os.environ | {"ATEN_CPU_CAPABILITY": capability, "PYTEST_ADDOPTS": ""}
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
