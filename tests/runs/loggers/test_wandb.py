"""What W&B itself keeps of a run: offline, and on a small server of this machine."""

import json
import os
import random
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import maskco
from logged_runs import BAD_ROW, LAST_ROW, ODD_NAMES, ROWS, children, history, kept, mlflow_client, steps
from maskco.runs.loggers import Record, read_records, write_record
from wandb_files import wandb_runs
from wandb_server import wandb_server


@pytest.mark.parametrize("name", ODD_NAMES)
def test_wandb_offline_goes_on_in_a_folder_with_what_the_former_lack(tmp_path, png, name):
    run = tmp_path / "runs" / name
    run.mkdir(parents=True)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    hooks = [signal.getsignal(number) for number in range(1, 32)], sys.exit, sys.excepthook, sys.stdout, sys.stderr
    lines = kept(run, "wandb", [*ROWS, BAD_ROW], status="stopped", init="x" * 20_000)
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert hooks == ([signal.getsignal(number) for number in range(1, 32)], *hooks[1:3], sys.stdout, sys.stderr)
    assert (sys.exit, sys.excepthook) == hooks[1:3]
    lines += kept(run, "wandb", [*ROWS, BAD_ROW, LAST_ROW], step=4, picture=png)
    assert len(lines) == 2 and all(
        line.startswith("wandb: offline, to be uploaded with: wandb sync ") for line in lines
    )

    first, second = wandb_runs(tmp_path)
    assert str(second.folder) in lines[1]
    assert first.id == second.id == read_records(run)["wandb"].name
    assert first.project == second.project == "maskco"
    assert first.name == second.name and (not name.isascii() or first.name == name[:128])
    assert steps(first.rows) == [2, 4, 6] and steps(second.rows) == [12, 12]
    assert str([row["loss"] for row in first.rows]) == "[0.5, 0.25, nan]" and second.rows[0]["loss"] == 0.5
    assert (first.exit_code, second.exit_code) == (255, 0)
    assert not first.pictures and len(second.pictures) == 1 and second.pictures[0].startswith("report")
    assert second.kinds == {"header", "run", "telemetry", "metric", "summary", "history", "files", "exit"}
    assert first.config["run"]["init"] == "x" * 20_000 and first.config["optim"]["lr"] == 1
    assert first.config["versions"]["maskco"] == maskco.__version__ and "commit" in first.config
    assert {metric.step_metric for metric in first.metrics if metric.glob_name == "*"} == {"step"}
    assert not children("wandb-core") and "WANDB_SERVICE" not in os.environ


@pytest.mark.parametrize("killed", [False, True])
def test_wandb_offline_gets_what_it_lacks_after_a_process_that_was_killed(tmp_path, killed):
    kept(tmp_path, "wandb", [*ROWS, BAD_ROW])
    if killed:  # rows of metrics.jsonl past the checkpoint were given to W&B as well
        record = read_records(tmp_path)["wandb"]
        write_record(tmp_path, "wandb", Record(record.name))
    kept(tmp_path, "wandb", [*ROWS, BAD_ROW, LAST_ROW], step=2, made=6)
    assert [steps(run.rows) for run in wandb_runs(tmp_path)] == [[2, 4, 6], [12]]


KILLED = """
import os, sys, time
from pathlib import Path
from maskco.config import PretrainConfig, find_logger
from maskco.runs.loggers import Loggers

run = Path(sys.argv[1])
config = PretrainConfig.of(data="demo", out=str(run), encoder="test_resnet")
loggers = Loggers(run, config, {name: find_logger(name)() for name in ("wandb", "mlflow")}, print)
loggers.begin([], 0, 0)
for step in (2, 4, 6):
    loggers.add({"step": step, "epoch": 0, "loss": 1.0})
time.sleep(1)
os.kill(os.getpid(), 9)
"""


@pytest.mark.slow
def test_no_row_is_lost_or_comes_twice_after_a_kill(monkeypatch, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(maskco.__file__).parents[1])}
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL and read_records(tmp_path)["wandb"].given is None
    for name in ("wandb", "mlflow"):
        kept(tmp_path, name, [*ROWS, BAD_ROW, LAST_ROW], step=2, made=6)
    assert [steps(run.rows) for run in wandb_runs(tmp_path)] == [[2, 4, 6], [12]]
    record = read_records(tmp_path)["mlflow"].name
    assert [step for step, _ in history(mlflow_client(monkeypatch), record)] == [2, 4, 6, 12]


def test_what_a_failed_logger_was_not_given_comes_later(tmp_path, monkeypatch):
    kept(tmp_path, "wandb", ROWS)
    with monkeypatch.context() as patch:
        patch.setattr("maskco.runs.loggers.wandb.WandbLogger.add", lambda *_: 1 / 0)
        (_, line) = kept(tmp_path, "wandb", [*ROWS, BAD_ROW], step=4)
        assert "division by zero" in line
    with monkeypatch.context() as patch:
        patch.setattr("wandb.init", lambda *_, **__: 1 / 0)
        (line,) = kept(tmp_path, "wandb", [*ROWS, BAD_ROW], step=4)
        assert "division by zero" in line
    assert read_records(tmp_path)["wandb"].given == 4
    kept(tmp_path, "wandb", [*ROWS, BAD_ROW, LAST_ROW], step=6)
    assert [steps(run.rows) for run in wandb_runs(tmp_path)] == [[2, 4], [], [6, 12]]
    assert not children("wandb-core")


def test_wandbs_own_variables_decide(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_PROJECT", "pictures")
    monkeypatch.setenv("WANDB_NAME", "mine")
    monkeypatch.setenv("WANDB_RUN_ID", "chosen")
    monkeypatch.setenv("WANDB_X_DISABLE_META", "false")
    kept(tmp_path, "wandb", ROWS)
    (only,) = wandb_runs(tmp_path)
    assert (only.project, only.name, only.id) == ("pictures", "mine", "chosen")
    assert "environment" in only.kinds
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert kept(tmp_path, "wandb", ROWS) == ["wandb: disabled by WANDB_MODE"]
    assert len(wandb_runs(tmp_path)) == 1


def test_wandb_without_a_key_goes_offline_and_never_asks(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked for a key"))
    for stream in (sys.stdin, sys.stderr, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    (line,) = kept(tmp_path, "wandb", ROWS)
    assert line.startswith("wandb: there is no API key (wandb login), so offline, to be uploaded with: wandb sync ")
    assert steps(wandb_runs(tmp_path)[0].rows) == [2, 4]


def test_a_wandb_run_of_the_caller_stays_as_it_is(tmp_path):
    import wandb

    with wandb.init(project="own", settings=wandb.Settings(silent=True, console="off")) as own:
        kept(tmp_path, "wandb", ROWS)
        assert wandb.run is own
        own.log({"x": 1})
    wandb.teardown()
    rows = {run.project: run.rows for run in wandb_runs(tmp_path)}
    assert steps(rows["maskco"]) == [2, 4] and [row["x"] for row in rows["own"]] == [1]


@pytest.fixture
def server(monkeypatch):
    with wandb_server() as found:
        monkeypatch.setenv("WANDB_BASE_URL", found.url)
        monkeypatch.setenv("WANDB_API_KEY", 40 * "a")
        monkeypatch.setenv("WANDB_MODE", "online")
        yield found


@pytest.mark.slow
def test_wandb_online_goes_on_in_the_same_run(server, tmp_path, png):
    lines = kept(tmp_path, "wandb", [*ROWS, BAD_ROW], status="stopped", picture=png)
    (run,) = server.runs
    assert lines == [f"wandb: {server.url}/me/maskco/runs/{run}"]
    assert server.runs[run]["exit_code"] == 255
    lines = kept(tmp_path, "wandb", [*ROWS, BAD_ROW, LAST_ROW], step=2, made=6)
    assert list(server.runs) == [run] and steps(server.rows(run)) == [2, 4, 6, 6, 12]
    kept(tmp_path, "wandb", [*ROWS, BAD_ROW, LAST_ROW], step=12, picture=png)
    assert steps(server.rows(run)) == [2, 4, 6, 6, 12, 12] and server.runs[run]["exit_code"] == 0
    assert len([name for name in server.files if name.startswith("media/images/report")]) == 2
    sent = json.dumps(server.runs) + " ".join(server.files)
    assert not [word for word in ("requirements.txt", "wandb-metadata", "diff.patch", "output.log") if word in sent]


@pytest.mark.slow
def test_wandb_online_gets_what_a_lost_process_did_not_send(server, tmp_path):
    kept(tmp_path, "wandb", ROWS)
    (run,) = server.runs
    server.runs[run] |= {"history": server.runs[run]["history"][:1], "summary": '{"step": 2}'}
    kept(tmp_path, "wandb", [*ROWS, LAST_ROW], step=4)
    assert steps(server.rows(run)) == [2, 4, 12]


@pytest.mark.slow
def test_offline_folders_of_a_run_are_one_run_after_wandb_sync(server, monkeypatch, tmp_path, png):
    monkeypatch.setenv("WANDB_MODE", "offline")
    lines = kept(tmp_path, "wandb", [*ROWS, BAD_ROW])
    lines += kept(tmp_path, "wandb", [*ROWS, BAD_ROW, LAST_ROW], step=4, picture=png)
    monkeypatch.setenv("WANDB_MODE", "online")
    for line in lines:
        told = line.partition("to be uploaded with: ")[2]
        subprocess.run([sys.executable, "-m", *shlex.split(told)], check=True, capture_output=True, timeout=100)
    (run,) = server.runs
    assert steps(server.rows(run)) == [2, 4, 6, 12, 12]
