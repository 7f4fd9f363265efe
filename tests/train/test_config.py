"""Options: what is refused and how it is said; what goes to JSON and back."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from maskco.config import ConfigError, PretrainConfig, demo_config, read_config

CONFIG = PretrainConfig(data="photos", out="run")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("method", "simclr"),
        ("mask_head", "mlp"),
        ("amp", "fp8"),
        ("augment", "gpu"),
        ("batch_size", 0),
        ("epochs", 0),
        ("queue_size", 0),
        ("regions", 0),
        ("lr", float("nan")),
        ("lr", -1.0),
        ("momentum", 1.5),
        ("temperature", 0.0),
        ("workers", -1),
        ("hidden", 0),
        ("data", ""),
        ("out", ""),
    ],
)
def test_impossible_values_are_named_in_one_line(option, value):
    with pytest.raises(ConfigError, match=f"^{option} ") as caught:
        dataclasses.replace(CONFIG, **{option: value}).check()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("option", "value", "wanted"),
    [
        ("batch_size", "64", "int"),
        ("batch_size", 64.0, "int"),
        ("epochs", True, "int"),
        ("lr", "0.1", "float"),
        ("hidden", "64", "int | None"),
        ("key_head", 1, "bool"),
        ("encoder", 18, "str"),
        ("crop_scale", 0.2, r"tuple\[float, float\]"),
        ("crop_scale", (0.2, "1"), r"tuple\[float, float\]"),
        ("region_scale", (0.2, 0.5, 0.7), r"tuple\[float, float\]"),
        ("amp", None, "one of off, bf16, fp16"),
    ],
)
def test_values_of_another_type_are_refused(option, value, wanted):
    with pytest.raises(ConfigError, match=f"^{option} must be {wanted}, got {re.escape(repr(value))}$"):
        dataclasses.replace(CONFIG, **{option: value}).check()


def test_whole_numbers_are_floats_and_lists_are_tuples():
    dataclasses.replace(CONFIG, lr=1, crop_scale=[1, 1], data=Path("photos"), hidden=64).check()


def test_views_that_cannot_be_drawn_are_refused():
    with pytest.raises(ConfigError, match="region_scale"):
        dataclasses.replace(CONFIG, region_scale=(0.9, 0.1)).view_config()
    assert dataclasses.replace(CONFIG, image_size=64, regions=3).view_config().regions == 3


def test_json_and_back(tmp_path):
    config = dataclasses.replace(CONFIG, region_scale=(0.1, 0.3), hidden=7)
    assert PretrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    (tmp_path / "config.json").write_text(json.dumps({"maskco": "0", **config.to_dict()}))
    assert read_config(tmp_path / "config.json") == config
    (tmp_path / "config.json").write_text(json.dumps({"name": "another tool"}))
    with pytest.raises(ConfigError, match="not the configuration of a maskco run"):
        read_config(tmp_path / "config.json")


def test_an_unknown_option_suggests_the_nearest():
    with pytest.raises(ConfigError, match="no option 'batchsize'; did you mean batch_size"):
        PretrainConfig.from_dict({"data": "a", "out": "b", "batchsize": 3})


def test_defaults_are_possible_and_moco_v2_s():
    CONFIG.check()
    demo_config("run").check()
    assert (CONFIG.queue_size, CONFIG.dim, CONFIG.temperature, CONFIG.momentum) == (65536, 128, 0.2, 0.999)
    assert (CONFIG.lr, CONFIG.batch_size, CONFIG.weight_decay, CONFIG.sgd_momentum) == (0.03, 256, 1e-4, 0.9)


def test_differences_name_what_a_resumed_run_may_not_change():
    other = dataclasses.replace(CONFIG, dim=64, out="elsewhere", epochs=3, workers=1, log_every=2)
    assert CONFIG.differences(other) == ["dim: 128, not 64"]


def test_config_and_cli_bring_no_heavy_module():
    """`maskco --help` must not wait for torch and all that comes with it."""
    heavy = {"torch", "timm", "torchvision", "tensorboard", "PIL"}
    code = f"import sys, maskco.cli; print({heavy} & set(sys.modules) or 'none')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "none\n"
