"""Planted bugs must be caught, correct variants must stay silent."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from test_kernels import MMA, f32_to_bf16

import ptxsim
from ptxsim import SimError

KERNELS = Path(__file__).parent / "kernels"
SRC = (KERNELS / "checks.cu").read_text()


def f4(n):
    return np.arange(n, dtype=np.float32)


@pytest.fixture(scope="module")
def mod():
    return ptxsim.compile(SRC)


def fails(mod, kind, *a, **k):
    with pytest.raises(SimError) as e, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mod.launch(*a, **k)
    assert e.value.kind == kind, e.value
    return e.value.finding


def finds(mod, *a, **k):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return mod.launch(*a, **k)


def test_oob_global(mod):
    f = fails(mod, "out-of-bounds", "oob_read", 2, 64, [f4(100), f4(100), 100])
    assert (
        f.block == (1, 0, 0)
        and f.thread == (36, 0, 0)
        and "ld.global" in f.instruction
        and "kernel.cu:" in f.source
        and "offset 400" in f.message
    )
    f = fails(mod, "out-of-bounds", "oob_write", 1, 32, [f4(32), f4(32), 32])
    assert f.thread == (0, 0, 0) and "4 bytes before the start" in f.message
    finds(mod, "oob_read", 1, 64, [f4(100), f4(100), 100], strict=True)
    fails(mod, "out-of-bounds", "null_ptr", 1, 32, [None, f4(32)])
    fails(mod, "read-only", "oob_read", 1, 32, [f4(100), np.broadcast_to(f4(100), (100,)), 100])


def test_oob_shared(mod):
    finds(mod, "oob_shared", 1, 64, [f4(64), 0], strict=True)
    assert fails(mod, "out-of-bounds", "oob_shared", 1, 64, [f4(64), 1]).thread == (63, 0, 0)
    assert "red zone" in fails(mod, "out-of-bounds", "oob_two", 1, 64, [f4(64), 0]).message  # one array into the next
    finds(mod, "oob_dyn", 1, 64, [f4(64), 100], shared=400, strict=True)
    fails(mod, "out-of-bounds", "oob_dyn", 1, 64, [f4(64), 100], shared=396)
    fails(mod, "out-of-bounds", "oob_dyn", 1, 64, [f4(64), 100])
    finds(mod, "local_oob", 1, 8, [f4(8), 0], strict=True)
    fails(mod, "out-of-bounds", "local_oob", 1, 8, [f4(8), 1])


def test_misaligned(mod):
    x, y = f4(256), np.zeros((32, 4), np.float32)
    finds(mod, "misaligned", 1, 32, [x, y, 4], strict=True)
    assert (y.ravel() == x[4:132]).all()
    f = fails(mod, "misaligned", "misaligned", 1, 32, [x, y, 1])
    assert "16-byte" in f.message
    fails(mod, "misaligned", "misaligned_shared", 1, 32, [np.zeros(32, "f4"), 2])
    finds(mod, "misaligned_shared", 1, 32, [np.zeros(32, "f4"), 4], strict=True)


@pytest.mark.parametrize("schedule", ["forward", "reverse", "random"])
def test_races(mod, schedule):
    r = finds(mod, "reverse_bad", 1, 256, [f4(256)], schedule=schedule)
    assert "race" in r.kinds()
    x = f4(256)
    assert finds(mod, "reverse_good", 1, 256, [x], schedule=schedule).findings == [] and (x == f4(256)[::-1]).all()
    assert "race" in finds(mod, "war_bad", 1, 256, [f4(300), 3], schedule=schedule).kinds()
    assert "race" not in finds(mod, "war_bad", 1, 256, [f4(300), 1], schedule=schedule).kinds()
    assert "race" in finds(mod, "ww_bad", 1, 64, [f4(64)], schedule=schedule).kinds()
    x = np.ones(128, "i4")
    assert "race" in finds(mod, "scan_bad", 1, 128, [x], schedule=schedule).kinds()
    x = np.ones(128, "i4")
    assert finds(mod, "scan_good", 1, 128, [x], schedule=schedule).findings == [] and (x == np.arange(1, 129)).all()
    with pytest.warns(ptxsim.PtxSimWarning):
        mod.launch("reverse_bad", 1, 256, [f4(256)])
    assert (
        finds(mod, "reverse_bad", 1, 256, [f4(256)], race=False, checks={"uninitialised-shared": "off"}).findings == []
    )
    fails(mod, "race", "war_bad", 1, 256, [f4(300), 3], strict=True)


def test_races_inside_a_warp(mod):
    on = {"warp-race": "warn"}
    for n in (32, 64):
        assert finds(mod, "warp_exchange", 1, n, [f4(n), 0], checks=on).kinds() == {"warp-race"}
        assert (
            len(finds(mod, "warp_exchange", 1, n, [f4(n), 0], checks=on).findings) == 3
        )  # write-read, read-write, write-read
        assert finds(mod, "warp_exchange", 1, n, [f4(n), 1], checks=on).findings == []
        assert finds(mod, "warp_exchange", 1, n, [f4(n), 0]).findings == []  # off by default
    assert finds(mod, "scan_good", 1, 128, [np.ones(128, "i4")], checks=on).findings == []


def test_uninitialised(mod):
    r = finds(mod, "uninit", 1, 128, [f4(128)])
    assert r.kinds() == {"uninitialised-shared"} and r.findings[0].thread == (122, 0, 0) and r.findings[0].count == 1
    fails(mod, "uninitialised-shared", "uninit", 1, 128, [f4(128)], checks={"uninitialised-shared": "raise"})


def test_barriers(mod):
    def i4(n):
        return np.zeros(n, "i4")

    assert "inside warp" in fails(mod, "barrier", "bar_lane", 1, 64, [i4(64)]).message
    assert "inside warp" in fails(mod, "barrier", "bar_some", 1, 128, [i4(128), 40]).message
    assert "deadlock" in fails(mod, "barrier", "bar_some", 1, 128, [i4(128), 64]).message
    assert finds(mod, "bar_some", 1, 128, [i4(128), 128], strict=True)
    assert "barrier-mismatch" in finds(mod, "bar_warps", 1, 128, [i4(128)]).kinds()
    r = finds(mod, "early_exit", 1, 64, [i4(64), 40])
    assert r.kinds() == {"barrier-after-exit"}
    assert finds(mod, "early_exit", 1, 64, [i4(64), 64], strict=True).findings == []


def test_named_barriers(mod):
    x, y = np.arange(128, dtype="i4"), np.zeros(128, "i4")
    for s in ("forward", "reverse", "random"):
        r = finds(mod, "named", 1, 64, [x, y], schedule=s)
        assert r.findings == [] and (y.reshape(4, 32) == x.reshape(4, 32)[:, ::-1]).all()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert "race" in mod.launch("named_bad", 1, 64, [x, y]).kinds()
        except SimError as e:  # the producer may also run ahead so far that arrivals do not pair
            assert e.kind == "barrier"


def test_warp_sync(mod):
    y = np.zeros(32, "i4")
    assert finds(mod, "shfl_inactive", 1, 32, [y]).kinds() == {"shuffle"}
    finds(mod, "two_syncwarps", 1, 32, [y], strict=True, checks={"warp-race": "raise"})
    assert y.tolist() == [2 * (t + 16) for t in range(16)] + [1 + t for t in range(16)]
    fails(mod, "warp-sync", "shfl_mask", 1, 32, [y])
    fails(mod, "warp-sync", "shfl_missing", 1, 32, [y])


def test_async_wait():
    ok, bad = ptxsim.compile(MMA), ptxsim.compile(MMA, defines={"NOWAIT": 1})
    a = [f32_to_bf16(np.ones((64, 64))), f32_to_bf16(np.ones((64, 64))), np.zeros((64, 64), "f4"), 64, 64, 64]
    assert finds(ok, "gemm_bf16", 1, 128, a).findings == []
    assert "async-in-flight" in finds(bad, "gemm_bf16", 1, 128, a).kinds()


def test_endings(mod, capsys):
    fails(mod, "instruction-limit", "spin", 1, 32, [np.zeros(2, "i4")], max_instr=100000)
    assert "too many" in fails(mod, "trap", "asserts", 1, 32, [np.zeros(32, "i4"), 8]).message
    finds(mod, "asserts", 1, 32, [np.zeros(32, "i4"), 32], strict=True)
    fails(mod, "trap", "traps", 1, 32, [np.zeros(32, "i4"), 8])
    mod.launch("hello", 1, 2, [3])
    assert capsys.readouterr().out == "t 0 yes 4.50 -5 7%\nt 1 yes 4.50 -5 7%\n"
    with pytest.raises(TypeError):
        mod.launch("hello", 1, 2, [])
    with pytest.raises(ValueError):
        mod.launch("hello", 1, 2000, [3])


def test_metrics(mod):
    for s, sec in ((1, 4), (2, 8), (8, 32), (0, 1)):
        r = mod.launch("stride", 1, 32, [f4(512), f4(32), s])
        assert r.global_load_sectors == sec and r.load_efficiency == pytest.approx({1: 1, 2: 0.5, 8: 0.125, 0: 1}[s])
    for s, deg in ((33, 1), (32, 32), (1, 1), (2, 2)):
        r = mod.launch("banks", 1, 32, [f4(32), s])
        assert max(x["max_degree"] for x in r.accesses() if x["op"].startswith("ld.shared")) == deg
    assert "bank-conflict" in r.summary()


def test_constant(mod):
    mod.variable("table", np.float32)[:] = [5, 6, 7, 8]
    y = np.zeros(8, "f4")
    mod.launch("cst", 1, 8, [y])
    assert y.tolist() == [5, 6, 7, 8, 5, 6, 7, 8]


def test_resources():
    r = ptxsim.resources(SRC)
    assert {"reverse_bad", "cst"} <= {x["name"] for x in r} and all(x["registers"] > 0 for x in r)
    assert next(x for x in r if x["name"] == "reverse_bad")["shared"] == 1024
