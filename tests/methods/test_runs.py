"""Runs of every method, one from outside the package too: reported, evaluated, exported; those of the former format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from former_runs import make_former
from maskco import ops
from maskco.config import METHODS, MethodOptions, PretrainConfig
from maskco.data.views import Views
from maskco.errors import ConfigError, UserError
from maskco.evaluate.options import Knn
from maskco.evaluate.run import evaluate
from maskco.methods import Method, StepOutput
from maskco.methods.base import MomentumOptions
from maskco.nn import FeatureQueue, momentum_copy
from maskco.report import write_report
from maskco.runs.checkpoint import load_run, read_checkpoint
from maskco.training.loop import pretrain
from maskco.weights.export import export_encoder
from resuming import same
from tiny_runs import rows, tiny


@pytest.mark.parametrize("method", METHODS)
def test_runs_of_every_method_are_evaluated_exported_and_reported(pictures, tmp_path, method):
    run = tmp_path / "run"
    pretrain(pictures, run, **tiny(method))
    (row,) = evaluate(Knn(encoders=(str(run),), train_images=20, test_images=10, workers=0))
    assert row.details["method"] == method and 0 <= row.scores["kNN top-1"] <= 100
    out, card = export_encoder(run, "timm", tmp_path / "encoder.pth")
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
    assert same(ours, {name: former[name] for name in ours})
    found = [rows(tmp_path / name) for name in ("ours", "former")]
    for row in (found[0][0], found[1][0]):
        del row["grad_norm"]  # of which the former format had no sum
    assert found[0] == found[1]


@dataclass
class AlignmentOptions(MethodOptions):
    """What a method from outside may call its options: names that this package gave up, too."""

    momentum: float = 0.9


class Alignment(Method):
    """Cosine similarity of two views, with a momentum side that it moves by itself."""

    Options = AlignmentOptions

    def __init__(self, encoder: Any = "resnet50", **options: Any) -> None:
        super().__init__(encoder, **options)
        self.momentum_encoder = momentum_copy(self.encoder)

    def key_modules(self) -> list[tuple[torch.nn.Module, torch.nn.Module]]:
        return [(self.encoder, self.momentum_encoder)]

    def start_step(self, progress: float = 0.0) -> None:
        for own, copy in zip(self.encoder.parameters(), self.momentum_encoder.parameters(), strict=True):
            copy.lerp_(own.detach(), 1 - self.options.momentum)

    def forward(self, views: Views) -> StepOutput:
        with torch.no_grad():
            target = self.momentum_encoder(views.key).mean((2, 3))
        loss = -F.cosine_similarity(self.encoder(views.query).mean((2, 3)), target).mean()
        return StepOutput(loss, {"alignment": -loss.detach()}, {})


def test_a_method_from_outside_trains_resumes_and_is_read_again(pictures, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "alignment", Alignment)
    options = {"encoder": "test_resnet", "image_size": 32, "batch_size": 4, "workers": 0, "regions": 0, "device": "cpu"}
    pretrain(pictures, tmp_path / "run", method="alignment", momentum=0.5, epochs=1, **options)
    assert pretrain(out=tmp_path / "run", resume=True, epochs=2).steps == 8
    config, method, _ = load_run(tmp_path / "run")
    assert config.method.momentum == 0.5 and isinstance(method, Alignment)
    assert rows(tmp_path / "run")[-1]["alignment"] > 0
    assert "alignment" in Path(write_report(tmp_path / "run").html).read_text()


class Bank(Method):
    """A momentum side and a queue of another name and size than its options say."""

    Options = MomentumOptions

    def __init__(self, encoder: Any = "resnet50", **options: Any) -> None:
        super().__init__(encoder, **options)
        self.momentum_encoder, self.bank = momentum_copy(self.encoder), FeatureQueue(5, self.encoder.channels)

    def key_modules(self) -> list[tuple[torch.nn.Module, torch.nn.Module]]:
        return [(self.encoder, self.momentum_encoder)]

    def forward(self, views: Views) -> StepOutput:
        query, key = (encoder(views.query).mean((2, 3)) for encoder in (self.encoder, self.momentum_encoder))
        return StepOutput(ops.info_nce(query, key.detach(), self.bank.features), {}, {"bank": key.detach()})


def test_a_queue_may_have_any_name_and_size(pictures, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "bank", Bank)
    pretrain(pictures, tmp_path / "run", **{**tiny("moco_v2"), "method": "bank", "regions": 0})
    method = load_run(tmp_path / "run")[1]
    assert isinstance(method, Bank) and method.bank.valid == 5
    evaluate(Knn(encoders=(str(tmp_path / "run"),), train_images=20, test_images=10, workers=0))


def test_a_run_of_a_method_that_is_not_registered_asks_for_it(pictures, tmp_path, monkeypatch):
    with monkeypatch.context() as registered:
        registered.setitem(METHODS, "alignment", Alignment)
        options = {"encoder": "test_resnet", "image_size": 32, "batch_size": 4, "workers": 0, "regions": 0}
        pretrain(pictures, tmp_path / "run", method="alignment", epochs=1, device="cpu", **options)
    asked = r"method must be one of .*, got 'alignment'\. If it is your own, register it in `maskco.config` before"
    for use in (load_run, lambda run: pretrain(out=run, resume=True, epochs=3)):
        with pytest.raises(UserError, match=asked) as caught:
            use(tmp_path / "run")
        assert "Restore" not in str(caught.value) and "overwrite" not in str(caught.value)


def test_a_method_whose_option_is_one_of_every_run_is_refused(monkeypatch):
    @dataclass
    class Options(MethodOptions):
        lr: float = 0.5

    monkeypatch.setitem(METHODS, "mine", type("Mine", (Alignment,), {"Options": Options}))
    with pytest.raises(ConfigError, match=r"^method mine: its option 'lr' is one of every run, too. Rename it"):
        PretrainConfig.of(method="mine")


def test_a_method_that_cannot_be_imported_is_one_line_and_hinders_no_other(monkeypatch):
    monkeypatch.setitem(METHODS, "gone", "no_such_module:Method")
    with pytest.raises(ConfigError, match=r"^method gone cannot be imported from 'no_such_module:Method'"):
        PretrainConfig.of(method="gone")
    with pytest.raises(ConfigError, match=r"there is no option 'lrr'. Did you mean lr"):
        PretrainConfig.of(lrr=1)


def test_another_method_cannot_resume_a_run(pictures, tmp_path):
    pretrain(pictures, tmp_path / "run", **tiny("simclr", epochs=1))
    for other in ("maskco", ["x"]):
        with pytest.raises(ConfigError, match=r"^method: the run is of simclr, not"):
            pretrain(out=tmp_path / "run", resume=True, method=other)


def test_the_first_epoch_of_a_method_without_queues_can_be_the_best(pictures, tmp_path):
    pretrain(pictures, tmp_path / "run", **tiny("simclr", epochs=1, keep_best="loss"))
    assert read_checkpoint(tmp_path / "run/best.pt")["step"] == 4
