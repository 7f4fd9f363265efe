"""mbarrier and one-dimensional bulk copies (sm_90), and libcu++ barriers (sm_80)."""

import warnings
from pathlib import Path

import numpy as np
import pytest

import ptxsim

KERNELS = Path(__file__).parent / "kernels"
SRC = (KERNELS / "hopper.cu").read_text()
LIB = (KERNELS / "hopper_library.cu").read_text()


def test_bulk_pipeline():
    m = ptxsim.compile(SRC, arch="sm_90")
    n = 7
    x, y = np.random.default_rng(0).standard_normal(128 * n).astype("f4"), np.zeros(128 * n, "f4")
    for s in ("forward", "reverse", "random"):
        y[:] = 0
        r = m.launch("stages", 1, 96, [x, y, n, 0], strict=True, schedule=s, max_instr=10**7)
        assert (y.reshape(n, 128) == 2 * x.reshape(n, 128)[:, ::-1]).all() and r.findings == []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            r = m.launch("stages", 1, 96, [x, y, n, 2], max_instr=10**7)
            assert r.kinds() & {"race", "async-in-flight", "uninitialised-shared"}
        except ptxsim.SimError as e:
            assert e.kind in ("barrier", "instruction-limit")
    x, y = x[:64].copy(), np.zeros(64, "f4")
    m.launch("store_bulk", 1, 64, [x, y], strict=True)
    assert (y == x + 1).all()
    with pytest.raises(ptxsim.SimError):
        m.launch("store_bulk", 1, 64, [x, y[:60]])


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_libcudacxx(arch):
    try:
        m = ptxsim.compile(LIB, arch=arch)
    except RuntimeError as e:
        if "No such file" in str(e):
            pytest.skip("libcu++ headers are not here")
        raise
    x, y = np.random.default_rng(0).standard_normal(128 * 3).astype("f4"), np.zeros(128 * 3, "f4")
    m.launch("libbar", 1, 128, [x, y, 3], strict=True, max_instr=10**7)
    assert (y.reshape(3, 128) == x.reshape(3, 128)[:, ::-1]).all()


def test_matrix_and_fp8():
    torch = pytest.importorskip("torch")
    m = ptxsim.compile(SRC, arch="sm_90")
    x, y = np.arange(256, dtype="u2").reshape(16, 16), np.zeros((16, 16), "u2")
    m.launch("st_matrix", 1, 32, [x, y, 0], strict=True)
    assert (y == x).all()
    m.launch("st_matrix", 1, 32, [x, y, 1], strict=True)
    assert (y == x.T).all()
    rng = np.random.default_rng(0)
    a, b = (
        (rng.standard_normal((16, 32)) * 4.0 ** rng.integers(-6, 6, (16, 32))).astype("f4"),
        rng.standard_normal((32, 8)).astype("f4"),
    )
    c, q = np.zeros((16, 8), "f4"), np.zeros((16, 32), "u1")
    m.launch("fp8", 1, 32, [a, b, c, q], strict=True)
    ta = torch.from_numpy(np.clip(a, -448, 448)).to(torch.float8_e4m3fn)
    assert (ta.view(torch.uint8).numpy() == q).all()
    ref = ta.double() @ torch.from_numpy(b).to(torch.float8_e4m3fn).double()
    assert np.abs(c - ref.numpy()).max() < 1e-3
    y = np.zeros(128, "i4")
    m.launch("cluster_barrier", 1, 128, [y], strict=True)
    assert (y == np.arange(128)[::-1]).all()
    with pytest.raises(ptxsim.PtxError):
        m.launch("cluster2", 2, 32, [y])
