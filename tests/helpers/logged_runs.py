"""Small runs with loggers: `Memory`, which keeps its records in this process, and those of packages."""

import os
import subprocess
from typing import ClassVar

import pytest

import maskco
from maskco.cli import main
from maskco.config import PretrainConfig, find_logger
from maskco.runs.loggers import Begun, Logger, Loggers
from resuming import SignalAt
from tiny_runs import TINY

OPTIONS = {**TINY, "epochs": 3, "log_every": 2, "keep": 3}  # 12 steps, saved after 4, 8 and 12
ROWS = [{"step": step, "epoch": step / 12, "loss": 1 / step, "odd name@5": step} for step in (2, 4)]
BAD_ROW = {"step": 6, "epoch": 0.5, "loss": float("nan"), "odd name@5": float("inf")}
LAST_ROW = {"step": 12, "epoch": 3.0, "loss": 0.5, "odd name@5": 3}
PNG = "report.png"


class Memory(Logger):
    """Keeps records in this process. `fails`: names of methods that raise."""

    package = "json"
    records: ClassVar[dict[str, dict]] = {}
    fails: ClassVar[set[str]] = set()

    def _start(self, method):
        if method in self.fails:
            raise RuntimeError(f"{method} went\nwrong")

    def begin(self, run, config, past):
        self._start("begin")
        self.name = past.record or f"record-{len(self.records)}"
        self.record = self.records.setdefault(self.name, {"rows": [], "pictures": [], "statuses": []})
        self.record["encoder"] = config.run.encoder
        return Begun(self.name, self.record["rows"][-1]["step"] if self.record["rows"] else 0, "in memory")

    def add(self, rows):
        self._start("add")
        self.record["rows"] += rows

    def add_picture(self, path, step):
        self._start("add_picture")
        self.record["pictures"].append((path.name, step))

    def close(self, status):
        self._start("close")
        if hasattr(self, "record"):
            self.record["statuses"].append(status)


def pretrain(pictures, run, **options):
    return maskco.pretrain(pictures, run, **{**OPTIONS, **options})


def interrupted(monkeypatch, pictures, run, at=33, **options):
    """A run that a SIGTERM ends in its third epoch."""
    monkeypatch.setattr(SignalAt, "at", at)
    monkeypatch.setattr(SignalAt, "loaded", 0)
    monkeypatch.setattr("maskco.training.start.PretrainDataset", SignalAt)
    result = pretrain(pictures, run, **options)
    assert result.interrupted
    return result


def step_back(run, step):
    """As if the run had been killed after it made rows past its last checkpoint."""
    (run / f"step-{step}.pt").replace(run / "last.pt")


def steps(rows):
    return [row["step"] for row in rows]


def log_of(run):
    return (run / "log.txt").read_text()


def fail(monkeypatch, method):
    """Makes a method of Memory or, after a dot, of TensorBoard's writer raise."""
    if "." in method:
        monkeypatch.setattr(f"torch.utils.tensorboard.{method}", lambda *_, **__: 1 / 0)
    else:
        monkeypatch.setattr(Memory, "fails", {method, "close"} if method == "begin" else {method})


def run_command(*arguments):
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return caught.value.code


def command(pictures, run, **options):
    flags = {**{"data": pictures, "out": run}, **OPTIONS, **options}
    return ["pretrain", *(part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", value))]


def config_of(run, **options):
    return PretrainConfig.of(data="demo", out=str(run), **{**OPTIONS, **options})


def kept(run, logger, rows, *, step=0, made=None, status="finished", picture=None, **options):
    """What one process does: rows that were there, then new ones."""
    lines = []
    loggers = Loggers(run, config_of(run, **options), {logger: find_logger(logger)()}, lines.append)
    loggers.begin([row for row in rows if row["step"] <= step], step, step if made is None else made)
    for row in rows:
        if row["step"] > step:
            loggers.add(row)
    if picture is not None:
        loggers.add_picture(picture, rows[-1]["step"])
    loggers.close(status)
    return lines


ODD_NAMES = ["run", "with spaces & ünïcode 図", "a" * 250, os.fsdecode(b"caf\xe9"), "100% #1: ?*"]


def children(name):
    """Processes of that name, of this one or left to it (see conftest.py), that have not ended."""
    command = ["ps", "--ppid", str(os.getpid()), "-o", "stat=,comm="]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    return [line for line in found if name in line and not line.startswith("Z")]


def mlflow_client(monkeypatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return mlflow.MlflowClient()


def history(client, run_id, name="loss"):
    return [(metric.step, metric.value) for metric in client.get_metric_history(run_id, name)]
