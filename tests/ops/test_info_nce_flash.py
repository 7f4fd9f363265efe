"""The tensor-core kernels of info_nce: every variant's values and gradients, which features they take, what they cost.

Everything here runs the compiled kernels on the simulated device. The contract that all devices and paths share is in
test_info_nce.py, the general CUDA path in test_info_nce_sim.py.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from contrast_cases import CASES, FEATURES, make_case, run, unit
from flash_cases import KINDS, check, dtype_of, every_kind, kernels
from maskco.ops import info_nce, reference
from nightly import nightly
from simulated import FlashShape, flash_table

pytestmark = pytest.mark.parametrize("device", [pytest.param("sim", marks=pytest.mark.sim)], indirect=True)
ROOT = Path(__file__).resolve().parents[2]
TABLE = {(kind, x.channels): x for kind in KINDS for x in flash_table() if x.element_size == (2 if "16" in kind else 4)}
CHANNELS = sorted({c for _, c in TABLE})
# Where architectures differ: where a block may have 99 KiB of shared memory, and more.
DIFFERENT = [variant for variant, entry in TABLE.items() if entry.small != entry.large]


def splits(shape: FlashShape, rows: int, columns: int) -> int:
    """Parts of the columns on the 108 SMs of the simulated device, by the rule of csrc/cuda/info_nce/heuristics.h."""
    row_blocks, tiles = (
        -(-count // size) for count, size in ((rows, 16 * shape.warps * shape.row_blocks), (columns, shape.columns))
    )
    slots = 108 * shape.blocks_per_sm
    most = max(1, min(-(-4 * slots // row_blocks), tiles // 4, 1024))
    times = {s: -(-row_blocks * s // slots) * (-(-tiles // s) + 3) for s in range(1, most + 1)}
    return next(s for s, time in times.items() if 100 * time <= 105 * min(times.values()))


@pytest.mark.parametrize("gradient", [False, True], ids=["loss", "gradient"])
@pytest.mark.parametrize(
    "kind, c, arch",
    [(*variant, "sm_80") for variant in TABLE] + [(*variant, "sm_86") for variant in DIFFERENT],
    indirect=["kind"],
)
def test_every_variant(device, kind, c, arch, gradient):
    """All keys, ids and a `valid` inside a tile; several splits; parts of two blocks of 64 queries."""
    import ptxsim

    torch.manual_seed(0)
    n = 69 if c >= 192 and kind in ("float32", "tf32") else 21
    case = make_case(device, dtype_of(kind), n=n, c=c, k=507, valid=491)
    with ptxsim.device(arch, strict=True) as simulated:
        check(case, kind, FEATURES if gradient else ())
    assert kernels(simulated) == ["flash", "combine"] + ["flash_keys"] * 2 * gradient
    assert simulated.launches[0].report.bank_conflict_factor == 1 and simulated.launches[0].grid[1] > 1


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"])
@pytest.mark.parametrize("kind, c", DIFFERENT, indirect=["kind"])
def test_shapes_follow_the_shared_memory_of_the_architecture(device, kind, c, arch):
    import ptxsim

    _, _, small, large = TABLE[kind, c]
    query, keys = (unit(1, c, dtype=dtype_of(kind)).requires_grad_() for _ in range(2))
    with ptxsim.device(arch, strict=True) as simulated:
        info_nce(query, query.detach(), keys).backward()
    launches = [launch for launch in simulated.launches if "flash" in launch.kernel]
    assert len(launches) == 2
    for launch in launches:
        assert f", {c}, {small if arch in ('sm_86', 'sm_89', 'sm_120') else large}>" in launch.kernel


@pytest.mark.slow
@pytest.mark.timeout(1200)
@nightly
def test_another_shape_without_editing_the_table(device):
    """-DMASKCO_FLASH_SHAPE, in a process that has no other build of the ops: on GPUs where it fits, for one entry."""
    code = """
        import ptxsim, torch
        from contrast_cases import unit
        from maskco.ops import _library, info_nce, reference
        from simulated import simulated_ops

        ops = simulated_ops('-DMASKCO_FLASH_SHAPE="4:128:8x1x16x1"')
        _library.kernels = lambda device: ops
        for channels in (128, 64):
            query, positive, queue = (unit(n, channels).requires_grad_() for n in (21, 21, 507))
            with ptxsim.device("sm_80", strict=True) as simulated:
                loss = info_nce(query, positive, queue, reduction="none")
                loss.sum().backward()
            torch.testing.assert_close(loss, reference.info_nce(query, positive, queue)[0])
            print(*(launch.kernel for launch in simulated.launches if "flash" in launch.kernel), sep="\\n")
    """
    path = os.pathsep.join(str(ROOT / part) for part in ("", "tests/helpers", "tools/ptxsim/src"))
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tried, table = "128, 8, 1, 16, 1>", f"64, {TABLE['float32', 64].large}>"
    assert [tried in line for line in done.stdout.splitlines()] == [True, True, False, False]
    assert [table in line for line in done.stdout.splitlines()] == [False, False, True, True]


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_every_set_of_keys(device, options):
    torch.manual_seed(0)
    dropped = {name: options[name] for name in options if name == "queue_ids"}
    case = make_case(device, torch.bfloat16, c=32, **{k: v for k, v in options.items() if k not in dropped}) | dropped
    check(case, "bfloat16", tuple(name for name in FEATURES if case[name] is not None))


def test_temperature_tensor(device):
    torch.manual_seed(0)
    case = make_case(device, torch.bfloat16, c=32) | {"temperature": torch.tensor(0.3)}
    check(case, "bfloat16", (*FEATURES, "temperature"))


def test_empty_queue(device, simulated):
    query, positive, queue = (unit(n, 32).requires_grad_() for n in (3, 3, 0))
    loss = info_nce(query, positive, queue, reduction="none")
    assert kernels(simulated) == ["flash", "combine"] and torch.equal(loss, torch.zeros(3))
    loss.sum().backward()
    assert not query.grad.any() and queue.grad.shape == (0, 32)


@pytest.mark.parametrize("n, k", [(1, 1), (129, 123), (252, 507)])
def test_ragged_sizes(device, simulated, n, k):
    torch.manual_seed(0)
    check(make_case(device, torch.float16, n=n, k=k, c=32, m=1, valid=k), "float16", FEATURES)
    assert ("sum_splits" in kernels(simulated)) == (splits(TABLE["float16", 32].large, k, n) > 1)


@pytest.mark.slow
@pytest.mark.parametrize("n, k", [(64, 2048), (300, 1999)])
@pytest.mark.parametrize("c", CHANNELS)
@every_kind
def test_larger_sizes(device, kind, c, n, k):
    torch.manual_seed(0)
    check(make_case(device, dtype_of(kind), n=n, k=k, c=c, valid=k - 9, temperature=0.07), kind, FEATURES)


@pytest.mark.parametrize("arch, schedule", [("sm_90", "reverse"), ("sm_86", "reverse"), ("sm_80", "random")])
@pytest.mark.parametrize("c", [32, 256])
@every_kind
def test_any_order_of_warps_gives_the_same_bits(device, kind, c, arch, schedule):
    import ptxsim

    torch.manual_seed(0)
    case = make_case(device, dtype_of(kind), n=18, k=300, c=c, m=2, valid=290)
    with ptxsim.device(arch, strict=True):
        expected = run(info_nce, case, FEATURES)
    with ptxsim.device(arch, strict=True, schedule=schedule):
        result = run(info_nce, case, FEATURES)
    assert all(torch.equal(result[name], expected[name]) for name in expected)


def test_launches_and_shared_memory(device, simulated):
    torch.manual_seed(0)
    query, positive, queue = (unit(n, 256).bfloat16() for n in (9, 9, 600))
    loss = info_nce(query.requires_grad_(), positive, queue, in_batch=True, local_negatives=unit(9, 2, 256).bfloat16())
    assert kernels(simulated) == ["flash", "combine"]
    shape = TABLE["bfloat16", 256].large
    tiles = sum(-(-keys // shape.columns) for keys in (600, 9))
    assert simulated.launches[0].grid == (1, splits(shape, 9, tiles * shape.columns), 1)
    needed = 2 * 256 * (16 * shape.warps * shape.row_blocks + 2 * shape.columns)  # the rows, two tiles of columns
    assert needed < simulated.launches[0].shared <= needed + 4096
    simulated.launches.clear()
    loss.backward()
    assert kernels(simulated) == []  # the gradient is there already

    loss = info_nce(query, positive, queue.requires_grad_())
    simulated.launches.clear()
    loss.backward()
    assert kernels(simulated) == ["flash_keys"]


@pytest.mark.parametrize("kind", KINDS, indirect=True)
def test_realistic_sizes_read_what_they_must(device, simulated, kind):
    """Sectors, bank conflicts and coalescing where the loops dominate; one block row of a larger batch."""
    torch.manual_seed(0)
    query, positive, queue = (unit(n, 128, dtype=dtype_of(kind)) for n in (128, 128, 2048))
    info_nce(query.requires_grad_(), positive, queue.requires_grad_()).backward()
    assert kernels(simulated) == ["flash", "combine", "flash_keys"]
    for launch in simulated.launches:
        assert launch.report.bank_conflict_factor <= 1.1, launch.name
        assert launch.report.load_efficiency >= 0.9 and launch.report.store_efficiency >= 0.9, launch.name
    features = 2048 * 128 * queue.element_size()
    splits = simulated.launches[0].grid[1]
    rows = 128 * 128 * query.element_size() * 2 * splits  # each split reads the queries and positives again
    assert simulated.launches[0].report.global_load_bytes <= 1.05 * (features + rows)


def unaligned(features: torch.Tensor) -> torch.Tensor:
    """The same in rows that start two bytes after a boundary."""
    return torch.cat([features[:, -1:], features], 1)[:, 1:]


@pytest.mark.parametrize("change", ["transposed", "query", "positive", "queue", "channels", "float64"])
def test_what_the_kernels_cannot_read_takes_the_general_path(device, simulated, change):
    torch.manual_seed(0)
    dtype = torch.float64 if change == "float64" else torch.float16
    case = make_case(device, dtype, n=5, c=40 if change == "channels" else 32, k=50, valid=44)
    expected = reference.info_nce(**case)
    if change == "transposed":
        case["queue"] = case["queue"].T.contiguous().T
    elif change in FEATURES:
        case[change] = unaligned(case[change])
    loss, stats = info_nce(**case, reduction="none", return_stats=True)
    assert kernels(simulated)[0] == "contrast_own" and "flash" not in kernels(simulated)
    torch.testing.assert_close((loss, *stats), expected)

    keys = case["queue"].detach().requires_grad_()
    info_nce(case["query"], case["positive"], keys).backward()
    assert "flash_keys" not in kernels(simulated)  # nor for a pass without the tensor: see the next test


@pytest.mark.parametrize("change", ["queue", "positive"])
def test_backward_takes_the_path_of_the_forward_pass(device, simulated, change):
    """One tensor that the flash kernels cannot read: the other's gradient takes the general path too, so that logits
    are rounded as in the forward pass."""
    torch.manual_seed(0)
    case = make_case(device, n=9, c=32, k=70, valid=60, ids=False)
    for name in FEATURES:
        case[name] = case[name] * 1e4
    run(info_nce, case, FEATURES)
    assert "flash_keys" in kernels(simulated)
    simulated.launches.clear()
    if change == "queue":
        case["queue"] = case["queue"].T.contiguous().T
    else:
        case["positive"] = torch.cat([case["positive"], case["positive"]], 1)[:, 1:33]
    wide = {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in case.items()}
    actual = info_nce(**{k: v.requires_grad_() if k in FEATURES else v for k, v in case.items()})
    gradients = torch.autograd.grad(actual, [case[name] for name in FEATURES])
    assert not {"flash", "flash_keys"} & set(kernels(simulated))
    loss = reference.info_nce(**{k: v.requires_grad_() if k in FEATURES else v for k, v in wide.items()})[0].mean()
    for gradient, truth in zip(gradients, torch.autograd.grad(loss, [wide[name] for name in FEATURES]), strict=True):
        torch.testing.assert_close(gradient.double(), truth, rtol=0, atol=1e-5 * float(truth.abs().max()))


def test_rows_of_a_wider_buffer_are_read_in_place(device, simulated):
    torch.manual_seed(0)
    case = make_case(device, torch.float16, n=5, c=32, k=50, valid=44)
    for name in ("query", "positive", "queue"):
        wider = torch.full((len(case[name]), 48), math.nan, dtype=torch.float16)
        wider[:, 8:40] = case[name]
        case[name] = wider[:, 8:40]
    case["local_negatives"] = case["local_negatives"].transpose(0, 2).contiguous().transpose(0, 2)
    weights = torch.linspace(0.5, 2, 5)
    expected = run(reference.info_nce, case)["loss"]
    query, queue = case["query"].detach().requires_grad_(), case["queue"].detach().requires_grad_()
    loss = info_nce(**case | {"query": query, "queue": queue}, reduction="none")
    (loss * weights).sum().backward()
    torch.testing.assert_close(loss, expected)
    assert kernels(simulated) == ["flash", "combine", "flash_keys"]
    dense = run(info_nce, case, ("query", "queue"))
    assert torch.equal(query.grad, dense["grad_query"]) and torch.equal(queue.grad, dense["grad_queue"])


@pytest.mark.slow
@pytest.mark.parametrize("c", [32, 40], ids=["flash", "general"])
def test_rows_at_offsets_above_2_to_the_31(device, simulated, c):
    """Only the pages of the rows are ever touched."""
    import ptxsim

    torch.manual_seed(0)
    k, stride = 5, 2**29 + 8  # elements
    try:
        far = torch.empty((k - 1) * stride + c, dtype=torch.bfloat16).as_strided((k, c), (stride, 1))
    except RuntimeError:
        pytest.skip("no 4 GiB of address space")
    near = make_case(device, torch.bfloat16, n=3, c=c, k=k, m=0, valid=k, ids=False, in_batch=False)
    with ptxsim.device("sm_80", strict=True, poison=False) as unpoisoned:
        far.copy_(near["queue"])
        actual = run(info_nce, near | {"queue": far}, ("query",))
    assert kernels(unpoisoned)[0] == ("flash" if c == 32 else "contrast_own")
    expected = run(info_nce, near, ("query",))
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_opcheck(device):
    torch.manual_seed(0)
    case = make_case(device, torch.float16, n=4, c=32, k=10, valid=8)
    inputs = [case[name].requires_grad_() for name in FEATURES]
    args = (*inputs, True, case["query_ids"], case["queue_ids"], case["valid"], 1.0, torch.tensor(0.3), True, False)
    torch.library.opcheck(torch.ops.maskco_sim.info_nce_fwd, args)
    query, keys = unit(4, 32).half(), unit(10, 32).half()
    args = (
        torch.rand(4),
        torch.rand(2, 4) + 1,
        query,
        keys,
        False,
        None,
        None,
        torch.tensor(8),
        0.2,
        None,
        True,
        False,
    )
    torch.library.opcheck(torch.ops.maskco_sim.info_nce_bwd_keys, args)
