"""The step profile: its parts add up to the step, and reading the clock changes nothing that is learned."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.train_step import Options, Stopwatch, instrument, measure, rows_of
from maskco.training.loop import pretrain

TINY = {"encoder": "test_resnet", "image_size": 32, "batch_size": 4, "regions": 2, "queue_size": 16}
BACKWARD = {"encoder, query", "mask head", "pooling", "projection", "loss"}
PARTS = BACKWARD | {"encoder, key", "key groups", "masking", "queue", "momentum update", "optimizer"}
PARTS |= {"data", "metrics", "rest of the loop"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for index in range(16):
        Image.fromarray(random.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return str(folder)


def test_parts_add_up_to_the_step_and_groups_to_the_whole(photos):
    times = measure(Options(data=photos, **TINY, repeats=3))
    assert {part for part, _ in times} == PARTS
    assert {part for part, direction in times if direction == "backward"} == BACKWARD
    assert all(len(ms) == 3 and min(ms) > 0 for ms in times.values())
    rows = rows_of(times, "tiny", Options(**TINY))
    assert sum(row["share"] for row in rows if "part" in row) == pytest.approx(1, abs=0.3)  # medians need not add up
    groups = {row["group"]: row for row in rows if "group" in row}
    for name in ("encoders", "mask head", "optimizer and momentum update", "everything else", "step"):
        assert groups[name]["p20_ms"] <= groups[name]["median_ms"] <= groups[name]["p80_ms"]
    (target,) = groups["everything else"]["targets"]
    assert target["value"] == groups["everything else"]["share"]


def test_known_times_give_known_shares():
    times = {("encoder, query", "forward"): [60.0, 90.0], ("encoder, query", "backward"): [30.0, 0.0]}
    times |= {
        ("mask head", "forward"): [6.0, 6.0],
        ("loss", "forward"): [2.0, 2.0],
        ("optimizer", "forward"): [2.0, 2.0],
    }
    groups = {row["group"]: row for row in rows_of(times, "known", Options()) if "group" in row}
    shares = {name: row["share"] for name, row in groups.items()}
    assert shares == {
        "encoders": 0.9,
        "mask head": 0.06,
        "optimizer and momentum update": 0.02,
        "everything else": 0.02,
        "everything else with the mask head": 0.08,
        "step": 1.0,
    }
    assert groups["everything else"]["targets"][0]["met"]
    assert not groups["everything else with the mask head"]["targets"][0]["met"]


def test_a_watched_run_learns_what_any_other_does(photos, tmp_path, monkeypatch):
    options = {**TINY, "data": photos, "epochs": 1, "lr": 1.0, "workers": 0, "device": "cpu"}
    plain = pretrain(out=tmp_path / "plain", **options)
    instrument(Stopwatch(torch.device("cpu"), steps=100), monkeypatch.setattr)
    watched = pretrain(out=tmp_path / "watched", **options)
    assert (watched.steps, watched.loss) == (plain.steps, plain.loss) == (4, plain.loss)


@pytest.mark.slow
def test_quick_run_prints_a_table_and_writes_rows(tmp_path):
    command = [sys.executable, "-m", "benchmarks.train_step", "--quick", "--json", str(tmp_path / "rows.json")]
    root = Path(__file__).resolve().parents[2]
    printed = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=240, check=True).stdout
    result = json.loads((tmp_path / "rows.json").read_text())
    assert result["meta"]["quick"] and result["meta"]["threads"] == 1 and result["meta"]["options"]["batch_size"] == 8
    assert {row["part"] for row in result["rows"] if "part" in row} == PARTS
    assert all(row.get("part", row.get("group")) in printed for row in result["rows"])
    assert max(map(len, printed.splitlines())) <= 120
