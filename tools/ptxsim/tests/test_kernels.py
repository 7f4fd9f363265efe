"""Whole kernels against numpy in float64."""

from pathlib import Path

import numpy as np
import pytest

import ptxsim
from ptxsim import bf16_to_f32, f32_to_bf16, f32_to_tf32

rng = np.random.default_rng(0)


def bf(x):
    return bf16_to_f32(f32_to_bf16(x)).astype(np.float64)


KERNELS = Path(__file__).parent / "kernels"
BASIC = (KERNELS / "basic.cu").read_text()


@pytest.fixture(scope="module")
def basic():
    return ptxsim.compile(BASIC)


def test_names(basic):
    assert "saxpy" in basic.kernels
    assert any("matmul<16>" in k.pretty for k in basic.kernels.values())
    assert basic.find("matmul<8>").name != basic.find("matmul<16>").name
    with pytest.raises(KeyError):
        basic.find("matmul")


def test_saxpy(basic):
    n = 1000
    x, y = rng.standard_normal(n).astype("f4"), rng.standard_normal(n).astype("f4")
    ref = 2.5 * x.astype("f8") + y
    r = basic.launch("saxpy", 4, 256, [n, 2.5, x, y], strict=True)
    assert np.abs(y - ref).max() < 1e-6
    assert r.global_load_bytes == 8 * n and r.global_store_bytes == 4 * n
    assert r.load_efficiency == 1.0
    y2 = y.copy()
    ref = 0.5 * x.astype("f8") + y2
    r = basic.launch("saxpy4", 2, 96, [n // 4, 0.5, x, y2], strict=True)
    assert np.abs(y2 - ref).max() < 1e-6 and r.global_load_sectors == 2 * n // 8


def test_workers_agree(basic):
    n = 5000
    x, y = rng.standard_normal(n).astype("f4"), rng.standard_normal(n).astype("f4")
    y2 = y.copy()
    a = basic.launch("saxpy", 20, 256, [n, 2.5, x, y])
    b = basic.launch("saxpy", 20, 256, [n, 2.5, x, y2], workers=2)
    assert (y == y2).all() and a.warp_instructions == b.warp_instructions


def test_block_sum(basic):
    x = rng.standard_normal(10000).astype("f4")
    for sched in ("forward", "reverse", "random"):
        out = np.zeros(1, "f4")
        r = basic.launch("block_sum", 5, 256, [x, len(x), out], strict=True, schedule=sched)
        assert abs(out[0] - x.astype("f8").sum()) < 1e-3
    assert r.by_class["shuffle/vote"]["warp"] == 5 * (8 * 5 + 5)


def test_softmax(basic):
    rows, cols = 7, 300
    x = f32_to_bf16(3 * rng.standard_normal((rows, cols)))
    y = np.full((rows, cols), np.nan, "f4")
    basic.launch("softmax_rows", rows, 128, [x, y, cols], shared=4 * cols, strict=True)
    v = bf16_to_f32(x).astype("f8")
    e = np.exp(v - v.max(1, keepdims=True))
    assert np.abs(y - e / e.sum(1, keepdims=True)).max() < 1e-6


@pytest.mark.parametrize("T", [8, 16])
def test_matmul(basic, T):
    M, N, K = 37, 50, 29
    a, b = rng.standard_normal((M, K)).astype("f4"), rng.standard_normal((K, N)).astype("f4")
    c = np.full((M, N), np.nan, "f4")
    r = basic.launch(f"matmul<{T}>", ((N + T - 1) // T, (M + T - 1) // T), (T, T), [a, b, c, M, N, K], strict=True)
    assert np.abs(c - a.astype("f8") @ b).max() < 1e-5
    assert r.findings == []


def test_histogram(basic):
    x = rng.integers(0, 256, 20000, dtype=np.uint8)
    h = np.zeros(256, np.uint32)
    basic.launch("histogram", 6, 192, [x, len(x), h], strict=True)
    assert (h == np.bincount(x, minlength=256)).all()
    h2 = np.zeros(256, np.uint32)
    basic.launch("histogram", 6, 192, [x, len(x), h2], strict=True, workers=2)
    assert (h == h2).all()


def roi_ref(feat, rois, P, S, scale):
    _B, C, H, W = feat.shape
    out = np.zeros((len(rois), C, P, P))
    for n, r in enumerate(rois):
        x0, y0, x1, y1 = r[1:] * scale - 0.5
        bw, bh = (x1 - x0) / P, (y1 - y0) / P
        for ph in range(P):
            for pw in range(P):
                acc = 0
                for iy in range(S):
                    for ix in range(S):
                        y, x = y0 + ph * bh + (iy + 0.5) * bh / S, x0 + pw * bw + (ix + 0.5) * bw / S
                        if y < -1 or y > H or x < -1 or x > W:
                            continue
                        y, x = max(y, 0), max(x, 0)
                        yl, xl = min(int(y), H - 1), min(int(x), W - 1)
                        y, x = (yl if yl >= H - 1 else y), (xl if xl >= W - 1 else x)
                        yh, xh = min(yl + 1, H - 1), min(xl + 1, W - 1)
                        ly, lx = y - yl, x - xl
                        f = feat[int(r[0])]
                        acc = (
                            acc
                            + (1 - ly) * (1 - lx) * f[:, yl, xl]
                            + (1 - ly) * lx * f[:, yl, xh]
                            + ly * (1 - lx) * f[:, yh, xl]
                            + ly * lx * f[:, yh, xh]
                        )
                out[n, :, ph, pw] = acc / S / S
    return out


def test_roi_align(basic):
    B, C, H, W, P, S, n = 2, 3, 20, 17, 5, 2, 6
    feat = rng.standard_normal((B, C, H, W)).astype("f4")
    xy = rng.uniform(-10, 60, (n, 2))
    rois = np.concatenate([rng.integers(0, B, (n, 1)), xy, xy + rng.uniform(5, 60, (n, 2))], 1).astype("f4")
    out = np.full((n, C, P, P), np.nan, "f4")
    mod = basic
    arg = np.zeros(1, np.dtype([("f", "u8"), ("r", "u8"), ("o", "u8"), ("i", "i4", 5), ("s", "f4")]))
    arg[0] = (mod.ptr(feat), mod.ptr(rois), mod.ptr(out), (C, H, W, P, S), 0.25)
    mod.launch("roi_align", (out.size + 127) // 128, 128, [arg.tobytes(), out.size], strict=True)
    assert np.abs(out - roi_ref(feat.astype("f8"), rois.astype("f8"), P, S, 0.25)).max() < 2e-5


def collatz(v, K):
    b, s = v, 0
    while v != 1 and s < K:
        if v & 1:
            v = 3 * v + 1
            b = max(b, v)
        else:
            while True:
                v >>= 1
                s += 1
                if v & 1:
                    break
            s -= 1
        s += 1
    return s, b


@pytest.mark.parametrize("dt,K", [("u4", 1000), ("u8", 50)])
def test_divergent(basic, dt, K):
    n = 500
    x = rng.integers(1, 5000, n).astype(dt)
    st, best = np.zeros(n, "i4"), np.zeros(n, dt)
    r = basic.launch(
        "_Z7collatzIjLi1000EEvPKT_PiPS0_i" if dt == "u4" else "_Z7collatzIyLi50EEvPKT_PiPS0_i",
        4,
        128,
        [x, st, best, n],
        strict=True,
    )
    ref = [collatz(int(v), K) for v in x]
    assert st.tolist() == [a for a, _ in ref] and best.tolist() == [b for _, b in ref]
    assert r.divergent_branches > 0 and r.lane_utilisation < 0.9


MMA = (KERNELS / "mma.cu").read_text()


@pytest.fixture(scope="module")
def mma():
    return ptxsim.compile(MMA)


@pytest.mark.parametrize("M,N,K", [(64, 64, 32), (100, 88, 120), (128, 64, 256)])
def test_gemm_bf16(mma, M, N, K):
    a, b = rng.standard_normal((M, K)), rng.standard_normal((K, N))
    c = np.full((M, N), np.nan, "f4")
    r = mma.launch(
        "gemm_bf16", ((N + 63) // 64, (M + 63) // 64), 128, [f32_to_bf16(a), f32_to_bf16(b), c, M, N, K], strict=True
    )
    assert np.abs(c - bf(a) @ bf(b)).max() < 1e-4
    assert r.findings == [] and r.by_class["tensor"]["warp"] == 16 * ((K + 31) // 32) * 4 * ((N + 63) // 64) * (
        (M + 63) // 64
    )
    conf = {x["op"].split(".")[0]: x["conflict_factor"] for x in r.accesses() if "conflict_factor" in x}
    assert conf["ldmatrix"] == 1.0 and conf["cp"] <= 2.0  # padded rows: the reads are free of conflicts


@pytest.mark.parametrize("M,N,K", [(32, 32, 16), (50, 70, 100)])
def test_gemm_tf32(mma, M, N, K):
    a, b = rng.standard_normal((M, K)).astype("f4"), rng.standard_normal((N, K)).astype("f4")
    c = np.full((M, N), np.nan, "f4")
    mma.launch("gemm_tf32", ((N + 31) // 32, (M + 31) // 32), 128, [a, b, c, M, N, K], strict=True)
    assert np.abs(c - f32_to_tf32(a).astype("f8") @ f32_to_tf32(b).astype("f8").T).max() < 1e-4


@pytest.mark.parametrize(
    "name,m,n,k,kind,col",
    [
        ("wmma_f16", 16, 16, 16, "f16", True),
        ("wmma_f16_32", 32, 8, 16, "f16", False),
        ("wmma_bf16", 16, 16, 16, "bf16", False),
        ("wmma_bf16_8", 8, 32, 16, "bf16", True),
        ("wmma_f16_acc", 8, 32, 16, "f16", False),
    ],
)
def test_wmma(mma, name, m, n, k, kind, col):
    a, b, c0 = (rng.standard_normal(s).astype("f4") for s in ((m, k), (k, n), (m, n)))
    if kind == "f16":
        qa, qb = a.astype("f2"), b.astype("f2")
        fa, fb = qa.astype("f8"), qb.astype("f8")
    else:
        qa, qb = f32_to_bf16(a), f32_to_bf16(b)
        fa, fb = bf(a), bf(b)
    acc16 = name.endswith("acc")
    c = c0.astype("f2") if acc16 else c0.copy()
    ref = 2 * (fa @ fb + c.astype("f8"))
    mma.launch(name, 1, 32, [qa, np.ascontiguousarray(qb.T) if col else qb, c], strict=True)
    assert np.abs(c.astype("f8") - ref).max() < (2e-2 if acc16 else 1e-4)


def test_wmma_tf32(mma):
    a, b, c = (
        rng.standard_normal((16, 8)).astype("f4"),
        rng.standard_normal((16, 8)).astype("f4"),
        np.zeros((16, 16), "f4"),
    )
    mma.launch("wmma_tf32", 1, 32, [a, b, c], strict=True)
    assert np.abs(c - f32_to_tf32(a).astype("f8") @ f32_to_tf32(b).T).max() < 1e-4


def test_mma_shapes(mma):
    a, b, c = (
        rng.standard_normal((16, 8)).astype("f2"),
        rng.standard_normal((8, 8)).astype("f2"),
        np.zeros((16, 8), "f4"),
    )
    mma.launch("mma_f16_k8", 1, 32, [a, b, c])
    assert np.abs(c - 1 - a.astype("f8") @ b).max() < 1e-5
    a, b, c = (
        rng.standard_normal((16, 16)).astype("f2"),
        rng.standard_normal((16, 8)).astype("f2"),
        np.zeros((16, 8), "f2"),
    )
    mma.launch("mma_f16_f16", 1, 32, [a, b, c])
    assert np.abs(c - a.astype("f8") @ b).max() < 1e-2
    a, b, c = (
        rng.integers(-128, 128, (16, 32)).astype("i1"),
        rng.integers(-128, 128, (32, 8)).astype("i1"),
        np.zeros((16, 8), "i4"),
    )
    mma.launch("mma_s8", 1, 32, [a, b, c])
    assert (c == 5 + a.astype("i8") @ b.astype("i8")).all()
    a, b, c = rng.standard_normal((8, 4)), rng.standard_normal((4, 8)), np.zeros((8, 8))
    mma.launch("mma_f64", 1, 32, [a, b, c])
    assert np.abs(c - a @ b).max() < 1e-12
