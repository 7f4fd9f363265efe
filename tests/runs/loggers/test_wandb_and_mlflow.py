"""W&B and MLflow at once: through a signal, without a server, and from the command line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import maskco
from logged_runs import ROWS, children, command, history, interrupted, kept, mlflow_client, steps
from maskco.runs.checkpoint import read_checkpoint
from maskco.runs.loggers import read_records
from resuming import same
from tiny_runs import rows
from wandb_files import wandb_runs


@pytest.mark.slow
def test_a_server_that_is_gone_costs_seconds(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    (line,) = kept(tmp_path, "mlflow", ROWS)
    assert "mlflow failed and is left alone: API request to http://127.0.0.1:9" in line and "\n" not in line
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", 40 * "a")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "3")
    (line,) = kept(tmp_path, "wandb", ROWS)
    assert ", so offline, to be uploaded with: wandb sync" in line and "\n" not in line
    assert not children("wandb-core")


@pytest.mark.slow
def test_both_follow_a_run_through_a_signal_and_a_resume(monkeypatch, pictures, plain, tmp_path, capfd):
    run = tmp_path / "run"
    interrupted(monkeypatch, pictures, run, log=("wandb", "mlflow"))
    assert maskco.pretrain(out=run, resume=True).steps == 12
    assert same(*({**read_checkpoint(path / "last.pt"), "config": 0} for path in (plain, run)))
    assert rows(run) == rows(plain)
    first, second = wandb_runs(tmp_path)
    assert (first.exit_code, second.exit_code) == (255, 0)
    assert steps(first.rows) + steps(second.rows) == [2, 4, 6, 8, 10, 12]
    client = mlflow_client(monkeypatch)
    assert [step for step, _ in history(client, read_records(run)["mlflow"].name)] == [2, 4, 6, 8, 10, 12]
    assert not children("wandb-core")
    out, err = capfd.readouterr()
    assert out == "" and "WARNING" not in err and "Traceback" not in err


@pytest.mark.slow
def test_the_command_leaves_nothing_behind_and_reads_no_input(pictures, tmp_path):
    flags = [str(part) for part in command(pictures, tmp_path / "run", epochs=1)]
    done = subprocess.run(
        [sys.executable, "-m", "maskco", *flags, "--log", "wandb", "mlflow"],
        env={**os.environ, "PYTHONPATH": str(Path(maskco.__file__).parents[1]), "WANDB_MODE": "online"},
        stdin=subprocess.PIPE, capture_output=True, text=True, timeout=200, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout == ""
    assert "there is no API key" in done.stderr and "Traceback" not in done.stderr
    first, second = wandb_runs(tmp_path)
    assert steps(first.rows) == [2, 4] and not first.pictures
    assert steps(second.rows) == [4] and len(second.pictures) == 1
