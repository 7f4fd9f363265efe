"""info_nce among torch's own: gradcheck, opcheck, compile, autocast, strides, NumPy, and errors for bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.library import opcheck

from contrast_cases import FEATURES, make_case, run, unit
from maskco.ops import info_nce, reference


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
    "temperature text": ({"temperature": "0.2"}, TypeError, "temperature must be a number, a tensor .*, got str"),
    "temperature bool": ({"temperature": True}, TypeError, "temperature must be a number, a tensor .*, got bool"),
    "valid float": ({"valid": 3.0}, TypeError, "valid must be an integer, got 3.0"),
    "valid NumPy float": ({"valid": np.float32(3)}, TypeError, "valid must be an integer, got"),
    "valid NumPy": ({"valid": np.int64(46)}, ValueError, "valid must lie between 0 and the queue's 45 rows, got 46"),
    "valid bool": ({"valid": True}, TypeError, "valid must be an integer, a tensor .*, got bool"),
    "query shape": ({"query": torch.zeros(3)}, ValueError, r"query must have shape \[N, C\], got \[3\]"),
    "positive shape": ({"positive": torch.zeros(9, 4)}, ValueError, r"positive must have shape \[9, 20\], got"),
    "queue width": ({"queue": torch.zeros(45, 4)}, ValueError, r"queue must have shape \[K, 20\]"),
    "local shape": ({"local_negatives": torch.zeros(9, 20)}, ValueError, r"local_negatives must have shape"),
    "dtype": ({"query": torch.zeros(9, 20, dtype=torch.int64)}, TypeError, "query must be float32, .*, got int64"),
    "not a tensor": ({"query": [[1.0]]}, TypeError, "query must be a tensor or an array with __dlpack__, got list"),
    "mixed": ({"positive": torch.zeros(9, 20).double()}, TypeError, "one dtype, got float32, float64. Convert"),
    "ids length": ({"query_ids": torch.zeros(8, dtype=torch.long)}, ValueError, r"query_ids must have shape \[9\]"),
    "ids dtype": ({"query_ids": torch.zeros(9)}, TypeError, "query_ids must be int64"),
    "ids alone": ({"query_ids": None}, ValueError, "queue_ids were given without query_ids. Pass both"),
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


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamic", [None, True])
def test_compiles_with_float_temperatures_that_change(dynamic):
    query, queue = unit(4, 6), unit(10, 6)

    def step(temperature):
        return info_nce(query, query, queue, temperature=temperature)

    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for temperature in (0.1, 0.2, 0.3):
        torch.testing.assert_close(compiled(temperature), step(temperature))
