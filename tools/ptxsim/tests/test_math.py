"""CUDA's own math library, division and control flow, as nvcc compiles them, against numpy."""

import math
from pathlib import Path

import numpy as np
import pytest

import ptxsim

rng = np.random.default_rng(1)
N = 256
KERNELS = Path(__file__).parent / "kernels"
MATH = (KERNELS / "math.cu").read_text()
ULP = {
    "sin": (np.sin, 4),
    "cos": (np.cos, 4),
    "tan": (np.tan, 6),
    "exp": (np.exp, 4),
    "log": (lambda a: np.log(abs(a)), 4),
    "tanh": (np.tanh, 4),
    "cbrt": (np.cbrt, 4),
    "log1p": (lambda a: np.log1p(abs(a)), 4),
    "expm1": (np.expm1, 4),
    "sigmoid": (lambda a: 1 / (1 + np.exp(-a)), 60),
    "erf": (np.vectorize(math.erf), 4),
    "gelu": (lambda a: 0.5 * a * (1 + np.vectorize(math.erf)(a * float(np.float32(0.70710678)))), 1e4),
    "acos": (lambda a: np.arccos(a / 200), 4),
    "lgamma": (np.vectorize(lambda a: math.lgamma(abs(a) + float(np.float32(0.1)))), 100),
    "atan": (np.arctan, 3),
    "sqrt": (lambda a: np.sqrt(abs(a)), 1),
    "rsqrt": (lambda a: 1 / np.sqrt(abs(a)), 2),
}
ULP2 = {
    "pow": (lambda a, b: abs(a) ** b, 12),
    "atan2": (np.arctan2, 5),
    "fmod": (np.fmod, 0),
    "fdiv": (np.divide, 4),
    "hypot": (np.hypot, 4),
    "div": (np.divide, 1),
}


@pytest.mark.parametrize("flags", [(), ("-use_fast_math",)])
def test_math_library(flags):
    m = ptxsim.compile(MATH, flags=flags)
    for k in m.kernels.values():
        _ = k.built
        assert not k.unsupported, k.unsupported
    x, y = rng.uniform(-8, 8, N), rng.uniform(-6, 6, N)
    for name in m.kernels:
        if name[:2] not in ("f_", "d_"):
            continue
        dt = "f4" if name[0] == "f" else "f8"
        a, b, o = x.astype(dt), y.astype(dt), np.zeros(N, dt)
        m.launch(name, 1, N, [a, b, o])
        n = name[2:]
        A, B = a.astype("f8"), b.astype("f8")
        if n == "round":
            ref, tol = np.trunc(A + np.copysign(0.5, A)), 0
        elif n == "sinbig":
            ref, tol = np.sin((a * np.float32(1e6)).astype("f8")), 4
        elif n == "exp10":
            ref, tol = 10.0 ** (a * np.float32(0.1)).astype("f8"), 8
        elif n == "pow" and dt == "f8":
            ref, tol = np.abs(A) ** (B * 0.1), 4
        elif n in ULP2:
            ref, tol = ULP2[n][0](A, B), ULP2[n][1]
        else:
            ref, tol = ULP[n][0](A), ULP[n][1]
        if flags:
            if n in ("sinbig", "tan", "lgamma", "fmod"):
                continue
            assert np.abs(o - ref).max() <= 2e-4 * max(1, np.abs(ref).max()), n
            continue
        ulp = np.abs(o - ref) / np.spacing(np.maximum(np.abs(ref), np.finfo(dt).tiny).astype(dt)).astype("f8")
        if n == "gelu":
            ulp = np.abs(o - ref) / 1e-10
        assert ulp.max() <= tol + 0.6, (name, ulp.max())


def test_control():
    m = ptxsim.compile(MATH)
    a, b = rng.integers(-(10**12), 10**12, N), rng.integers(1, 10**7, N)
    a = np.abs(a)
    o = np.zeros(N, "i8")
    m.launch("idiv", 1, N, [a, b, o])
    assert (
        o
        == [x // y + 3 * (x % y) + math.gcd(x, y) + (x * y >> 64) for x, y in zip(a.tolist(), b.tolist(), strict=False)]
    ).all()
    x, o = rng.standard_normal(N).astype("f4"), np.zeros(N, "f4")
    m.launch("calls", 1, N, [x, o])

    def helper(x, n, acc):
        s = 0
        for i in range(n):
            s += x * i
            acc[i & 3] += s
        return s if n > 3 else -s

    for i in range(N):
        acc = [0] * 4
        r = helper(float(x[i]), i & 7, acc)
        if i & 1:
            r += helper(r, 5, acc)
        assert abs(o[i] - (r + acc[i & 3])) < 1e-3 * (1 + abs(o[i]))
    s, o = rng.integers(-1, 11, N).astype("i4"), np.zeros(N, "i4")
    m.launch("sw", 1, N, [s, o])
    t = np.arange(N)
    ref = np.select(
        [s == k for k in (0, 1, 2, 3, 4, 5, 6, 7, 9)],
        [t, t * t, ~t, t << 3, t ^ 0x55, -t, 0 * t + 7, t // 3, t % 5],
        1000,
    )
    assert (o == ref).all()
