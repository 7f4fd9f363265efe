"""MLflow: `--log mlflow`. Its environment variables (MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME …) decide where a
record goes."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from maskco.config import PretrainConfig
from maskco.runs.loggers.base import Begun, Logger, Past, Row, Status, described, environment, name_of, numbers

Item = TypeVar("Item")
DEFAULTS = {
    "MLFLOW_ALLOW_FILE_STORE": "true",  # else it refuses the folder that MLFLOW_TRACKING_URI names
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # of 7: a server that is gone costs the run seconds, not minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_CONFIGURE_LOGGING": "false",  # its lines would break the progress bar
}
STATUS: dict[Status, str] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
LONGEST = 500  # characters of a parameter that older servers take; new ones take 6000
MOST_METRICS, MOST_PARAMS = 1000, 100  # in one request


class MlflowLogger(Logger):
    package = "mlflow"
    _run_id = ""

    def begin(self, run: Path, config: PretrainConfig, past: Past) -> Begun:
        with environment(DEFAULTS):
            import mlflow
            from mlflow.entities import Param, RunTag

            self._client = mlflow.MlflowClient()
            record = past.record or os.environ.get("MLFLOW_RUN_ID")
            found = self._find(record) if record else None
            if found is None:
                found = self._client.create_run(self._experiment(), run_name=name_of(run))
            else:
                self._client.update_run(found.info.run_id, status="RUNNING")
            self._run_id = found.info.run_id
            tags: dict[str, str] = {}
            options: dict[str, str] = {}
            for group, values in described(config).items():
                (options if isinstance(values, dict) and group != "versions" else tags).update(flat(group, values))
            # Parameters cannot be changed. Those of a resumed run that are others now are tags.
            known = found.data.params
            tags |= {name: value for name, value in options.items() if known.get(name, value) != value}
            self._client.log_batch(self._run_id, tags=[RunTag(*tag) for tag in tags.items()])
            for part in parts([Param(*each) for each in options.items() if each[0] not in known], MOST_PARAMS):
                self._client.log_batch(self._run_id, params=part)
            history = self._client.get_metric_history(self._run_id, "loss") if "loss" in found.data.metrics else []
            where = f"run {self._run_id} in {mlflow.get_tracking_uri()}"
        return Begun(self._run_id, max((each.step for each in history), default=0), where)

    def _find(self, record: str) -> Any:
        """The run of this id, or None if there is none any more."""
        from mlflow.exceptions import MlflowException

        try:
            found = self._client.get_run(record)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return found if found.info.lifecycle_stage == "active" else None

    def _experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        if named := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return named
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "maskco"
        if found := self._client.get_experiment_by_name(name):
            return found.experiment_id
        try:
            return self._client.create_experiment(name)
        except MlflowException:
            if found := self._client.get_experiment_by_name(name):  # another process was faster
                return found.experiment_id
            raise

    def add(self, rows: Sequence[Row]) -> None:
        with environment(DEFAULTS):
            from mlflow.entities import Metric

            now = int(1000 * time.time())
            metrics = [
                Metric(re.sub(r"[^\w\-. :/]", "_", name), float(value), now, row["step"])
                for row in rows
                for name, value in numbers(row).items()
            ]
            for part in parts(metrics, MOST_METRICS):
                self._client.log_batch(self._run_id, metrics=part)

    def add_picture(self, path: Path, step: int) -> None:
        with environment(DEFAULTS):
            self._client.log_artifact(self._run_id, str(path))

    def close(self, status: Status) -> None:
        if self._run_id:
            with environment(DEFAULTS):
                self._client.set_terminated(self._run_id, STATUS[status])


def flat(name: str, value: Any) -> dict[str, str]:
    """Text by dotted names."""
    if not isinstance(value, dict):
        return {name: str(value)[:LONGEST]}
    return {key: text for each in value for key, text in flat(f"{name}.{each}", value[each]).items()}


def parts(items: Sequence[Item], most: int) -> Iterator[Sequence[Item]]:
    yield from (items[start : start + most] for start in range(0, len(items), most))
