"""Options: what is refused and how it is said; what goes to JSON and back."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from maskco.config import OPTIONS, PretrainConfig, demo_config, read_config
from maskco.errors import ConfigError
from maskco.evaluate.options import Regions
from maskco.runs.checkpoint import stored_config

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


def test_a_run_from_before_masks_had_a_choice_goes_on_with_the_mean_colour(tmp_path):
    values = CONFIG.to_dict()
    assert values.pop("mask_fill") == "grey"
    (tmp_path / "config.json").write_text(json.dumps({"maskco": "0.1.0", **values}))
    assert read_config(tmp_path / "config.json").mask_fill == "mean"
    assert stored_config("last.pt", {"config": values}).mask_fill == "mean"


def test_numbers_and_paths_of_other_libraries_become_plain():
    config = PretrainConfig(
        data=Path("photos"),
        out=np.str_("run"),
        epochs=np.int64(3),
        batch_size=torch.tensor(8),
        lr=np.float32(0.5),
        temperature=np.array(0.25),
        momentum=Fraction(1, 2),
        key_head=np.bool_(True),
        hidden=np.array(7, dtype=np.uint8),
        region_scale=np.array([0.25, 0.5]),
        crop_scale=torch.tensor([0.5, 1.0]),
        crop_aspect=[np.float64(0.5), 2],
        device=torch.device("cpu"),
    )
    config.check()
    assert PretrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert {type(value) for value in vars(config).values()} <= {str, int, float, bool, tuple, type(None)}
    assert (config.batch_size, config.lr, config.region_scale, config.key_head) == (8, 0.5, (0.25, 0.5), True)
    with pytest.raises(ConfigError, match=r"^batch_size must be int, got 8\.0$"):
        dataclasses.replace(CONFIG, batch_size=np.float64(8)).check()
    with pytest.raises(ConfigError, match=r"^region_scale must be"):
        dataclasses.replace(CONFIG, region_scale=np.ones(3)).check()
    options = Regions(encoders=[Path("run")], data=Path("scenes"), k=np.int64(5), temperature=torch.tensor(0.5))
    assert json.loads(json.dumps(dataclasses.asdict(options)))["encoders"] == ["run"] and type(options.k) is int


EXTREMES = [0, -1, 10**19, 10**400, math.nan, math.inf, -math.inf, 1e39, 1e-46, "x", None, [], (), (1,), {}, b"x", 1j]
EXTREMES += [(0, 0), (math.nan, 1), (0.5, math.inf), (1e-9, 1e-9), (2, 1), object(), Decimal(1), np.zeros(3)]


@pytest.mark.parametrize("option", sorted(OPTIONS))
def test_any_value_is_taken_or_refused_in_one_line(option):
    """What is taken can be stored, and holds no number that torch's types do not."""
    for value in EXTREMES:
        config = dataclasses.replace(CONFIG, **{option: value})
        try:
            config.check()
        except ConfigError as error:
            assert option in str(error) and "\n" not in str(error)
            continue
        assert PretrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
        taken = getattr(config, option)
        for number in taken if isinstance(taken, tuple) else (taken,):
            if isinstance(number, (int, float)):
                assert abs(number) < 2**63 and math.isfinite(number)


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
