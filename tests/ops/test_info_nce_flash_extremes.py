"""The tensor-core kernels of info_nce at logits of any size, and with infinities and NaN in their inputs."""

from __future__ import annotations

import math

import pytest
import torch

from contrast_cases import FEATURES, make_case, run, unit
from flash_cases import dtype_of, every_kind
from maskco.ops import info_nce, reference

pytestmark = pytest.mark.parametrize("device", [pytest.param("sim", marks=pytest.mark.sim)], indirect=True)


@every_kind
def test_rows_past_valid_may_hold_anything(device, kind):
    torch.manual_seed(0)
    case = make_case(device, dtype_of(kind), c=32, m=0, ids=False)
    clean = run(info_nce, case, ("query", "queue"))
    case["queue"][40:] = math.nan
    dirty = run(info_nce, case, ("query", "queue"))
    assert all(torch.equal(clean[name], dirty[name]) for name in clean)
    assert not dirty["grad_queue"][40:].any()


@pytest.mark.parametrize("valid", [-1, 0, 1, 64, 600, 700])
def test_valid_is_read_on_the_device(device, valid):
    torch.manual_seed(0)
    case = make_case(device, torch.bfloat16, n=5, c=32, k=600, in_batch=False, ids=False, valid=valid)
    inside = case | {"valid": torch.tensor(min(max(valid, 0), 600))}
    actual = run(info_nce, case, ("query", "queue"))
    expected = run(reference.info_nce, inside, ("query", "queue"))
    for name in ("loss", "lse", "rank"):
        torch.testing.assert_close(actual[name], expected[name])
    for name in ("grad_query", "grad_queue"):
        torch.testing.assert_close(actual[name], expected[name], rtol=2e-2, atol=2e-3)


@every_kind
def test_nan_in_a_query_stays_in_its_row(device, kind):
    torch.manual_seed(0)
    case = make_case(device, dtype_of(kind), n=7, c=32, m=0, ids=False, in_batch=False)
    clean = run(info_nce, case, ("query", "queue"))
    case["query"][3, 5] = math.nan
    result = run(info_nce, case, ("query", "queue"))
    rest = torch.arange(7) != 3
    for name in ("loss", "lse", "positive_logit", "grad_query"):
        assert bool(result[name][3].isnan().all()), name
        assert torch.equal(result[name][rest], clean[name][rest]), name
    assert bool(result["grad_queue"][:40].isnan().all()) and not result["grad_queue"][40:].any()


@pytest.mark.parametrize("where", ["queue", "positive", "local_negatives", "query"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@every_kind
def test_nan_and_inf_end_as_in_the_reference(device, kind, where, bad):
    """Also where an infinite float32 is split in two, of which the second is infinity - infinity."""
    torch.manual_seed(0)
    case = make_case(device, dtype_of(kind), n=3, c=32, k=6, m=2, ids=False, in_batch=False, valid=6)
    for name in FEATURES:
        case[name].abs_()
    case[where].view(-1, 32)[0, 1] = bad
    actual, expected = run(info_nce, case), run(reference.info_nce, case)
    precision = {"rtol": 2**-11, "atol": 2**-11} if kind == "tf32" else {}  # of features with 10 bits of mantissa
    for name in ("loss", "lse", "positive_logit", "rank"):
        torch.testing.assert_close(
            actual[name], expected[name], equal_nan=True, msg=lambda m, name=name: f"{name}: {m}", **precision
        )


@pytest.mark.parametrize("temperature, upstream", [(0.2, 1), (-0.2, 1), (0.2, -1)])
def test_an_infinite_key_spoils_no_other_key_s_gradient(device, temperature, upstream):
    torch.manual_seed(0)
    query, positive, queue = (torch.rand(rows, 32) for rows in (3, 3, 6))
    queue[2, 1] = math.copysign(math.inf, temperature)
    queue.requires_grad_()
    (upstream * info_nce(query, positive, queue, temperature=temperature)).backward()
    assert queue.grad.isnan().any(1).tolist() == [False, False, True, False, False, False]


@every_kind
def test_logits_that_overflow(device, kind):
    """From finite features to infinite logits (not in float16's range), and far beyond what exp can take."""
    torch.manual_seed(0)
    case = make_case(device, dtype_of(kind), n=4, c=32, m=0, ids=False, in_batch=False)
    hot = run(info_nce, case | {"temperature": 1e-4})
    truth = run(reference.info_nce, {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v
                                     for k, v in case.items()} | {"temperature": 1e-4})  # fmt: skip
    torch.testing.assert_close(hot["loss"].double(), truth["loss"], rtol=2e-3, atol=1 if kind != "tf32" else 10)
    if kind != "float16":
        case["query"], case["queue"] = case["query"].abs() * 1e30, case["queue"].abs() * 1e30
        loss = info_nce(**case, reduction="none")
        assert bool(loss.isposinf().all())


@every_kind
def test_gradient_keeps_its_precision_when_the_positive_wins(device, kind):
    """Loss and gradient of 1e-9: in 16 bits, too, weights are relative to the largest negative, not to the positive."""
    torch.manual_seed(0)
    dtype = dtype_of(kind)
    query = unit(4, 32).to(dtype)
    case = make_case(device, dtype, n=4, c=32, k=300, m=0, valid=300, ids=False, in_batch=False, temperature=0.045)
    case |= {"query": query, "positive": query.clone(), "queue": (case["queue"] * 0.1).to(dtype)}
    wide = {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in case.items()}
    truth = run(reference.info_nce, wide, ("query",))
    assert truth["loss"].detach().max() < 1e-6
    options = (None, False, None, None, None, 0.045, None, True, kind == "tf32")
    loss, _, _, _, grad, *_ = torch.ops.maskco_sim.info_nce_fwd(
        case["query"], case["positive"], case["queue"], *options
    )
    torch.testing.assert_close(loss.double(), truth["loss"].detach(), rtol=1e-3, atol=0)
    grad = grad * torch.linspace(0.5, 2, 4)[:, None]
    torch.testing.assert_close(
        grad.double(), truth["grad_query"], rtol=2e-2, atol=2e-2 * float(truth["grad_query"].abs().max())
    )


def test_scaled_losses_do_not_overflow_the_keys_gradient(device):
    """GradScaler's 65536 makes upstream gradients that float16 cannot hold; the keys' own gradients it can."""
    torch.manual_seed(0)
    case = make_case(device, torch.float16, n=6, c=32, k=400, m=0, valid=400, ids=False, in_batch=False)
    gradients = []
    for scale in (1, 65536):
        queue = case["queue"].clone().requires_grad_()
        (info_nce(**case | {"queue": queue}, reduction="sum") * scale).backward()
        gradients.append(queue.grad.double() / scale)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-2, atol=1e-6)


def test_precision_follows_torchs_setting(device, monkeypatch):
    torch.manual_seed(0)
    case = make_case(device, n=6, c=64, k=200, m=0, valid=200, ids=False, in_batch=False)
    wide = {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in case.items()}
    truth = reference.info_nce(**wide)[1]
    error = {}
    before = torch.get_float32_matmul_precision()
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        try:
            error[precision] = float((run(info_nce, case)["lse"].double() - truth).abs().max())
        finally:
            torch.set_float32_matmul_precision(before)
    assert error["highest"] < 2e-6 < 1e-5 < error["high"] < 1e-3
