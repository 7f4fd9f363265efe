"""The command line as a process: exit codes, one-line errors, signals, resuming with the stored options."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_runs import TINY, rows

from maskco import cli
from maskco.config import ConfigError, PretrainConfig
from maskco.run_folder import Recorder

OPTIONS = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]


def run_main(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(argument) for argument in arguments])
    return stopped.value.code


def test_errors_are_one_line_and_exit_with_2(tmp_path, capsys):
    assert run_main("pretrain", "--data", tmp_path / "missing", "--out", tmp_path / "run", *OPTIONS) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: data: no such folder") and error.count("\n") == 1
    assert run_main("pretrain", "--out", tmp_path / "run") == 2


def test_info_says_what_was_built(capsys):
    assert run_main("info") == 0
    assert "compiler" in capsys.readouterr().out


def start(pictures: Path, run: Path, *more: str) -> subprocess.Popen:
    """A whole process with a loading worker, after its first rows of metrics."""
    options = ["pretrain", "--data", pictures, "--out", run, *OPTIONS, "--epochs=200", "--workers=1", "--log-every=1"]
    process = subprocess.Popen(
        [*more, sys.executable, "-c", "from maskco.cli import main; main()", *map(str, options)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() or (run / "metrics.jsonl").read_text().count("\n") < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_saves_and_resume_needs_nothing_but_the_folder(pictures, tmp_path, capsys, number):
    """The whole group gets it, as from a terminal or a scheduler; a closing terminal sends SIGHUP twice."""
    run = tmp_path / "run"
    process = start(pictures, run)
    os.killpg(process.pid, number)
    if number == signal.SIGHUP:
        os.killpg(process.pid, number)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number, error
    assert "Traceback" not in error
    assert f"{number.name}: saved step" in error and f"go on with: maskco pretrain --out {run} --resume" in error

    epochs = rows(run)[-1]["step"] // 4 + 1
    assert run_main("pretrain", "--out", run, "--resume", "--epochs", epochs, "--workers", "0") == 0
    assert [row["step"] for row in rows(run)] == list(range(1, 4 * epochs + 1))
    assert run_main("pretrain", "--out", run, "--resume", "--dim=9") == 2
    assert "dim: 9, not 8" in capsys.readouterr().err


def test_a_hang_up_that_nohup_ignores_stays_ignored(pictures, tmp_path):
    process = start(pictures, tmp_path / "run", "nohup")
    done = len(rows(tmp_path / "run"))
    os.killpg(process.pid, signal.SIGHUP)
    deadline = time.monotonic() + 60
    while len(rows(tmp_path / "run")) < done + 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    assert "SIGTERM: saved step" in process.communicate(timeout=60)[1]


def test_stored_options_are_the_defaults_of_a_resumed_run(tmp_path):
    config = PretrainConfig(data="photos", out="elsewhere", key_head=True, region_scale=(0.1, 0.2))
    with Recorder(tmp_path, config, 0) as recorder:
        recorder.begin()
    stored = cli.stored_options(["pretrain", f"--out={tmp_path}", "--resume"])
    assert (stored.key_head, stored.region_scale, stored.out) == (True, (0.1, 0.2), str(tmp_path))
    assert cli.stored_options(["pretrain", "--out", str(tmp_path)]) is None
    new = ["pretrain", "--out", str(Path(tmp_path, "new")), "--resume"]
    assert cli.stored_options([*new, "--data", "photos"]) is None
    with pytest.raises(ConfigError, match="new holds no run to resume"):
        cli.stored_options(new)
