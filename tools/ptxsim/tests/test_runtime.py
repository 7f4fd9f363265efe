"""Host code on the simulated CUDA runtime: the extension in demo/, called through torch.ops with CPU tensors."""

import contextlib
import ctypes
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest

import ptxsim

torch = pytest.importorskip("torch")
DEMO = os.path.join(os.path.dirname(os.path.abspath(__file__)), "demo")
if not os.path.exists(os.path.join(os.path.dirname(torch.__file__), "include/torch/csrc/stable/library.h")):
    pytest.skip("this torch has no stable ABI", allow_module_level=True)


@pytest.fixture(scope="module")
def ops():
    ptxsim.build_sim_extension("demo_sim", [os.path.join(DEMO, "demo.cu")], [DEMO], arch="sm_80")
    o = torch.ops.demo_sim
    with contextlib.suppress(RuntimeError):  # registered already
        torch.library.register_autograd(
            "demo_sim::softmax",
            lambda ctx, g: o.softmax_backward(g.contiguous(), ctx.saved_tensors[0]),
            setup_context=lambda ctx, inputs, output: ctx.save_for_backward(output),
        )
    return o


@pytest.mark.parametrize("schedule", ["forward", "reverse", "random"])
def test_softmax_and_autograd(ops, schedule):
    torch.manual_seed(0)
    x = torch.randn(5, 131, requires_grad=True)
    g = torch.randn(5, 131)
    with ptxsim.device("sm_80", strict=True, schedule=schedule) as dev:
        y = ops.softmax(x)
        y.backward(g)
    ref = x.detach().clone().requires_grad_()
    torch.softmax(ref, -1).backward(g)
    assert torch.allclose(y, torch.softmax(x, -1), atol=1e-6) and torch.allclose(x.grad, ref.grad, atol=1e-6)
    assert [(k.grid, k.block, k.shared) for k in dev.launches] == [
        ((5, 1, 1), (128, 1, 1), 135 * 4),
        ((5, 1, 1), (128, 1, 1), 0),
    ]
    assert "softmax_rows_backward" in dev.launches[1].kernel and dev.launches[0].report.bank_conflict_factor == 1
    with ptxsim.device() as dev:
        assert ops.softmax(torch.empty(0, 8)).shape == (0, 8)
    assert dev.launches == []


def test_launch_sizes_follow_the_device(ops):
    x = torch.rand(300000)
    grids = {}
    for arch, sms in (("sm_80", None), ("sm_90", None), ("sm_80", 1)):
        with ptxsim.device(arch, sms, strict=True, race=False, metrics=False) as dev:
            y = ops.split_sum(x)
        assert torch.allclose(y, x.sum()) and dev.count("partial_sums") == 1 and len(dev.launches) == 2
        grids[arch, sms] = dev.launches[0].grid[0]
    assert grids == {("sm_80", None): 864, ("sm_90", None): 1056, ("sm_80", 1): 8}


def test_matmul_with_much_shared_memory(ops):
    torch.manual_seed(0)
    a, b = torch.randn(130, 136).bfloat16(), torch.randn(70, 136).bfloat16()
    with ptxsim.device(strict=True) as dev:
        c = ops.matmul_nt(a, b)
    assert torch.allclose(c, a.float() @ b.float().T, atol=1e-3)
    assert dev.launches[0].grid == (2, 2, 1) and dev.launches[0].shared > 48 * 1024
    assert dev.launches[0].report.by_class["tensor"]["warp"] == 4 * 8 * 2 * 8 * 8
    with pytest.raises(ptxsim.CudaError, match="PTX for sm_80") as e, ptxsim.device("sm_75"):
        ops.matmul_nt(a, b)
    assert e.value.code == "cudaErrorNoKernelImageForDevice"


def test_launch_kernel_ex_and_constants(ops):
    x = torch.randn(1000)
    with ptxsim.device(strict=True) as dev:
        for b in (1.0, -2.0):
            assert torch.allclose(ops.scale(x, 3.0, b), 3 * x + b)
        assert torch.allclose(ops.scale(x[1:], 3.0, 0.5), 3 * x[1:] + 0.5)  # a view, at an address of its own
    assert len(dev.launches) == 3 and dev.launches[2].report.load_efficiency < 1


def test_cooperative(ops):
    x = torch.rand(200)
    with ptxsim.device(strict=True) as dev:
        y = ops.neighbours(x, 3, 64)
    ref = x
    for _ in range(3):
        ref = ref.roll(-1) + ref.roll(1)
    assert (
        torch.allclose(y, ref) and dev.leaked == 0 and dev.launches[0].cooperative and dev.launches[0].grid == (4, 1, 1)
    )
    with (
        pytest.raises(ptxsim.CudaError, match="48 blocks fit") as e,
        ptxsim.device("sm_80", sms=3),
    ):  # 16 of 128 threads a processor
        ops.neighbours(torch.rand(49 * 128), 1, 128)
    assert e.value.code == "cudaErrorCooperativeLaunchTooLarge"


@pytest.mark.parametrize(
    "bug, error, text",
    [
        ("none", None, None),
        ("small buffer", "out-of-bounds", r"parameter 1 \(float\*\)"),
        ("count swap", "out-of-bounds", "final_sum"),
        ("pointer swap", "read-only", "copy_all"),
        ("no attribute", "cudaErrorInvalidValue", "cudaFuncSetAttribute.* missing"),
        ("too much shared", None, "170000 dynamic"),
        ("too many threads", "cudaErrorInvalidConfiguration", "2048"),
        ("launch bounds", "cudaErrorLaunchOutOfResources", "at most 64"),
        ("zero grid", "cudaErrorInvalidConfiguration", "grid"),
        ("raw pointer", "cudaErrorIllegalAddress", r"parameter 1 \(float\*\).*device_ptr"),
        ("copy too long", "cudaErrorInvalidValue", "cudaMemcpyAsync: 4004 bytes at offset 0 of a 4000-byte buffer"),
        ("free twice", "cudaErrorInvalidValue", "freed twice"),
    ],
)
def test_planted_bugs(ops, bug, error, text):
    x = torch.randn(1000)
    if bug == "none":
        with ptxsim.device(strict=True):
            assert (ops.broken(x, bug) == x).all()
        return
    # the finding at the end of the device block
    with pytest.raises((ptxsim.SimError, RuntimeError), match=text) as e, ptxsim.device("sm_80", strict=True):
        ops.broken(x, bug)
    assert getattr(e.value, "kind", getattr(e.value, "code", None)) == error
    # the op raises by itself (checked or not), with the finding in its message
    with pytest.raises(RuntimeError, match="(?s)ptxsim.*" + text if text else "ptxsim") as e:
        ops.broken(x, bug)
    assert ("did not check" in str(e.value)) == (bug == "zero grid")
    # and the next op is none the worse
    assert (ops.broken(x, "none") == x).all()


def test_missing_tail_shows(ops):
    x = torch.randn(1000)
    before = torch.are_deterministic_algorithms_enabled()
    with ptxsim.device(strict=True):
        y = ops.broken(x, "missing tail")
    assert (y[:768] == x[:768]).all() and y[768:].isnan().all()  # poison
    assert torch.are_deterministic_algorithms_enabled() == before


def test_take_error(ops):
    with ptxsim.device() as dev:
        with pytest.raises(RuntimeError):
            ops.broken(torch.randn(100), "too many threads")
        assert dev.take_error().code == "cudaErrorInvalidConfiguration" and dev.take_error() is None


def build_plain(name, *files):
    return ptxsim.build_sim_extension(name, [os.path.join(DEMO, f) for f in files], torch=False)


def test_plain_host_code():
    """Without torch: host functions called with ctypes."""
    ext = build_plain("plain", "plain.cu", "second.cu", "third.cpp")
    p = ctypes.c_void_p
    x, back = np.arange(40, dtype="i4"), np.zeros(40, "i4")
    with ptxsim.device(strict=True, poison=False) as dev:
        assert ext.lib.round_trip(p(x.ctypes.data), p(back.ctypes.data), 40) == 0
        assert (back == x + 1).all() and dev.launches[0].stream != 0
        y = np.zeros(40, "i4")
        assert ext.lib.run(p(ext.device_ptr(x, False)), p(ext.device_ptr(y)), 40) == 0 and (y == x + 1).all()
        assert ext.lib.best_block() == 1024
        ext.lib.third(p(ext.device_ptr(y)))
        assert y[0] == 1 and y[1] == 2
        ext.lib.leak()
    assert dev.leaked == 48
    with pytest.raises(ptxsim.SimError, match="of bounds"), ptxsim.device(strict=True, poison=False):
        assert ext.lib.run(p(ext.device_ptr(x, False)), p(ext.device_ptr(y)), 41) == 700
    with pytest.raises(ptxsim.CudaError, match="copy kind"), ptxsim.device(poison=False):
        ext.lib.wrong_kind(p(x.ctypes.data), p(ext.device_ptr(y)))


def test_wrong_addresses():
    ext = build_plain("plain", "plain.cu", "second.cu", "third.cpp")
    p = ctypes.c_void_p
    x = np.arange(40, dtype="i4")
    with ptxsim.device(poison=False):
        stale = p(ext.device_ptr(x))
    with (
        pytest.raises(ptxsim.SimError, match="no registered buffer is near"),
        ptxsim.device(poison=False),
    ):  # (pointers in a struct)
        ext.lib.run(stale, stale, 40)
    with pytest.raises(ptxsim.CudaError, match=r"parameter 0 \(int\*\)"), ptxsim.device(poison=False):
        ext.lib.third(p(x.ctypes.data))
    r = subprocess.run(
        [
            sys.executable,
            "-c",
            f"""
import sys, ctypes, numpy as np
sys.path.insert(0, {os.path.dirname(os.path.dirname(ptxsim.__file__))!r})
from ptxsim.runtime import runtime
p = runtime().lib.ptxsim_register_buffer(np.zeros(4).ctypes.data, 32, 1)
ctypes.CDLL({ext.path!r}).peek(ctypes.c_void_p(p))""",
        ],
        capture_output=True,
        text=True,
    )
    assert r.returncode == -11 and "host code follows a device address" in r.stderr


def test_cub():
    try:
        ext = build_plain("cub", "cub.cu")
    except RuntimeError as e:
        if "cub.cuh" in str(e):
            pytest.skip("CUB is not here")
        raise
    p = ctypes.c_void_p
    x = np.random.default_rng(0).integers(-1000, 1000, 9000).astype("i4")
    for what, ref in enumerate((np.cumsum(x), [x.sum()], np.sort(x))):
        y = np.zeros(9000, "i4")
        with ptxsim.device(poison=False) as dev:
            assert ext.lib.run(p(ext.device_ptr(x, False)), p(ext.device_ptr(y)), 9000, what) == 0
        assert (y[: len(ref)] == ref).all() and dev.launches


def test_missing_runtime_function_is_a_link_error():
    with pytest.raises(RuntimeError, match="undefined reference to `cudaDeviceSetLimit"):
        build_plain("lacking", "lacking.cu")


def test_findings_that_only_warn(ops):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ops.split_sum(torch.rand(1000))
