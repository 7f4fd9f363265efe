"""Several ranks over gloo: they train what one process would, agree on when they stop, and resume.

Two ranks are started once and serve all tests but the last, which goes through torchrun.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import timm
import torch
from timm.models import register_model
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

import maskco.training.loop
import maskco.training.monitors.probe
import maskco.training.start
from labelled import make_class_folders
from maskco import cli
from maskco.config import METHODS
from maskco.data.samples import EpochBatches
from maskco.data.views import Views
from maskco.errors import ConfigError, UserError
from maskco.evaluate.datasets import open_labelled
from maskco.methods import MaskCo, MoCoV2
from maskco.nn import Encoder, shuffled_across_ranks
from maskco.nn.ranks import agree, own_rows, rank
from maskco.recipes import MOCO_V2
from maskco.runs.checkpoint import read_checkpoint
from maskco.training.distributed import all_or_none, data_parallel, reduce_gradients, share_batch_statistics
from maskco.training.loop import pretrain
from maskco.training.state import TrainState
from resuming import SignalAt, same
from tiny_methods import step
from tiny_runs import TINY, make_pictures, rows, tiny
from two_ranks import Ranks, two_ranks

pytestmark = pytest.mark.distributed

NORM_FREE = {**TINY, "encoder": "test_vit", "mask_head": "attention", "batch_size": 8, "key_group": 0, "log_every": 1}
NORM_FREE |= {name: value for name, value in MOCO_V2.items() if name != "lr"}  # (moco_v3 has batch norms in its head)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    with two_ranks(tmp_path_factory.mktemp("group")) as run:
        yield run


def observed(data: Path, out: Path, options: dict[str, Any]) -> dict[str, Any]:
    """What a run computes on this rank: the gradients of each step, and weights and queue at its end."""
    gradients, states = [], []

    def keep(optimizer: torch.optim.Optimizer, *rest: object) -> None:
        gradients.append(torch.cat([p.grad.flatten() for group in optimizer.param_groups for p in group["params"]]))

    class Kept(TrainState):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            states.append(self)

    hook = register_optimizer_step_pre_hook(keep)
    try:
        with mock.patch.object(maskco.training.loop, "TrainState", Kept):
            result = pretrain(data, out, **options)
    finally:
        hook.remove()
    method = states[0].method
    return {
        "gradients": torch.stack(gradients),  # [steps, parameters]
        "weights": torch.cat([p.detach().flatten() for p in method.parameters()]),
        "queues": {name: queue.state_dict() for name, queue in method.queues.items()},
        "loss": result.loss,
    }


# ---- one process and many train the same


def test_ranks_and_parts_take_one_order():
    whole = list(EpochBatches(27, 12, seed=3, epoch=1, start_step=1))
    shares = [list(EpochBatches(27, 12, 3, 1, 1, rank=rank, ranks=2, parts=3)) for rank in range(2)]
    assert [index for share in shares for part in share for index in part] == whole[0]
    assert [len(part) for share in shares for part in share] == [2] * 6
    assert len(EpochBatches(27, 12, 3, 1, 0, ranks=2, parts=3)) == 6
    with pytest.raises(ValueError, match="batch_size 12 cannot be divided by 5 ranks"):
        EpochBatches(27, 12, 3, 1, ranks=5)


@pytest.fixture(scope="module")
def uneven_pictures(tmp_path_factory) -> Path:
    """Two batches of eight and three images more, others in each epoch: the last batch is left out on all ranks."""
    return make_pictures(tmp_path_factory.mktemp("uneven") / "photos", count=19)


@pytest.fixture(scope="module")
def one_process(uneven_pictures, tmp_path_factory) -> dict[str, Any]:
    return observed(uneven_pictures, tmp_path_factory.mktemp("one") / "run", NORM_FREE)


@pytest.mark.parametrize(("world", "accumulate"), [(1, 4), (2, 1), (2, 2)])
def test_gradients_queue_and_loss_are_those_of_the_global_batch(
    ranks, uneven_pictures, tmp_path, one_process, world, accumulate
):
    """With norms that do not mix images. Four steps, so that the queue is in use, wraps, and weights have moved."""
    options = {**NORM_FREE, "accumulate": accumulate}
    run = ranks if world == 2 else lambda function, *arguments: [function(*arguments)]
    for got in run(observed, uneven_pictures, tmp_path / "run", options):
        assert got["gradients"].shape == one_process["gradients"].shape
        assert one_process["gradients"].abs().amax(1).min() > 0.01
        torch.testing.assert_close(got["gradients"], one_process["gradients"], atol=1e-6, rtol=0)
        assert_equal_queues(got, one_process, atol=1e-6)
        assert got["loss"] == pytest.approx(one_process["loss"], abs=1e-6)


def assert_equal_queues(got: dict[str, Any], expected: dict[str, Any], atol: float) -> None:
    assert got["queues"].keys() == expected["queues"].keys()
    for name, queue in got["queues"].items():
        torch.testing.assert_close(queue["features"], expected["queues"][name]["features"], atol=atol, rtol=0)
        assert torch.equal(queue["cursor"], expected["queues"][name]["cursor"])


@pytest.mark.parametrize("method", [method for method in METHODS if method != "maskco"])
def test_every_method_learns_on_two_ranks_as_on_one(ranks, uneven_pictures, tmp_path, method):
    options = tiny(method, **NORM_FREE | {"optimizer": "sgd"})
    alone = observed(uneven_pictures, tmp_path / "alone", options)
    assert alone["gradients"][1:].abs().amax(1).min() > 1e-3  # (the first step of a queue has no negatives)
    for got in ranks(observed, uneven_pictures, tmp_path / "run", options):
        torch.testing.assert_close(got["gradients"], alone["gradients"], atol=1e-5, rtol=0)
        torch.testing.assert_close(got["weights"], alone["weights"], atol=1e-4, rtol=0)
        assert_equal_queues(got, alone, atol=1e-5)
        assert got["loss"] == pytest.approx(alone["loss"], abs=1e-5)


def watched(data: Path, out: Path, probe: Path) -> tuple[list[str], float]:
    """What this rank's monitors read of a probed run, and how it ends."""
    opened = []
    with mock.patch.object(maskco.training.monitors.probe, "open_labelled", lambda *given, **options: (
        opened.append("opened"), open_labelled(*given, **options))[1]):  # fmt: skip
        result = pretrain(data, out, probe=probe, probe_every=1, keep_best="probe", **tiny("simclr", **NORM_FREE))
    agree(True)  # rank 0 may still be writing
    return opened, result.loss


def test_ranks_see_one_gradient_norm_and_effective_rank_and_rank_0_probes(ranks, uneven_pictures, tmp_path):
    labelled = make_class_folders(tmp_path / "labelled", {"train": 12, "val": 6})
    (first, loss), (second, other) = ranks(watched, uneven_pictures, tmp_path / "two", labelled)
    assert (first, second) == (["opened"], []) and loss == other
    watched(uneven_pictures, tmp_path / "one", labelled)
    two, one = rows(tmp_path / "two"), rows(tmp_path / "one")
    assert [sorted(row) for row in two] == [sorted(row) for row in one]
    assert [row["step"] for row in two if "probe_knn" in row] == [2, 4] and (tmp_path / "two/best.pt").exists()
    for name in ("grad_norm", "effective_rank"):
        assert [row[name] for row in two] == pytest.approx([row[name] for row in one], rel=1e-3)


def test_colors_on_the_device_are_those_of_the_global_batch(ranks, uneven_pictures, tmp_path, one_process):
    """However it is dealt out; up to the rounding of colors, which gradients enlarge."""
    options = {**NORM_FREE, "accumulate": 2, "augment": "device"}
    for got in ranks(observed, uneven_pictures, tmp_path / "run", options):
        torch.testing.assert_close(got["gradients"], one_process["gradients"], atol=1e-4, rtol=0)
        assert_equal_queues(got, one_process, atol=1e-4)
        assert got["loss"] == pytest.approx(one_process["loss"], abs=1e-4)


def test_queues_and_weights_stay_equal_bit_for_bit(ranks, pictures, tmp_path):
    options = {**TINY, "epochs": 5, "key_group": 2}  # 20 steps of batch norms that see other images on each rank
    first, second = ranks(observed, pictures, tmp_path / "run", options)
    assert len(first["gradients"]) == 20
    assert same(first, second)


def reduced_late() -> list[torch.Tensor]:
    model = nn.Linear(1, 1, bias=False)
    learner, gradients = data_parallel(model), []
    for part in range(2):
        with reduce_gradients(learner, now=part == 1):
            learner(torch.tensor([[1.0 + rank() + 10 * part]])).sum().backward()
        gradients.append(model.weight.grad.clone())
    return gradients


def test_gradients_are_reduced_after_the_last_part_only(ranks):
    assert [[g.item() for g in gradients] for gradients in ranks(reduced_late)] == [[1, 13], [2, 13]]


# ---- encoders with parameters that get no gradient


@register_model
def idle_vit(pretrained: bool = False, **options: Any) -> nn.Module:
    model = timm.create_model("test_vit", **options)
    model.register_parameter("idle", nn.Parameter(torch.ones(3)))
    return model


def idle_weights(data: Path, out: Path) -> torch.Tensor:
    pretrain(data, out, **NORM_FREE | {"encoder": "idle_vit", "epochs": 1})
    agree(True)  # rank 0 may still be writing
    method = read_checkpoint(out / "last.pt")["method"]
    assert method["encoder.backbone.idle"].tolist() == [1, 1, 1]
    return torch.cat([value.flatten() for name, value in method.items() if name.startswith(("encoder", "mask_head"))])


def test_ranks_train_an_encoder_with_idle_parameters_as_one_process_does(ranks, uneven_pictures, tmp_path):
    alone = idle_weights(uneven_pictures, tmp_path / "alone")
    together = ranks(idle_weights, uneven_pictures, tmp_path / "together")
    for weights in together:
        torch.testing.assert_close(weights, alone)
    assert (
        "parameters get no gradient and stay as they are: encoder.backbone.idle"
        in (tmp_path / "together/log.txt").read_text()
    )


# ---- batch norms


class OnlyStatistics(nn.Module):
    """Gives away nothing of an image, only the mean of the batch that it is in."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(0, keepdim=True).expand_as(images)


def accuracy_by_company(shuffle_keys: bool, key_group: int) -> float:
    """Contrast accuracy of an encoder that sees nothing but batch statistics."""
    torch.manual_seed(0)
    encoder = Encoder(OnlyStatistics(), channels=32, stride=1)
    method = MoCoV2(encoder, dim=32, queue_size=4096, key_group=key_group, shuffle_keys=shuffle_keys)
    generator, correct = torch.Generator().manual_seed(1), []
    boxes = torch.zeros(0)
    for _ in range(30):
        images = own_rows(torch.randn(64, 32, 1, 1, generator=generator))
        correct.append(step(method, Views(images, images, boxes, boxes)).metrics["accuracy"])
    return torch.stack(correct[10:]).mean().item() / 100


def test_shared_statistics_leak_and_shuffled_ones_do_not(ranks):
    """The company that an image keeps tells which key is its own, until keys are normalised in other company."""
    leak, across_ranks, in_groups = (
        ranks(accuracy_by_company, *options)[0] for options in ((False, 0), (True, 4), (False, 4))
    )
    assert leak == 1
    assert across_ranks < 0.1 and in_groups < 0.3


def shuffled() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(rank())
    images = own_rows(torch.arange(16.0))
    seen = []
    outputs = shuffled_across_ranks(
        lambda rows, more: (seen.append(rows), rows + more[:, 0])[1], images, images[:, None]
    )
    return seen[0], outputs


def test_shuffled_rows_come_from_all_ranks_and_return(ranks):
    (first, outputs), (second, more) = ranks(shuffled)
    assert torch.cat([outputs, more]).tolist() == [2.0 * row for row in range(16)]
    assert sorted(torch.cat([first, second]).tolist()) == list(range(16))
    assert 0 < sum(first < 8) < 8


def synced_norms() -> tuple[set[str], set[str], bool]:
    method = MaskCo("test_efficientnet", mask_head_depth=1, queue_size=8)
    before = {name for name, _ in method.named_parameters()}
    share_batch_statistics(method)
    kinds = {side: set() for side in (True, False)}
    for name, module in method.named_modules():
        if "BatchNorm" in type(module).__name__:
            kinds[name.startswith("momentum_")].add(type(module).__name__)
    return kinds[False], kinds[True], before == {name for name, _ in method.named_parameters()}


def test_only_the_query_side_s_norms_are_synchronised_and_keep_their_activation(ranks):
    for query, key, same_names in ranks(synced_norms):
        assert query == {"SyncBatchNorm", "SyncBatchNormAct"}
        assert key == {"BatchNormAct2d"} and same_names


# ---- stopping and going on


def interrupted(arguments: list[str], victim: int, step: int, share: int) -> int:
    """Exit status of the command line if one rank gets a SIGTERM while it loads its share of a step."""
    with ExitStack() as patches, pytest.raises(SystemExit) as stopped:
        patches.enter_context(mock.patch.object(maskco.training.start, "PretrainDataset", SignalAt))
        SignalAt.loaded = 0
        SignalAt.at = (step - 1) * share + 1 if rank() == victim else -1
        cli.main(arguments)
    return stopped.value.code


def command(data: Path, out: Path, options: dict[str, Any]) -> list[str]:
    options = {"data": data, "out": out, **options}
    return ["pretrain", *(f"--{name.replace('_', '-')}={value}" for name, value in options.items())]


def resumed(out: Path) -> float:
    return pretrain(out=out, resume=True).loss


def test_a_signal_on_one_rank_stops_both_and_the_resumed_run_is_the_unbroken_one(ranks, pictures, tmp_path):
    options = {**TINY, "key_group": 2}
    whole = ranks(observed, pictures, tmp_path / "whole", options)
    for victim, at in ((1, 2), (0, 7)):  # between two rows of metrics
        out = tmp_path / f"broken{victim}"
        assert ranks(interrupted, command(pictures, out, options), victim, at, 2) == [128 + signal.SIGTERM] * 2
        assert read_checkpoint(out / "last.pt")["step"] == at
        assert ranks(resumed, out) == [whole[0]["loss"]] * 2
        assert rows(out) == rows(tmp_path / "whole")
        assert same(*(read_checkpoint(run / "last.pt") | {"config": 0} for run in (out, tmp_path / "whole")))
        assert (out / "log.txt").read_text().count("finished 8 steps") == 1


def test_another_number_of_ranks_goes_on(ranks, uneven_pictures, tmp_path, one_process):
    """From two ranks to one, and from one to two, in the midst of an epoch."""
    two, one = tmp_path / "two", tmp_path / "one"
    ranks(interrupted, command(uneven_pictures, two, NORM_FREE), 1, 1, 4)
    assert resumed(two) == pytest.approx(one_process["loss"], abs=1e-5)
    interrupted(command(uneven_pictures, one, NORM_FREE), 0, 3, 8)
    assert ranks(resumed, one) == [pytest.approx(one_process["loss"], abs=1e-5)] * 2
    assert [row["step"] for row in rows(one)] == [row["step"] for row in rows(two)] == [1, 2, 3, 4]


def error_of(function: Callable[..., Any], *arguments: Any) -> str:
    try:
        function(*arguments)
    except UserError as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def nan_on_rank_1(data: Path, out: Path) -> str:
    forward, calls = MaskCo.forward, []

    def broken_forward(self: MaskCo, views: Views, **options: Any) -> Any:
        calls.append(1)
        output = forward(self, views, **options)
        bad = len(calls) == 6 and rank() == 1  # (the first in the rehearsal)
        return output._replace(loss=output.loss * float("nan")) if bad else output

    with mock.patch.object(MaskCo, "forward", broken_forward):
        return error_of(lambda: pretrain(data, out, **TINY))


def test_a_loss_that_is_not_finite_on_one_rank_stops_both_at_that_step(ranks, pictures, tmp_path):
    first, second = ranks(nan_on_rank_1, pictures, tmp_path / "run")
    assert first == second
    assert first.startswith("TrainingError: the loss is no longer finite at step 5") and "(step 4)" in first


def start_alone(data: Path, out: Path) -> str:
    missing = data if rank() == 0 else data / "missing"
    return error_of(lambda: pretrain(missing, out, **TINY))


def test_no_rank_starts_if_one_cannot(ranks, pictures, tmp_path):
    first, second = ranks(start_alone, pictures, tmp_path / "run")
    assert first.startswith("RankError: rank 0: another rank could not start") and "no such folder" in second
    assert not (tmp_path / "run").exists()


def count_broken(data: Path, out: Path) -> int:
    return pretrain(data, out, **{**TINY, "epochs": 1}).broken_images


def test_broken_pictures_of_all_ranks_are_counted_and_named(ranks, tmp_path):
    data = make_pictures(tmp_path / "photos", broken=3)
    assert ranks(count_broken, data, tmp_path / "run") == [3, 3]
    assert (tmp_path / "run/log.txt").read_text().count("cannot be used") == 3


def test_what_cannot_be_shared_out_is_refused(ranks, pictures, tmp_path):
    def refused(run: Callable[..., Any], **options: Any) -> str:
        (message,) = {*run(error_of, cli_train, pictures, tmp_path / "run", {**TINY, **options})}
        return message

    alone = lambda function, *arguments: [function(*arguments)]  # noqa: E731
    assert refused(ranks, batch_size=6, accumulate=2) == (
        "ConfigError: batch_size: 6 must be a multiple of ranks × accumulate = 2 × 2, "
        "with 2 images or more in each part. Take `batch_size=8`, or `accumulate=1`"
    )
    too_many = refused(alone, accumulate=4)
    assert "batch_size: 4 must be a multiple of ranks × accumulate = 1 × 4" in too_many
    assert too_many.endswith("Take `batch_size=8`, or `accumulate=2`")
    assert "batch_norm sync needs CUDA" in refused(alone, batch_norm="sync")
    assert not (tmp_path / "run").exists()


def cli_train(data: Path, out: Path, options: dict[str, Any]) -> None:
    pretrain(data, out, **options)


def test_all_or_none_is_transparent_for_one_process():
    with pytest.raises(ConfigError, match="mine"), all_or_none():
        raise ConfigError("mine")


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds its victim in /proc")
def test_a_killed_rank_ends_the_run_and_its_checkpoint_resumes(pictures, tmp_path):
    """The whole way: torchrun, module, environment, kill -9."""
    out = tmp_path / "run"
    options = {**TINY, "epochs": 1000, "log_every": 1, "save_every_steps": 2}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "maskco"]
    process = subprocess.Popen([*torchrun, *command(pictures, out, options)], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (out / "last.pt").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (victim,) = (pid for pid in children if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes())
    os.kill(int(victim), signal.SIGKILL)
    error = process.communicate(timeout=60)[1]
    assert process.returncode != 0
    assert "[rank 0] error: rank 0: another rank failed" in error
    step = read_checkpoint(out / "last.pt")["step"]
    epochs = step // 4 + 1
    assert pretrain(out=out, resume=True, epochs=epochs).steps == 4 * epochs
    assert [row["step"] for row in rows(out)] == list(range(1, 4 * epochs + 1))
