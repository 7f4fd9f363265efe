"""clip_loss, siglip_loss and supcon_loss against plain torch in float64: values, gradients, extremes, memory."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from contrast_cases import DTYPES, unit
from maskco.ops import clip_loss, siglip_loss, supcon_loss
from pair_cases import CLIP, SIGLIP, SUPCON, SUPCON_SELF, check, every_loss, make, run, wide
from peak_memory import peak_mib
from tolerance import assert_as_good_as

DEVIATIONS = {
    "clip with ids": (CLIP, {"ids": torch.tensor([3, 1, 3, 5, 1, 2**40, 2**40, 7, -3])}),
    "clip smoothed": (CLIP, {"label_smoothing": 0.1}),
    "clip smoothed with ids": (CLIP, {"label_smoothing": 0.3, "ids": torch.tensor([3, 1, 3, 5, 1, 4, 4, 7, -3])}),
    "clip of one id": (CLIP, {"ids": torch.zeros(9, dtype=torch.int32)}),
    "clip, negative scale": (CLIP, {"logit_scale": -3.0}),
    "clip, cold": (CLIP, {"logit_scale": 100.0}),
    "siglip, texts of others": (SIGLIP, {"offset": None}),
    "siglip, offset": (SIGLIP, {"offset": 3}),
    "siglip, offset beyond": (SIGLIP, {"offset": 10}),
    "siglip, negative offset": (SIGLIP, {"offset": -4}),
    "siglip, cold": (SIGLIP, {"logit_scale": 100.0, "logit_bias": -10.0}),
    "supcon, one label": (SUPCON_SELF, {"query_labels": torch.zeros(9, dtype=torch.long)}),
    "supcon, labels of their own": (SUPCON_SELF, {"query_labels": torch.arange(9)}),
    "supcon, some without positives": (SUPCON_SELF, {"query_labels": torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 5])}),
    "supcon, offset": (SUPCON, {"offset": 2}),
    "supcon, offset beyond": (SUPCON, {"offset": 11}),
    "supcon, negative temperature": (SUPCON, {"temperature": -0.5}),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_loss
def test_values_and_gradients(device, loss, dtype):
    torch.manual_seed(0)
    check(loss, make(loss, dtype=dtype, device=device))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("loss", "options"), DEVIATIONS.values(), ids=DEVIATIONS.keys())
def test_values_and_gradients_with_options(device, loss, options, dtype):
    torch.manual_seed(0)
    check(loss, make(loss, dtype=dtype, device=device, **options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("n", "c", "k"), [(252, 123, 507), (1, 16, 1), (2, 1, 33), (700, 64, 300), (130, 513, 95)])
@every_loss
def test_ragged_sizes(device, loss, n, c, k, dtype):
    """Around groups of 128 queries, blocks of 128 keys, panels of 32 features, and nothing a multiple of anything."""
    torch.manual_seed(0)
    check(loss, make(loss, n, c, k, dtype, device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@every_loss
def test_more_pairs_than_are_kept(loss, dtype):
    """Beyond 16 MiB of logits the backward pass computes the rest again, in chunks of 2048 queries or fewer."""
    torch.manual_seed(0)
    check(loss, make(loss, 2300, 8, 2200, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_loss
def test_the_sum_of_more_pairs_than_are_kept(loss, dtype):
    """A sum makes its gradients in the forward pass."""
    torch.manual_seed(0)
    case = make(loss, 2300, 8, 2200, dtype)

    def of(function, case):
        case = case | {name: case[name].clone().requires_grad_() for name in loss.features}
        value = function(**case, reduction="sum") if function is loss.op else function(**case)[0].sum()
        return value, torch.autograd.grad(value, [case[name] for name in loss.features])

    actual, same, truth = of(loss.op, case), of(loss.reference, case), of(loss.reference, wide(case))
    torch.testing.assert_close(actual[0].double(), truth[0], rtol=1e-3 if dtype == torch.bfloat16 else 1e-5, atol=0)
    for name, *grads in zip(loss.features, actual[1], same[1], truth[1], strict=True):
        assert_as_good_as(*grads, dtype, name)


@every_loss
def test_kept_and_computed_logits_give_the_same_bits(loss, monkeypatch):
    torch.manual_seed(0)
    for dtype, n in itertools.product((torch.float32, torch.bfloat16), (90, 300)):
        case = make(loss, n, 24, 200, dtype)
        kept = run(loss.op, loss, case, loss.features)
        for rows in (0, 128) if n > 128 else (0,):
            for module in (clip_loss, supcon_loss):
                monkeypatch.setitem(module.__globals__, "kept_rows", lambda *_, rows=rows, **__: rows)
            again = run(loss.op, loss, case, loss.features)
            monkeypatch.undo()
            assert all(torch.equal(kept[name], again[name]) for name in kept)


@every_loss
def test_every_subset_of_gradients(device, loss):
    torch.manual_seed(0)
    names = (*loss.features, *loss.scalars)
    case = make(loss, 6, 8, 10, device=device)
    case |= {name: torch.tensor(case[name], device=device) for name in loss.scalars}
    everything = run(loss.op, loss, case, names)
    for wanted in (s for r in range(len(names)) for s in itertools.combinations(names, r)):
        result = run(loss.op, loss, case, wanted)
        for reduction in ("mean", "sum"):
            leaves = {name: case[name].clone().requires_grad_(name in wanted) for name in names}
            value = loss.op(**case | leaves, reduction=reduction)
            assert value.requires_grad == bool(wanted)
            if wanted:
                grads = torch.autograd.grad(value, [leaves[name] for name in wanted])
                assert all(g.shape == case[name].shape for g, name in zip(grads, wanted, strict=True))
        for name, value in result.items():
            torch.testing.assert_close(value, everything[name], rtol=0, atol=0)


@every_loss
def test_reductions(device, loss):
    torch.manual_seed(0)
    case = make(loss, device=device)
    names = loss.features
    rows = loss.op(**case, reduction="none")
    for reduction, expected in (("mean", rows.mean()), ("sum", rows.sum())):
        leaves = {name: case[name].clone().requires_grad_() for name in names}
        torch.testing.assert_close(loss.op(**case, reduction=reduction), expected)
        value, plain = loss.op(**case | leaves, reduction=reduction), loss.op(**case | leaves, reduction="none")
        plain = plain.mean() if reduction == "mean" else plain.sum()
        # times 3: an upstream gradient that is not 1
        for ours, theirs in zip(
            torch.autograd.grad(3 * value, list(leaves.values())),
            torch.autograd.grad(3 * plain, list(leaves.values())),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs)


def test_equals_open_clips_own_formulas():
    torch.manual_seed(0)
    image, text, scale, bias = unit(24, 32), unit(24, 32), torch.tensor(14.0), torch.tensor(-10.0)
    logits, labels = scale * image @ text.T, torch.arange(24)
    expected = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    torch.testing.assert_close(clip_loss(image, text, logit_scale=scale), expected)
    torch.testing.assert_close(clip_loss(image, text, temperature=1 / 14), expected)
    torch.testing.assert_close(clip_loss(image, text), clip_loss(image, text, temperature=0.07))
    smoothed = (F.cross_entropy(x, labels, label_smoothing=0.2) for x in (logits, logits.T))
    torch.testing.assert_close(clip_loss(image, text, logit_scale=scale, label_smoothing=0.2), sum(smoothed) / 2)
    signs = 2 * torch.eye(24) - 1
    expected = -F.logsigmoid(signs * (logits + bias)).sum() / 24
    torch.testing.assert_close(siglip_loss(image, text, logit_scale=scale, logit_bias=bias), expected)


def test_stats(device):
    torch.manual_seed(0)
    image, text = unit(40, 16, device=device), unit(40, 16, device=device)
    _, stats = clip_loss(image, text, temperature=0.2, return_stats=True)
    logits = image @ text.T / 0.2
    assert torch.equal(stats.image_rank, (logits > logits.diagonal()[:, None]).sum(1))
    assert torch.equal(stats.text_rank, (logits > logits.diagonal()).sum(0))
    torch.testing.assert_close(stats.image_lse, logits.logsumexp(1))
    torch.testing.assert_close(stats.text_lse, logits.logsumexp(0))
    torch.testing.assert_close(stats.positive_logit, logits.diagonal())
    _, stats = supcon_loss(image, query_labels=torch.arange(40, device=device) // 3, return_stats=True)
    assert stats.positives.tolist() == [2] * 39 + [0] and stats.positives.dtype == torch.int64


def test_a_row_without_positives_has_neither_loss_nor_gradient(device):
    """SupContrast has NaN there (its issues 141 and 142)."""
    torch.manual_seed(0)
    query, labels = unit(4, 8, device=device).requires_grad_(), torch.tensor([0, 0, 1, 2], device=device)
    loss, stats = supcon_loss(query, query_labels=labels, reduction="none", return_stats=True)
    assert (loss[2:] == 0).all() and (loss[:2] > 0).all() and stats.positives.tolist() == [1, 1, 0, 0]
    loss[2:].sum().backward()
    assert not query.grad.any()
    alone = unit(1, 8, device=device).requires_grad_()
    supcon_loss(alone, query_labels=labels[:1]).backward()
    assert not alone.grad.any()


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan], ids=str)
@every_loss
def test_infinities_and_nan_stand_where_the_reference_has_them(device, loss, value):
    """In losses and stats. Of positive features, so that an infinite one makes its logits infinite with one sign."""
    torch.manual_seed(0)
    for name, dtype in itertools.product(loss.features, (torch.float32, torch.bfloat16)):
        case = make(loss, 9, 20, 9, dtype, device)
        case |= {feature: case[feature].abs() for feature in loss.features}
        case[name][1, 2] = value
        check(loss, case, ())
        if loss.stats:
            _, stats = loss.op(**case, return_stats=True)
            for field, expected in run(loss.op, loss, case).items():
                if field != "loss":
                    torch.testing.assert_close(getattr(stats, field), expected, equal_nan=True)


def test_gradient_keeps_its_precision_when_the_pairs_win(device):
    """Losses and gradients of 1e-9: summed with the own pair, they would drown in float32's 1e-7."""
    torch.manual_seed(0)
    image = F.normalize(torch.eye(6, 16) + 0.01 * torch.randn(6, 16), dim=1).to(device)
    case = {"image": image, "text": image.clone(), "logit_scale": 20.0}
    actual, truth = (run(f, CLIP, c, CLIP.features) for f, c in ((clip_loss, case), (CLIP.reference, wide(case))))
    assert truth["loss"].detach().max() < 3e-8
    torch.testing.assert_close(actual["loss"].double(), truth["loss"], rtol=1e-3, atol=0)
    torch.testing.assert_close(actual["grad_image"].double(), truth["grad_image"], rtol=1e-2, atol=1e-15)
    case = {"image": image, "text": image.clone(), "logit_scale": 40.0, "logit_bias": -20.0}
    actual, truth = (
        run(f, SIGLIP, c, SIGLIP.features) for f, c in ((siglip_loss, case), (SIGLIP.reference, wide(case)))
    )
    assert truth["loss"].detach().max() < 3e-8
    torch.testing.assert_close(actual["loss"].double(), truth["loss"], rtol=1e-3, atol=0)


@pytest.mark.parametrize("norm", [1, 30, 1e2, 1e4, 1e5])
@pytest.mark.parametrize("n", [9, 70, 200])
@every_loss
def test_gradients_at_logits_of_any_size(device, loss, norm, n):
    """Relative to their largest entries. The backward pass may compute logits again, and must round them alike."""
    torch.manual_seed(0)
    case = make(loss, n, 40, n, device=device)
    for name in loss.features:
        case[name] = case[name] * norm
    results = [
        run(f, loss, c, loss.features)
        for f, c in ((loss.op, case), (loss.reference, case), (loss.reference, wide(case)))
    ]
    for name in loss.features:
        scale = results[2][f"grad_{name}"].abs().max()
        actual, same, truth = (result[f"grad_{name}"].double() / scale for result in results)
        allowed = (same - truth).abs().max() + 5e-4
        assert (actual - truth).abs().max() <= allowed, name


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@every_loss
def test_nan_and_inf_reach_the_loss(device, loss, bad):
    torch.manual_seed(0)
    for name in loss.features:
        case = make(loss, 40, 20, 50, device=device)
        for labels in case.keys() & {"query_labels", "key_labels"}:
            case[labels].zero_()
        case[name][0, 3] = bad
        assert not torch.isfinite(loss.op(**case)), name


@every_loss
def test_empty_batches(device, loss):
    for n, k in ((0, 0), (0, 5), (3, 0)):
        if n != k and loss in (CLIP, SUPCON_SELF):
            continue
        case = make(loss, n, 8, k, device=device)
        case |= {name: torch.tensor(case[name], device=device) for name in loss.scalars}
        leaves = {name: case[name].requires_grad_() for name in (*loss.features, *loss.scalars)}
        for reduction in ("mean", "sum", "none"):
            value = loss.op(**case, reduction=reduction)
            assert value.shape == ((n,) if reduction == "none" else ())
            assert not value.any()
            grads = torch.autograd.grad(value.sum(), list(leaves.values()))
            assert all(g.shape == v.shape and not g.any() for g, v in zip(grads, leaves.values(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_loss
def test_bitwise_repeatable_whatever_the_threads(loss, dtype):
    """Of float32 the number of threads changes nothing. ATen's products of bfloat16 may be cut by threads."""
    torch.manual_seed(0)
    case = make(loss, 600, 64, 500, dtype)
    first, second = run(loss.op, loss, case, loss.features), run(loss.op, loss, case, loss.features)
    assert all(torch.equal(first[name], second[name]) for name in first)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        other = run(loss.op, loss, case, loss.features)
    finally:
        torch.set_num_threads(threads)
    for name in first:
        if dtype == torch.float32 or not name.startswith("grad_"):
            assert torch.equal(first[name], other[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_loss
def test_extra_memory_does_not_hold_all_pairs(loss, dtype):
    """All pairs are 64 MiB. What a call takes beyond features and gradients stays below 32."""
    torch.manual_seed(0)
    case = make(loss, 4096, 64, 4096, dtype)
    leaves = {name: case[name].requires_grad_() for name in loss.features}

    def step():
        torch.autograd.grad(loss.op(**case), list(leaves.values()))

    step()
    assert min(peak_mib(step) for _ in range(3)) < 32


@pytest.mark.parametrize("n", [6, 40, 150])
def test_no_output_holds_what_the_memory_held_before(n):
    """Logits are kept in groups of queries whose last one may leave room."""
    torch.manual_seed(0)
    image, text, padded = unit(n, 8), unit(n, 8), -(-n // 32) * 32
    for _ in range(10):
        freed = [torch.full((n, padded), math.nan) for _ in range(4)]
        del freed
        outputs = torch.ops.maskco.clip_loss_fwd(image, text, 0, None, None, 2.0, None, True, 0.0, False, None, padded)
        assert not any(output.isnan().any() for output in outputs)
