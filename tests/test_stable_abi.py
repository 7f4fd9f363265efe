"""One binary for every torch from 2.11 on: nothing of torch's unstable C++ may be referenced."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys

import pytest

C_INTERFACE = re.compile(r"(aoti_)?torch_\w+")  # torch/csrc/inductor/aoti_torch/c and torch/csrc/stable/c
UNSTABLE = re.compile(r"\b(at|c10|caffe2|torch)::")


def undefined_symbols(module: str) -> list[str]:
    try:
        path = importlib.import_module(module).__file__
    except ImportError:
        pytest.skip(f"{module} was not built")
    shown = subprocess.run(["nm", "-D", "-C", "--undefined-only", path], capture_output=True, text=True, check=True)
    return [line.split(maxsplit=1)[1] for line in shown.stdout.splitlines()]


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("nm") is None, reason="no nm that reads dynamic symbols")
@pytest.mark.parametrize("module", ["maskco._C", "maskco._C_cuda"])
def test_only_the_stable_c_interface_is_referenced(module):
    symbols = undefined_symbols(module)
    assert sum(bool(C_INTERFACE.match(s)) for s in symbols) > 20  # else nothing was seen
    assert [s for s in symbols if UNSTABLE.search(s)] == []
