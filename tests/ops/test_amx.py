"""The CPU kernels for AMX, by a model of its tile registers: layouts, edges and precision of bfloat16 and of float32 in
two parts. What the model leaves out are the instructions themselves."""

from __future__ import annotations

import importlib
import math

import pytest
import torch

import amx_model
from contrast_cases import CASES, FEATURES, make_case, run
from maskco.ops import info_nce, reference
from pair_cases import LOSSES, check, make
from tolerance import assert_as_good_as

pytestmark = pytest.mark.slow  # (the ops are compiled once more)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> amx_model.AmxModel:
    if reason := amx_model.missing():
        pytest.skip(reason)
    return amx_model.build(tmp_path_factory.mktemp("amx"))


@pytest.fixture(autouse=True)
def products(model, monkeypatch):
    """All ops are the model's. -> how many products there have been in this test"""
    monkeypatch.setattr(torch.ops, "maskco", model.ops)
    before = model.products()
    return lambda: model.products() - before


@pytest.fixture(params=["bfloat16", "high"])
def dtype(request, monkeypatch) -> torch.dtype:
    """bfloat16, or float32 under torch.set_float32_matmul_precision("high")."""
    if request.param == "high":
        monkeypatch.setattr(importlib.import_module("maskco.ops.contrastive"), "allow_tf32", lambda: True)
    return torch.float32 if request.param == "high" else torch.bfloat16


def wide(case: dict) -> dict:
    return {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in case.items()}


def check_case(case: dict) -> None:
    """The op, plain torch in the same dtype, and float64. Ranks may differ by logits that are equal up to rounding."""
    grad = tuple(name for name in FEATURES if case[name] is not None)
    actual, same = run(info_nce, case, grad), run(reference.info_nce, case, grad)
    truth = run(reference.info_nce, wide(case), grad)
    for name, value in actual.items():
        if name == "rank":
            assert float((value - truth[name]).abs().double().mean()) < 0.02
        else:
            assert_as_good_as(value, same[name], truth[name], value.dtype, name)


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_values_and_gradients(dtype, products, options):
    torch.manual_seed(0)
    dropped = {name: options[name] for name in options if name == "queue_ids"}
    case = make_case(dtype=dtype, **{k: v for k, v in options.items() if k not in dropped}) | dropped
    check_case(case)
    # local negatives are no matrix product; pairs of one batch are the other losses', whose float32 stays whole
    streams = case["queue"] is not None or (case["in_batch"] and case["local_negatives"] is not None)
    assert (products() > 0) == (streams or (case["in_batch"] and dtype == torch.bfloat16))


SIZES = {  # queries, keys, channels
    "whole tiles": (64, 192, 64),
    "rows of keys in place but for the last": (33, 97, 128),
    "one more channel": (32, 96, 129),
    "odd channels": (33, 95, 31),
    "few channels": (5, 130, 2),
    "one": (1, 1, 1),
    "no channels": (3, 40, 0),
    "several ranges and blocks": (300, 2500, 64),
}


@pytest.mark.parametrize("n, k, c", SIZES.values(), ids=SIZES.keys())
def test_ragged_sizes(dtype, n, k, c):
    torch.manual_seed(0)
    check_case(make_case(dtype=dtype, n=n, k=k, c=c, valid=k, m=0, ids=False, in_batch=False))
    check_case(make_case(dtype=dtype, n=n, k=k, c=c, valid=max(1, k - 3)))


@pytest.mark.parametrize("valid", [0, 1, 32, 33])
def test_rows_past_valid_may_hold_anything(dtype, valid):
    torch.manual_seed(0)
    case = make_case(dtype=dtype, m=0, ids=False, k=64, c=32, valid=valid)
    clean = run(info_nce, case, ("query", "queue"))
    case["queue"][valid:] = math.nan
    dirty = run(info_nce, case, ("query", "queue"))
    for name in clean:
        assert torch.equal(clean[name], dirty[name]), name
    assert not dirty["grad_queue"][valid:].any()


@pytest.mark.parametrize(
    "variant", [{"decoupled": True}, {"margin": 0.1}, {"margin": -0.2, "decoupled": True}], ids=str
)
@pytest.mark.parametrize("sizes", [{}, {"n": 40, "k": 130, "c": 33, "valid": 127, "temperature": -0.3}], ids=str)
def test_decoupled_and_margin(dtype, sizes, variant):
    torch.manual_seed(0)
    check_case(make_case(dtype=dtype, **sizes) | variant)


def test_any_strides(dtype):
    torch.manual_seed(0)
    case = make_case(dtype=dtype, n=6, c=32, k=64, valid=60)
    strided = dict(case)
    strided["queue"] = case["queue"].T.contiguous().T
    expected, columns = run(info_nce, case, FEATURES), run(info_nce, strided, FEATURES)
    strided["queue"] = torch.cat([case["queue"], case["queue"]], 1)[:, :32]
    rows = run(info_nce, strided, FEATURES)
    for name in expected:
        assert torch.equal(columns[name], expected[name]) and torch.equal(rows[name], expected[name]), name


@pytest.mark.parametrize("value", [2.0**10, 2.0**13, 2.0**17])
def test_weights_of_the_keys_sum_to_one(dtype, value):
    """Both passes round logits alike, however large: equal keys share each query's weight."""
    query = torch.full((3, 40), value, dtype=dtype)
    queue = torch.full((64, 40), value, dtype=dtype, requires_grad=True)
    info_nce(query, -query, queue, reduction="sum", temperature=0.3).backward()
    torch.testing.assert_close(queue.grad, torch.full_like(queue, 3 * value / 0.3 / 64), rtol=1e-2, atol=0)


@pytest.mark.parametrize("where", ["queue", "positive", "query"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_inf_end_as_in_the_reference(dtype, where, bad):
    """Also of an infinite float32, whose rest is infinity - infinity."""
    torch.manual_seed(0)
    case = make_case(dtype=dtype, n=3, c=32, k=6, m=2, ids=False, in_batch=False, valid=6)
    for name in FEATURES:
        case[name].abs_()
    case[where].view(-1, 32)[0, 1] = bad
    actual, expected = run(info_nce, case), run(reference.info_nce, case)
    for name in ("loss", "positive_logit", "rank"):
        torch.testing.assert_close(
            actual[name], expected[name], equal_nan=True, rtol=1e-2, atol=1e-2, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_products_that_overflow(dtype):
    torch.manual_seed(0)
    case = make_case(dtype=dtype, n=4, c=32, m=0, ids=False, in_batch=False)
    case["query"], case["queue"] = case["query"].abs() * 1e30, case["queue"].abs() * 1e30
    assert bool(info_nce(**case, reduction="none").isposinf().all())


def test_precision_of_float32_in_two_parts(products):
    """Between float32 and one bfloat16, which is 2^-9: the rests are there, but not their product."""
    torch.manual_seed(0)
    case = make_case(n=40, c=128, k=300, m=0, valid=300, ids=False, in_batch=False, temperature=0.07)
    truth = run(reference.info_nce, wide(case), ("query", "queue"))
    before, error = torch.get_float32_matmul_precision(), {}
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        try:
            result = run(info_nce, case, ("query", "queue"))
        finally:
            torch.set_float32_matmul_precision(before)
        assert (products() > 0) == (precision == "high")
        parts = [(result[name].detach(), truth[name].detach()) for name in ("lse", "grad_query", "grad_queue")]
        error[precision] = [float((value - true).norm() / true.norm()) for value, true in parts]
    assert max(error["highest"]) < 2**-19 and max(error["high"]) < 2**-15, error
    assert max(error["high"]) > 2 * max(error["highest"]), error


@pytest.mark.parametrize(("n", "c", "k"), [(9, 20, 14), (252, 123, 507), (130, 513, 95), (96, 64, 192)])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_losses_over_all_pairs(products, loss, n, c, k):
    torch.manual_seed(0)
    check(loss, make(loss, n, c, k, torch.bfloat16))
    assert products() > 0
