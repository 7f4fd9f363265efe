"""Warp and grid communication, atomics, asynchronous copies through the CUDA headers, both architectures."""

from pathlib import Path

import numpy as np
import pytest

import ptxsim
from ptxsim import SimError, bf16_to_f32

rng = np.random.default_rng(2)
KERNELS = Path(__file__).parent / "kernels"
SRC = (KERNELS / "features.cu").read_text()


@pytest.fixture(scope="module", params=["sm_80", "sm_90"])
def mod(request):
    return ptxsim.compile(SRC, arch=request.param)


def test_everything_decodes(mod):
    for k in mod.kernels.values():
        _ = k.built
        if not (k.name in ("cgcopy",) and "sm_90" in mod.ptx.target):
            assert not k.unsupported, (k.name, k.unsupported)


def test_cooperative(mod):
    n = 1000
    x = rng.standard_normal(n).astype("f4")
    ref = x.astype("f8")
    for _ in range(4):
        ref = 0.5 * (np.roll(ref, 1) + np.roll(ref, -1))
    mod.launch("coop", 5, 64, [x, np.zeros(n, "f4"), n, 4], cooperative=True)
    assert np.abs(x - ref).max() < 1e-5
    f, o = np.zeros(6, "i4"), np.zeros(6, "i4")
    mod.launch("lookback", 6, 32, [f, o], resident=6)
    assert o.all()
    with pytest.raises(SimError):
        mod.launch("lookback", 6, 32, [np.zeros(6, "i4"), o], max_instr=10**6)


def test_tiles(mod):
    x = rng.integers(0, 50, 256).astype("i4")
    o = np.zeros(512, "i4")
    mod.launch("tiles", 1, 256, [x, o], strict=True)
    i = np.arange(256)
    t8, t16 = x.reshape(-1, 8), x.reshape(-1, 16)
    down = np.where(i % 8 < 6, x[np.minimum(i + 2, 255)], x)
    ref = np.repeat(t8.sum(1), 8) * 1000 + np.repeat(t16.max(1), 16) + x[i // 8 * 8 + 3] + x[i ^ 5] + down
    assert (o[:256] == ref).all()
    odd = (x & 1).reshape(-1, 32)
    r = np.where(odd == 1, np.cumsum(odd, 1) - 1 + 100 * odd.sum(1, keepdims=True), -1).ravel()
    assert (o[256:] == r).all()


def test_votes(mod):
    x = rng.integers(-9, 10, 256).astype("i4")
    x[32:64] = 5
    o = np.zeros((8, 256), "u4")
    mod.launch("votes", 1, 256, [x, o], strict=True)
    w = x.reshape(8, 32)

    def bits(m):
        return (m.astype("u8") << np.arange(32, dtype="u8")).sum(-1).astype("u4")

    def rep(v):
        return np.repeat(v, 32)

    assert (o[0] == rep(bits(w > 0))).all() and (o[1] == 2 + rep((w == 7).any(1))).all()
    assert (o[2] == bits((w[:, :, None] & 3) == (w[:, None, :] & 3)).ravel()).all()
    assert (o[3].view("i4") == rep(w.astype("i8").sum(1))).all() and (o[4].view("i4") == rep(w.max(1))).all()
    same = (w == w[:, :1]).all(1)
    assert same.sum() == 1 and (o[5] == rep(np.where(same, 1 << 31, 0))).all()
    assert (o[6] == (x > 0).sum() + 1000).all()
    assert (o[7].reshape(8, 32) == np.where(w & 1, bits((w & 1) == 1)[:, None], 0)).all()


def test_atomics(mod):
    n = 300
    x = (10 * rng.standard_normal(n)).astype("f4")
    f, d, u, s, q = np.array([0, -1e30], "f4"), np.zeros(1), np.zeros(5, "u4"), np.zeros(3, "i4"), np.zeros(2, "u8")
    h, b, c = np.zeros(2, "f2"), np.zeros(2, "u2"), np.zeros(2, "u2")
    mod.launch("atomics", 3, 100, [x, f, d, u, s, q, h, b, c], strict=True)
    xs = x.astype("f8")
    assert abs(f[0] - xs.sum()) < 1e-3 and f[1] == x.max() and abs(d[0] - xs.sum()) < 1e-9
    assert u.tolist() == [n, n - 1, n % 10, 0xFFFFFFFF, 77] and s.tolist() == [
        min(0, int(x.min())),
        max(0, int(x.max())),
        -2 * n,
    ]
    assert (
        q.tolist() == [n << 33, (n - 1) << 20]
        and h.tolist() == [300, 600]
        and bf16_to_f32(b).tolist() == [128, -128]
        and c[0] == n
    )  # bf16 sums stick at 128


def test_async_headers(mod):
    x, y = rng.standard_normal(1024).astype("f4"), np.zeros(1024, "f4")
    mod.launch("pipe", 1, 64, [x, y, 4], strict=True)
    assert (y.reshape(4, 256) == x.reshape(4, 256)[:, ::-1]).all()
    if not mod.find("cgcopy").built or mod.find("cgcopy").unsupported:
        return
    x, y = np.arange(300, dtype="i4"), np.zeros(300, "i4")
    mod.launch("cgcopy", 3, 64, [x, y, 100], shared=400, strict=True)
    assert (y.reshape(3, 100) == x.reshape(3, 100)[:, ::-1]).all()


def test_misc(mod):
    y = np.zeros(64, "f4")
    big = np.zeros(1, np.dtype([("a", "i4", 40), ("p", "u8")]))
    big["a"] = np.arange(40) * 3
    big["p"] = mod.ptr(y)
    mod.launch("param_index", 1, 64, [big.tobytes(), 7], strict=True)
    assert (y == (np.arange(64) + 7) % 40 * 3).all()
    o = np.zeros(2 * 3 * 2 * 4 * 3 * 5, "i4")
    mod.launch("launch_dims", (2, 3, 2), (4, 3, 5), [o], strict=True)
    b, t = np.divmod(np.arange(o.size), 60)
    assert (o == b * 10000 + t * 10 + (t > 0)).all()
    with pytest.raises(ValueError):
        mod.launch("bounded", 1, 65, [o])
    for k in range(3):
        y = np.arange(64, dtype="f4")
        mod.launch("generic_ptr", 1, 32, [y, k], strict=True)
        i = np.arange(32)
        assert (y[32:] == 10 + (i ^ 1, (i & 3) + 1, i)[k]).all()
    n = 1000
    x, part, cnt, out = rng.standard_normal(n).astype("f4"), np.zeros(8, "f4"), np.zeros(1, "u4"), np.zeros(1, "f4")
    mod.launch("last_block", 8, 64, [x, part, cnt, out, n], strict=True)
    assert abs(out[0] - x.astype("f8").sum()) < 1e-3 and cnt[0] == 0
    mod.launch("globals", 2, 64)
    assert mod.variable("acc_dev", "f4").tolist() == [64, 64] and mod.variable("calls", "i4")[0] == 7


def test_views_and_torch(mod):
    torch = pytest.importorskip("torch")
    src = ptxsim.compile(
        'extern "C" __global__ void inc(unsigned short* x, float* y) { x[threadIdx.x] += 1; y[threadIdx.x] *= 2; }'
    )
    t, y = torch.zeros(32, dtype=torch.bfloat16), torch.ones(32)
    src.launch("inc", 1, 32, [t, y])
    assert (t.view(torch.int16) == 1).all() and (y == 2).all()
    base = np.ones((32, 2), "f4")
    src.launch("inc", 1, 32, [np.zeros(32, "u2"), base[:, 1]])  # a strided view is copied in and out
    assert base[:, 1].tolist() == [2.0] * 32 and base[:, 0].tolist() == [1.0] * 32
    a = np.zeros(64, "f4")
    a[:] = 3
    src.launch("inc", 1, 32, [np.zeros(32, "u2"), ptxsim.Pointer(a, 128)])
    assert a[:32].tolist() == [3.0] * 32 and a[32:].tolist() == [6.0] * 32


def test_forward_progress(mod):
    lock, total = np.zeros(1, "i4"), np.zeros(1, "i4")
    mod.launch("lane_lock", 2, 64, [lock, total], max_instr=10**8)
    assert total[0] == 128
    f, o = np.zeros(1, "i4"), np.zeros(32, "i4")
    mod.launch("lane_flag", 1, 32, [f, o], max_instr=10**7)
    assert o.sum() == 31 + 4950


def test_vector_types(mod):
    n = 40

    def r(dt, *s):
        return rng.integers(np.iinfo(dt).min // 2, np.iinfo(dt).max // 2, (n, *s)).astype(dt)

    a, b, c, d, e = r("u1", 4), r("i1", 2), r("i2", 4), rng.standard_normal((n, 2)), rng.integers(-999, 999, (n, 2))
    f, g, h, o = rng.integers(0, 2, n).astype(bool), r("u4", 2), rng.standard_normal((n, 2)).astype("f2"), np.zeros(n)
    mod.launch("vectors", 1, n, [a, b, c, d, e, f, g, h, o], strict=True)

    def w(x):
        return x.astype("i8")

    ref = (
        w(a) @ [1, 2, 3, 4]
        + w(b).prod(1)
        + w(c)[:, 0]
        - w(c)[:, 3]
        + d.prod(1)
        + e[:, 0]
        - e[:, 1]
        + 1000 * f
        + g[:, 0] // 3
        + g[:, 1] % 7
        + h[:, 0].astype("f8")
        - h[:, 1]
    )
    assert np.abs(o - ref).max() < 1e-2  # part of the sum is in float32
    a, b, d, e, f = (
        np.zeros((n, 4), "u1"),
        np.zeros((n, 2), "i2"),
        np.zeros((n, 2)),
        np.zeros((n, 4), "i8"),
        np.zeros(n, bool),
    )
    mod.launch("vstore", 1, n, [a, b, d, e, f], strict=True)
    i = np.arange(n)
    assert (
        (a == np.stack([i, i + 1, i + 2, 255 - i], 1)).all()
        and (b == np.stack([-i, i * 300], 1)).all()
        and (d == np.stack([i * 0.5, -i], 1)).all()
    )
    assert (e == np.stack([i, -i, 1 << i, 0 * i + 7], 1)).all() and (f == (i & 1)).all()
