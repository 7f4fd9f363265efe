"""The CUDA kernels of info_nce where only they have edges: tiles of keys, launches, warp orders, direct callers.

Values, gradients and the contract that all devices share: test_info_nce.py, on the simulated device too.
"""

from __future__ import annotations

import math

import pytest
import torch

from contrast_cases import FEATURES, check_case, make_case, run, unit
from maskco.ops import info_nce, reference
from simulated import kernel_names

pytestmark = pytest.mark.parametrize("device", [pytest.param("sim", marks=pytest.mark.sim)], indirect=True)

# A tile has 128 keys, in float64 64; blocks have up to 16 x 16 tiles, as many as leave two waves of blocks.
MANY_KEYS = {
    "ragged": {"n": 2, "k": 8200, "c": 5, "valid": 8199},
    "whole_tiles": {"n": 2, "k": 4096, "c": 5, "valid": 4096},
    "one_key_more": {"n": 2, "k": 4097, "c": 5, "valid": 4097},
    "wide_keys": {"n": 2, "k": 300, "c": 2100, "valid": 290},
    "last_tiles_invalid": {"n": 2, "k": 8200, "c": 5, "valid": 10},
}


def kernels(simulated) -> list[str]:
    return [name.removeprefix("info_nce_").removeprefix("contrast_") for name in kernel_names(simulated)]


@pytest.mark.parametrize("options", MANY_KEYS.values(), ids=MANY_KEYS.keys())
def test_tiles(device, options):
    torch.manual_seed(0)
    check_case(make_case(device, m=2, **options), FEATURES)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_tiles_of_other_dtypes(device, dtype):
    torch.manual_seed(0)
    check_case(make_case(device, dtype, n=2, k=4500, c=6, valid=4400, temperature=0.05), FEATURES)


def test_maximum_that_grows_from_tile_to_tile(device):
    """Each tile's best key beats all before it by far: the sums so far are rescaled, to nothing in the end."""
    torch.manual_seed(0)
    case = make_case(device, n=2, k=12288, c=4, m=2, ids=False, in_batch=False, valid=12288, temperature=0.02)
    growth = torch.linspace(0, 1, 12288)[:, None]
    case["queue"] = (case["queue"] * (1 - growth) + growth * case["query"].mean(0)).contiguous()
    check_case(case, FEATURES)


def test_launches(device, simulated):
    """A sweep for the sums of queue and batch each, one for their weights, and a few small kernels. Keys are only
    copied to end them at `valid`."""
    torch.manual_seed(0)
    query, positive, queue = unit(2, 5).requires_grad_(), unit(2, 5), unit(8200, 5)
    loss = info_nce(query, positive, queue)
    assert kernels(simulated) == ["own", "read", "finish", "weigh", "gradient"]
    simulated.launches.clear()
    loss.backward()
    assert kernels(simulated) == []  # the gradient is there already

    info_nce(query.detach(), positive, queue, valid=torch.tensor(8000))
    assert kernels(simulated) == ["own", "read", "finish"]
    simulated.launches.clear()
    info_nce(query, positive, queue, valid=torch.tensor(8000))
    assert kernels(simulated) == ["own", "read", "finish", "copy_rows", "weigh", "gradient"]
    simulated.launches.clear()
    info_nce(query.bfloat16(), positive.bfloat16(), queue[:4096].bfloat16(), in_batch=True)
    assert kernels(simulated) == ["own", "read", "read", "finish", "weigh", "weigh", "gradient"]
    simulated.launches.clear()
    info_nce(query, positive, local_negatives=unit(2, 3, 5))
    assert kernels(simulated) == ["own", "local", "finish", "gradient"]

    loss = info_nce(query, positive, queue.requires_grad_())
    simulated.launches.clear()
    loss.backward()
    assert kernels(simulated) == ["weights", "weigh"]


@pytest.mark.parametrize("schedule", ["reverse", "random"])
def test_any_order_of_warps_gives_the_same_bits(device, schedule):
    import ptxsim

    torch.manual_seed(0)
    case = make_case(device, n=3, k=4200, c=40, m=11, valid=4190)
    expected = run(info_nce, case, FEATURES)
    with ptxsim.device("sm_90", strict=True, schedule=schedule):
        result = run(info_nce, case, FEATURES)
    assert all(torch.equal(result[name], expected[name]) for name in expected)


def test_strided_features_are_read_in_place(device, simulated):
    torch.manual_seed(0)
    case = make_case(device, n=6, c=16, k=64, valid=60)
    strided = dict(case)
    strided["queue"] = case["queue"].T.contiguous().T  # MoCo's [C, K] buffer
    strided["query"] = torch.cat([case["query"], case["query"]], 1)[:, :16]
    strided["positive"] = case["positive"].T.contiguous().T
    strided["local_negatives"] = case["local_negatives"].transpose(0, 2).contiguous().transpose(0, 2)
    check_case(strided, FEATURES)
    check_case({**strided, "valid": 60}, FEATURES)
    check_case({k: v.bfloat16() if k in FEATURES else v for k, v in strided.items()}, FEATURES)


def test_temperature_tensor_is_read_on_the_device_and_gets_its_gradient(device):
    torch.manual_seed(0)
    case = make_case(device, n=4, c=12, k=30, valid=25)
    result = {}
    for name, function in (("op", info_nce), ("reference", reference.info_nce)):
        tau = torch.tensor([0.3], requires_grad=True)
        loss = function(**case | {"temperature": tau}, **({"reduction": "none"} if name == "op" else {}))
        loss = loss if name == "op" else loss[0]
        result[name] = (loss, *torch.autograd.grad(loss.sum(), tau))
    for actual, expected in zip(result["op"], result["reference"], strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("where", ["queue", "local_negatives", "positive"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_inf_end_as_in_the_reference(device, where, bad):
    torch.manual_seed(0)
    case = make_case(device, n=3, c=4, k=6, m=2, ids=False, in_batch=False, valid=6)
    for name in FEATURES:
        case[name].abs_()
    case[where].view(-1, 4)[0, 1] = bad
    actual, expected = run(info_nce, case), run(reference.info_nce, case)
    for name in ("loss", "lse", "positive_logit", "rank"):
        torch.testing.assert_close(
            actual[name], expected[name], equal_nan=True, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_nan_in_a_query_leaves_the_gradient_of_invalid_rows_zero(device):
    torch.manual_seed(0)
    case = make_case(device, n=3, c=4, k=6, m=0, ids=False, in_batch=False, valid=4)
    case["query"][1, 2] = math.nan
    grad = run(info_nce, case, ("queue",))["grad_queue"]
    assert not grad[4:].any() and bool(grad[:4].isnan().any(1).all())


@pytest.mark.parametrize(
    "shape", [{"m": 0}, {"k": 0, "in_batch": False, "ids": False}, {"k": 0, "m": 0}, {"c": 0}, {"n": 1}], ids=str
)
def test_empty_parts(device, shape):
    torch.manual_seed(0)
    case = make_case(device, **{"n": 4, "c": 6, "k": 9, "m": 2, "valid": 8, "ids": False} | shape)
    check_case(case, tuple(name for name in FEATURES if case[name] is not None))


def test_empty_queue_and_no_queries(device):
    empty = torch.zeros(0, 6)
    query, positive = unit(3, 6).requires_grad_(), unit(3, 6)
    queue = empty.clone().requires_grad_()
    local = torch.zeros(3, 0, 6, requires_grad=True)
    loss = info_nce(query, positive, queue, local_negatives=local, valid=torch.tensor(0), reduction="none")
    assert torch.equal(loss, torch.zeros(3))
    loss.sum().backward()
    assert not query.grad.any() and queue.grad.shape == (0, 6) and local.grad.shape == (3, 0, 6)
    queue = unit(5, 6).requires_grad_()
    info_nce(empty, empty, queue).backward()
    assert torch.equal(queue.grad, torch.zeros(5, 6))


def test_valid_beyond_the_queue_counts_all_of_it(device):
    """On the CPU that is an error; a device is not waited for."""
    query, positive, queue = unit(3, 6), unit(3, 6), unit(5, 6)
    expected = info_nce(query, positive, queue)
    assert torch.equal(info_nce(query, positive, queue, valid=torch.tensor(7)), expected)
    assert not info_nce(query, positive, queue, valid=torch.tensor(-1)).any()


def test_opcheck(device):
    torch.manual_seed(0)
    case = make_case(device, n=4, c=6, k=10, valid=8)
    inputs = [case[name].requires_grad_() for name in FEATURES]
    args = (*inputs, True, case["query_ids"], case["queue_ids"], case["valid"], 1.0, torch.tensor(0.3), True, False)
    torch.library.opcheck(torch.ops.maskco_sim.info_nce_fwd, args)
    keys = (unit(4, 6), unit(10, 6), False, None, None, torch.tensor(8))
    args = (torch.rand(4), torch.rand(2, 4) + 1, *keys, 0.2, None, True, False)
    torch.library.opcheck(torch.ops.maskco_sim.info_nce_bwd_keys, args)


DIRECT = {
    "positive": ((unit(3, 4), unit(3, 5)), "positive must have size 4 in dimension 1, got 5"),
    "queue dtype": ((unit(3, 4), unit(3, 4), unit(5, 4).double()), "queue must be of dtype Float, got Double"),
    "query ids": ((unit(3, 4), unit(3, 4), None, None, True, torch.zeros(2)), "query_ids must have size 3"),
    "valid": (
        (unit(3, 4), unit(3, 4), unit(5, 4), None, False, None, None, torch.ones(2)),
        "valid must have one element",
    ),
}


@pytest.mark.parametrize("args, message", DIRECT.values(), ids=DIRECT.keys())
def test_direct_calls_are_guarded(device, args, message):
    defaults = (None, None, None, None, False, None, None, None, 0.2, None, True, False)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.maskco_sim.info_nce_fwd(*args, *defaults[len(args) :])
