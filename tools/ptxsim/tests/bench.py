"""Speed of the simulator: PYTHONPATH=src python tests/bench.py"""

import time

import numpy as np
from test_kernels import BASIC, MMA, f32_to_bf16

import ptxsim

rng = np.random.default_rng(0)


def run(mod, label, name, grid, block, args, **kw):
    for opts in ({}, {"race": False, "metrics": False}, {"workers": 2}):
        t = time.time()
        r = mod.launch(name, grid, block, args, **opts, **kw)
        t = time.time() - t
        count = r.thread_instructions / 1e6
        print(f"{label:28s} {opts!s:36s} {t:7.3f} s  {count:9.1f} M thread instr  {count / t:7.0f} M/s")


b, m = ptxsim.compile(BASIC), ptxsim.compile(MMA)
x = rng.standard_normal(1 << 20).astype("f4")
run(b, "saxpy 1M", "saxpy", 4096, 256, [x.size, 2.0, x, x.copy()])
M = 512
a = rng.standard_normal((M, M)).astype("f4")
run(b, "matmul<16> 512^3", "matmul<16>", (32, 32), (16, 16), [a, a, np.zeros_like(a), M, M, M])
h = f32_to_bf16(a)
run(m, "gemm_bf16 mma 512^3", "gemm_bf16", (8, 8), 128, [h, h, np.zeros_like(a), M, M, M])
run(m, "gemm_tf32 mma 512^3", "gemm_tf32", (16, 16), 128, [a, a, np.zeros_like(a), M, M, M])
run(
    b,
    "softmax 1024x1024",
    "softmax_rows",
    1024,
    128,
    [f32_to_bf16(rng.standard_normal((1024, 1024))), np.zeros((1024, 1024), "f4"), 1024],
    shared=4096,
)
feat = rng.standard_normal((2, 64, 50, 80)).astype("f4")
n, P = 40, 7
xy = rng.uniform(0, 500, (n, 2))
rois = np.concatenate([rng.integers(0, 2, (n, 1)), xy, xy + rng.uniform(20, 300, (n, 2))], 1).astype("f4")
out = np.zeros((n, 64, P, P), "f4")
arg = np.zeros(1, np.dtype([("f", "u8"), ("r", "u8"), ("o", "u8"), ("i", "i4", 5), ("s", "f4")]))
arg[0] = (b.ptr(feat), b.ptr(rois), b.ptr(out), (64, 50, 80, P, 2), 0.125)
run(b, f"roi_align {out.size} threads", "roi_align", (out.size + 127) // 128, 128, [arg.tobytes(), out.size])
xx = rng.integers(1, 1 << 20, 100000).astype("u4")
run(
    b,
    "collatz 1e5 (divergent)",
    "_Z7collatzIjLi1000EEvPKT_PiPS0_i",
    782,
    128,
    [xx, np.zeros(100000, "i4"), np.zeros(100000, "u4"), 100000],
)
