"""The benchmark of loading: each row is of its own implementation, and the figures are what they are called."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import data


@pytest.fixture
def options(tmp_path: Path) -> data.Options:
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((80, 60)).save(tmp_path / f"{index}.jpg")
    return data.Options(data=str(tmp_path), image_size=32, repeats=2, draws=2)


def test_rows_hold_rates_ratios_and_the_statistics_of_their_own_views(options, monkeypatch) -> None:
    def slow_and_white(number: int):
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass
        return (torch.full((3, 32, 32), 9.0),) * 2  # far above white

    found, _ = data.implementations(options)
    monkeypatch.setattr(data, "implementations", lambda options: (found | {"PIL (MoCo)": slow_and_white}, {"x": "why"}))
    rows = {row["impl"]: row for row in data.measure(options)}
    assert rows["x"]["skipped"] == "why"
    ours, slow = rows["maskco"], rows["PIL (MoCo)"]
    assert slow["ms"] == pytest.approx(50, rel=0.3) and slow["pictures_per_s"] == pytest.approx(20, rel=0.3)
    assert slow["ratio"] == pytest.approx(slow["ms"] / ours["ms"], rel=0.5)
    assert slow["targets"][0]["met"] == (slow["ratio"] >= 2)
    assert slow["views"]["brightness"] == [1, 0] and slow["views"]["grey"] == [1, 0]
    assert 0 < ours["views"]["brightness"][0] < 1 and ours["views"]["brightness"][1] > 0
    assert "views" not in rows["maskco: decode"]
    assert rows[data.DEVICE]["batch"] == 3 and 0 < rows[data.DEVICE]["ms"] < 50 and 0 < rows[data.WORKER]["ms"] < 50


def test_pipelines_beside_ours_give_two_views_of_the_size_asked_for(options) -> None:
    found, _ = data.implementations(options)
    for name in ("maskco", "PIL (MoCo)", "torchvision v2"):
        first, second = found[name](0)
        assert first.shape == second.shape == (3, 32, 32) and not torch.equal(first, second)
