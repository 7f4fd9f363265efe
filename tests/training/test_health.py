"""Warnings of runs that learn nothing: each once, with its cause, and none for sound runs."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import maskco.training.monitors.collapse
import maskco.training.monitors.queues
from maskco.config import METHODS, PretrainConfig
from maskco.data.views import Views
from maskco.errors import TrainingError
from maskco.methods import MaskCo, StepOutput
from maskco.methods.base import embedding_std
from maskco.nn import FeatureQueue
from maskco.training.loop import pretrain
from maskco.training.monitors.gradient import EXPLODED
from maskco.training.monitors.queues import PATIENCE
from maskco.training.state import TrainState
from tiny_runs import TINY, rows, tiny

SPREAD_OUT = 0.35  # 1 / √8
FINE = {"loss": 1.0, "accuracy": 50.0, "embedding_std": SPREAD_OUT, "lr": 0.1}


def run_of(method: str = "maskco", **options: object) -> TrainState:
    return TrainState(
        PretrainConfig.of(data="a", out="b", **tiny(method, **options)).filled("moco_v2"), 16, torch.device("cpu")
    )


def views(boxes: list[list[float]]) -> Views:
    """Two images of 32 × 32 with the same boxes in each."""
    both = torch.tensor([boxes, boxes])
    return Views(torch.zeros(2, 3, 32, 32), torch.zeros(2, 3, 32, 32), both, both)


HALF = views([[0, 0, 32, 16], [0, 8, 16, 16]])
WHOLE = views([[0, 0, 32, 16], [0, 16, 32, 31]])  # together all but one row


def look(
    state: TrainState, step: int, views: Views = HALF, keys: torch.Tensor | None = None, **row: float
) -> list[str]:
    """The warnings after a step whose gradient is of norm 1, and whose keys were pushed before."""
    if keys is None and state.method.queues:
        keys = F.normalize(torch.randn(4, 8), dim=1)
    for queue in state.method.queues.values():
        queue.push(keys)
    told(state, step)
    return state.monitors.warnings(step, {**FINE, **row} | state.monitors.metrics(), views)


def told(state: TrainState, step: int, **norms: float) -> None:
    """One step with gradients of these norms for parameters whose names end so, and of 1 in all for the others."""
    names = learned(state)
    values = torch.full((len(names),), len(names) ** -0.5)
    for end, norm in norms.items():
        values[[name.endswith(end.replace("__", ".")) for name in names]] = norm
    state.monitors.see(step, [StepOutput(torch.zeros(()), {}, {})], values)


def learned(state: TrainState) -> list[str]:
    """Names of the optimizer's parameters, in its order."""
    names = {parameter: name for name, parameter in state.method.named_parameters()}
    return [names[parameter] for group in state.optimizer.param_groups for parameter in group["params"]]


def test_spread_is_that_of_the_sphere_and_0_of_a_point():
    vectors = F.normalize(torch.randn(10000, 16), dim=1)
    assert abs(embedding_std(vectors).item() - 0.25) < 0.01
    assert embedding_std(vectors[:1].expand(100, -1)) < 1e-6


# ---- collapse


def test_collapsed_embeddings_are_told_once_and_not_in_the_first_steps():
    state = run_of()
    told = [look(state, step, embedding_std=std) for step, std in ((10, 0.001), (100, 0.1), (101, 0.001), (102, 0.001))]
    assert [len(warnings) for warnings in told] == [0, 0, 1, 0]
    assert told[2][0].startswith("the embeddings have collapsed: all queries are alike (std 0.001, in all directions")
    assert "0.35" in told[2][0] and "\n" not in told[2][0]


@pytest.mark.parametrize(("queue_size", "expected"), [(64, 1), (12, 0)])
def test_keys_along_one_line_are_a_collapse_where_there_are_enough_of_them(queue_size, expected):
    """Spread along that line as far as unit vectors can be, so that their standard deviation shows nothing."""
    state = run_of(queue_size=queue_size)

    def line(every: int) -> torch.Tensor:
        """In one direction, but each so many-th in the other: other sums of keys, or the queue would count as dead."""
        signs = 1.0 - 2.0 * (torch.arange(64)[:, None] % every == 0)
        return signs * F.normalize(torch.ones(1, 8), dim=1)

    assert look(state, 99, keys=line(2)) == []
    warnings = look(state, 100, keys=line(3))
    assert len(warnings) == expected
    told = "the embeddings have collapsed into few dimensions: their effective rank is 1.0 of 8. "
    assert all(warning.startswith(told) for warning in warnings)
    assert look(run_of(queue_size=64), 200, keys=F.normalize(torch.randn(64, 8), dim=1)) == []


# ---- queues


def test_a_queue_that_nothing_is_pushed_to_is_dead():
    state = run_of()
    assert look(state, 1) == []
    nothing = torch.empty(0, 8)
    (warning,) = look(state, 2, keys=nothing)
    assert warning.startswith("the queue is dead") and look(state, 3, keys=nothing) == []


def follow(
    state: TrainState, steps: int, *, loss: float, accuracy: float, lr: list[float] | None = None, fall: float = 0.0
) -> list[str]:
    """Warnings of rows at every tenth step. The loss is given relative to that of guessing, and may fall with each."""
    warnings, negatives = [], state.method.other_negatives(2)
    for step in range(10, steps + 1, 10):
        for _ in range(9):
            told(state, step)
        filled = int(state.method.queue.valid)
        guessed = math.log(1 + filled + negatives)
        rate = 0.1 if lr is None else lr[step // 10]
        warnings += look(state, step, loss=guessed + loss - fall * step / 10, accuracy=accuracy, lr=rate)
    return warnings


def test_a_loss_that_only_follows_the_queue_is_told():
    """It rises with the logarithm of the keys, as guessing does, and accuracy stays that of guessing."""
    (warning,) = follow(run_of(queue_size=4096), PATIENCE + 20, loss=-0.01, accuracy=0.3)
    assert warning.startswith("the loss only follows the queue: ") and "\n" not in warning
    assert "is no better than guessing among" in warning and "another lr, a lower temperature" in warning


@pytest.mark.parametrize(
    ("loss", "accuracy", "rising"),
    [
        (-0.5, 0.3, False),  # there is information in it
        (0.5, 40.0, False),  # sure of itself, and often right
        (-0.01, 0.3, True),  # still warming up
    ],
)
def test_a_loss_that_is_below_guessing_follows_more_than_the_queue(loss, accuracy, rising):
    steps = PATIENCE + 100
    lr = [step / steps for step in range(steps)] if rising else None
    assert follow(run_of(queue_size=4096), steps, loss=loss, accuracy=accuracy, lr=lr) == []
    assert follow(run_of(queue_size=4096), PATIENCE - 10, loss=0.0, accuracy=0.0) == []  # too early to say


def test_a_loss_that_falls_slowly_below_guessing_is_patiently_watched():
    assert follow(run_of(queue_size=4096), PATIENCE + 100, loss=0.0, accuracy=0.3, fall=0.0022) == []


# ---- gradients


def test_an_exploding_gradient_names_the_module_that_holds_most_of_it():
    state = run_of()
    told(state, 1, bn1__weight=10.0)
    assert look(state, 2) == []
    told(state, 3, conv1__0__weight=3 * EXPLODED, layer1__0__bn1__weight=EXPLODED)
    told(state, 4, projection__net__0__weight=2 * EXPLODED)
    (warning,) = look(state, 5)
    assert warning.startswith("the gradient exploded at step 3: its norm was 3.2e+04, 90% of its square in encoder.")
    assert "conv1.0. Start over with a lower lr" in warning and warning.endswith("another encoder, or clip_grad 1")
    assert look(state, 6) == []
    clipped = run_of(clip_grad=1.0)
    told(clipped, 1, conv1__0__weight=3 * EXPLODED)
    assert ". Clipping by clip_grad 1 shortens it but cannot correct its direction. Start over" in look(clipped, 2)[0]


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_of_a_gradient_that_is_not_finite_the_module_nearest_to_the_loss_is_named(value):
    state = run_of()
    told(state, 1, conv1__0__weight=value, layer1__0__bn1__weight=value)
    (warning,) = look(state, 2)
    assert "exploded at step 1: it was not finite, first in encoder.backbone.layer1.0.bn1. Start over" in warning


def test_overflow_is_a_part_of_fp16_unless_no_step_is_left():
    state = run_of()
    state.monitors.all[0].skips = True  # as with amp fp16, which needs CUDA
    for step in (1, 2):
        told(state, step, weight=math.inf)
    assert look(state, 3) == []
    state.method.queue.push(F.normalize(torch.randn(4, 8), dim=1))
    for step in (101, 102):
        told(state, step, weight=math.inf)
    row = state.monitors.metrics()
    (warning,) = state.monitors.warnings(102, {**FINE, **row}, HALF)
    assert "grad_norm" not in row and "overflowed in fp16. Start over with amp bf16 or off" in warning


def test_a_loss_that_is_not_finite_is_traced_to_the_gradient_before(pictures, tmp_path, monkeypatch):
    """At the first steps, where no row of metrics has been written yet."""
    encode = MaskCo.encode_queries
    calls = []

    class Steep(torch.autograd.Function):
        """The identity, with a gradient 10^12 times too long."""

        @staticmethod
        def forward(context, x):
            return x.clone()

        @staticmethod
        def backward(context, gradient):
            return gradient * 1e12

    def steep(self, views, *, masked=True):
        calls.append(1)
        queries = encode(self, views, masked=masked)
        return Steep.apply(queries) if len(calls) == 4 else queries  # (two of the rehearsal, then the second step)

    monkeypatch.setattr(MaskCo, "encode_queries", steep)
    with pytest.raises(TrainingError) as caught:
        pretrain(pictures, tmp_path / "run", **{**TINY, "log_every": 10})
    assert "the loss is no longer finite at step 3, learning rate" in str(caught.value)
    assert ". The gradient exploded at step 2: its norm was " in str(caught.value) and "\n" not in str(caught.value)
    assert " of its square in " in str(caught.value)


def test_a_loss_that_breaks_by_itself_is_not_blamed_on_its_gradient(pictures, tmp_path, monkeypatch):
    forward, calls = MaskCo.forward, []

    def broken(self, views) -> StepOutput:
        calls.append(1)
        output = forward(self, views)
        return output._replace(loss=output.loss * math.nan) if len(calls) == 4 else output

    monkeypatch.setattr(MaskCo, "forward", broken)
    with pytest.raises(TrainingError, match="the loss is no longer finite at step 3, learning rate") as caught:
        pretrain(pictures, tmp_path / "run", **TINY)
    assert "exploded" not in str(caught.value)


# ---- options, and all of it in runs


def test_a_mask_over_everything_is_told_for_the_method_that_masks():
    for method, options, expected in (("maskco", {"mask_share": 1.0}, 1), ("moco_v2", {}, 0)):
        state = run_of(method, **options)
        assert look(state, 1) == []
        warnings = look(state, 2, WHOLE)
        assert len(warnings) == expected
        assert not expected or warnings[0].startswith("the masks cover 97% of the query views")


def test_warnings_reach_the_log_and_the_terminal_once(pictures, tmp_path, monkeypatch, capfd):
    options = {**TINY, "key_momentum": 1.0, "region_scale": (0.9, 1.0), "crop_scale": (0.9, 1.0)}
    options |= {"mask_share": 1.0, "log_every": 1}
    monkeypatch.setattr(FeatureQueue, "push", lambda *arguments: None)
    pretrain(pictures, tmp_path / "run", **options)
    log, shown = (tmp_path / "run/log.txt").read_text(), capfd.readouterr().err
    for warning in ("the queue is dead", "key_momentum 1 leaves", "the masks cover"):
        assert log.count(f"warning: {warning}") == shown.count(f"warning: {warning}") == 1


@pytest.mark.parametrize("encoder", ["test_resnet", "test_vit", "test_convnext"])
@pytest.mark.parametrize("method", METHODS)
def test_a_sound_run_warns_of_nothing_and_logs_its_spread(pictures, tmp_path, monkeypatch, method, encoder):
    """Even where the monitors lose patience after two steps."""
    monkeypatch.setattr(maskco.training.monitors.collapse, "SETTLED_STEPS", 2)
    options = tiny(method, encoder=encoder, mask_fill="noise", lr=0.1, queue_size=64)
    pretrain(pictures, tmp_path / "run", **options)
    lines = (tmp_path / "run/log.txt").read_text().splitlines()
    assert not [line for line in lines if "warning" in line and "--queue-size" not in line]
    assert all(0 < row["embedding_std"] <= SPREAD_OUT + 0.01 for row in rows(tmp_path / "run"))
