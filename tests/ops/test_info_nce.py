"""info_nce against plain cross-entropy in float64: values, gradients, memory, repeatability."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_queries_give_the_keys_a_gradient_of_zeros(device, dtype):
    none = torch.zeros(0, 20, dtype=dtype, device=device)
    queue = torch.ones(10, 20, dtype=dtype, device=device, requires_grad=True)
    info_nce(none, none, queue).backward()
    assert queue.grad.shape == queue.shape and not queue.grad.any()


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
