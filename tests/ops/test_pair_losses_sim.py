"""The CUDA kernels of the losses over all pairs where only they have edges: blocks, slabs, channels, warp orders.

Values, gradients and the contract that all devices share: test_pair_losses.py, on the simulated device too.
"""

from __future__ import annotations

import importlib

import pytest
import torch
from torch.library import opcheck

from contrast_cases import DTYPES, unit
from maskco.ops import clip_loss, siglip_loss, supcon_loss
from pair_cases import CLIP, LOSSES, SIGLIP, SUPCON, check, make, run
from simulated import kernel_names

pytestmark = pytest.mark.parametrize("device", [pytest.param("sim", marks=pytest.mark.sim)], indirect=True)
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


def test_launches(device, simulated):
    """A sweep for the sums, one for the weights, and a few small kernels; a sigmoid needs a single sweep."""
    image, text = unit(40, 24).requires_grad_(), unit(40, 24).requires_grad_()
    clip_loss(image, text).backward()
    sweeps = ["contrast_own", "contrast_read", "clip_finish", "contrast_total", "clip_weights", "contrast_weigh"]
    assert kernel_names(simulated) == sweeps
    simulated.launches.clear()
    with torch.no_grad():
        clip_loss(image, text)
    assert kernel_names(simulated) == sweeps[:4]
    simulated.launches.clear()
    siglip_loss(image, text, logit_scale=10.0, logit_bias=-10.0).backward()
    assert kernel_names(simulated) == ["contrast_sigmoid", "contrast_rows", "contrast_total"]
    simulated.launches.clear()
    supcon_loss(image, query_labels=torch.arange(40) // 2).backward()
    assert kernel_names(simulated) == [
        "contrast_read",
        "supcon_finish",
        "contrast_total",
        "supcon_weights",
        "contrast_weigh",
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_loss
def test_blocks_of_several_tiles_and_slabs_of_queries(device, loss, dtype):
    """A GPU of one SM gets blocks of up to 16 x 16 tiles, and slabs whose weights take 1 MiB."""
    import ptxsim

    torch.manual_seed(0)
    case = make(loss, 1100, 8, 1300, dtype)
    with ptxsim.device("sm_80", sms=1, strict=True, race=False) as one_sm:
        check(loss, case)
    sweeps = [launch for launch in one_sm.launches if "weigh" in launch.kernel or "sigmoid" in launch.kernel]
    assert len(sweeps) > 2 and min(launch.grid[0] * launch.grid[1] for launch in sweeps) < 9


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [0, 1, 31, 64, 100, 384, 512, 768, 1024])
def test_channels(device, channels, dtype):
    """In chunks of 128 bytes, the last one ragged; rows that do not start at 16 bytes are read element by element."""
    torch.manual_seed(0)
    for loss in (CLIP, SIGLIP, SUPCON):
        check(loss, make(loss, 11, channels, 13, dtype))


@pytest.mark.parametrize("offset", [0, 1])
def test_rows_at_any_address(device, offset):
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        case = make(CLIP, 20, 64, dtype=dtype)
        for name in CLIP.features:
            memory = torch.zeros(20 * 72 + offset, dtype=dtype)
            view = memory[offset:].view(20, 72)[:, :64]
            view.copy_(case[name])
            case[name] = view
        check(CLIP, case)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_loss
def test_any_order_of_warps_and_any_gpu_gives_the_same_bits(device, loss, dtype):
    import ptxsim

    torch.manual_seed(0)
    case = make(loss, 150, 40, 140, dtype)
    expected = run(loss.op, loss, case, loss.features)
    for arch, schedule in (("sm_90", "reverse"), ("sm_86", "random")):
        with ptxsim.device(arch, strict=True, schedule=schedule):
            result = run(loss.op, loss, case, loss.features)
        assert all(torch.equal(result[name], expected[name]) for name in expected)


@every_loss
def test_one_term_of_tf32_where_torch_allows_it(device, loss, monkeypatch, simulated):
    """As in plain torch with its factors rounded to TF32: a tenth of a percent, and no more."""
    torch.manual_seed(0)
    case = make(loss, 140, 72, 90)
    exact = run(loss.op, loss, case, loss.features)
    simulated.launches.clear()
    module = importlib.import_module(loss.op.__module__)
    monkeypatch.setattr(module, "allow_tf32", lambda: True)
    found = run(loss.op, loss, case, loss.features)
    sweeps = [launch.kernel for launch in simulated.launches if "LogitTile" in launch.kernel]
    assert sweeps and all("Tf32Product<1>" in kernel for kernel in sweeps)
    for name in ("loss", *(f"grad_{feature}" for feature in loss.features)):
        error = (found[name] - exact[name]).abs().max() / exact[name].abs().max()
        assert 0 < error < 2e-3, name


def test_float16_weights_keep_their_precision_however_small(device):
    """Upstream gradients of 1e-6, and near-uniform softmaxes: in float16 itself such weights would be gone."""
    torch.manual_seed(0)
    for loss in (CLIP, SIGLIP, SUPCON):
        case = make(loss, 140, 16, 140, torch.float16)
        leaves = {name: case[name].clone().requires_grad_() for name in loss.features}
        wide = {name: case[name].double().requires_grad_() for name in loss.features}
        upstream = torch.full((140,), 1e-6)
        grads = torch.autograd.grad(
            loss.op(**case | leaves, reduction="none"),
            list(leaves.values()),
            upstream,
        )
        truth = torch.autograd.grad(loss.reference(**case | wide)[0], list(wide.values()), upstream.double())
        for grad, expected in zip(grads, truth, strict=True):
            assert (grad.double() - expected).abs().max() < 6e-8  # half a unit of float16's smallest


def test_opcheck(device):
    torch.manual_seed(0)
    ops = torch.ops.maskco_sim
    a, b = unit(6, 8), unit(6, 8)
    labels, scale, bias, rows = torch.tensor([0, 1, 0, 1, 2, 2]), torch.tensor(3.0), torch.tensor(-1.0), torch.ones(6)
    tests = ("test_schema", "test_faketensor")
    clip = (0, labels, labels, 2.0, scale, True, 0.1, False, 0.1)
    opcheck(ops.clip_loss_fwd, (a, b, *clip, 0), test_utils=tests)
    found = ops.clip_loss_fwd(a, b, *clip, 0)
    saved = (found[1], found[2], found[2][0, :6].contiguous(), *found[5:])
    opcheck(ops.clip_loss_bwd, (rows, rows, a, b, *clip, *saved, True, True, True), test_utils=tests)
    needed = (True, True, True)
    opcheck(ops.clip_loss_sum, (a, b, labels, *clip[3:6], 0.1, False, 0.1, 0.5, *needed, 0, True), test_utils=tests)
    supcon = (labels, labels, 1, 2.0, scale)
    opcheck(ops.supcon_loss_fwd, (a, b, *supcon, False, 0), test_utils=tests)
    found = ops.supcon_loss_fwd(a, b, *supcon, False, 0)
    opcheck(ops.supcon_loss_bwd, (rows, a, b, *supcon, *found[3:], False, *needed), test_utils=tests)
    opcheck(ops.supcon_loss_sum, (a, b, *supcon, False, 0.5, *needed, 0), test_utils=tests)
    siglip = (0, 2.0, scale, 1.0, bias)
    opcheck(ops.siglip_loss_fwd, (a, b, *siglip), test_utils=tests)
    opcheck(ops.siglip_loss_bwd, (rows, a, b, *siglip, *needed, True), test_utils=tests)
    opcheck(ops.siglip_loss_sum, (a, b, *siglip, 0.5, *needed, True), test_utils=tests)


def test_kept_logits_are_the_cpus(device, simulated):
    a, labels = unit(6, 8), torch.arange(6)
    with pytest.raises(RuntimeError, match="kept must be 0 on CUDA, got 32"):
        torch.ops.maskco_sim.supcon_loss_fwd(a, a, labels, labels, 0, 2.0, None, True, 32)
