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
from tiny_runs import TINY, rows

import maskco.train
from maskco.checkpoint import load_run, read_checkpoint
from maskco.config import PretrainConfig
from maskco.data.sources import FolderSource, PretrainDataset
from maskco.methods import MaskCo
from maskco.train import pretrain
from maskco.train_state import TrainState


def same(first: object, second: object) -> bool:
    """Bitwise equality of nested states, clock times left out."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first if k != "seconds")
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second or first != first


class SignalAt(PretrainDataset):
    """Sends this process a signal when the given picture of the run is loaded."""

    at, loaded = -1, 0

    def __getitem__(self, key):
        SignalAt.loaded += 1
        if SignalAt.loaded == SignalAt.at:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().__getitem__(key)


@pytest.fixture
def signal_at(monkeypatch):
    """signal_at(step) interrupts the next run while it loads the batch of that step."""

    def arm(step: int) -> None:
        monkeypatch.setattr(maskco.train, "PretrainDataset", SignalAt)
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


@pytest.mark.parametrize("method", ["maskco", "moco_v2"])
def test_an_interrupted_and_resumed_run_equals_an_unbroken_one(pictures, tmp_path, signal_at, method):
    options = {**TINY, "method": method, "key_group": 2}  # the groups are shuffled: random numbers must go on too
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


def test_learning_rate_warms_up_and_falls_as_a_cosine():
    config = PretrainConfig(data="a", out="b", **{**TINY, "lr": 0.64, "warmup_steps": 2, "epochs": 3})
    state, rates = TrainState(config, 16, torch.device("cpu")), []
    for state.step in range(12):
        rates.append(state.lr)
    expected = [0.005, 0.01] + [0.01 * (1 + math.cos(math.pi * step / 10)) / 2 for step in range(10)]
    assert rates == pytest.approx(expected)


def test_nothing_of_the_caller_is_touched(pictures, tmp_path):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    pretrain(pictures, tmp_path / "run", **{**TINY, "epochs": 1})
    assert torch.equal(torch.get_rng_state(), before)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


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


def test_resume_starts_a_run_that_is_not_there(pictures, tmp_path):
    assert pretrain(pictures, tmp_path / "run", resume=True, **{**TINY, "epochs": 1}).steps == 4


def test_bfloat16_runs(pictures, tmp_path):
    assert math.isfinite(pretrain(pictures, tmp_path / "run", amp="bf16", **{**TINY, "epochs": 1}).loss)


def test_load_run_gives_the_trained_method(pictures, tmp_path):
    pretrain(pictures, tmp_path / "run", **{**TINY, "epochs": 1})
    config, method, step = load_run(tmp_path / "run")
    assert (config.encoder, step, method.training) == ("test_resnet", 4, False)
    assert isinstance(method, MaskCo)
    stored = torch.load(tmp_path / "run/last.pt", weights_only=True)["method"]
    assert same(dict(method.state_dict()), dict(stored))
