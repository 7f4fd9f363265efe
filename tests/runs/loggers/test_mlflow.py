"""What MLflow itself keeps of a run, in a folder."""

import json
import os

import pytest

import maskco
from logged_runs import BAD_ROW, LAST_ROW, ODD_NAMES, PNG, ROWS, history, kept, mlflow_client, steps
from maskco.runs.folder import RECORDS
from maskco.runs.loggers import read_records


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
