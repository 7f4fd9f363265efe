"""Checkpoints that survive what happens to disks, that are kept, and that nothing broken gets into or out of."""

from __future__ import annotations

import errno
import math
import os
import resource
import shutil
from pathlib import Path

import pytest
import torch

import maskco.runs.checkpoint
from maskco.config import PretrainConfig
from maskco.errors import ConfigError, TrainingError
from maskco.runs.checkpoint import CheckpointError, kept_checkpoints, load_run, read_checkpoint, save_checkpoint
from maskco.training.loop import pretrain
from maskco.training.state import TrainState
from resuming import same
from tiny_runs import TINY, rows

ONE_EPOCH = {**TINY, "epochs": 1}
INFINITE = torch.tensor(math.inf)


@pytest.fixture
def run(pictures, tmp_path) -> Path:
    """A finished run of four steps."""
    pretrain(pictures, tmp_path / "run", **ONE_EPOCH)
    return tmp_path / "run"


def test_a_disk_that_fills_up_leaves_the_checkpoint_before_and_says_so(tmp_path, run):
    """Real writes that fail half-way, by the limit on the size of a process' files."""
    spared, good = tmp_path / "spared", (run / "last.pt").read_bytes()
    shutil.copytree(run, spared)
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(good) // 2, hard))
    try:
        with pytest.raises(TrainingError) as caught:
            pretrain(out=run, resume=True, epochs=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(caught.value) == (
        f"step 8 could not be saved (File too large). The last good checkpoint is {run}/last.pt (step 4). "
        "Free some space, then continue with `resume=True`"
    )
    assert "could not be saved" in (run / "log.txt").read_text()
    assert (run / "last.pt").read_bytes() == good and not (run / ".last.pt.partial").exists()
    for each in (run, spared):
        assert pretrain(out=each, resume=True, epochs=2).steps == 8
    assert rows(run) == rows(spared)
    assert same(*(read_checkpoint(each / "last.pt") | {"config": 0} for each in (run, spared)))


def test_a_log_that_cannot_grow_is_named_and_the_checkpoint_is_whole(run):
    """By the limit on the size of a process' files, which the log alone has reached."""
    good, log = (run / "last.pt").read_bytes(), (run / "log.txt").read_text()
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open(run / "log.txt", "a") as file:
        file.truncate(len(good) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(good) * 2, hard))
    try:
        with pytest.raises(OSError, match=r"File too large: .*log\.txt"):
            pretrain(out=run, resume=True, epochs=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (run / "last.pt").read_bytes() == good
    (run / "log.txt").write_text(log)
    assert pretrain(out=run, resume=True, epochs=2).steps == 8


def test_a_replacement_that_fails_leaves_both_files_whole(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "last.pt", {"step": 1})

    def failing(*paths: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="Input/output"):
        save_checkpoint(tmp_path / "last.pt", {"step": 2})
    assert read_checkpoint(tmp_path / "last.pt")["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("links", [True, False])
def test_the_newest_checkpoints_are_kept_and_can_be_gone_back_to(pictures, tmp_path, monkeypatch, links):
    def refused(*paths: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    if not links:
        monkeypatch.setattr(maskco.runs.checkpoint.os, "link", refused)
    run, whole = tmp_path / "run", tmp_path / "whole"
    pretrain(pictures, run, **{**TINY, "save_every_steps": 1, "keep": 6})
    assert {step: path.name for step, path in kept_checkpoints(run).items()} == {
        step: f"step-{step}.pt" for step in (3, 4, 5, 6, 7)
    }
    assert [load_run(run / name)[2] for name in ("step-6.pt", "step-7.pt", "last.pt")] == [6, 7, 8]
    shutil.copy(run / "step-6.pt", run / "last.pt")
    assert pretrain(out=run, resume=True, keep=2).steps == 8
    assert list(kept_checkpoints(run)) == [7]
    pretrain(pictures, whole, **TINY)
    assert same(*(read_checkpoint(each / "last.pt") | {"config": 0} for each in (run, whole)))

    (run / "last.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"damaged or truncated. Copy step-7.pt over it"):
        pretrain(out=run, resume=True)
    (run / "last.pt").unlink()
    for resume in ({"out": run}, {"data": pictures, "out": run, **TINY, "save_every_steps": 1, "keep": 6}):
        with pytest.raises(ConfigError, match=r"has lost its last.pt. Copy step-7.pt to it, or start over with `over"):
            pretrain(**resume, resume=True)
    assert list(kept_checkpoints(run)) == [7]
    (run / ".step-9.pt.partial").touch()  # of a run that was killed while it kept one
    pretrain(pictures, run, overwrite=True, **ONE_EPOCH)
    assert not kept_checkpoints(run) and not (run / ".step-9.pt.partial").exists()


def test_the_epoch_with_the_lowest_loss_is_kept(pictures, tmp_path):
    """Of those that began with a full queue: 16 images in 4 steps of 8 keys, 12 of which fill it. And when the run is
    killed between writing last.pt and giving it its second name, the resumed one gives it."""
    run = tmp_path / "run"
    options = {**TINY, "epochs": 5, "keep_best": "loss", "lr": 0.1}
    pretrain(pictures, run, **options)
    loss = dict.fromkeys(range(1, 6), 0.0)
    before = 0
    for row in rows(run):
        loss[math.ceil(row["epoch"])] += row["loss"] * (row["step"] - before) / 4
        before = row["step"]
    best = min(range(2, 6), key=loss.__getitem__)
    assert load_run(run / "best.pt")[2] == 4 * best
    assert f"best.pt is of epoch {best}, with the lowest mean loss, {loss[best]:.3f}" in (run / "log.txt").read_text()

    good = (run / "best.pt").read_bytes()
    (run / "best.pt").rename(run / "last.pt")
    with pytest.raises(CheckpointError, match="keep_best: loss, not off"):  # else best.pt may be missing
        pretrain(out=run, resume=True, keep_best="off")
    pretrain(out=run, resume=True)
    assert (run / "best.pt").read_bytes() == good
    pretrain(pictures, run, overwrite=True, **options | {"epochs": 1})
    assert not (run / "best.pt").exists()
    assert "no best.pt: no epoch that started with full queues has ended" in (run / "log.txt").read_text()


def test_a_best_checkpoint_that_has_no_room_is_named_and_the_one_before_stays(tmp_path, monkeypatch):
    """Where there are no links it is copied, and the disk may fill up with the copy."""

    def no_links(*paths: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    def no_room(*files: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    state = TrainState(
        PretrainConfig.of(data="a", out=str(tmp_path), **TINY, keep_best="loss").filled("moco_v2"),
        16,
        torch.device("cpu"),
    )
    last, best = tmp_path / "last.pt", tmp_path / "best.pt"
    monkeypatch.setattr(os, "link", no_links)
    state.step = state.best.step = 4
    state.save(last)
    state.save(last)  # a second time, as a resumed run may
    before = best.read_bytes()
    assert before == last.read_bytes()
    monkeypatch.setattr(shutil, "copyfileobj", no_room)
    state.step = state.best.step = 8
    told = r"step 8 could not be kept as best.pt \(No space left on device\), but .*last.pt is whole. Free some space"
    with pytest.raises(TrainingError, match=told):
        state.save(last)
    assert best.read_bytes() == before
    assert read_checkpoint(last)["step"] == 8


@pytest.mark.parametrize(
    ("part", "name"),
    [
        (lambda state: state["optimizer"]["state"][3]["momentum_buffer"], "optimizer.state.3.momentum_buffer"),
        (lambda state: state["method"]["momentum_encoder.backbone.conv1.0.weight"], "method.momentum_encoder"),
        (lambda state: state["method"]["queue.features"], "method.queue.features"),
    ],
)
def test_a_checkpoint_with_infinity_in_it_is_refused(run, part, name):
    state = read_checkpoint(run / "last.pt")
    part(state)[-1] = math.inf
    save_checkpoint(run / "last.pt", state)
    with pytest.raises(CheckpointError, match=f"cannot resume from .*last.pt: {name}.* NaN or Inf. Restore"):
        pretrain(out=run, resume=True, epochs=2)


def test_infinity_anywhere_in_the_state_is_never_saved(tmp_path):
    """Weights may be finite still when momentum or a queue is not; the next step would tell, but the step is saved."""
    config = PretrainConfig.of(data="a", out=str(tmp_path), **TINY).filled("moco_v2")
    for break_it in (
        lambda state: state.method.queue.features.view(-1)[:1].fill_(math.nan),
        lambda state: state.method.encoder.backbone.bn1.running_var[:1].fill_(math.inf),
        lambda state: state.optimizer.state[next(state.method.parameters())].update(momentum_buffer=INFINITE),
    ):
        state = TrainState(config, 16, torch.device("cpu"))
        state.step = 3
        break_it(state)
        with pytest.raises(
            TrainingError, match=r"no longer finite at step 3, learning rate .*\. No checkpoint was saved"
        ):
            state.save(tmp_path / "last.pt")
        assert not (tmp_path / "last.pt").exists()
