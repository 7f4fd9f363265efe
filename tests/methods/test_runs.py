"""A run of every method is reported, evaluated and exported; runs of the former format go on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from former_runs import make_former
from maskco.config import METHODS
from maskco.evaluate.options import Knn
from maskco.evaluate.run import evaluate
from maskco.report import write_report
from maskco.runs.checkpoint import load_run, read_checkpoint
from maskco.training.loop import pretrain
from maskco.weights.export import export_run
from resuming import same
from tiny_runs import rows, tiny


@pytest.mark.parametrize("method", METHODS)
def test_runs_of_every_method_are_evaluated_exported_and_reported(pictures, tmp_path, method):
    run = tmp_path / "run"
    pretrain(pictures, run, **tiny(method))
    (row,) = evaluate(Knn(encoders=(str(run),), train_images=20, test_images=10, workers=0))
    assert row.details["method"] == method and 0 <= row.scores["kNN top-1"] <= 100
    out, card = export_run(run, "timm", tmp_path / "encoder.pth")
    exported = torch.load(out, weights_only=True)
    trained = load_run(run)[1].encoder.backbone.state_dict()
    assert exported.keys() and all(
        any(torch.equal(value, own) for own in trained.values()) for value in exported.values()
    )
    assert method in card.read_text()
    page = Path(write_report(run).html).read_text()
    assert method in page and page.count("<img") >= 2


@pytest.mark.parametrize("method", ["maskco", "moco_v2"])
def test_a_run_of_the_former_format_goes_on_as_if_it_were_of_this(pictures, tmp_path, method):
    """Stopped between two rows of metrics, so that sums of both formats are in the next."""
    options = tiny(method, log_every=100, save_every_steps=3, keep=2)
    for name in ("ours", "former"):
        pretrain(pictures, tmp_path / name, **{**options, "epochs": 1})
        (tmp_path / name / "step-3.pt").replace(tmp_path / name / "last.pt")
        assert read_checkpoint(tmp_path / name / "last.pt")["totals"]["count"] == 3
    make_former(tmp_path / "former")
    assert load_run(tmp_path / "former")[0].run.method == method
    for name in ("ours", "former"):
        pretrain(out=tmp_path / name, resume=True, epochs=2)
    ours, former = (read_checkpoint(tmp_path / name / "last.pt") | {"config": 0} for name in ("ours", "former"))
    for state in (ours, former):  # (groups of the former format know no share of the rate)
        for group in state["optimizer"]["param_groups"]:
            group.pop("lr_scale", None)
    assert same(ours, {name: former[name] for name in ours}) and rows(tmp_path / "ours") == rows(tmp_path / "former")
