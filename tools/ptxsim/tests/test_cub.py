"""CUB's block algorithms: heavy, correct device code of others (headers of the CUDA toolkit) as an integration test."""

import warnings
from pathlib import Path

import numpy as np
import pytest

import ptxsim

KERNELS = Path(__file__).parent / "kernels"
SRC = (KERNELS / "cub.cu").read_text()


def test_cub():
    try:
        m = ptxsim.compile(SRC)
    except RuntimeError as e:
        if "cub/" in str(e):
            pytest.skip("no CUB headers")
        raise
    rng = np.random.default_rng(0)
    for schedule in ("forward", "random"):
        k, v = rng.integers(0, 2**32, 4096, dtype="u4"), np.arange(4096, dtype="i4")
        k0 = k.copy()
        m.launch("sortk", 4, 128, [k, v], strict=True, schedule=schedule)
        assert (k.reshape(4, -1) == np.sort(k0.reshape(4, -1), 1)).all() and (k0[v] == k).all()
        x = rng.integers(-50, 50, 1024).astype("i4")
        ref = np.cumsum(x) - x
        m.launch("scank", 1, 256, [x], strict=True, schedule=schedule)
        assert (x == ref).all()
        f = rng.standard_normal(512).astype("f4")
        ref = np.sort(f)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            r = m.launch("sortf", 1, 128, [f], schedule=schedule)
        assert (f == ref).all() and r.kinds() <= {"uninitialised-shared"}  # it reads one element past the end, unused
        u, h = rng.integers(0, 256, 1024, dtype="u1"), np.zeros(256, "i4")
        m.launch("hist", 1, 128, [u, h], strict=True, schedule=schedule)
        assert (h == np.bincount(u, minlength=256)).all()
        x = rng.standard_normal(1024).astype("f4")
        ref = x * 2 + np.tile(np.arange(8), 128).astype("f4")
        m.launch("exch", 1, 128, [x], strict=True, schedule=schedule)
        assert (x == ref).all()
