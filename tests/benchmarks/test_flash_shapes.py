"""Builds of the real op with another tile shape. Timing them takes a GPU, all else is tested here."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import flash_shapes
from nightly import nightly

needs_cmake = pytest.mark.skipif(shutil.which("cmake") is None, reason="no cmake")
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")


def run_main(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks.flash_shapes", *words])
    flash_shapes.main()


@pytest.mark.parametrize("shape", ["", "2:128", "1:128:8x1x64x1", "2:128:8,1,64,1"])
def test_other_words_are_refused(shape, monkeypatch):
    with pytest.raises(flash_shapes.ConfigError, match="like 2:128:8x1x64x1"):
        run_main(monkeypatch, shape)


@needs_cmake
def test_cmake_refuses_them_too(tmp_path):
    with pytest.raises(flash_shapes.ConfigError, match="MASKCO_FLASH_SHAPE must be like 2:128:8x1x64x1"):
        flash_shapes.build("2:128:8x1x64", tmp_path, "80")


@nightly
@pytest.mark.slow
def test_every_build_is_timed(tmp_path, monkeypatch, capsys):
    """With the installed module in the builds' place, on the CPU, and in float32, which every CPU multiplies fast."""
    module = pytest.importorskip("maskco._C_cuda").__file__
    built = []
    monkeypatch.setattr(flash_shapes, "build", lambda shape, folder, archs: built.append(shape) or Path(module))
    words = ("4:64:8x1x64x1", "4:64:4x1x32x2", "--device", "cpu", "--quick", "--out", str(tmp_path))
    run_main(monkeypatch, *words)
    assert built == ["", "4:64:8x1x64x1", "4:64:4x1x32x2"]
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split()[0] == "shape" and len(rows) == 3
    assert all(float(ms) > 0 for row in rows for ms in row.split()[-3:])


@needs_cmake
@needs_nvcc
@pytest.mark.slow
@pytest.mark.timeout(1800)
@nightly
def test_a_build_has_the_shape(tmp_path):
    module = flash_shapes.build("2:64:8x1x64x1", tmp_path, "80")
    load = flash_shapes.CHILD.partition("from benchmarks")[0] + "import maskco; print(maskco.build_info())"
    command = [sys.executable, "-c", load, str(module)]
    done = subprocess.run(command, cwd=flash_shapes.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "'flash_shape': '2:64:8x1x64x1'" in done.stdout
