"""What of torch's settings commands cannot run under. All of them say so in one line before they write anything."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from maskco.errors import ConfigError
from maskco.evaluate.feature_file import write_features
from maskco.evaluate.options import FeatureOptions, Knn
from maskco.evaluate.run import evaluate
from maskco.report import write_report
from maskco.report.sheet import write_sheet
from maskco.training.loop import pretrain
from maskco.view_options import ViewConfig
from tiny_runs import TINY

CALLS = {
    "pretrain": lambda data, out: pretrain(data, out / "run", **TINY),
    "evaluate": lambda data, out: evaluate(
        Knn(encoders=("untrained:test_resnet",), data="demo", out=str(out / "e.json"))
    ),
    "features": lambda data, out: write_features(
        FeatureOptions(encoder="untrained:test_resnet", data=str(data), out=str(out / "f.safetensors"))
    ),
    "views": lambda data, out: write_sheet(data, ViewConfig(image_size=32), out / "a.png"),
    "report": lambda data, out: write_report(out / "run"),
}


@contextmanager
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_settings_of_the_calling_code_that_would_reach_into_every_step_are_refused(pictures, tmp_path, call):
    settings = {
        "autocast. Call it outside, and choose `amp`": torch.autocast("cpu", torch.bfloat16),
        "default device meta. Reset it, and choose `device`": torch.device("meta"),
        "default dtype torch.float64. Reset it": float64(),
    }
    if call is CALLS["pretrain"]:  # the others learn nothing, or by themselves
        settings |= dict.fromkeys(["no_grad or inference_mode. Call it outside"], torch.no_grad())
    for said, setting in settings.items():
        with setting, pytest.raises(ConfigError, match=f"^this cannot run under torch's {said}$"):
            call(pictures, tmp_path)
    assert not any(tmp_path.iterdir())
