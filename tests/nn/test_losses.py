"""ClipLoss, SigLipLoss and SupConLoss: modules of the ops, and on several ranks the loss of one process."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from contrast_cases import unit
from maskco import ops
from maskco.errors import RankError
from maskco.nn import ClipLoss, InfoNCE, SigLipLoss, SupConLoss, gathered_clip
from maskco.ops import _library, reference
from tolerance import assert_as_good_as


class Ids(nn.Module):
    def forward(self, first: Tensor, second: Tensor, ids: Tensor) -> Tensor:
        return ops.info_nce(first, second, in_batch=True, query_ids=ids)


class TwoViews(SupConLoss):
    def forward(self, first: Tensor, second: Tensor, ids: Tensor) -> Tensor:
        return super().forward(torch.stack([first, second], 1))


class ClipWithIds(ClipLoss):
    def forward(self, first: Tensor, second: Tensor, ids: Tensor) -> Tensor:
        return super().forward(first, second, 10.0, ids)


@pytest.mark.parametrize("module", [Ids, TwoViews, ClipWithIds])
def test_an_exported_program_takes_any_number_of_rows(module):
    torch.manual_seed(0)
    batches = [(torch.randn(n, 8), torch.randn(n, 8), torch.arange(n) % 3) for n in (6, 9)]
    rows = torch.export.Dim("rows", min=2)
    exported = torch.export.export(module(), batches[0], dynamic_shapes=[{0: rows}] * 3).module()
    for batch in batches:
        torch.testing.assert_close(exported(*batch), module()(*batch))


def test_clip_loss_passes_on_all_that_the_op_takes():
    """Each argument changes the loss, so that one that is dropped shows."""
    torch.manual_seed(0)
    image, text, ids = unit(9, 8), unit(9, 8), torch.arange(9) % 7
    expected, stats = ops.clip_loss(
        image, text, logit_scale=7.0, ids=ids, label_smoothing=0.2, reduction="none", return_stats=True
    )
    found = ClipLoss(label_smoothing=0.2, reduction="none")(image, text, 7.0, ids, return_stats=True)
    assert torch.equal(found[0], expected)
    assert all(torch.equal(*pair) for pair in zip(found[1], stats, strict=True))
    logits, labels = 7 * image @ text.T, torch.arange(9)
    plain = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    torch.testing.assert_close(ClipLoss()(image, text, 7.0), plain)
    torch.testing.assert_close(ClipLoss(gather=True)(image, text, 7.0), plain)  # no process group
    whole = ClipLoss(label_smoothing=0.2)(image, text, 7.0, ids)
    for other in (
        ClipLoss(label_smoothing=0.2)(image, text, 7.0),
        ClipLoss()(image, text, 7.0, ids),
        ClipLoss(label_smoothing=0.2)(image, text, 6.0, ids),
        ClipLoss(label_smoothing=0.2, reduction="sum")(image, text, 7.0, ids),
    ):
        assert other != whole


def test_siglip_loss_passes_on_all_that_the_op_takes():
    torch.manual_seed(0)
    image, text = unit(9, 8), unit(9, 8)
    signs = 2 * torch.eye(9) - 1
    rows = -F.logsigmoid(signs * (7 * image @ text.T - 3)).sum(1)
    for gather in (False, True):
        torch.testing.assert_close(SigLipLoss(gather, reduction="none")(image, text, 7.0, -3.0), rows)
        torch.testing.assert_close(SigLipLoss(gather)(image, text, 7.0, -3.0), rows.mean())
        torch.testing.assert_close(SigLipLoss(gather, reduction="sum")(image, text, 7.0, -3.0), rows.sum())


def test_supcon_loss_of_rows_and_of_references():
    torch.manual_seed(0)
    rows, labels, keys, key_labels = unit(9, 8), torch.arange(9) % 4, unit(14, 8), torch.arange(14) % 5
    for gather in (False, True):
        loss = SupConLoss(0.3, gather, reduction="none")
        found, stats = loss(rows, labels, return_stats=True)
        expected = ops.supcon_loss(rows, query_labels=labels, temperature=0.3, reduction="none", return_stats=True)
        assert torch.equal(found, expected[0])
        assert torch.equal(stats.positives, expected[1].positives)
        expected = ops.supcon_loss(
            rows, keys, query_labels=labels, key_labels=key_labels, temperature=0.3, reduction="none"
        )
        assert torch.equal(loss(rows, labels, keys, key_labels), expected)
        assert torch.equal(SupConLoss(0.3, gather)(rows, labels, keys, key_labels), expected.sum() / 9)


def test_supcon_loss_of_views():
    """SupContrast's [B, V, C]: rows are the first view of all images, then the second; each image is a class."""
    torch.manual_seed(0)
    views = F.normalize(torch.randn(5, 3, 8), dim=2)
    loss = SupConLoss(reduction="none")
    rows = torch.cat(torch.unbind(views, 1))
    for labels, expected in ((None, torch.arange(5)), (torch.tensor([3, 1, 3, 0, 1]),) * 2):
        assert torch.equal(loss(views, labels), loss(rows, expected.repeat(3)))
    assert torch.equal(loss(views.view(5, 3, 2, 2, 2)), loss(views))
    keys, key_labels = unit(6, 8), torch.arange(6) % 4
    assert torch.equal(
        loss(views, torch.arange(5), keys, key_labels), loss(rows, torch.arange(5).repeat(3), keys, key_labels)
    )
    assert loss(views[:, :1]).tolist() == [0] * 5  # no positives: neither loss nor NaN
    assert SupConLoss()(views[:0]) == 0


def test_scalars_are_learned():
    image, text = unit(6, 8), unit(6, 8)
    scale, bias = nn.Parameter(torch.tensor(5.0)), nn.Parameter(torch.tensor([-1.0]))
    ClipLoss()(image, text, scale).backward()
    assert scale.grad != 0
    SigLipLoss()(image, text, scale, bias).backward()
    assert bias.grad.shape == (1,) and bias.grad != 0
    loss = SupConLoss(nn.Parameter(torch.tensor(0.2)))
    loss(image, torch.arange(6) // 2).backward()
    assert [name for name, _ in loss.named_parameters()] == ["temperature"] and loss.temperature.grad != 0


def test_numpy_arrays_and_numbers():
    image, text = unit(6, 8), unit(6, 8)
    arrays = image.numpy(), text.numpy()
    assert torch.equal(ClipLoss()(*arrays, np.float32(5)), ClipLoss()(image, text, 5.0))
    assert torch.equal(SigLipLoss()(*arrays, np.float32(5), np.array(-1.0)), SigLipLoss()(image, text, 5.0, -1.0))
    labels = torch.arange(6) // 2
    assert torch.equal(SupConLoss(np.float64(0.2))(arrays[0], labels.numpy()), SupConLoss(0.2)(image, labels))


def test_modules_show_their_options():
    assert repr(ClipLoss(gather=True)) == "ClipLoss(gather=True, label_smoothing=0.0, reduction='mean')"
    assert repr(SigLipLoss(reduction="sum")) == "SigLipLoss(gather=False, reduction='sum')"
    assert repr(SupConLoss(0.2)) == "SupConLoss(temperature=0.2, gather=False, reduction='mean')"


@pytest.mark.filterwarnings("ignore")
def test_modules_compile_into_one_graph():
    rows, labels = unit(6, 8), torch.arange(6) // 2
    calls = ((ClipLoss(), (rows, rows, 5.0, labels)), (SigLipLoss(), (rows, rows, 5.0, -1.0)))
    for loss, arguments in (*calls, (SupConLoss(), (rows, labels)), (SupConLoss(), (rows.view(3, 2, 8),))):
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(*arguments), loss(*arguments))


ROWS, LABELS = torch.zeros(4, 8), torch.zeros(4, dtype=torch.long)
BAD: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "reduction": (lambda: ClipLoss(reduction="avg"), ValueError, "reduction must be 'mean', .*, got 'avg'"),
    "siglip reduction": (lambda: SigLipLoss(reduction="avg"), ValueError, "reduction must be 'mean', 'sum' or 'none'"),
    "supcon reduction": (lambda: SupConLoss(reduction="avg"), ValueError, "reduction must be 'mean', 'sum' or 'none'"),
    "smoothing": (lambda: ClipLoss(label_smoothing=2), ValueError, "label_smoothing must lie between 0 and 1, got 2"),
    "clip shape": (lambda: ClipLoss()(ROWS, ROWS[:3], 5.0), ValueError,
                   r"text_features must have shape \[4, 8\], got \[3, 8\]"),
    "clip dtype": (lambda: ClipLoss()(ROWS, ROWS.double(), 5.0), TypeError, "image_features and text_features must "),
    "clip scale": (lambda: ClipLoss()(ROWS, ROWS, 0.0), ValueError, "logit_scale must be a number other than 0"),
    "clip ids": (lambda: ClipLoss()(ROWS, ROWS, 5.0, LABELS[:2]), ValueError, r"ids must have shape \[4\], got \[2\]"),
    "clip stats": (lambda: ClipLoss(True)(ROWS, ROWS, 5.0, return_stats=True), ValueError,
                   "return_stats does not work with gather=True"),
    "siglip shape": (lambda: SigLipLoss()(ROWS, ROWS[:3], 5.0, 0.0), ValueError,
                     r"text_features must have shape \[4, 8\], got \[3, 8\]"),
    "siglip bias": (lambda: SigLipLoss()(ROWS, ROWS, 5.0, "x"), TypeError, "logit_bias must be a number, a tensor"),
    "supcon no labels": (lambda: SupConLoss()(ROWS), ValueError, r"labels must be given with features \[N, C\]"),
    "supcon labels": (lambda: SupConLoss()(ROWS, LABELS[:2]), ValueError, r"labels must have shape \[4\], got \[2\]"),
    "supcon views": (lambda: SupConLoss()(ROWS.view(2, 2, 8), LABELS), ValueError, r"labels must have shape \[2\]"),
    "supcon row": (lambda: SupConLoss()(ROWS[0]), ValueError, r"features must have shape \[N, C\] or \[B, V, C\], got"),
    "supcon dtype": (lambda: SupConLoss()(ROWS.long(), LABELS), TypeError, "features must be float32, .*, got int64"),
    "supcon references": (lambda: SupConLoss()(ROWS, LABELS, ROWS), ValueError, "ref_features were given alone"),
    "supcon labels alone": (lambda: SupConLoss()(ROWS, LABELS, None, LABELS), ValueError, "ref_labels were given"),
    "supcon unlabelled": (lambda: SupConLoss()(ROWS.view(2, 2, 8), None, ROWS, LABELS), ValueError,
                          "labels must be given with ref_features"),
    "supcon width": (lambda: SupConLoss()(ROWS, LABELS, ROWS[:, :5], LABELS), ValueError,
                     r"ref_features must have shape \[K, 8\], got \[4, 5\]"),
    "supcon temperature": (lambda: SupConLoss(0.0), ValueError, "temperature must be a number other than 0, got 0"),
    "info_nce reduction": (lambda: InfoNCE(reduction="avg"), ValueError, "reduction must be 'mean', .*, got 'avg'"),
    "info_nce temperature": (lambda: InfoNCE(None), TypeError, "temperature must be a number, got None"),
    "info_nce margin": (lambda: InfoNCE(margin=float("nan")), ValueError, "margin must be a number, got nan"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)


# ---- several ranks


@pytest.mark.distributed
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_have_the_loss_and_gradients_of_one_process(tmp_path, world):
    all_done = mp.get_context("spawn").Barrier(world, timeout=60)
    mp.spawn(_rank, args=(str(tmp_path / "meet"), world, all_done), nprocs=world)


def _rank(rank: int, meeting: str, world: int, all_done: Barrier) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    try:
        for check in (_check_losses, _check_views, _check_precision, _check_encoder, _check_errors, _check_no_gradient):
            torch.manual_seed(0)  # all ranks make the same whole batch
            check(rank, world)
        all_done.wait()  # gloo aborts a rank whose peer is gone while it still sends, and in its own barrier, too
    except Exception:
        traceback.print_exc()  # the others fail, too, as they lose it; spawn may show one of them
        raise
    finally:
        dist.destroy_process_group()


LENGTHS = {2: ([4, 5], [9, 0]), 3: ([2, 3, 4], [3, 0, 6])}  # rows of each rank
IDS = torch.tensor([3, 1, 3, 5, 1, 2**40, 2**40, 7, -3])
CLIPS: dict[str, dict[str, Any]] = {
    "plain": {},
    "ids": {"ids": IDS},
    "smoothed": {"label_smoothing": 0.1},
    "smoothed with ids": {"label_smoothing": 0.3, "ids": IDS},
}


def _cases() -> dict[str, tuple[Callable, Callable, int, tuple[float, ...]]]:
    """name -> (the module's loss of a rank's part, one process's losses, how many features, scalars)"""

    def clip(options: dict[str, Any]) -> tuple[Callable, Callable]:
        def ours(part, reduction, image, text, scale):
            loss = ClipLoss(True, options.get("label_smoothing", 0.0), reduction)
            return loss(image, text, scale, part(options["ids"]) if "ids" in options else None)

        return ours, lambda image, text, scale: reference.clip_loss(image, text, scale=scale, **options)[0]

    def siglip(part, reduction, image, text, scale, bias):
        return SigLipLoss(True, reduction)(image, text, scale, bias)

    def supcon(part, reduction, rows, temperature):
        return SupConLoss(temperature, True, reduction)(rows, part(IDS))

    def supcon_of_references(part, reduction, rows, keys, temperature):
        return SupConLoss(temperature, True, reduction)(rows, part(IDS), keys, part(IDS.flip(0)))

    cases = {f"clip, {name}": (*clip(options), 2, (5.0,)) for name, options in CLIPS.items()}
    cases["clip, cold"] = (*clip({}), 2, (100.0,))
    cases["clip, negative scale"] = (*clip({}), 2, (-3.0,))
    return cases | {
        "siglip": (siglip, lambda i, t, s, b: reference.siglip_loss(i, t, scale=s, bias=b), 2, (5.0, -1.5)),
        "supcon": (supcon, lambda x, t: reference.supcon_loss(x, query_labels=IDS, temperature=t)[0], 1, (0.2,)),
        "supcon of references": (
            supcon_of_references,
            lambda x, y, t: reference.supcon_loss(x, y, query_labels=IDS, key_labels=IDS.flip(0), temperature=t)[0],
            2,
            (0.2,),
        ),
    }


def _whole(losses: Callable, features: list[Tensor], scalars: list[Tensor], weights: Tensor, reduction: str) -> Any:
    """One process: losses, their reduction, and gradients of 3 × it (weighted, where it is "none")."""
    inputs = [x.detach().clone().requires_grad_() for x in (*features, *scalars)]
    rows = losses(*inputs)
    value = {"none": rows, "sum": rows.sum(), "mean": rows.mean()}[reduction]
    total = (rows * weights.to(rows)).sum() if reduction == "none" else 3 * value
    return value, torch.autograd.grad(total, inputs)


def _check(
    rank: int, lengths: list[int], case: tuple[Callable, Callable, int, tuple[float, ...]], dtype, reduction, name
) -> None:
    ours, theirs, count, numbers = case
    world = len(lengths)
    sums = torch.float64 if dtype == torch.float64 else torch.float32

    def part(whole: Tensor) -> Tensor:
        return whole.split(lengths)[rank]

    features = [unit(sum(lengths), 20, dtype=dtype) for _ in range(count)]
    scalars = [torch.tensor(x, dtype=sums) for x in numbers]
    weights = torch.linspace(0.5, 2, sum(lengths), dtype=sums)
    same, same_grads = _whole(theirs, features, scalars, weights, reduction)
    wide = [[x.double() for x in group] for group in (features, scalars)]
    truth, true_grads = _whole(theirs, *wide, weights, reduction)

    inputs = [part(x).clone().requires_grad_() for x in features] + [x.clone().requires_grad_() for x in scalars]
    value = ours(part, reduction, *inputs)
    if reduction == "none":
        same, truth = part(same), part(truth)
    assert_as_good_as(value, same, truth, sums, f"{name}: loss")
    gradients = torch.autograd.grad((value * part(weights)).sum() if reduction == "none" else 3 * value, inputs)
    factor = 1 if reduction == "none" else world
    for i, (gradient, same_gradient, true_gradient) in enumerate(zip(gradients, same_grads, true_grads, strict=True)):
        if i < count:  # of features, which is averaged over ranks in the encoder
            actual, other, true = gradient / factor, part(same_gradient), part(true_gradient)
        else:
            actual, other, true = gradient.clone(), same_gradient, true_gradient
            dist.all_reduce(actual)
            actual = actual / factor
        assert_as_good_as(actual, other, true, actual.dtype, f"{name}: gradient {i}")


def _check_losses(rank: int, world: int) -> None:
    for name, case in _cases().items():
        for lengths, reductions in zip(LENGTHS[world], (("mean", "none"), ("mean", "sum", "none")), strict=True):
            for reduction in reductions:
                _check(rank, lengths, case, torch.float32, reduction, f"{name}, {lengths}, {reduction}")
        for dtype in (torch.float64, torch.bfloat16, torch.float16):
            _check(rank, LENGTHS[world][0], case, dtype, "mean", f"{name}, {dtype}")
        if name.startswith("clip"):
            with mock.patch.object(gathered_clip, "kept_rows", lambda *_, **__: 0):
                _check(rank, LENGTHS[world][0], case, torch.float32, "mean", f"{name}, logits computed again")
            with mock.patch.object(_library, "kernels", lambda *_, **__: None):
                for lengths, reduction in zip(LENGTHS[world], ("mean", "none"), strict=True):
                    _check(rank, lengths, case, torch.float32, reduction, f"{name} without kernels, {lengths}")


def _check_views(rank: int, world: int) -> None:
    """Images without labels are numbered over all ranks; a rank's losses have its rows' order."""
    for lengths in LENGTHS[world]:
        views = F.normalize(torch.randn(9, 3, 8), dim=2)
        for labels in (None, IDS):
            own = [None if x is None else x.split(lengths)[rank] for x in (views, labels)]
            expected = SupConLoss(reduction="none")(views, labels).view(3, 9)
            losses, stats = SupConLoss(gather=True, reduction="none")(*own, return_stats=True)
            torch.testing.assert_close(losses, expected.split(lengths, 1)[rank].flatten())
            assert len(stats.positives) == 3 * lengths[rank]
            torch.testing.assert_close(SupConLoss(gather=True)(*own), expected.mean())


def _check_precision(rank: int, world: int) -> None:
    """Losses near 0, and infinite ones."""
    eye, lengths = torch.eye(9), LENGTHS[world][0]
    image = eye.split(lengths)[rank]
    losses = ClipLoss(True, reduction="none")(image, image, 30.0)
    torch.testing.assert_close(losses, torch.full_like(losses, math.log1p(8 * math.exp(-30))), rtol=1e-4, atol=0)
    for number in (math.inf, math.nan):
        broken = eye.clone()
        broken[4, 2] = number
        alone = ClipLoss(reduction="none")(broken, eye + 0.1, 5.0)
        losses = ClipLoss(True, reduction="none")(broken.split(lengths)[rank], image + 0.1, 5.0)
        torch.testing.assert_close(losses, alone.split(lengths)[rank], equal_nan=True)


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(6, 8), nn.Linear(5, 8)
        self.scale, self.bias = nn.Parameter(torch.tensor(1.5)), nn.Parameter(torch.tensor(-1.0))

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, ...]:
        features = (F.normalize(x, dim=1) for x in (self.image(images), self.text(texts)))
        return *features, self.scale.exp(), self.bias


def _check_encoder(rank: int, world: int) -> None:
    """Under DistributedDataParallel parameters get the gradients that one process with the whole batch has."""
    model, images, texts = Towers(), torch.randn(9, 6), torch.randn(9, 5)

    def clip(gather):
        return lambda image, text, scale, bias: ClipLoss(gather)(image, text, scale) + 0 * bias

    def siglip(gather):
        return lambda image, text, scale, bias: SigLipLoss(gather)(image, text, scale, bias)

    def supcon(gather):
        return lambda image, text, scale, bias: SupConLoss(1 / scale, gather)(torch.stack([image, text], 1)) + 0 * bias

    for lengths in LENGTHS[world]:
        for loss in (clip, siglip, supcon):
            model.zero_grad()
            value = loss(False)(*model(images, texts))
            value.backward()
            expected = [p.grad.clone() for p in model.parameters()]
            model.zero_grad()
            parallel = DistributedDataParallel(model)
            own = loss(True)(*parallel(images.split(lengths)[rank], texts.split(lengths)[rank]))
            own.backward()
            torch.testing.assert_close(own, value)
            for parameter, gradient in zip(model.parameters(), expected, strict=True):
                torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-4)


def _check_errors(rank: int, world: int) -> None:
    """A rank that raised alone would leave the others waiting: all of them raise, and go on."""
    rows = torch.ones(2, 4 + rank)  # ranks differ in width
    good, labels = torch.ones(2, 4), torch.zeros(2, dtype=torch.long)
    last = rank == world - 1
    for call in (
        lambda: ClipLoss(True)(rows, rows, 5.0),
        lambda: SigLipLoss(True)(rows, rows, 5.0, 0.0),
        lambda: SupConLoss(gather=True)(rows, labels),
        lambda: ClipLoss(True)(good, good, 5.0, labels if last else None),
        lambda: SupConLoss(gather=True)(good.double() if last else good, labels),
        lambda: SupConLoss(gather=True)(good.view(1, 2, 4) if last else good.view(2, 1, 4)),
    ):
        with pytest.raises(RankError, match="the ranks' tensors do not fit together: rank 0 "):
            call()
    short = good[:1] if last else good
    bad = {
        "text_features must have shape": lambda: ClipLoss(True)(good, short, 5.0),
        "logit_scale must be a number": lambda: ClipLoss(True)(good, good, 0.0 if last else 5.0),
        "ids must have shape": lambda: ClipLoss(True)(good, good, 5.0, labels[:1] if last else labels),
        "return_stats does not work": lambda: ClipLoss(True)(good, good, 5.0, return_stats=last),
        "text_features must be": lambda: SigLipLoss(True)(good, good.long() if last else good, 5.0, 0.0),
        "logit_bias must be": lambda: SigLipLoss(True)(good, good, 5.0, "x" if last else 0.0),
        "labels must be given": lambda: SupConLoss(gather=True)(good, None if last else labels),
        "ref_features must have shape": lambda: (
            SupConLoss(gather=True)(good, labels, good[:, :3], labels)
            if last
            else SupConLoss(gather=True)(good, labels, good, labels)
        ),
        "temperature must be": lambda: SupConLoss(torch.ones(2) if last else 0.1, gather=True)(good, labels),
    }
    for message, call in bad.items():
        error = (ValueError, TypeError) if last else RankError
        with pytest.raises(error, match=message if last else f"rank {world - 1} failed: {message}"):
            call()
    assert SupConLoss(gather=True)(good, labels).isfinite()


def _check_no_gradient(rank: int, world: int) -> None:
    """A rank without rows makes them anew, without a gradient, and still joins the others' backward pass."""
    first = rank == 0
    whole = unit(4, 8), unit(4, 8)
    image, text = (x.clone().requires_grad_() if first else torch.zeros(0, 8) for x in whole)
    for loss, alone in (
        (ClipLoss(True)(image, text, 5.0), ClipLoss()(*whole, 5.0)),
        (SigLipLoss(True)(image, text, 5.0, -1.0), SigLipLoss()(*whole, 5.0, -1.0)),
        (SigLipLoss(True)(image, text.detach(), 5.0, -1.0), SigLipLoss()(*whole, 5.0, -1.0)),
        (SupConLoss(gather=True)(torch.stack([image, text], 1)), SupConLoss()(torch.stack(whole, 1))),
    ):
        torch.testing.assert_close(loss.detach(), alone)
        loss.backward()
    assert image.grad.any() and text.grad.any() if first else image.grad is None
    with torch.no_grad():
        assert not ClipLoss(True)(image, text, 5.0).requires_grad
    empty, scale = torch.zeros(0, 8, requires_grad=True), torch.tensor(5.0, requires_grad=True)  # on all ranks
    for loss in (
        ClipLoss(True, 0.1)(empty, empty, scale),
        SigLipLoss(True)(empty, empty, scale, -1.0),
        SupConLoss(scale, gather=True)(empty, torch.zeros(0, dtype=torch.long)),
        SupConLoss(scale, gather=True)(empty.view(0, 2, 4)),
    ):
        assert loss == 0
        assert [x.any() for x in torch.autograd.grad(loss, (empty, scale))] == [False, False]
    scale = torch.tensor(5.0, requires_grad=True)  # nothing else has a gradient
    ClipLoss(True)(image.detach(), text.detach(), scale).backward()
    assert scale.grad.isfinite()
