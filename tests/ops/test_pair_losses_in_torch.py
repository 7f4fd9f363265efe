"""The losses over all pairs among torch's own: gradcheck, opcheck, compile, autocast, strides, NumPy, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.library import opcheck

from contrast_cases import unit
from pair_cases import CLIP, SIGLIP, SUPCON, SUPCON_SELF, every_loss, make, run


@every_loss
def test_gradcheck(device, request, loss):
    torch.manual_seed(0)
    case = make(loss, 5, 4, 7, torch.float64, device)
    names = (*loss.features, *loss.scalars)
    inputs = [torch.as_tensor(case.pop(name), dtype=torch.float64, device=device).requires_grad_() for name in names]
    on_sim = request.node.get_closest_marker("sim") is not None  # (where a call takes long)
    for reduction in ("none", "sum"):
        case["reduction"] = reduction
        assert torch.autograd.gradcheck(
            lambda *x: loss.op(**dict(zip(names, x, strict=True)), **case), inputs, fast_mode=on_sim
        )


@every_loss
def test_batched_and_fake_upstream_gradients(loss):
    """torch.autograd.functional's vectorised Jacobians, and whoever plans memory with fake tensors."""
    torch.manual_seed(0)
    name, case = loss.features[0], make(loss)
    leaf = case[name].requires_grad_()
    (single,) = torch.autograd.grad(loss.op(**case), leaf)
    (several,) = torch.autograd.grad(loss.op(**case), leaf, torch.tensor([1.0, -2.0]), is_grads_batched=True)
    torch.testing.assert_close(several, torch.stack([single, -2 * single]))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = {n: mode.from_tensor(v) if torch.is_tensor(v) else v for n, v in case.items()}
        (planned,) = torch.autograd.grad(loss.op(**fake), fake[name])
    assert planned.shape == leaf.shape


@every_loss
def test_any_strides(device, loss):
    torch.manual_seed(0)
    case = make(loss, 70, 48, 70, device=device)
    expected = run(loss.op, loss, case, loss.features)
    views = (lambda t: t.T.contiguous().T, lambda t: torch.cat([t, t], 1)[:, :48], lambda t: torch.cat([t, t])[1::2])
    for view in views:
        strided = dict(case)
        for name in loss.features:
            strided[name] = view(case[name])
        if view is views[2]:
            expected = run(loss.op, loss, strided | {n: strided[n].contiguous() for n in loss.features}, loss.features)
        leaves = {name: strided[name].detach().requires_grad_() for name in loss.features}
        rows = loss.op(**strided | leaves, reduction="none")
        torch.testing.assert_close(rows, expected["loss"])
        weights = torch.linspace(0.5, 2, len(rows), device=device)
        grads = torch.autograd.grad((rows * weights).sum(), list(leaves.values()))
        for name, grad in zip(leaves, grads, strict=True):
            torch.testing.assert_close(grad, expected[f"grad_{name}"])


@every_loss
def test_no_second_derivative_and_no_transforms(loss):
    case = make(loss)
    name = loss.features[0]
    leaf = case[name].requires_grad_()
    for reduction in ("mean", "none"):
        with pytest.raises(RuntimeError, match="no second derivative"):
            torch.autograd.grad(loss.op(**case, reduction=reduction).sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="forward-mode derivative"):
        torch.func.grad(lambda x: loss.op(**case | {name: x}))(leaf.detach())


@pytest.mark.parametrize("need", [False, True])
def test_opcheck(need):
    torch.manual_seed(0)
    ops = torch.ops.maskco
    a, b = unit(6, 8).requires_grad_(need), unit(6, 8).requires_grad_(need)
    labels, scale, bias = torch.tensor([0, 1, 0, 1, 2, 2]), torch.tensor(3.0), torch.tensor(-1.0)
    for tensor, margin, smoothing in ((None, None, 0.0), (scale, 0.1, 0.2)):
        opcheck(ops.clip_loss_fwd, (a, b, 0, labels, labels, 2.0, tensor, True, smoothing, False, margin, 32 * need))
    opcheck(ops.supcon_loss_fwd, (a, b, labels, labels, None, 2.0, scale, False, 32 * need))
    opcheck(ops.siglip_loss_fwd, (a, b, 0, 2.0, scale, 1.0, bias))
    opcheck(ops.siglip_loss_sum, (a, b, None, 2.0, scale, 1.0, bias, 0.5, need, need, False, False))
    opcheck(
        ops.supcon_loss_sum, (a, a.detach(), labels, labels, 0, 2.0, scale, True, 0.5, need, False, False, 32 * need)
    )
    for stats in (False, True):
        needed = (need, need, False, 32 * need, stats)
        opcheck(ops.clip_loss_sum, (a, b, labels, 2.0, scale, True, 0.1, False, 0.1, 0.5, *needed))
    with torch.no_grad():
        rows, c = torch.ones(6), (a, b)
        found = ops.clip_loss_fwd(*c, 0, None, None, 2.0, None, True, 0.0, False, None, 32)
        options = (
            0,
            None,
            None,
            2.0,
            None,
            True,
            0.0,
            False,
            None,
            found[1],
            found[2],
            found[2][0, :6],
            *found[5:],
            True,
            True,
            True,
        )
        opcheck(ops.clip_loss_bwd, (rows, rows, *c, *options))
        found = ops.supcon_loss_fwd(*c, labels, labels, 1, 2.0, None, False, 32)
        opcheck(ops.supcon_loss_bwd, (rows, *c, labels, labels, 1, 2.0, None, *found[3:], False, True, True, True))
        opcheck(ops.siglip_loss_bwd, (rows, *c, 0, 2.0, None, 1.0, None, True, True, True, True))


@pytest.mark.filterwarnings("ignore")
@every_loss
def test_compiles_into_one_graph(loss):
    torch.manual_seed(0)
    names = (*loss.features, *loss.scalars)

    def step(case):
        return loss.op(**case)

    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    for n in (6, 9):
        case = make(loss, n, 12, n)
        case |= {name: torch.as_tensor(case[name]).requires_grad_() for name in names}
        results = [torch.autograd.grad(function(case), [case[name] for name in names]) for function in (step, compiled)]
        for eager, graph in zip(*results, strict=True):
            torch.testing.assert_close(graph, eager)


@pytest.mark.filterwarnings("ignore")
@every_loss
def test_one_graph_takes_batches_of_every_size(loss):
    """More sizes than torch.compile would make graphs of, and scales that are floats."""
    compiled = torch.compile(lambda case: loss.op(**case), fullgraph=True, dynamic=True, backend="aot_eager")
    for n in range(4, 16):
        torch.manual_seed(n)
        case = make(loss, n, 8, n)
        torch.testing.assert_close(compiled(case), loss.op(**case))


def test_arrays_that_torch_cannot_share_and_integers_of_more_than_64_bits_are_named():
    features = np.ones((4, 3), np.float32)
    with pytest.raises(ValueError, match=r"^text cannot be shared with torch \(.*\)\. Pass a contiguous copy of it$"):
        CLIP.op(image=features, text=features[::-1])
    with pytest.raises(ValueError, match=f"offset must fit into 64 bits, got {2**70}"):
        SIGLIP.op(image=features, text=features, logit_scale=1.0, logit_bias=0.0, offset=2**70)


@every_loss
def test_make_fx_traces_gradients(loss):
    torch.manual_seed(0)
    name, case = loss.features[0], make(loss)

    def gradient(features):
        return torch.autograd.grad(loss.op(**case | {name: features}), features)[0]

    leaf = case[name].requires_grad_()
    torch.testing.assert_close(make_fx(gradient)(leaf)(leaf), gradient(leaf))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("trace", [lambda f, x: make_fx(f, tracing_mode="symbolic")(x), torch.jit.trace])
@every_loss
def test_a_traced_mean_is_that_of_any_number_of_rows(loss, trace):
    torch.manual_seed(0)
    case = make(loss, 6, 8, 6) | {"reduction": "mean"}
    case = {name: value for name, value in case.items() if value is not None}

    def of(features):
        """The loss of tensors that are all made of one, so that their sizes follow it."""
        made = {name: (features[:, 0] > 0).long() for name, value in case.items() if torch.is_tensor(value)}
        return loss.op(**case | made | {name: features * (1 + number) for number, name in enumerate(loss.features)})

    traced = trace(of, torch.randn(6, 8))
    fewer = torch.randn(4, 8)
    torch.testing.assert_close(traced(fewer), of(fewer))


@every_loss
def test_autocast_widens(loss):
    torch.manual_seed(0)
    case = make(loss)
    expected = loss.op(**case)
    if len(loss.features) == 2:
        narrow = case | {loss.features[1]: case[loss.features[1]].bfloat16()}
        with pytest.raises(TypeError, match=r"must have one dtype, got bfloat16, float32. Convert them"):
            loss.op(**narrow)
        with torch.autocast("cpu", torch.bfloat16):
            leaf = narrow[loss.features[1]].requires_grad_()
            value = loss.op(**narrow)
        value.backward()
        assert value.dtype == torch.float32 and leaf.grad.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        leaf = case[loss.features[0]].requires_grad_()
        inside = loss.op(**case)
        inside.backward()
        assert torch.equal(inside, expected) and leaf.grad.isfinite().all()


@every_loss
def test_numpy_arrays_by_dlpack(loss):
    case = make(loss)
    arrays = {name: value.numpy() if torch.is_tensor(value) else np.float32(value) for name, value in case.items()}
    torch.testing.assert_close(loss.op(**arrays), loss.op(**case))


FEATURES = torch.zeros(9, 20)
BAD = {
    "clip shape": (CLIP, {"text": torch.zeros(8, 20)}, ValueError, r"text must have shape \[9, 20\], got \[8, 20\]"),
    "clip dtype": (CLIP, {"image": FEATURES.long()}, TypeError, "image must be float32, .*, got int64"),
    "clip both scales": (CLIP, {"temperature": 0.1}, ValueError, "temperature and logit_scale were both given"),
    "clip no scale": (CLIP, {"logit_scale": 0}, ValueError, "logit_scale must be a number other than 0, got 0"),
    "clip scales": (CLIP, {"logit_scale": torch.ones(2)}, ValueError, r"logit_scale must be a float or .* \[2\]"),
    "clip ids": (CLIP, {"ids": torch.arange(8)}, ValueError, r"ids must have shape \[9\], got \[8\]"),
    "clip smoothing": (CLIP, {"label_smoothing": 1.5}, ValueError, "label_smoothing must lie between 0 and 1, got 1.5"),
    "clip device": (CLIP, {"text": FEATURES.to("meta")}, ValueError, "text is on meta but image on cpu"),
    "clip list": (CLIP, {"image": [[1.0]]}, TypeError, "image must be a tensor or an array with __dlpack__, got list"),
    "siglip width": (SIGLIP, {"text": torch.zeros(8, 3)}, ValueError, r"text must have shape \[M, 20\], got \[8, 3\]"),
    "siglip bias": (SIGLIP, {"logit_bias": "-10"}, TypeError, "logit_bias must be a number, a tensor .*, got str"),
    "siglip offset": (SIGLIP, {"offset": 1.5}, TypeError, "offset must be an integer, got 1.5"),
    "siglip reduction": (SIGLIP, {"reduction": "avg"}, ValueError, "reduction must be 'mean', 'sum' or 'none', got"),
    "supcon labels": (SUPCON, {"query_labels": torch.zeros(9)}, TypeError, "query_labels must be int64, .*, got float"),
    "supcon length": (SUPCON, {"key_labels": torch.arange(3)}, ValueError, r"key_labels must have shape \[14\]"),
    "supcon alone": (SUPCON, {"key_labels": None}, ValueError, "keys were given alone. Pass keys and key_labels"),
    "supcon offset": (SUPCON_SELF, {"offset": 3}, ValueError, "offset was given without keys. Pass both"),
    "supcon temperature": (SUPCON_SELF, {"temperature": 0.0}, ValueError, "temperature must be a number other than 0"),
}  # fmt: skip


@pytest.mark.parametrize(("loss", "change", "error", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input(loss, change, error, message):
    with pytest.raises(error, match=message):
        loss.op(**make(loss) | change)
