"""Weights & Biases: `--log wandb`. Its environment variables (WANDB_PROJECT, WANDB_MODE …) say where a record goes."""

from __future__ import annotations

import os
import secrets
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maskco.config import PretrainConfig
from maskco.errors import one_line
from maskco.runs.loggers.base import Begun, Logger, Past, Row, Status, described, environment, name_of, numbers

# Each gives way to its environment variable, such as WANDB_DISABLE_GIT. Metrics, options and images are sent.
OURS: dict[str, Any] = {
    "console": "off",  # the progress bar would fill it
    "save_code": False,
    "disable_git": True,
    "x_save_requirements": False,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_transaction_log_flush_interval": 0.1,  # of 15: its service ends with a process that is killed
    "init_timeout": 30.0,
    "finish_timeout": 60.0,  # then the rest is for `wandb sync`
}
QUIET = {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
EXIT_CODES: dict[Status, int] = {"finished": 0, "stopped": 255, "failed": 1}  # 255 is W&B's for Ctrl-C


class WandbLogger(Logger):
    """Charts have the run's "step" as their axis: W&B's own counts rows and images, and cannot go back.

    Offline, each process writes a folder of its own. `wandb sync` appends those of one run, in the order of time.
    """

    package = "wandb"
    _run: Any = None
    _before: tuple[Any, Any] | None = None  # what its service replaces in `sys`

    def begin(self, run: Path, config: PretrainConfig, past: Past) -> Begun:
        with environment(QUIET):
            if "WANDB_SERVICE" not in os.environ:  # of the caller's own W&B runs
                self._before = sys.exit, sys.excepthook
            import wandb

            settings = wandb.setup().settings
            options: dict[str, Any] = {
                "project": settings.project or "maskco",
                "name": settings.run_name or name_of(run),
                "id": past.record or settings.run_id or secrets.token_hex(4),
                "config": described(config),
                "allow_val_change": True,
                "reinit": "create_new",  # leaves a W&B run of the caller's alone
                "settings": wandb.Settings(
                    silent=True, **{name: OURS[name] for name in OURS if f"WANDB_{name.upper()}" not in os.environ}
                ),
            }
            why = ""
            if settings.mode not in ("offline", "dryrun", "disabled"):
                try:
                    if wandb.login(prompt=False):  # never waits for a key to be typed
                        self._run = wandb.init(**options, resume="allow")
                    else:
                        why = "there is no API key (wandb login), so "
                except wandb.Error as error:
                    why = f"{one_line(error)}, so "
            if self._run is None:
                self._run = wandb.init(**options, mode="offline" if why else None)
            self._run.define_metric("step", hidden=True)
            self._run.define_metric("*", step_metric="step")
        record = "" if self._run.disabled else self._run.id
        return Begun(record, self._last_step(past), why + self._where())

    def _last_step(self, past: Past) -> int:
        if self._run.offline:
            return past.given
        last = self._run.summary.get("step") if self._run.resumed else None
        return int(last) if isinstance(last, (int, float)) else 0

    def _where(self) -> str:
        if self._run.disabled:
            return "disabled by WANDB_MODE"
        if not self._run.offline:
            return str(self._run.url)
        return f"offline, to be uploaded with: wandb sync {shlex.quote(str(Path(self._run.dir).parent))}"

    def add(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._run.log({"step": row["step"], **numbers(row)})

    def add_picture(self, path: Path, step: int) -> None:
        import wandb

        self._run.log({"step": step, path.stem: wandb.Image(str(path))})

    def close(self, status: Status) -> None:
        try:
            if self._run is not None:
                self._run.finish(exit_code=EXIT_CODES[status])
        finally:
            if self._before is not None:  # its service was started here
                import wandb

                try:
                    wandb.teardown()
                except SystemExit as error:
                    raise RuntimeError(f"W&B's service ended with {error.code}") from error
                finally:
                    sys.exit, sys.excepthook = self._before
