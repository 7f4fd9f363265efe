"""What monitors add to the rows of metrics, and how they go through a checkpoint."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import maskco.training.monitors as monitors
from maskco.config import METHODS, PretrainConfig
from maskco.nn.embeddings import effective_rank
from maskco.runs.checkpoint import read_checkpoint
from maskco.training.loop import pretrain
from maskco.training.monitors.base import Monitor
from maskco.training.monitors.collapse import newest, rows_for
from maskco.training.state import TrainState
from tiny_runs import TINY, rows, tiny

# ---- effective rank


def test_the_effective_rank_is_rankme_s():
    embeddings = F.normalize(torch.randn(200, 16) * torch.linspace(0.1, 2, 16), dim=1)
    for rows_of in (embeddings, embeddings[:10]):  # more rows than dimensions, and fewer
        share = torch.linalg.svdvals(rows_of.double())
        share = share / share.sum()
        assert effective_rank(rows_of) == pytest.approx(float(torch.special.entr(share).sum().exp()), rel=1e-6)


def test_the_effective_rank_counts_dimensions():
    assert effective_rank(torch.eye(8).repeat(5, 1)) == pytest.approx(8)
    assert effective_rank(torch.eye(8)[:3].repeat(5, 1)) == pytest.approx(3)
    assert effective_rank(torch.ones(20, 8)) == pytest.approx(1, abs=1e-4)
    assert effective_rank(torch.zeros(20, 8)) == 1
    assert math.isnan(effective_rank(torch.full((20, 8), math.nan)))


def test_it_is_taken_over_the_newest_keys():
    """Of a ring that has wrapped around, and of one that is not yet full, whose other rows may hold anything."""
    features = torch.arange(10.0)[:, None]
    assert newest(features, torch.tensor([3, 10]), 5).flatten().tolist() == [2, 1, 0, 9, 8]
    assert newest(features, torch.tensor([3, 3]), 5).flatten().tolist() == [2, 1, 0]
    assert (rows_for(8), rows_for(128), rows_for(2048)) == (64, 1024, 1024)


# ---- rows


@pytest.mark.parametrize("method", METHODS)
def test_every_row_has_gradient_norm_and_effective_rank(pictures, tmp_path, method):
    pretrain(pictures, tmp_path / "run", **tiny(method, log_every=1))
    found = rows(tmp_path / "run")
    assert len(found) == 8 and all(row["grad_norm"] > 0 for row in found[1:])  # (the first may have no negatives)
    assert found[0]["grad_norm"] >= 0
    assert all(1 <= row["effective_rank"] <= 8 for row in found)
    assert ("dense_effective_rank" in found[0]) == (method == "densecl")


def test_the_gradient_norm_is_that_before_clipping_and_the_mean_of_its_steps(pictures, tmp_path, monkeypatch):
    """Of the whole step, with several micro-batches too."""
    seen = []

    class Kept(Monitor):
        def __init__(self, state: TrainState) -> None:
            self.state = state

        def see(self, step, outputs, norms) -> None:
            grads = [p.grad for p in self.state.method.parameters() if p.grad is not None]
            seen.append((torch.cat([grad.flatten() for grad in grads]).double().norm().item(), norms.norm().item()))

    monkeypatch.setattr(monitors, "MONITORS", [*monitors.MONITORS, Kept])
    options = tiny("simclr", log_every=2, epochs=1, optimizer="sgd")
    pretrain(pictures, tmp_path / "free", accumulate=2, **options)
    own, told = zip(*seen, strict=True)
    assert own == pytest.approx(told, rel=1e-4) and len(seen) == 4
    means = [sum(norm for norm, _ in seen[i : i + 2]) / 2 for i in (0, 2)]
    assert [row["grad_norm"] for row in rows(tmp_path / "free")] == pytest.approx(means, rel=1e-4)
    seen.clear()
    pretrain(pictures, tmp_path / "clipped", clip_grad=1e-3, **{**options, "log_every": 1})
    assert all(own == pytest.approx(1e-3, rel=1e-3) and own < told for own, told in seen)
    assert [row["grad_norm"] for row in rows(tmp_path / "clipped")] == pytest.approx([told for _, told in seen])


def test_steps_that_overflow_in_fp16_are_no_part_of_the_mean():
    state = TrainState(PretrainConfig.of(data="a", out="b", **TINY).filled("moco_v2"), 16, torch.device("cpu"))
    (gradient,) = [each for each in state.monitors.all if type(each).__name__ == "Gradient"]
    gradient.skips = True
    count = len(gradient.parts)
    for step, norm in enumerate((math.inf, 2.0, math.nan, 4.0), start=1):
        gradient.see(step, [], torch.full((count,), norm / count**0.5))
    assert gradient.metrics() == {"grad_norm": pytest.approx(3.0)}
    assert gradient.metrics() == {}  # none since


def test_a_monitor_from_outside_is_one_entry_in_the_list(pictures, tmp_path, monkeypatch):
    """It sees each step, adds to each row, warns, and goes on from its state."""

    class Counting(Monitor):
        def __init__(self, state: TrainState) -> None:
            self.steps = 0

        def lines(self):
            return ["counting"]

        def see(self, step, outputs, norms):
            assert norms.ndim == 1 and len(outputs) == 1
            self.steps += 1

        def metrics(self):
            return {"steps_seen": self.steps}

        def warnings(self, step, row, views):
            return {"eight": f"that was step {step}"} if row["steps_seen"] == 8 else {}

        def state_dict(self):
            return {"steps": self.steps}

        def load_state_dict(self, state):
            self.steps = state["steps"]

    monkeypatch.setattr(monitors, "MONITORS", [Counting])
    pretrain(pictures, tmp_path / "run", **{**TINY, "epochs": 1})
    pretrain(out=tmp_path / "run", resume=True, epochs=2)
    assert [row["steps_seen"] for row in rows(tmp_path / "run")] == [3, 4, 6, 8]
    log = (tmp_path / "run/log.txt").read_text()
    assert log.count("counting") == 2 and log.count("warning: that was step 8") == 1


def test_a_checkpoint_of_before_monitors_is_gone_on_from(pictures, tmp_path):
    pretrain(pictures, tmp_path / "run", **tiny("simclr", epochs=1, log_every=100, save_every_steps=3, keep=2))
    state = read_checkpoint(tmp_path / "run/step-3.pt")
    assert set(state["monitors"]) == {"Gradient", "Collapse"}
    del state["monitors"]
    torch.save(state, tmp_path / "run/last.pt")
    assert pretrain(out=tmp_path / "run", resume=True, epochs=2).steps == 8
    assert rows(tmp_path / "run")[-1]["grad_norm"] > 0
