"""Warnings of runs that learn nothing: each once, and none for a sound run."""

from __future__ import annotations

import torch
import torch.nn.functional as F

import maskco.training.monitors
from maskco.config import PretrainConfig
from maskco.data.views import Views
from maskco.methods import build_method
from maskco.methods.base import spread
from maskco.nn import FeatureQueue
from maskco.training.loop import pretrain
from maskco.training.monitors import Health
from tiny_runs import TINY, rows, tiny

SPREAD_OUT = 0.35  # 1 / √8


def health(**options: object) -> Health:
    config = PretrainConfig.of(data="a", out="b", **tiny(**{"method": "maskco", **options}))
    run = Health(build_method(config))
    run.method = run.monitors[-1].method  # to push keys to
    return run


def views(boxes: list[list[float]]) -> Views:
    """Two images of 32 × 32 with the same boxes in each."""
    both = torch.tensor([boxes, boxes])
    return Views(torch.zeros(2, 3, 32, 32), torch.zeros(2, 3, 32, 32), both, both)


HALF = views([[0, 0, 32, 16], [0, 8, 16, 16]])
WHOLE = views([[0, 0, 32, 16], [0, 16, 32, 31]])  # together all but one row


def push(health: Health) -> None:
    health.method.queue.push(F.normalize(torch.randn(4, 8), dim=1))


def test_spread_is_that_of_the_sphere_and_0_of_a_point():
    vectors = F.normalize(torch.randn(10000, 16), dim=1)
    assert abs(spread(vectors).item() - 0.25) < 0.01
    assert spread(vectors[:1].expand(100, -1)) < 1e-6


def test_collapsed_embeddings_are_told_once_and_not_in_the_first_steps():
    run = health()
    told = []
    for step, std in ((10, 0.001), (100, 0.1), (101, 0.001), (102, 0.001)):
        push(run)
        told.append(run.look(step, {"embedding_std": std}, HALF))
    assert [len(warnings) for warnings in told] == [0, 0, 1, 0]
    assert told[2][0].startswith("the embeddings have collapsed: all queries are alike (std 0.001; spread out")
    assert "0.35" in told[2][0] and "\n" not in told[2][0]


def test_a_queue_that_nothing_is_pushed_to_is_dead():
    run = health()
    push(run)
    assert run.look(1, {"embedding_std": SPREAD_OUT}, HALF) == []
    (warning,) = run.look(2, {"embedding_std": SPREAD_OUT}, HALF)
    assert warning.startswith("the queue is dead") and run.look(3, {"embedding_std": SPREAD_OUT}, HALF) == []


def test_a_mask_over_everything_is_told_for_the_method_that_masks():
    for options, expected in (({"mask_share": 1.0}, 1), ({"method": "moco_v2"}, 0)):
        run = health(**options)
        push(run)
        assert len(run.look(1, {"embedding_std": SPREAD_OUT}, HALF)) == 0
        push(run)
        warnings = run.look(2, {"embedding_std": SPREAD_OUT}, WHOLE)
        assert len(warnings) == expected
        assert not expected or warnings[0].startswith("the masks cover 97% of the query views")


def test_warnings_reach_the_log_and_the_terminal_once(pictures, tmp_path, monkeypatch, capfd):
    options = {**TINY, "key_momentum": 1.0, "region_scale": (0.9, 1.0), "crop_scale": (0.9, 1.0)}
    options |= {"mask_share": 1.0, "log_every": 1}
    monkeypatch.setattr(FeatureQueue, "push", lambda *arguments: None)
    pretrain(pictures, tmp_path / "run", **options)
    log, shown = (tmp_path / "run/log.txt").read_text(), capfd.readouterr().err
    for warning in ("the queue is dead", "key_momentum 1 leaves", "the masks cover"):
        assert log.count(f"warning: {warning}") == shown.count(f"warning: {warning}") == 1


def test_a_sound_run_warns_of_nothing_and_logs_its_spread(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(maskco.training.monitors, "SETTLED_STEPS", 2)
    pretrain(pictures, tmp_path / "run", **{**TINY, "lr": 0.1})
    assert "warning" not in (tmp_path / "run/log.txt").read_text()
    assert all(0 < row["embedding_std"] <= SPREAD_OUT + 0.01 for row in rows(tmp_path / "run"))
