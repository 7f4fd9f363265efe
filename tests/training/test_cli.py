"""The command line as a process: exit codes, one-line errors, signals, resuming with the stored options."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from commands import run_main
from maskco import cli
from maskco.config import PretrainConfig
from maskco.console import one_line_errors
from maskco.errors import ConfigError
from maskco.runs.recorder import Recorder
from tiny_runs import TINY, rows

OPTIONS = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]


def test_errors_are_one_line_and_exit_with_2(tmp_path, capsys):
    assert run_main("pretrain", "--data", tmp_path / "missing", "--out", tmp_path / "run", *OPTIONS) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --data: no such folder") and error.count("\n") == 1
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
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # the suite itself may run under nohup
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
    assert f"{number.name}: saved step" in error and f"continue with: maskco pretrain --out {run} --resume" in error

    epochs = rows(run)[-1]["step"] // 4 + 1
    assert run_main("pretrain", "--out", run, "--resume", "--epochs", epochs, "--workers", "0") == 0
    assert [row["step"] for row in rows(run)] == list(range(1, 4 * epochs + 1))
    assert run_main("pretrain", "--out", run, "--resume", "--dim=9") == 2
    assert "dim: 8, not 9" in capsys.readouterr().err


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


def test_a_damaged_configuration_names_the_flag(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{")
    assert run_main("pretrain", "--out", tmp_path, "--resume") == 2
    assert "or replace the run with --overwrite" in capsys.readouterr().err


def test_stored_options_are_the_defaults_of_a_resumed_run(tmp_path):
    config = PretrainConfig.of(data="photos", out="elsewhere", key_head=True, region_scale=(0.1, 0.2))
    with Recorder(tmp_path, config, 0) as recorder:
        recorder.begin()
    stored = cli.stored_options(["pretrain", f"--out={tmp_path}", "--resume"])
    assert tuple(stored[name] for name in ("key_head", "region_scale", "out")) == (True, (0.1, 0.2), str(tmp_path))
    assert cli.stored_options(["pretrain", "--out", str(tmp_path)]) is None
    new = ["pretrain", "--out", str(Path(tmp_path, "new")), "--resume"]
    assert cli.stored_options([*new, "--data", "photos"]) is None
    with pytest.raises(ConfigError, match="new holds no run to resume"):
        cli.stored_options(new)


ASCII = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_torchrun_leaves_our_flags_alone():
    """It takes what begins one of its own options for that option, wherever it stands."""
    torchrun = get_args_parser()
    flags = cli.flags(cli.pretrain_defaults(["pretrain", "--data", "a", "--out", "b"])) - {"log"} | {"loggers"}
    for flag in flags:
        command = ["pretrain", f"--{flag.replace('_', '-')}", "value"]
        assert torchrun.parse_args(["-m", "maskco", *command]).training_script_args == command


def shell(command: str, **environment: str) -> subprocess.CompletedProcess:
    """A command line by bash, in which `maskco` is this one; its code is that of the last to fail in a pipe."""
    script = f'set -o pipefail; maskco() {{ "{sys.executable}" -m maskco "$@"; }}; {command}'
    return subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=120, env={**os.environ, **environment}
    )


@pytest.mark.parametrize("command", ["--help", "pretrain --help", "pretrain --data demo --amp x", "views"])
def test_help_and_errors_print_on_an_ascii_terminal(command):
    done = shell(f"maskco {command}", **ASCII)
    assert done.returncode == (0 if "--help" in command else 2)
    assert "Traceback" not in done.stderr and (done.stdout + done.stderr).isascii()


@pytest.mark.parametrize("text", ["─ … × ≤", os.fsdecode(b"caf\xe9.png"), "\u753b"])
def test_any_text_prints_whatever_the_encoding(text):
    code = "import sys; from maskco.console import one_line_errors as o\nwith o(): print(sys.argv[1], flush=True)"
    for encoding in ("ascii", "latin-1", "utf-8"):
        command = [sys.executable, "-c", code, os.fsencode(text)]
        done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding})
        assert (done.returncode, done.stderr) == (0, b"") and done.stdout


def test_a_reader_that_stops_listening_ends_the_command_quietly():
    for command in ("info", "--help"):  # the sleep lets the reader end first
        done = shell(f"(sleep 0.2; maskco {command}) | true")
        assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")
    assert shell("maskco info | head -1").stderr == ""


def test_another_broken_pipe_is_no_quiet_end(capsys):
    with pytest.raises(SystemExit) as stopped, one_line_errors():
        raise BrokenPipeError(errno.EPIPE, "Broken pipe", "worker")
    assert stopped.value.code == 2 and capsys.readouterr().err == "error: [Errno 32] Broken pipe: 'worker'\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_under_the_output_is_one_line():
    done = shell("maskco info > /dev/full")
    assert (done.returncode, done.stderr) == (2, "error: [Errno 28] No space left on device\n")


def test_report_and_export_take_a_checkpoint_and_home_folders(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run_main("pretrain", f"--data={pictures}", "--out=~/run", *OPTIONS, "--epochs=1") == 0
    assert run_main("report", "~/run/last.pt", "--data", pictures) == 0
    assert (tmp_path / "run/report.html").exists()
    assert run_main("report", "~/run", "--data", pictures, "--out=~/shown") == 0
    assert (tmp_path / "shown/report.png").exists()
    assert run_main("export", "~/run/last.pt", "--format=timm", "--out=~/encoder.pth") == 0
    assert " h |" in (tmp_path / "encoder.md").read_text()  # from the metrics beside the checkpoint
    capsys.readouterr()
    for out in ("page.html", "run/last.pt"):
        assert run_main("report", "~/run", f"--out=~/{out}") == 2
        error = capsys.readouterr().err
        assert error.startswith("error: --out: ") and "is no folder" in error and error.count("\n") == 1
