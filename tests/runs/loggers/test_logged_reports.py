"""Reports in a logger's record: at the end of a run, and whenever the command writes one."""

from logged_runs import PNG, Memory, command, fail, pretrain, run_command, steps
from maskco.config import LOGGERS
from maskco.runs.loggers import add_pictures


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
