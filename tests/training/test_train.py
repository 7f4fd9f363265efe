"""The loop: learning rate, resuming bit for bit, stopping, and what the caller keeps."""

from __future__ import annotations

import math
import os
import signal
import tarfile
import threading
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import maskco.training.loop
import maskco.training.start
from maskco.config import METHODS, PretrainConfig, find_method
from maskco.data.sources.files import FolderSource
from maskco.errors import UserError
from maskco.methods import MaskCo
from maskco.runs.checkpoint import CheckpointError, load_run, read_checkpoint
from maskco.training.loop import pretrain
from maskco.training.optim import create_optimizer
from maskco.training.signals import StopSignals
from maskco.training.state import TrainState
from resuming import SignalAt, same
from tiny_runs import TINY, rows, tiny

DRAWN = {
    "maskco": {"key_group": 2, "mask_fill": "noise"},
    "simclr": {},
}  # random numbers in a step


@pytest.fixture
def signal_at(monkeypatch):
    """signal_at(step) interrupts the next run while it loads the batch of that step."""

    def arm(step: int) -> None:
        monkeypatch.setattr(maskco.training.start, "PretrainDataset", SignalAt)
        monkeypatch.setattr(SignalAt, "loaded", 0)
        monkeypatch.setattr(SignalAt, "at", (step - 1) * TINY["batch_size"] + 1)

    return arm


def test_a_run_on_shards_is_the_run_on_the_folder_they_were_packed_from(pictures, tmp_path, monkeypatch, signal_at):
    monkeypatch.setenv("MASKCO_CACHE", str(tmp_path / "cache"))
    pretrain(pictures, tmp_path / "loose", **TINY)
    names = FolderSource(pictures).names
    for shard, part in enumerate((names[:5], names[5:])):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for name in part:
                tar.add(pictures / name, name)
    signal_at(3)
    assert pretrain(tmp_path / "*.tar", tmp_path / "packed", **TINY).steps == 3
    assert pretrain(out=tmp_path / "packed", resume=True, workers=1).steps == 8
    assert rows(tmp_path / "packed") == rows(tmp_path / "loose")


@pytest.mark.parametrize(("method", "augment"), [(method, "workers") for method in METHODS] + [("maskco", "device")])
def test_an_interrupted_and_resumed_run_equals_an_unbroken_one(pictures, tmp_path, signal_at, method, augment):
    options = tiny(method, augment=augment, **DRAWN.get(method, {"key_group": 2}))
    whole = pretrain(pictures, tmp_path / "whole", **options)
    assert (whole.steps, whole.interrupted) == (8, False)
    for step in (2, 4, 5):  # inside the first epoch, at its end, inside the second
        out = tmp_path / f"broken{step}"
        signal_at(step)
        first = pretrain(pictures, out, **options)
        assert (first.steps, first.signal) == (step, signal.SIGTERM)
        assert read_checkpoint(out / "last.pt")["step"] == step
        second = pretrain(out=out, resume=True, workers=1)
        assert (second.steps, second.interrupted, second.loss) == (8, False, whole.loss)
        assert rows(out) == rows(tmp_path / "whole")
        assert same(*(read_checkpoint(run / "last.pt") | {"config": 0} for run in (out, tmp_path / "whole")))


def test_a_rising_key_momentum_goes_on_where_it_was(pictures, tmp_path, signal_at):
    options = tiny("moco_v2", key_momentum=0.5, key_momentum_end=1.0)
    pretrain(pictures, tmp_path / "whole", **options)
    signal_at(3)
    assert pretrain(pictures, tmp_path / "broken", **options).steps == 3
    with pytest.raises(UserError, match="key_momentum_end"):
        pretrain(out=tmp_path / "broken", resume=True, key_momentum_end=0.9)
    assert pretrain(out=tmp_path / "broken", resume=True).steps == 8
    whole, broken, level = (tmp_path / name for name in ("whole", "broken", "level"))
    pretrain(pictures, level, **options | {"key_momentum_end": None})
    weights = [read_checkpoint(run / "last.pt")["method"] for run in (whole, broken, level)]
    assert same(weights[0], weights[1]) and not same(weights[0], weights[2])


def test_colors_on_the_device_train_the_same(pictures, tmp_path):
    """Up to rounding, with micro-batches, and a run may change over when it is resumed."""
    options = {**TINY, "lr": 0.01, "batch_size": 8, "log_every": 1, "key_group": 2, "accumulate": 2}
    for augment in ("workers", "device"):
        pretrain(pictures, tmp_path / augment, augment=augment, **{**options, "epochs": 1})
    assert pretrain(out=tmp_path / "device", resume=True, epochs=2, augment="workers").steps == 4
    pretrain(out=tmp_path / "workers", resume=True, epochs=2, workers=1, augment="device")
    losses = [[row["loss"] for row in rows(tmp_path / augment)] for augment in ("workers", "device")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3) and len(losses[0]) == 4


def test_rows_past_the_checkpoint_are_made_again(pictures, tmp_path, monkeypatch):
    """A run that was killed outright has logged more than its checkpoint knows."""
    run, kept = tmp_path / "run", {}
    save = TrainState.save

    def save_and_keep(self, path):
        save(self, path)
        kept[self.step] = Path(path).read_bytes()

    monkeypatch.setattr(TrainState, "save", save_and_keep)
    pretrain(pictures, run, save_every_steps=3, **{**TINY, "log_every": 1})
    expected = rows(run)
    assert sorted(kept) == [3, 4, 6, 8] and len(expected) == 8
    (run / "last.pt").write_bytes(kept[3])
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 9, "lo')  # cut off while it was written
    assert pretrain(out=run, resume=True).steps == 8
    assert rows(run) == expected
    assert same(*(torch.load(path, weights_only=True) for path in (run / "last.pt", write(tmp_path, kept[8]))))


def write(folder: Path, content: bytes) -> Path:
    path = folder / "kept.pt"
    path.write_bytes(content)
    return path


def test_equal_seeds_give_equal_runs_bit_for_bit(pictures, tmp_path):
    """However images are loaded; and another seed gives another run."""
    runs = [tmp_path / name for name in "abc"]
    for run, workers, seed in zip(runs, (0, 1, 0), (7, 7, 8), strict=True):
        pretrain(pictures, run, seed=seed, **{**TINY, "workers": workers})
    first, second, other = (read_checkpoint(run / "last.pt") | {"config": 0} for run in runs)
    assert same(first, second) and rows(runs[0]) == rows(runs[1])
    assert not same(first["method"], other["method"])


# What makes the host wait for a device: values and sizes that only it knows.
WAITS = {"_local_scalar_dense", "item", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero"}


class Waits(TorchDispatchMode):
    """Notes every wait between the start of a step and the row of metrics or checkpoint after it."""

    def __init__(self) -> None:
        super().__init__()
        self.learning, self.steps, self.found = False, 0, set()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if self.learning and function.overloadpacket.__name__ in WAITS:
            self.found.add(function.overloadpacket.__name__)
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize(("method", "augment"), [(method, "workers") for method in METHODS] + [("maskco", "device")])
def test_no_step_waits_for_the_device(pictures, tmp_path, monkeypatch, method, augment):
    """Counted on the CPU, where a wait is a call like any other. Only rows of metrics and checkpoints may wait."""
    waits, update, tell = Waits(), find_method(method).start_step, TrainState.require_finite_loss

    def learn(self, progress: float) -> None:
        waits.learning, waits.steps = True, waits.steps + 1
        update(self, progress)

    def stop(self) -> None:
        waits.learning = False
        tell(self)

    monkeypatch.setattr(find_method(method), "start_step", learn)
    monkeypatch.setattr(TrainState, "require_finite_loss", stop)
    options = {"augment": augment, "accumulate": 2, "amp": "bf16", "batch_size": 8, "log_every": 100, "workers": 1}
    options = tiny(method, **options, **DRAWN.get(method, {"key_group": 2}))
    with waits:
        pretrain(pictures, tmp_path / "run", **options)
    assert waits.steps == 4 and not waits.found
    monkeypatch.setattr(
        find_method(method), "start_step", lambda self, at: (learn(self, at), next(self.parameters()).sum().item())
    )
    with waits:
        pretrain(pictures, tmp_path / "other", **options)
    assert waits.found == {"_local_scalar_dense"}


def test_a_step_whose_fp16_gradients_overflow_is_skipped_without_a_wait(monkeypatch):
    """The first step, at that, which torch's fused SGD takes as a chance to leave its buffers unwritten."""
    monkeypatch.setattr(torch, "empty_like", lambda tensor, **options: torch.full_like(tensor, math.nan, **options))
    config = PretrainConfig.of(data="a", out="b", **TINY).filled("moco_v2")
    weights = {}
    for fused in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(64, 64)
        optimizer, scaler = create_optimizer(model, config.optim, "", fused=fused), torch.amp.GradScaler("cpu")
        waits = Waits()
        for factor in (math.inf, 1.0, 2.0):
            before = model.weight.detach().clone()
            optimizer.zero_grad()
            scaler.scale(model(torch.ones(4, 64)).square().sum() * factor).backward()
            waits.learning = True
            with waits:
                scaler.step(optimizer)
                scaler.update()
            waits.learning = False
            assert torch.equal(before, model.weight) == (factor == math.inf)
        weights[fused] = model.weight.detach()
        assert bool(waits.found) == (not fused)
    torch.testing.assert_close(weights[True], weights[False])


@pytest.mark.cuda
@pytest.mark.skipif(
    not torch.cuda.is_available() and not os.environ.get("MASKCO_REQUIRE_CUDA"), reason="no CUDA device"
)
@pytest.mark.parametrize("augment", ["workers", "device"])
def test_no_step_waits_for_a_gpu(pictures, tmp_path, monkeypatch, augment):
    update, tell = MaskCo.start_step, TrainState.require_finite_loss
    monkeypatch.setattr(
        MaskCo, "start_step", lambda self, at: (torch.cuda.set_sync_debug_mode("error"), update(self, at))
    )
    monkeypatch.setattr(
        TrainState, "require_finite_loss", lambda self: (torch.cuda.set_sync_debug_mode("default"), tell(self))
    )
    options = {"device": "cuda", "augment": augment, "key_group": 2, "accumulate": 2, "amp": "fp16", "batch_size": 8}
    options["log_every"] = 100
    try:
        assert pretrain(pictures, tmp_path / "run", **{**TINY, **options}).steps == 4
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_learning_rate_warms_up_and_falls_as_a_cosine():
    config = PretrainConfig.of(data="a", out="b", **{**TINY, "lr": 0.64, "warmup_steps": 2, "epochs": 3}).filled(
        "moco_v2"
    )
    state, rates = TrainState(config, 16, torch.device("cpu")), []
    for state.step in range(12):
        rates.append(state.lr)
    expected = [0.005, 0.01] + [0.01 * (1 + math.cos(math.pi * step / 10)) / 2 for step in range(10)]
    assert rates == pytest.approx(expected)


def test_nothing_of_the_caller_is_touched(pictures, tmp_path):
    stopping = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    handlers = [signal.getsignal(number) for number in stopping]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    pretrain(pictures, tmp_path / "run", **{**TINY, "epochs": 1})
    assert torch.equal(torch.get_rng_state(), before)
    assert [signal.getsignal(number) for number in stopping] == handlers


def test_a_second_interrupt_ends_at_once_but_a_second_hang_up_does_not():
    for number, noted in ((signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGHUP, 2), (signal.SIGUSR1, 2)):
        died = []
        before = signal.signal(number, lambda *arguments: died.append(1))  # noqa: B023
        try:
            with StopSignals() as stop:
                for _ in range(2):
                    os.kill(os.getpid(), number)
                assert stop.signal == number and len(died) == 2 - noted
        finally:
            signal.signal(number, before)


def test_runs_outside_the_main_thread(pictures, tmp_path):
    results = []
    options = {**TINY, "epochs": 1}
    thread = threading.Thread(target=lambda: results.append(pretrain(pictures, tmp_path / "run", **options)))
    thread.start()
    thread.join()
    assert results[0].steps == 4


def test_a_finished_run_says_so_and_more_epochs_go_on(pictures, tmp_path, capfd):
    run = tmp_path / "run"
    pretrain(pictures, run, **{**TINY, "epochs": 1})
    before = (run / "last.pt").read_bytes()
    assert pretrain(out=run, resume=True).steps == 4
    assert "finished already, after 4 steps" in capfd.readouterr().err
    assert (run / "last.pt").read_bytes() == before
    assert pretrain(out=run, resume=True, epochs=2).steps == 8
    config = (run / "config.json").read_bytes()
    with pytest.raises(CheckpointError, match=r"has done 8 steps, and `epochs=1` ends after 4.*or take 2 or more"):
        pretrain(out=run, resume=True, epochs=1)
    assert (run / "config.json").read_bytes() == config


def test_resume_starts_a_run_that_is_not_there(pictures, tmp_path):
    assert pretrain(pictures, tmp_path / "run", resume=True, **{**TINY, "epochs": 1}).steps == 4


def test_compiled_encoders_learn_the_same(pictures, tmp_path, monkeypatch):
    """With the graphs run as they are, since generating code for them takes minutes."""
    plain = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: plain(self, backend="eager"))
    torch.compiler.reset()
    runs = {flag: tmp_path / str(flag) for flag in (False, True)}
    for flag, run in runs.items():
        pretrain(pictures, run, compile=flag, **{**TINY, "epochs": 1, "lr": 0.01, "key_group": 2})
    counts = torch._dynamo.utils.counters["stats"]
    assert counts["unique_graphs"] >= 2 and not torch._dynamo.utils.counters["graph_break"]
    assert rows(runs[True])[-1]["loss"] == pytest.approx(rows(runs[False])[-1]["loss"], abs=1e-4)
    first, second = (read_checkpoint(run / "last.pt")["method"] for run in runs.values())
    assert first.keys() == second.keys()
    assert pretrain(out=runs[True], resume=True, compile=False, epochs=2).steps == 8


def test_bfloat16_runs(pictures, tmp_path):
    assert math.isfinite(pretrain(pictures, tmp_path / "run", amp="bf16", **{**TINY, "epochs": 1}).loss)


def test_load_run_gives_the_trained_method(pictures, tmp_path):
    pretrain(pictures, tmp_path / "run", **{**TINY, "epochs": 1})
    config, method, step = load_run(tmp_path / "run")
    assert (config.run.encoder, step, method.training) == ("test_resnet", 4, False)
    assert isinstance(method, MaskCo)
    stored = torch.load(tmp_path / "run/last.pt", weights_only=True)["method"]
    assert same(dict(method.state_dict()), dict(stored))
