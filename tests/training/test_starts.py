"""Starts that fail leave no trace, and what was there before as it was."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed

import maskco.training.loop
from commands import read_tree, run_main
from maskco.data.sources import SourceError
from maskco.errors import ConfigError, TrainingError, UserError
from maskco.memory import OutOfMemory
from maskco.runs.folder import RUN_LOCK
from maskco.runs.recorder import Recorder
from maskco.training.loop import pretrain
from tiny_runs import TINY, make_pictures, tiny

ONE_EPOCH = {**TINY, "epochs": 1}


@pytest.fixture
def run(pictures, tmp_path) -> Path:
    return pretrain(pictures, tmp_path / "run", **ONE_EPOCH).out


def no_compiler(*arguments):
    raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable")


def no_memory(*arguments):
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("step", [no_compiler, no_memory])
def test_a_first_step_that_fails_leaves_no_folder(pictures, tmp_path, monkeypatch, step):
    monkeypatch.setattr(maskco.training.loop, "to_device", step)
    with pytest.raises((RuntimeError, OutOfMemory)):
        pretrain(pictures, tmp_path / "run", **ONE_EPOCH)
    assert not (tmp_path / "run").exists()
    monkeypatch.undo()
    assert pretrain(pictures, tmp_path / "run", **ONE_EPOCH).steps == 4


def test_compiling_without_a_compiler_is_one_line_and_leaves_no_folder(pictures, tmp_path, monkeypatch):
    from torch._inductor.exc import InvalidCxxCompiler  # (also what is raised where there is none)

    def compiles(*arguments):
        raise BackendCompilerFailed(lambda: None, InvalidCxxCompiler(), None)

    monkeypatch.setattr(maskco.training.loop, "to_device", compiles)
    with pytest.raises(TrainingError, match=r"torch.compile fails here .*Leave out `compile=True`") as caught:
        pretrain(pictures, tmp_path / "run", **ONE_EPOCH)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_a_replacement_whose_first_step_fails_leaves_the_run(run, pictures, monkeypatch):
    before = read_tree(run)
    monkeypatch.setattr(maskco.training.loop, "to_device", no_compiler)
    with pytest.raises(RuntimeError):
        pretrain(pictures, run, overwrite=True, **ONE_EPOCH)
    assert read_tree(run) == before


def test_wrong_options_leave_no_folder(pictures, tmp_path):
    for wrong in ({"image_size": 7}, {"encoder": "resnetty"}, {"output_stride": 3}):
        with pytest.raises(UserError):
            pretrain(pictures, tmp_path / "run", **ONE_EPOCH | wrong)
        assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_told_before_the_first_step(pictures, tmp_path, monkeypatch):
    """The system is not asked, since root may write everywhere."""
    (tmp_path / "mine").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / "mine")
    with pytest.raises(ConfigError, match="mine cannot be written to"):
        pretrain(pictures, tmp_path / "mine/run", **ONE_EPOCH)


def test_a_start_that_never_made_a_step_can_be_repeated(pictures, tmp_path, run):
    """As versions before left it, or a kill right after the first step."""
    out = tmp_path / "begun"
    out.mkdir()
    shutil.copy(run / "config.json", out)
    (out / "metrics.jsonl").touch()
    (out / "notes.txt").write_text("mine")
    assert pretrain(pictures, out, **ONE_EPOCH).steps == 4
    assert (out / "notes.txt").read_text() == "mine"
    (out / "last.pt").unlink()  # but it has rows of metrics
    with pytest.raises(ConfigError, match="holds a run already"):
        pretrain(pictures, out, **ONE_EPOCH)
    assert pretrain(pictures, out, resume=True, **ONE_EPOCH).steps == 4
    (out / "metrics.jsonl").unlink()  # but it has a checkpoint
    with pytest.raises(ConfigError, match="holds a run already"):
        pretrain(pictures, out, **ONE_EPOCH)


@pytest.mark.parametrize("config", ["", "{", "null", "[1]", '{"maskco": "9", "unheard_of": 1}', '{"a": 1}', None])
@pytest.mark.parametrize("left", [{"last.pt"}, {"metrics.jsonl"}, {"log.txt"}, {"last.pt", "metrics.jsonl", "log.txt"}])
def test_a_run_with_a_damaged_config_can_be_replaced(run, pictures, config, left):
    (run / "config.json").unlink()
    if config is not None:
        (run / "config.json").write_text(config)
    for name in {"last.pt", "metrics.jsonl", "log.txt"} - left:
        (run / name).unlink()
    if '"maskco"' not in str(config) or left != {"log.txt"}:
        with pytest.raises(ConfigError):
            pretrain(pictures, run, **ONE_EPOCH)
    assert pretrain(pictures, run, overwrite=True, **ONE_EPOCH).steps == 4
    assert json.loads((run / "config.json").read_text())["method"]["dim"] == 8


@pytest.mark.parametrize("theirs", [
    {"config.json": '{"model_type": "bert"}', "last.pt": "x"},
    {"config.json": "{", "log.txt": "2026-01-01 10:00:00 started\n", "metrics.jsonl": '{"step": 1, "loss": 2}\n'},
    {"config.json": "", "thesis.txt": "years of work"},
    {"last.pt": "weights"},
])  # fmt: skip
def test_what_is_no_run_of_ours_is_never_replaced(pictures, tmp_path, theirs):
    out = tmp_path / "theirs"
    out.mkdir()
    for name, content in theirs.items():
        (out / name).write_text(content)
    torch.save({"model": torch.zeros(3)}, out / "best.pt")
    before = read_tree(out)
    for extra in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(ConfigError, match=r"holds other files|is not the configuration"):
            pretrain(pictures, out, **ONE_EPOCH, **extra)
    assert read_tree(out) == before


def test_nothing_is_written_before_the_first_step(pictures, tmp_path, monkeypatch):
    seen, begin = [], Recorder.begin

    def look(self):
        seen.append((tmp_path / "run").exists())
        begin(self)

    monkeypatch.setattr(Recorder, "begin", look)
    pretrain(pictures, tmp_path / "run", **ONE_EPOCH)
    assert seen == [False]
    assert "with test_resnet on 16 images" in (tmp_path / "run/log.txt").read_text()


# ---- data that have moved


def test_a_run_goes_on_with_its_data_in_another_place(tmp_path, capsys):
    data, out = make_pictures(tmp_path / "photos"), tmp_path / "run"
    pretrain(data, out, **ONE_EPOCH)
    moved = data.rename(tmp_path / "elsewhere")
    with pytest.raises(SourceError, match="no such folder"):
        pretrain(out=out, resume=True, epochs=2)
    assert run_main("pretrain", "--out", out, "--resume", "--epochs", 2, "--data", moved) == 0
    assert json.loads((out / "config.json").read_text())["run"]["data"] == str(moved)
    assert pretrain(out=out, resume=True, epochs=3).steps == 12
    (moved / "000.png").rename(moved / "other.png")
    assert run_main("pretrain", "--out", out, "--resume", "--epochs", 4, "--data", moved) == 2
    assert "as many images of other names" in capsys.readouterr().err


# ---- queues that will never be full


@pytest.mark.parametrize(
    ("method", "queue", "told"),
    [
        ("maskco", 32, None),
        ("maskco", 33, "holds keys of the same images from earlier epochs: an epoch makes 32. --queue-size 32 would"),
        ("maskco", 65, "will never be full: the whole run makes 64 keys, an epoch 32. --queue-size 32 would fit"),
        ("moco_v2", 16, None),
        ("moco_v2", 33, "will never be full: the whole run makes 32 keys, an epoch 16. --queue-size 16 would fit"),
    ],
)
def test_a_queue_longer_than_the_data_is_told_once(pictures, tmp_path, capfd, method, queue, told):
    options = tiny(method, queue_size=queue, accumulate=2)
    pretrain(pictures, tmp_path / "run", **options)
    said = [line for line in capfd.readouterr().err.splitlines() if "the queue of" in line]
    assert len(said) == (told is not None)
    if told:
        assert told in said[0] and said[0] in (tmp_path / "run/log.txt").read_text()
        pretrain(out=tmp_path / "run", resume=True, epochs=3)
        assert "the queue of" not in capfd.readouterr().err


def test_a_folder_that_another_process_writes_to_is_refused(pictures, tmp_path):
    pretrain(pictures, tmp_path / "run", **ONE_EPOCH)
    assert not (tmp_path / "run" / RUN_LOCK).exists()
    (tmp_path / "new").mkdir()
    for folder, options in (("run", {"resume": True}), ("run", {"overwrite": True, **ONE_EPOCH}), ("new", ONE_EPOCH)):
        code = (
            "import sys, pathlib; from maskco.runs.folder import RunLock; "
            "RunLock(pathlib.Path(sys.argv[1])).take(); print(flush=True); sys.stdin.read()"
        )
        command = [sys.executable, "-c", code, str(tmp_path / folder)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None and other.stdout.readline()
            before = sorted(path.name for path in (tmp_path / folder).iterdir())
            with pytest.raises(
                ConfigError, match=rf"out: .*{folder} is being written by another process\. Wait for it"
            ):
                pretrain(pictures, tmp_path / folder, **options)
            assert sorted(path.name for path in (tmp_path / folder).iterdir()) == before
            other.kill()
        pretrain(pictures, tmp_path / folder, **options)
