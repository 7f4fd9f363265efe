"""info_nce against plain cross-entropy in float64, and everything its docstring promises."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

from contrast_cases import CASES, DTYPES, FEATURES, check_case, make_case, run, unit
from maskco.ops import info_nce, reference
from peak_memory import peak_mib
from tolerance import assert_as_good_as


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_values_and_gradients(device, options, dtype):
    torch.manual_seed(0)
    dropped = {name: options[name] for name in options if name == "queue_ids"}
    case = make_case(device, dtype, **{k: v for k, v in options.items() if k not in dropped}) | dropped
    check_case(case, tuple(name for name in FEATURES if case[name] is not None))


@pytest.mark.parametrize("n, k, c, m", [(252, 507, 123, 0), (1, 1, 16, 1), (300, 2500, 64, 2), (5, 1025, 128, 7)])
def test_ragged_sizes(n, k, c, m):
    """Around the tiles of 256 queries and 1024 keys, and nothing a multiple of anything."""
    torch.manual_seed(0)
    check_case(
        make_case(n=n, k=k, c=c, m=m, valid=max(1, k - 3)), tuple(name for name in FEATURES if m or name[0] != "l")
    )


def test_equals_mocos_own_formula():
    """MoCo's builder.py: cat of positive and queue logits, cross-entropy against class 0."""
    torch.manual_seed(0)
    q, k, queue = unit(32, 128), unit(32, 128), unit(128, 4096)  # MoCo keeps its queue as [C, K]
    logits = torch.cat([torch.einsum("nc,nc->n", q, k)[:, None], torch.einsum("nc,ck->nk", q, queue)], dim=1) / 0.07
    expected = F.cross_entropy(logits, torch.zeros(32, dtype=torch.long))
    loss, stats = info_nce(q, k, queue.T, temperature=0.07, return_stats=True)
    torch.testing.assert_close(loss, expected)
    assert torch.equal(stats.rank, (logits[:, 1:] > logits[:, :1]).sum(1))


def test_equals_simclrs_in_batch_loss():
    torch.manual_seed(0)
    a, b = unit(24, 32), unit(24, 32)
    expected = F.cross_entropy(a @ b.T / 0.1, torch.arange(24))
    torch.testing.assert_close(info_nce(a, b, in_batch=True, temperature=0.1), expected)


VARIANTS = {
    "queue": {"m": 0, "in_batch": False, "ids": False},
    "in batch": {"k": 0, "m": 0, "ids": False},
    "in batch with ids": {"k": 0, "m": 0},
    "local": {"k": 0, "in_batch": False, "ids": False},
    "all": {},
    "negative temperature": {"temperature": -0.5},
    "few negatives": {"k": 2, "m": 0, "valid": 2, "in_batch": False, "ids": False},
    "many": {"n": 300, "k": 700, "c": 64, "valid": 650},
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "variant", [{"decoupled": True}, {"margin": 0.1}, {"margin": -0.2, "decoupled": True}], ids=str
)
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_decoupled_and_margin(device, options, variant, dtype):
    torch.manual_seed(0)
    case = make_case(device, dtype, **options) | variant
    grad = tuple(name for name in FEATURES if case[name] is not None)
    tau_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    tau = torch.tensor(case["temperature"], dtype=tau_dtype, device=device)
    check_case(case | {"temperature": tau}, (*grad, "temperature"))


def test_variants_of_no_negatives_are_zero(device):
    case = make_case(device, k=0, m=0, n=1, ids=False)
    for variant in ({"decoupled": True}, {"margin": -5.0}):
        result = run(info_nce, case | variant, ("query", "positive"))
        assert not any(result[name].any() for name in ("loss", "grad_query", "grad_positive")), variant
    case = make_case(device, m=0, in_batch=False, ids=False) | {"decoupled": True, "margin": -5.0}
    result = run(info_nce, case, ("query", "positive", "queue"))
    assert not any(result[name].any() for name in ("loss", "grad_query", "grad_positive", "grad_queue"))
    assert result["lse"].isneginf().all()


def test_a_margin_takes_unlabelled_positives_out():
    torch.manual_seed(0)
    query, queue = unit(3, 16), unit(20, 16)
    positive = F.normalize(query + 0.3 * unit(3, 16), dim=1)
    queue[4] = query[1]  # more similar than the positive
    expected = info_nce(query, positive, torch.cat([queue[:4], queue[5:]]), reduction="none")
    with_it = info_nce(query, positive, queue, reduction="none")
    loss = info_nce(query, positive, queue, margin=0.0, reduction="none")
    torch.testing.assert_close(loss[1], expected[1])
    assert with_it[1] > loss[1] and torch.equal(with_it[[0, 2]], loss[[0, 2]])


def test_reductions():
    case = make_case()
    rows = info_nce(**case, reduction="none")
    torch.testing.assert_close(info_nce(**case), rows.mean())
    torch.testing.assert_close(info_nce(**case, reduction="sum"), rows.sum())


def test_gradcheck_and_temperature(device, request):
    torch.manual_seed(0)
    case = make_case(device, dtype=torch.float64, n=4, c=5, k=11, valid=9)
    tau = torch.tensor(0.4, dtype=torch.float64, device=device, requires_grad=True)
    inputs = [case.pop(name).requires_grad_() for name in FEATURES]
    case.pop("temperature")

    def loss(query, positive, queue, local_negatives, temperature):
        rest = {**case, "queue": queue, "local_negatives": local_negatives, "temperature": temperature}
        return info_nce(query, positive, **rest, reduction="none")

    on_sim = request.node.get_closest_marker("sim") is not None  # (where a call takes long)
    assert torch.autograd.gradcheck(loss, (*inputs, tau), fast_mode=on_sim)


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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", [{}, {"decoupled": True}, {"margin": 0.3}], ids=str)
def test_a_large_batch_in_slices(dtype, options):
    """Of more logits than are kept, a slice of the queries after the other is read and weighed. With sums and stats."""
    torch.manual_seed(0)
    case = make_case(dtype=dtype, n=2300, c=20, k=0, m=0) | options
    case["query_ids"] = torch.randint(0, 1000, (2300,))
    wide = case | {name: case[name].double() for name in ("query", "positive")}
    expected = run(reference.info_nce, wide)
    query, positive = (case[name].requires_grad_() for name in ("query", "positive"))
    loss, stats = info_nce(**case, reduction="sum", return_stats=True)
    assert (stats.rank - expected["rank"]).abs().max() <= 1  # (two logits may be equal but for rounding)
    products = wide["query"].detach() @ wide["positive"].detach().T
    gap = products - products.diagonal()[:, None] - options.get("margin", math.inf)
    clear = gap.abs().min(1).values > 1e-6  # rows where no key lies at the margin but for rounding
    assert clear.sum() > 2000
    for name in ("lse", "positive_logit"):
        found = getattr(stats, name).double()
        torch.testing.assert_close(found[clear], expected[name][clear], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loss.double(), expected["loss"].sum(), rtol=1e-4, atol=0)

    def grads(case):
        leaves = [case[name].detach().clone().requires_grad_() for name in ("query", "positive")]
        rows = reference.info_nce(**case | dict(zip(("query", "positive"), leaves, strict=True)))[0]
        return torch.autograd.grad(rows.sum(), leaves)

    actual = torch.autograd.grad(loss, [query, positive])
    for name, *found in zip(("query", "positive"), actual, grads(case), grads(wide), strict=True):
        assert_as_good_as(*found, dtype, name)


@pytest.mark.parametrize(
    "wanted", [s for r in range(6) for s in itertools.combinations((*FEATURES, "temperature"), r)], ids=str
)
def test_every_subset_of_gradients(wanted):
    torch.manual_seed(0)
    case = make_case(n=4, c=6, k=10, m=2, valid=8) | {"temperature": torch.tensor(0.3)}
    everything = run(info_nce, case, (*FEATURES, "temperature"))
    result = run(info_nce, case, wanted) if wanted else run(info_nce, case)
    assert {k for k in result if k.startswith("grad_")} == {f"grad_{name}" for name in wanted}
    for name, value in result.items():
        torch.testing.assert_close(value, everything[name], rtol=0, atol=0)


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


@pytest.mark.parametrize("valid", [0, 1, 40, 45])
def test_valid_as_int_and_as_tensor(device, valid):
    torch.manual_seed(0)
    case = make_case(device)
    as_tensor = run(info_nce, case | {"valid": torch.tensor(valid, device=device)}, ("query",))
    as_int = run(info_nce, case | {"valid": valid}, ("query",))
    for name in as_int:
        torch.testing.assert_close(as_int[name], as_tensor[name])


@pytest.mark.parametrize(
    "case", [{"k": 0, "m": 0, "in_batch": False}, {"valid": 0, "m": 0, "in_batch": False}, {"n": 1, "k": 0, "m": 0}]
)
def test_no_negatives_gives_zero(device, case):
    result = run(
        info_nce, make_case(device, **case, **({} if "ids" in case else {"ids": False})), ("query", "positive")
    )
    assert not result["loss"].any() and not result["grad_query"].any() and not result["grad_positive"].any()


def test_empty_batch(device):
    case = make_case(device, n=0)
    assert info_nce(**case, reduction="none").shape == (0,)
    query = case["query"].requires_grad_()
    loss = info_nce(**case | {"query": query})
    assert loss.item() == 0
    loss.backward()
    assert query.grad.shape == (0, 20)


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


def test_pushing_before_backward_changes_nothing():
    torch.manual_seed(0)
    case = make_case(m=0, in_batch=False, ids=False)
    expected = run(info_nce, case, ("query",))["grad_query"]
    query = case["query"].clone().requires_grad_()
    loss = (info_nce(**case | {"query": query}, reduction="none") * torch.linspace(0.5, 2, 9)).sum()
    reference.queue_push_(case["queue"], torch.tensor([0, 45]), unit(45, 20))
    loss.backward()
    assert torch.equal(query.grad, expected)


def test_any_strides_and_no_copy_of_the_queue():
    torch.manual_seed(0)
    case = make_case(n=6, c=16, k=64, valid=60)
    expected = run(info_nce, case, FEATURES)
    strided = dict(case)
    strided["queue"] = case["queue"].T.contiguous().T
    strided["query"] = torch.cat([case["query"], case["query"]], 1)[:, :16]
    strided["local_negatives"] = case["local_negatives"].transpose(1, 2).contiguous().transpose(1, 2)
    for name, value in run(info_nce, strided, FEATURES).items():
        torch.testing.assert_close(value, expected[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_extra_memory_does_not_grow_with_the_queue(dtype):
    """Nothing of [N, K], and no copy of the queue: 2 MiB of its 32 (16) would be enough to fail."""

    def extra(k: int) -> float:
        query, positive, queue = (
            unit(256, 128, dtype=dtype).requires_grad_(),
            unit(256, 128, dtype=dtype),
            unit(k, 128, dtype=dtype),
        )

        def step():
            info_nce(query, positive, queue).backward()

        step()
        return min(peak_mib(step) for _ in range(3))

    small, large = extra(16384), extra(65536)
    assert large < 16
    assert large < small + 2


def test_bitwise_repeatable():
    torch.manual_seed(0)
    case = make_case(n=300, c=64, k=3000, valid=2999)
    first, second = run(info_nce, case, FEATURES), run(info_nce, case, FEATURES)
    assert all(torch.equal(first[name], second[name]) for name in first)


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


def test_no_second_derivative():
    query = unit(3, 8).requires_grad_()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(info_nce(query, unit(3, 8), unit(5, 8)), query, create_graph=True)


@pytest.mark.parametrize("need_grad", [False, True])
def test_opcheck(need_grad):
    case = make_case(n=4, c=6, k=10, valid=8)
    inputs = [case[name].requires_grad_(need_grad) for name in FEATURES]
    args = (
        *inputs,
        True,
        case["query_ids"],
        case["queue_ids"],
        case["valid"],
        1.0,
        torch.tensor(0.3),
        need_grad,
        False,
    )
    opcheck(torch.ops.maskco.info_nce_fwd, args)
    opcheck(torch.ops.maskco.info_nce_fwd, (*args, True, 0.2))
    keys = (unit(4, 6), unit(10, 6), False, None, None, None)
    args = (torch.rand(4), torch.rand(2, 4) + 1, *keys, 0.2, None, True, False)
    opcheck(torch.ops.maskco.info_nce_bwd_keys, args)
    opcheck(torch.ops.maskco.info_nce_bwd_keys, (*args, 0.1, torch.rand(4)))


@pytest.mark.filterwarnings("ignore")
def test_compiles_into_one_graph():
    torch.manual_seed(0)

    def step(query, positive, queue, valid, tau):
        loss, stats = info_nce(query, positive, queue, valid=valid, in_batch=True, temperature=tau, return_stats=True)
        return loss, stats.rank

    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    for n in (5, 8):
        tau = torch.tensor(0.3, requires_grad=True)
        query, positive, queue = unit(n, 12).requires_grad_(), unit(n, 12).requires_grad_(), unit(30, 12)
        results = []
        for function in (step, compiled):
            loss, rank = function(query, positive, queue, torch.tensor(20), tau)
            results.append((loss, rank, *torch.autograd.grad(loss, (query, positive, tau))))
        for eager, graph in zip(*results, strict=True):
            torch.testing.assert_close(graph, eager)


def test_autocast_follows_the_queue():
    torch.manual_seed(0)
    case = make_case(m=0, ids=False, in_batch=False)
    with pytest.raises(TypeError, match="one dtype, got bfloat16, float32"):
        info_nce(**case | {"query": case["query"].bfloat16()})
    with torch.autocast("cpu", torch.bfloat16):
        query = case["query"].bfloat16().requires_grad_()
        loss = info_nce(**case | {"query": query})
    assert loss.dtype == torch.float32
    expected = info_nce(**case | {"query": query.detach().float()})
    assert torch.equal(loss, expected)
    loss.backward()
    assert query.grad.dtype == torch.bfloat16


def test_backward_inside_autocast_and_a_temperature_of_any_shape():
    torch.manual_seed(0)
    case = make_case(ids=False) | {"temperature": torch.tensor([[0.3]])}
    expected = run(info_nce, case, FEATURES)
    with torch.autocast("cpu", torch.bfloat16):
        inside = run(info_nce, case, FEATURES)
    for name in expected:
        assert torch.equal(inside[name], expected[name]), name


def test_an_infinite_logit_of_a_negative_is_an_infinite_loss():
    query, positive, queue = torch.ones(2, 4), torch.ones(2, 4), torch.ones(3000, 4)
    queue[700, 0] = math.inf
    loss, stats = info_nce(query, positive, queue, reduction="none", return_stats=True)
    assert loss.isposinf().all() and stats.lse.isposinf().all() and (stats.rank == 1).all()
    positive[:, 0] = -math.inf
    loss, stats = info_nce(query, positive, torch.ones(5, 4), reduction="none", return_stats=True)
    assert loss.isposinf().all() and torch.allclose(stats.lse, torch.tensor(20 + math.log(5)))


def test_numpy_arrays_by_dlpack():
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in ((4, 8), (4, 8), (20, 8))]
    torch.testing.assert_close(info_nce(*arrays), info_nce(*map(torch.from_numpy, arrays)))


@pytest.mark.parametrize("number", [np.float32, np.float64, np.float16, np.array, lambda x: np.array(x, np.float32)])
def test_numpy_numbers(number):
    torch.manual_seed(0)
    case = make_case(temperature=0.25)
    expected = info_nce(**case)
    assert torch.equal(info_nce(**case | {"temperature": number(0.25)}), expected)
    for valid in (np.int64(40), np.int32(40), np.array(40), torch.tensor(40)):
        assert torch.equal(info_nce(**case | {"valid": valid}), expected)
    assert torch.equal(info_nce(**case | {"temperature": np.int64(2)}), info_nce(**case | {"temperature": 2.0}))


BAD = {
    "NumPy's zero": ({"temperature": np.float32(0)}, ValueError, "temperature must be a number other than 0, got 0"),
    "an array of zero": ({"temperature": np.array(0.0)}, ValueError, "temperature must be a number other than 0"),
    "NumPy's NaN": ({"temperature": np.float64("nan")}, ValueError, "temperature must be a number .*, got nan"),
    "temperature text": ({"temperature": "0.2"}, TypeError, "temperature must be a tensor .*, got str"),
    "temperature bool": ({"temperature": True}, TypeError, "temperature must be a tensor .*, got bool"),
    "valid float": ({"valid": 3.0}, TypeError, "valid must be an integer, got 3.0"),
    "valid NumPy float": ({"valid": np.float32(3)}, TypeError, "valid must be an integer, got"),
    "valid NumPy": ({"valid": np.int64(46)}, ValueError, "valid must lie between 0 and the queue's 45 rows, got 46"),
    "valid bool": ({"valid": True}, TypeError, "valid must be a tensor .*, got bool"),
    "query shape": ({"query": torch.zeros(3)}, ValueError, r"query must have shape \[N, C\], got \[3\]"),
    "positive shape": ({"positive": torch.zeros(9, 4)}, ValueError, r"positive must have shape \[9, 20\], got"),
    "queue width": ({"queue": torch.zeros(45, 4)}, ValueError, r"queue must have shape \[K, 20\]"),
    "local shape": ({"local_negatives": torch.zeros(9, 20)}, ValueError, r"local_negatives must have shape"),
    "dtype": ({"query": torch.zeros(9, 20, dtype=torch.int64)}, TypeError, "query must be float32, .*, got int64"),
    "not a tensor": ({"query": [[1.0]]}, TypeError, "query must be a tensor or an array with __dlpack__, got list"),
    "mixed": ({"positive": torch.zeros(9, 20).double()}, TypeError, "one dtype, got float32, float64; convert"),
    "ids length": ({"query_ids": torch.zeros(8, dtype=torch.long)}, ValueError, r"query_ids must have shape \[9\]"),
    "ids dtype": ({"query_ids": torch.zeros(9)}, TypeError, "query_ids must be int64"),
    "ids alone": ({"query_ids": None}, ValueError, "queue_ids were given without query_ids; pass both"),
    "valid too large": ({"valid": 46}, ValueError, "valid must lie between 0 and the queue's 45 rows, got 46"),
    "valid dtype": ({"valid": torch.tensor(3.0)}, TypeError, "valid must be int64"),
    "valid tensor": ({"valid": torch.tensor(46)}, RuntimeError, "valid must lie between 0 and the queue's 45 rows"),
    "temperature": ({"temperature": 0}, ValueError, "temperature must be a number other than 0, got 0"),
    "temperature shape": ({"temperature": torch.ones(2)}, ValueError, r"temperature must be a float or .* \[2\]"),
    "margin": ({"margin": math.nan}, ValueError, "margin must be a number, got nan"),
    "margin text": ({"margin": "0.1"}, TypeError, "margin must be a number, got '0.1'"),
    "reduction": ({"reduction": "avg"}, ValueError, "reduction must be 'mean', 'sum' or 'none', got 'avg'"),
    "device": ({"queue": torch.zeros(45, 20, device="meta")}, ValueError, "queue is on meta but query on cpu"),
}  # fmt: skip


@pytest.mark.parametrize("change, error, message", BAD.values(), ids=BAD.keys())
def test_bad_input(change, error, message):
    with pytest.raises(error, match=message):
        info_nce(**make_case() | change)
