"""Loggers that keep their records in this process or below tmp_path, and what they are given."""

import os
from pathlib import Path

import pytest
from PIL import Image

from logged_runs import PNG, Memory, pretrain
from maskco.config import LOGGERS
from maskco.report import Report


@pytest.fixture(autouse=True)
def tools(monkeypatch, tmp_path):
    """Memory is registered; W&B and MLflow write below tmp_path."""
    monkeypatch.setitem(LOGGERS, "memory", Memory)
    monkeypatch.setattr(Memory, "records", {})
    monkeypatch.setattr(Memory, "fails", set())
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    for name, value in {"MODE": "offline", "DIR": tmp_path, "CONFIG_DIR": tmp_path / "home"}.items():
        monkeypatch.setenv(f"WANDB_{name}", str(value))
    monkeypatch.setenv("NETRC", str(tmp_path / "home/netrc"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tmp_path / "mlflow"))


@pytest.fixture(scope="module")
def plain(pictures, tmp_path_factory):
    """A run without loggers, which no test changes."""
    folder = tmp_path_factory.mktemp("runs") / "plain"
    pretrain(pictures, folder)
    return folder


@pytest.fixture
def drawn(monkeypatch):
    """Reports are a red rectangle."""

    def write_report(*runs, out=None, **_):
        folder = Path(out or runs[0])
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30), "red").save(folder / PNG)
        return Report(folder / "report.html", folder / PNG)

    monkeypatch.setattr("maskco.report.write_report", write_report)


@pytest.fixture
def png(tmp_path):
    Image.new("RGB", (40, 30), "red").save(tmp_path / PNG)
    return tmp_path / PNG
