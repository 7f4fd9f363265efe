"""info_nce at logits of any size, and with infinities and NaN in its inputs."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from contrast_cases import DTYPES, FEATURES, check_case, make_case, run, unit
from maskco.ops import info_nce, reference
from tolerance import assert_as_good_as


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan], ids=str)
@pytest.mark.parametrize("name", ["query", "positive", "queue"])
@pytest.mark.parametrize("decoupled", [False, True])
def test_infinities_and_nan_stand_where_the_reference_has_them(device, name, value, decoupled):
    """Of positive features, so that an infinite one makes its logits infinite with one sign."""
    torch.manual_seed(0)
    for in_batch, k in ((False, 7), (True, 7), (True, 0)):
        if name == "queue" and k == 0:
            continue
        case = make_case(device, n=5, c=32, k=k, m=0, valid=k, ids=False, in_batch=in_batch) | {"decoupled": decoupled}
        case |= {feature: case[feature].abs() for feature in FEATURES if case[feature] is not None}
        case[name][1, 2] = value
        check_case(case, ())


def test_gradient_keeps_its_precision_when_the_positive_wins():
    """Loss and gradient of 1e-9: summed with the positive, they would drown in float32's 1e-7."""
    torch.manual_seed(0)
    query = unit(4, 16)
    case = make_case(n=4, c=16, k=30, m=0, valid=30, ids=False, in_batch=False, temperature=0.045)
    case |= {"query": query, "positive": query.clone(), "queue": case["queue"] * 0.1}
    wide = {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in case.items()}
    grad = ("query", "positive")
    actual, truth = run(info_nce, case, grad), run(reference.info_nce, wide, grad)
    assert truth["loss"].detach().max() < 3e-8
    torch.testing.assert_close(actual["loss"].double(), truth["loss"], rtol=1e-3, atol=0)
    for name in ("grad_query", "grad_positive"):
        torch.testing.assert_close(actual[name].double(), truth[name], rtol=1e-2, atol=1e-15)


@pytest.mark.parametrize("scale", [3e2, 1e4])
def test_logits_that_overflow_exp(scale):
    torch.manual_seed(0)
    case = make_case(m=0, ids=False) | {"temperature": 1 / scale}
    wide = {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in case.items()}
    actual, truth = run(info_nce, case, ("query",)), run(reference.info_nce, wide, ("query",))
    assert truth["lse"].detach().max() > 88
    torch.testing.assert_close(actual["loss"].double(), truth["loss"], rtol=1e-4, atol=1e-4 * scale)


def test_rows_past_valid_may_hold_anything(device):
    torch.manual_seed(0)
    case = make_case(device, m=0, ids=False)
    clean = run(info_nce, case, ("query", "queue"))
    case["queue"][40:] = math.nan
    dirty = run(info_nce, case, ("query", "queue"))
    for name in clean:
        assert torch.equal(clean[name], dirty[name]), name
    assert not dirty["grad_queue"][40:].any()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["query", "positive", "queue", "local_negatives"])
def test_nan_and_inf_reach_the_loss(device, where, bad):
    case = make_case(device, ids=False, in_batch=False)
    for features in ("query", "positive", "queue", "local_negatives"):  # all positive, so that Inf is no -Inf logit
        case[features].abs_()
    case[where].view(-1, 20)[0, 3] = bad
    loss = info_nce(**case, reduction="none")
    assert not loss[0].isfinite()
    assert loss[1:].isfinite().all() or where == "queue"


LARGE = {  # length of the features, temperature: logits up to
    "10": (1, 0.07),
    "5e3": (30, 0.07),
    "5e4": (100, 0.07),
    "-5e4": (100, -0.07),
    "3e7": (1, 1e-8),
    "5e8": (1e4, 0.07),
    "4e10": (1e5, 0.07),
    "1e38": (1, 1e-38),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("norm, temperature", LARGE.values(), ids=LARGE.keys())
@pytest.mark.parametrize("sizes", [{"n": 5, "k": 9}, {"n": 70, "k": 130, "c": 32}, {"n": 64, "c": 520}], ids=str)
def test_gradients_at_logits_of_any_size(device, dtype, norm, temperature, sizes):
    """The backward pass computes logits again. Where it rounds them as little as 1 of 1e7 unlike the forward pass, or
    subtracts a log-sum-exp that float32 cannot hold, no softmax comes out."""
    if norm / abs(temperature) > 1e4 and dtype == torch.float16:
        pytest.skip("float16 does not hold such gradients")
    torch.manual_seed(0)
    case = make_case(device, dtype, **sizes, m=2, valid=sizes.get("k", 45) - 1, temperature=temperature)
    for name in FEATURES:
        case[name] = (case[name].double() * norm).to(dtype)
    check_relative(case)


def test_large_logits_of_positive_features():
    """Long sums of positive products, as of features after a ReLU. In plain torch as here each logit is off by its last
    bit, 0.03, so that single cases are luck: compared are means over some."""

    def plain(query, positive, **_):
        return F.cross_entropy(query @ positive.T / 0.1, torch.arange(64))

    errors = []
    for seed in range(6):
        for mean in (2, 2.5, 3, 4.5, 5, 7, 8, 10):
            torch.manual_seed(seed)
            case = {name: torch.randn(64, 2048) + mean for name in ("query", "positive")}
            options = {"in_batch": True, "temperature": 0.1}
            results = []
            for function, dtype in ((info_nce, torch.float32), (plain, torch.float32), (plain, torch.float64)):
                leaves = [features.to(dtype, copy=True).requires_grad_() for features in case.values()]
                results.append(torch.autograd.grad(function(*leaves, **options), leaves))
            *results, truth = results
            errors.append([[(g - t).abs().max().log() for g, t in zip(r, truth, strict=True)] for r in results])
    ours, theirs = torch.tensor(errors).mean(0).exp()
    assert (ours <= 1.2 * theirs).all(), f"{ours} against plain torch's {theirs}"


def check_relative(case: dict) -> None:
    """`check_case` for large values: every gradient relative to its largest entry."""
    wide = {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in case.items()}
    results = [
        run(f, c, FEATURES) for f, c in ((info_nce, case), (reference.info_nce, case), (reference.info_nce, wide))
    ]
    for name in (f"grad_{name}" for name in FEATURES):
        scale = results[2][name].abs().max().clamp(min=1e-300)
        actual, same, truth = ((result[name].double() / scale).cpu() for result in results)
        same = torch.where(same.isfinite(), same, truth)
        dtype = case["query"].dtype
        assert_as_good_as(actual.to(dtype), same, truth, dtype, name)


def test_temperature_gradient_at_large_logits(device):
    torch.manual_seed(0)
    case = make_case(device, m=2)
    for name in FEATURES:
        case[name] = case[name] * 1e4
    gradients = []
    for function, dtype in ((info_nce, torch.float32), (reference.info_nce, torch.float64)):
        tau = torch.tensor(0.07, dtype=dtype, device=device, requires_grad=True)
        wide = {k: v.to(dtype) if torch.is_tensor(v) and v.is_floating_point() else v for k, v in case.items()}
        loss = function(**wide | {"temperature": tau})
        loss = loss if function is info_nce else loss[0].mean()
        gradients.append(torch.autograd.grad(loss, tau)[0])
    torch.testing.assert_close(gradients[0].double(), gradients[1], rtol=1e-5, atol=0)


@pytest.mark.parametrize("value", [1e3, 1e4, 1e5])
def test_weights_of_the_keys_sum_to_one(value):
    """Equal keys share each query's weight, whatever the common size of their logits."""
    query, queue = torch.full((3, 8), value), torch.full((50, 8), value, requires_grad=True)
    info_nce(query, -query, queue, reduction="sum", temperature=1.0).backward()
    torch.testing.assert_close(queue.grad, torch.full((50, 8), 3 * value / 50), rtol=1e-5, atol=0)


def test_an_infinite_logit_of_a_negative_is_an_infinite_loss():
    query, positive, queue = torch.ones(2, 4), torch.ones(2, 4), torch.ones(3000, 4)
    queue[700, 0] = math.inf
    loss, stats = info_nce(query, positive, queue, reduction="none", return_stats=True)
    assert loss.isposinf().all() and stats.lse.isposinf().all() and (stats.rank == 1).all()
    positive[:, 0] = -math.inf
    loss, stats = info_nce(query, positive, torch.ones(5, 4), reduction="none", return_stats=True)
    assert loss.isposinf().all() and torch.allclose(stats.lse, torch.tensor(20 + math.log(5)))
