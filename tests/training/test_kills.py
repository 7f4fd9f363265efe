"""kill -9 at random moments: the run that is resumed every time ends as one that was left alone, bit for bit.

MASKCO_KILLS=20 kills it that often; the suite, which has to be quick, twice.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from kills import kill_after
from maskco.runs.checkpoint import kept_checkpoints, read_checkpoint
from resuming import same
from tiny_runs import TINY, rows

KILLS = int(os.environ.get("MASKCO_KILLS", "2"))
FORKS = mp.get_context("forkserver")  # children that have torch already, and no threads of the parent's
FORKS.set_forkserver_preload(["maskco.training.loop", "torch.utils.tensorboard"])


def train_in_child(data: Path, out: Path, options: dict[str, Any], count: int = -1, seconds: float = 0) -> None:
    """Trains, and kills itself so long after `count` rows of metrics."""
    from maskco.runs.recorder import Recorder
    from maskco.training.loop import pretrain

    kill_after(Recorder, "add", count, seconds)
    os.dup2(os.open(f"{out}.stderr", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    pretrain(data, out, resume=True, **options)


def run_child(*arguments: Any) -> int:
    process = FORKS.Process(target=train_in_child, args=arguments)
    process.start()
    process.join(100)
    return process.exitcode


@pytest.mark.timeout(200 + 30 * KILLS)
def test_a_run_killed_at_random_moments_is_the_unbroken_one(pictures, tmp_path):
    """Every step is logged and saved, so that about half of the moments are in the midst of writing."""
    options = {**TINY, "epochs": 3 * KILLS, "key_group": 2, "log_every": 1, "save_every_steps": 1, "keep": 3}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    moment, steps = random.Random(KILLS), []
    for kill in range(KILLS):
        # With and without a loading worker, which outlives the kill by some seconds; every fourth time while it starts,
        # else within the first steps after the first checkpoint (a step takes some 0.02 s).
        when = (0, moment.uniform(0, 0.5)) if kill % 4 == 3 else (2, moment.uniform(0, 0.08))
        assert run_child(pictures, broken, {**options, "workers": kill % 2}, *when) == -signal.SIGKILL
        steps.append(read_checkpoint(broken / "last.pt")["step"])
    for out in (broken, whole):
        assert run_child(pictures, out, options) == 0, Path(f"{out}.stderr").read_text()
    print("killed after steps", steps)
    assert steps == sorted(steps) and steps[0] > 0 and steps[-1] < 4 * options["epochs"]
    assert rows(broken) == rows(whole) and len(rows(whole)) == 4 * options["epochs"]
    assert same(*(read_checkpoint(run / "last.pt") | {"config": 0} for run in (broken, whole)))
    assert list(kept_checkpoints(broken)) == list(kept_checkpoints(whole))
    assert all(read_checkpoint(kept)["step"] == step for step, kept in kept_checkpoints(broken).items())
