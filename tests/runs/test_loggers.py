"""Loggers: what they get, that a resumed run goes on in its record, and that none of them stops a run.

`Memory` is a logger that keeps its records in this process, W&B writes offline, MLflow into a folder.
"""

import json
import os
import random
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import maskco
from maskco.cli import main
from maskco.config import LOGGERS, PretrainConfig, find_logger, read_config
from maskco.errors import ConfigError
from maskco.report import Report
from maskco.runs.checkpoint import read_checkpoint
from maskco.runs.folder import LOGGERS_LOCK, RECORDS
from maskco.runs.loggers import Begun, Logger, Loggers, Past, Record, add_pictures, read_records, write_record
from maskco.runs.loggers.tensorboard import TensorBoardLogger
from maskco.runs.trust import ForeignRunError
from resuming import SignalAt, same
from tiny_runs import TINY, rows
from wandb_files import wandb_runs
from wandb_server import wandb_server

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


# ---- what a logger gets


def test_a_logger_gets_the_rows_of_metrics_and_how_the_run_ended(pictures, tmp_path):
    pretrain(pictures, tmp_path / "run", log="memory")
    record = Memory.records["record-0"]
    assert record["rows"] == [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert steps(record["rows"]) == [2, 4, 6, 8, 10, 12]
    assert (record["encoder"], record["statuses"]) == ("test_resnet", ["finished"])
    assert read_config(tmp_path / "run/config.json").run.log == ("memory",)
    assert "memory: in memory\n" in log_of(tmp_path / "run")


def test_a_resumed_run_goes_on_in_its_record(monkeypatch, pictures, tmp_path):
    interrupted(monkeypatch, pictures, tmp_path / "run", log=["memory"])
    assert maskco.pretrain(out=tmp_path / "run", resume=True).steps == 12
    assert list(Memory.records) == ["record-0"]
    assert steps(Memory.records["record-0"]["rows"]) == [2, 4, 6, 8, 10, 12]
    assert Memory.records["record-0"]["statuses"] == ["stopped", "finished"]


def test_rows_that_are_made_again_are_not_added_again(pictures, tmp_path):
    run = tmp_path / "run"
    pretrain(pictures, run, log="memory")
    step_back(run, 4)
    assert maskco.pretrain(out=run, resume=True).steps == 12
    assert steps(rows(run)) == steps(Memory.records["record-0"]["rows"]) == [2, 4, 6, 8, 10, 12]


def test_several_rows_of_one_step_are_all_added(tmp_path):
    kept(tmp_path, "memory", [*ROWS, {"step": 4, "probe": 50.0}, LAST_ROW])
    assert steps(Memory.records["record-0"]["rows"]) == [2, 4, 4, 12]


def test_a_logger_that_comes_later_gets_the_rows_before(pictures, tmp_path):
    run = tmp_path / "run"
    pretrain(pictures, run)
    assert not (run / RECORDS).exists()
    step_back(run, 8)
    maskco.pretrain(out=run, resume=True, log=("memory",))
    assert steps(Memory.records["record-0"]["rows"]) == [2, 4, 6, 8, 10, 12]
    maskco.pretrain(out=run, resume=True, log=())  # finished already, and without loggers from now on
    assert Memory.records["record-0"]["statuses"] == ["finished"]


def test_a_run_that_replaces_another_has_a_record_of_its_own(pictures, tmp_path):
    for overwrite in (False, True):
        pretrain(pictures, tmp_path / "run", log="memory", epochs=1, overwrite=overwrite)
    assert list(Memory.records) == ["record-0", "record-1"]
    assert read_records(tmp_path / "run") == {"memory": Record("record-1", 4)}


def test_a_run_that_fails_says_so(monkeypatch, pictures, tmp_path):
    monkeypatch.setattr("maskco.training.state.TrainState.save", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pretrain(pictures, tmp_path / "run", log="memory")
    assert Memory.records["record-0"]["statuses"] == ["failed"]


# ---- what fails


def fail(monkeypatch, method):
    """Makes a method of Memory or, after a dot, of TensorBoard's writer raise."""
    if "." in method:
        monkeypatch.setattr(f"torch.utils.tensorboard.{method}", lambda *_, **__: 1 / 0)
    else:
        monkeypatch.setattr(Memory, "fails", {method, "close"} if method == "begin" else {method})


BROKEN = {
    "begin": "begin went wrong",
    "add": "add went wrong",
    "close": "close went wrong",
    "SummaryWriter.__init__": "division by zero",
    "SummaryWriter.add_scalar": "division by zero",
    "SummaryWriter.close": "division by zero",
}


@pytest.mark.parametrize("method", BROKEN)
def test_a_logger_that_fails_is_left_alone_and_the_run_is_the_same(monkeypatch, pictures, plain, tmp_path, method):
    fail(monkeypatch, method)
    assert pretrain(pictures, tmp_path / "run", log="memory").steps == 12
    assert rows(tmp_path / "run") == rows(plain)
    assert same(*({**read_checkpoint(path / "last.pt"), "config": 0} for path in (plain, tmp_path / "run")))
    name = "tensorboard" if "." in method else "memory"
    warnings = [line for line in log_of(tmp_path / "run").splitlines() if "warning:" in line and "failed" in line]
    assert len(warnings) == 1 and f"{name} failed and is left alone: {BROKEN[method]}. metrics.jsonl has" in warnings[0]


def test_the_record_of_a_logger_that_failed_is_brought_up_to_date(monkeypatch, pictures, tmp_path):
    fail(monkeypatch, "add")
    pretrain(pictures, tmp_path / "run", log="memory")
    assert Memory.records["record-0"]["rows"] == []
    monkeypatch.setattr(Memory, "fails", set())
    assert maskco.pretrain(out=tmp_path / "run", resume=True).steps == 12
    assert steps(Memory.records["record-0"]["rows"]) == [2, 4, 6, 8, 10, 12]


def test_metrics_that_cannot_be_written_do_stop_a_run(monkeypatch, pictures, tmp_path):
    def append(file, text):
        if file.name.endswith("metrics.jsonl"):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("maskco.runs.recorder.append", append)
    with pytest.raises(OSError, match="No space left"):
        pretrain(pictures, tmp_path / "run", log="memory")
    assert Memory.records["record-0"]["statuses"] == ["failed"]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_not_installed_is_refused_before_anything_is_written(monkeypatch, pictures, tmp_path, name):
    run = tmp_path / "run"
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError) as caught:
        pretrain(pictures, run, log=["memory", name])
    assert str(caught.value) == f"log: {name} is not installed: pip install 'maskco[{name}]'"
    assert not run.exists() and not Memory.records


def test_a_folder_of_the_packages_name_is_no_package(monkeypatch, pictures, tmp_path):
    (tmp_path / "nowhere").mkdir()  # as ./wandb, which W&B makes
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(Memory, "package", "nowhere")
    with pytest.raises(ConfigError, match=r"nowhere is not installed: pip install 'maskco\[memory\]'"):
        pretrain(pictures, tmp_path / "run", log="memory")


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ("wandbb", "^log must be one of wandb, mlflow, memory, got 'wandbb'"),
        (["memory", ""], "^log must be one of"),
        (3, r"^log must be tuple\[str, ...\], got 3"),
        ([None], r"^log must be tuple\[str, ...\]"),
    ],
)
def test_an_unknown_logger_is_refused(pictures, tmp_path, log, message):
    with pytest.raises(ConfigError, match=message):
        pretrain(pictures, tmp_path / "run", log=log)
    assert not (tmp_path / "run").exists()


def test_a_run_can_be_read_where_its_loggers_are_unknown(monkeypatch, pictures, tmp_path):
    pretrain(pictures, tmp_path / "run", log=["memory", "memory"], epochs=1)
    monkeypatch.delitem(LOGGERS, "memory")
    config, _, _ = maskco.load_run(tmp_path / "run")
    assert config.run.log == ("memory",)


# ---- runs of others


@pytest.mark.parametrize(
    "content",
    [
        '{"memory": {"name": "../../elsewhere", "given": 4}}',
        '{"memory": {"name": "https://evil.example/run", "given": 4}}',
        '{"memory": {"name": "-x", "given": 4}}',
        '{"memory": {"name": 3, "given": 4}}',
        '{"memory": {"name": "' + 65 * "a" + '", "given": 4}}',
        '{"memory": {"name": "a\\n", "given": 4}}',
        '{"memory": {"name": "a"}}',
        '{"memory": "a"}',
        '["memory"]',
        "[" * 100_000,
        "no JSON",
        "",
    ],
)
def test_names_of_records_that_are_none_are_left_out(tmp_path, content):
    (tmp_path / RECORDS).write_text(content)
    assert read_records(tmp_path) == {}
    kept(tmp_path, "memory", ROWS)
    assert read_records(tmp_path) == {"memory": Record("record-0", 4)}


@pytest.mark.parametrize("name", [RECORDS, LOGGERS_LOCK])
def test_a_link_out_of_the_run_is_refused(pictures, tmp_path, name):
    pretrain(pictures, tmp_path / "run", epochs=1)
    (tmp_path / "thesis").write_text("years of work")
    (tmp_path / "run" / name).symlink_to(tmp_path / "thesis")
    with pytest.raises(ForeignRunError, match="outside the run"):
        maskco.pretrain(out=tmp_path / "run", resume=True, log="memory")
    with pytest.raises(ForeignRunError, match="outside the run"):
        add_pictures(tmp_path / "run", log=None if name == RECORDS else ["memory"])
    assert (tmp_path / "thesis").read_text() == "years of work"


def test_loggers_of_a_run_of_others_must_be_named(monkeypatch, pictures, tmp_path):
    run = tmp_path / "run"
    pretrain(pictures, run, log="memory", epochs=1)
    monkeypatch.setenv("MASKCO_CACHE", str(tmp_path / "another user"))
    with pytest.raises(ForeignRunError, match=r"^log: .*not started by you.*loggers \(memory\) must be named, or none"):
        maskco.pretrain(pictures, run, resume=True)
    lines = add_pictures(run, tmp_path / "report.png")
    assert len(lines) == 1 and "was not started by you" in lines[0] and "--log memory" in lines[0]
    assert Memory.records["record-0"]["pictures"] == []
    maskco.pretrain(pictures, run, resume=True, log=())
    assert Memory.records["record-0"]["statuses"] == ["finished"]
    maskco.pretrain(pictures, run, resume=True, log="memory")
    assert Memory.records["record-0"]["statuses"] == ["finished", "finished"]


# ---- pictures


@pytest.fixture
def drawn(monkeypatch):
    """Reports are a red rectangle."""

    def write_report(*runs, out=None, **_):
        folder = Path(out or runs[0])
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30), "red").save(folder / PNG)
        return Report(folder / "report.html", folder / PNG)

    monkeypatch.setattr("maskco.report.write_report", write_report)


def run_command(*arguments):
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return caught.value.code


def command(pictures, run, **options):
    flags = {**{"data": pictures, "out": run}, **OPTIONS, **options}
    return ["pretrain", *(part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", value))]


def test_the_record_gets_the_report_at_the_end_and_again_from_the_report_command(drawn, pictures, tmp_path, capsys):
    assert run_command(*command(pictures, tmp_path / "run", log="memory")) == 0
    assert Memory.records["record-0"]["pictures"] == [("report.png", 12)]
    assert run_command("report", tmp_path / "run") == 0
    record = Memory.records["record-0"]
    assert record["pictures"] == 2 * [("report.png", 12)] and record["statuses"] == 3 * ["finished"]
    assert steps(record["rows"]) == [2, 4, 6, 8, 10, 12]
    capsys.readouterr()
    assert run_command("report", tmp_path / "run", tmp_path / "run", "--log", "memory", "--out", tmp_path / "both") == 2
    assert "error: --log: a report of several runs" in capsys.readouterr().err
    assert run_command("report", tmp_path / "run", tmp_path / "run", "--out", tmp_path / "both") == 0
    assert len(record["pictures"]) == 2


def test_the_other_name_of_the_flag_names_loggers_as_well(drawn, monkeypatch, pictures, tmp_path, capsys):
    assert run_command(*command(pictures, tmp_path / "run", loggers="memory", epochs=1)) == 0
    assert Memory.records["record-0"]["statuses"] == ["finished", "finished"]
    monkeypatch.setenv("MASKCO_CACHE", str(tmp_path / "another user"))
    again = ["pretrain", "--data", pictures, "--out", tmp_path / "run", "--resume"]
    assert run_command(*again) == 2
    assert "error: --log: " in capsys.readouterr().err
    assert run_command(*again, "--loggers", "memory") == 0
    assert run_command(*again, "--log") == 0
    assert len(Memory.records["record-0"]["statuses"]) == 4


def test_a_report_that_fails_leaves_the_run_a_success(monkeypatch, pictures, tmp_path, capsys):
    monkeypatch.setattr("maskco.report.write_report", lambda *_, **__: 1 / 0)
    assert run_command(*command(pictures, tmp_path / "run", log="memory", epochs=1)) == 0
    assert "warning: no report for memory: division by zero. Try maskco report" in capsys.readouterr().err
    assert Memory.records["record-0"]["statuses"] == ["finished"]


def test_a_picture_that_fails_is_told_and_the_report_stays(monkeypatch, drawn, pictures, tmp_path, capsys):
    fail(monkeypatch, "add_picture")
    assert run_command(*command(pictures, tmp_path / "run", log="memory", epochs=1)) == 0
    assert "memory failed and is left alone: add_picture went wrong" in capsys.readouterr().err
    assert (tmp_path / "run/report.png").exists()


def test_a_report_during_the_run_leaves_its_record_alone(monkeypatch, pictures, tmp_path):
    monkeypatch.setattr("maskco.runs.loggers.LOCK_SECONDS", 0.1)
    found = []

    class Reported(Memory):
        def add(self, rows):
            found.extend(add_pictures(tmp_path / "run", tmp_path / "report.png", log=["memory"]))
            super().add(rows)

    monkeypatch.setitem(LOGGERS, "memory", Reported)
    pretrain(pictures, tmp_path / "run", log="memory", epochs=1)
    assert len(found) == 2 and all("could not be acquired" in line for line in found)
    assert Memory.records["record-0"]["statuses"] == ["finished"]


def test_runs_without_a_record_get_none_from_a_report(monkeypatch, pictures, tmp_path):
    pretrain(pictures, tmp_path / "run", epochs=1)
    assert add_pictures(tmp_path / "run", tmp_path / PNG) == []
    assert add_pictures(str(tmp_path / "run"), str(tmp_path / PNG), log="memory") == ["memory: in memory"]
    monkeypatch.delitem(LOGGERS, "memory")  # as in a process that does not register it
    assert add_pictures(tmp_path / "run", tmp_path / PNG) == []


# ---- TensorBoard, W&B and MLflow themselves


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


@pytest.fixture
def png(tmp_path):
    Image.new("RGB", (40, 30), "red").save(tmp_path / PNG)
    return tmp_path / PNG


ODD_NAMES = ["run", "with spaces & ünïcode 図", "a" * 250, os.fsdecode(b"caf\xe9"), "100% #1: ?*"]


def test_tensorboard_keeps_rows_and_pictures_and_hides_those_made_again(tmp_path, png):
    for step in (0, 4):
        logger = TensorBoardLogger()
        assert logger.begin(tmp_path, config_of(tmp_path), Past(None, 0, step)).last_step == step
        logger.add([row for row in [*ROWS, BAD_ROW, LAST_ROW] if row["step"] > step])
        logger.add_picture(png, 12)
        logger.close("finished")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [2, 4, 6, 12]
    assert events.Tags()["images"] == ["report"]


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


def children(name):
    """Processes of that name, of this one or left to it (see conftest.py), that have not ended."""
    command = ["ps", "--ppid", str(os.getpid()), "-o", "stat=,comm="]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    return [line for line in found if name in line and not line.startswith("Z")]


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
    assert line.startswith("wandb: there is no API key (wandb login); offline, to be uploaded with: wandb sync ")
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


def mlflow_client(monkeypatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return mlflow.MlflowClient()


def history(client, run_id, name="loss"):
    return [(metric.step, metric.value) for metric in client.get_metric_history(run_id, name)]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_mlflow_goes_on_in_the_same_run(monkeypatch, tmp_path, png, name):
    run = tmp_path / "runs" / name
    run.mkdir(parents=True)
    lines = kept(run, "mlflow", [*ROWS, BAD_ROW], status="stopped", init="x\n" * 20_000)
    assert "MLFLOW_ALLOW_FILE_STORE" not in os.environ
    lines += kept(run, "mlflow", [*ROWS, {**BAD_ROW, "loss": 5}, LAST_ROW], step=4, picture=png, epochs=9)
    record = read_records(run)["mlflow"].name
    assert lines == 2 * [f"mlflow: run {record} in {tmp_path / 'mlflow'}"]

    client = mlflow_client(monkeypatch)
    found = client.get_run(record)
    assert str(history(client, record)) == "[(2, 0.5), (4, 0.25), (6, nan), (12, 0.5)]"
    assert history(client, record, "odd name_5")[2:] == [(6, float("inf")), (12, 3.0)]
    assert found.info.status == "FINISHED"
    assert not name.isascii() or found.info.run_name == name[:128]
    assert client.get_experiment(found.info.experiment_id).name == "maskco"
    assert found.data.params["optim.epochs"] == "3" and found.data.tags["optim.epochs"] == "9"
    assert found.data.params["run.encoder"] == "test_resnet" and len(found.data.params["run.init"]) == 500
    assert found.data.tags["versions.maskco"] == maskco.__version__ and "commit" in found.data.tags
    assert [each.path for each in client.list_artifacts(record)] == [PNG]


def test_mlflows_own_variables_decide(monkeypatch, tmp_path):
    client = mlflow_client(monkeypatch)
    experiment = client.create_experiment("pictures")
    given = client.create_run(experiment).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    kept(tmp_path, "mlflow", ROWS)
    monkeypatch.delenv("MLFLOW_RUN_ID")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "pictures")
    (tmp_path / "other").mkdir()
    kept(tmp_path / "other", "mlflow", ROWS, status="failed")
    runs = {run.info.run_id: run.info.status for run in client.search_runs([experiment])}
    assert runs == {given: "FINISHED", read_records(tmp_path / "other")["mlflow"].name: "FAILED"}


def test_a_record_that_is_gone_is_replaced_by_one_with_all_rows(monkeypatch, tmp_path):
    kept(tmp_path, "mlflow", ROWS)
    gone = read_records(tmp_path)["mlflow"].name
    client = mlflow_client(monkeypatch)
    client.delete_run(gone)
    kept(tmp_path, "mlflow", [*ROWS, LAST_ROW], step=4)
    assert steps({"step": step} for step, _ in history(client, read_records(tmp_path)["mlflow"].name)) == [2, 4, 12]
    (tmp_path / RECORDS).write_text(json.dumps({"mlflow": {"name": "0" * 32, "given": 4}}))
    kept(tmp_path, "mlflow", ROWS)
    assert read_records(tmp_path)["mlflow"].name not in (gone, "0" * 32)


def test_long_histories_are_added_whole(monkeypatch, tmp_path):
    long = [{"step": step, "epoch": 0, "loss": 1.0, "accuracy": 2.0} for step in range(1, 1200)]
    kept(tmp_path, "mlflow", long, step=1199)
    client = mlflow_client(monkeypatch)
    assert len(history(client, read_records(tmp_path)["mlflow"].name)) == 1199


@pytest.mark.slow
def test_mlflows_default_is_a_data_base(monkeypatch, tmp_path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.chdir(tmp_path)
    (line,) = kept(tmp_path, "mlflow", [*ROWS, BAD_ROW])
    assert line.startswith("mlflow: run ") and line.endswith("mlflow.db")
    assert len(history(mlflow_client(monkeypatch), read_records(tmp_path)["mlflow"].name)) == 3


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
    assert "; offline, to be uploaded with: wandb sync" in line and "\n" not in line
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
