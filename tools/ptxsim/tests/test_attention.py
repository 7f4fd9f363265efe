"""A flash-attention forward kernel (bf16 tensor cores, online softmax, cp.async) as an integration test."""

from pathlib import Path

import numpy as np
import pytest

import ptxsim
from ptxsim import bf16_to_f32, f32_to_bf16

KERNELS = Path(__file__).parent / "kernels"
SRC = (KERNELS / "attention.cu").read_text()


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("D,L,H", [(64, 200, 2), (32, 128, 1)])
def test_attention(arch, D, L, H):
    rng = np.random.default_rng(3)
    q, k, v = (f32_to_bf16(rng.standard_normal((H, L, D))) for _ in range(3))
    o = np.zeros((H, L, D), "u2")
    m = ptxsim.compile(SRC, arch=arch)
    r = m.launch(
        f"attention<{D}>",
        ((L + 63) // 64, H),
        128,
        [q, k, v, o, L, 1.4426950408889634 / D**0.5],
        shared=3 * 64 * (D + 8) * 2,
        strict=True,
    )
    Q, K, V = (bf16_to_f32(x).astype("f8") for x in (q, k, v))
    s = Q @ K.transpose(0, 2, 1) / D**0.5
    p = np.exp(s - s.max(-1, keepdims=True))
    ref = p / p.sum(-1, keepdims=True) @ V
    assert np.abs(bf16_to_f32(o) - ref).max() < 0.01 * np.abs(ref).max() + 0.004
    assert r.findings == []


if __name__ == "__main__":  # PYTHONPATH=<folder of ptxsim> python tests/test_attention.py: speed
    import time

    rng = np.random.default_rng(3)
    D, L, H = 64, 1024, 4
    q, k, v = (f32_to_bf16(rng.standard_normal((H, L, D))) for _ in range(3))
    o = np.zeros((H, L, D), "u2")
    m = ptxsim.compile(SRC)
    for kw in ({}, {"race": False, "metrics": False}):
        t = time.time()
        r = m.launch("attention<64>", (L // 64, H), 128, [q, k, v, o, L, 0.18], shared=3 * 64 * 72 * 2, **kw)
        t = time.time() - t
        print(kw, f"{t:.2f} s, {r.thread_instructions / 1e6:.0f} M thread instr, {r.flops / 1e9:.2f} GFLOP")
    print(r)
