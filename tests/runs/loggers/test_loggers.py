"""The contract of loggers: what they get, that a resumed run goes on in its record, and that none stops a run."""

import json
import sys

import pytest

import maskco
from logged_runs import LAST_ROW, ROWS, Memory, fail, interrupted, kept, log_of, pretrain, step_back, steps
from maskco.config import LOGGERS, read_config
from maskco.errors import ConfigError
from maskco.runs.checkpoint import read_checkpoint
from maskco.runs.folder import LOGGERS_LOCK, RECORDS
from maskco.runs.loggers import Record, add_pictures, read_records
from maskco.runs.trust import ForeignRunError
from resuming import same
from tiny_runs import rows


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
    assert str(caught.value) == f"log: {name} is not installed. Run pip install 'maskco[{name}]'"
    assert not run.exists() and not Memory.records


def test_a_logger_may_need_no_package(monkeypatch, pictures, tmp_path):
    monkeypatch.delattr(Memory, "package")
    pretrain(pictures, tmp_path / "run", log="memory")
    assert Memory.records["record-0"]["statuses"] == ["finished"]


def test_a_folder_of_the_packages_name_is_no_package(monkeypatch, pictures, tmp_path):
    (tmp_path / "nowhere").mkdir()  # as ./wandb, which W&B makes
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(Memory, "package", "nowhere")
    with pytest.raises(ConfigError, match=r"nowhere is not installed. Run pip install 'maskco\[memory\]'"):
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
    with pytest.raises(ForeignRunError, match=r"^log: .*not started by you.*loggers \(memory\) must be named\. Name"):
        maskco.pretrain(pictures, run, resume=True)
    lines = add_pictures(run, tmp_path / "report.png")
    assert len(lines) == 1 and "was not started by you" in lines[0] and "--log memory" in lines[0]
    assert Memory.records["record-0"]["pictures"] == []
    maskco.pretrain(pictures, run, resume=True, log=())
    assert Memory.records["record-0"]["statuses"] == ["finished"]
    maskco.pretrain(pictures, run, resume=True, log="memory")
    assert Memory.records["record-0"]["statuses"] == ["finished", "finished"]
