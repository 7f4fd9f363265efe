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

from former_runs import former_options, without_recipe
from maskco.config import GROUPS, METHODS, PretrainConfig, demo_config, find_method, read_config
from maskco.errors import ConfigError
from maskco.evaluate.options import Regions
from maskco.recipes import MOCO_V3
from maskco.runs.checkpoint import stored_config
from maskco.training.recipe import with_recipe

CONFIG = PretrainConfig.of(data="photos", out="run")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("method", "byol"),
        ("mask_head", "mlp"),
        ("amp", "fp8"),
        ("augment", "gpu"),
        ("batch_size", 0),
        ("epochs", 0),
        ("queue_size", 0),
        ("regions", -1),
        ("regions", 0),
        ("lr", float("nan")),
        ("lr", -1.0),
        ("key_momentum", 1.5),
        ("betas", (0.9, 1.5)),
        ("temperature", 0.0),
        ("workers", -1),
        ("hidden", 0),
        ("data", ""),
        ("out", ""),
    ],
)
def test_impossible_values_are_named_in_one_line(option, value):
    with pytest.raises(ConfigError, match=f"^{option} ") as caught:
        CONFIG.replace(**{option: value}).check()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("option", "value", "wanted"),
    [
        ("batch_size", "64", "int"),
        ("batch_size", 64.0, "int"),
        ("epochs", True, "int"),
        ("lr", "0.1", "float | None"),
        ("key_momentum", "0.1", "float"),
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
        CONFIG.replace(**{option: value}).check()


def test_whole_numbers_are_floats_and_lists_are_tuples():
    CONFIG.replace(lr=1, crop_scale=[1, 1], data=Path("photos"), hidden=64).check()


def test_a_run_from_before_masks_had_a_choice_goes_on_with_the_mean_color(tmp_path):
    values = former_options(CONFIG)
    assert values.pop("mask_fill") == "grey"
    (tmp_path / "config.json").write_text(json.dumps({"maskco": "0.1.0", **values}))
    assert read_config(tmp_path / "config.json").method.mask_fill == "mean"
    assert stored_config("last.pt", {"config": values}).method.mask_fill == "mean"


@pytest.mark.parametrize(("stored", "meant"), [(True, "loss"), (False, "off"), ("probe", "probe")])
def test_keep_best_of_before_the_probe_was_by_loss(tmp_path, stored, meant):
    values = CONFIG.replace(probe="demo").to_dict()
    values["run"]["keep_best"] = stored
    (tmp_path / "config.json").write_text(json.dumps({"maskco": "0.1.0", **values}))
    assert read_config(tmp_path / "config.json").run.keep_best == meant
    assert stored_config("last.pt", {"config": values}).run.keep_best == meant
    with pytest.raises(ConfigError, match=r"^keep_best must be one of off, loss, probe, got True$"):
        CONFIG.replace(keep_best=True).check()


@pytest.mark.parametrize("method", ["maskco", "moco_v2"])
def test_options_of_the_former_format_are_taken_over(method):
    config = PretrainConfig.of(data="photos", out="run", method=method, lr=0.5, key_momentum=0.9, crop_scale=(0.1, 1))
    config = config.filled("moco_v2").replace(keep_best="loss", **({"mask_patch": 1} if method == "maskco" else {}))
    assert PretrainConfig.from_stored(json.loads(json.dumps(former_options(config)))) == config


def test_numbers_and_paths_of_other_libraries_become_plain():
    config = PretrainConfig.of(
        data=Path("photos"),
        out=np.str_("run"),
        epochs=np.int64(3),
        batch_size=torch.tensor(8),
        lr=np.float32(0.5),
        temperature=np.array(0.25),
        key_momentum=Fraction(1, 2),
        key_head=np.bool_(True),
        hidden=np.array(7, dtype=np.uint8),
        region_scale=np.array([0.25, 0.5]),
        crop_scale=torch.tensor([0.5, 1.0]),
        crop_aspect=[np.float64(0.5), 2],
        device=torch.device("cpu"),
    )
    config.check()
    assert PretrainConfig.of(**json.loads(json.dumps(config.to_dict()))) == config
    assert {type(value) for value in config.flat().values()} <= {str, int, float, bool, tuple, type(None)}
    assert (config.optim.batch_size, config.optim.lr) == (8, 0.5)
    assert (config.views.region_scale, config.method.key_head) == ((0.25, 0.5), True)
    with pytest.raises(ConfigError, match=r"^batch_size must be int, got 8\.0$"):
        CONFIG.replace(batch_size=np.float64(8)).check()
    with pytest.raises(ConfigError, match=r"^region_scale must be"):
        CONFIG.replace(region_scale=np.ones(3)).check()
    options = Regions(encoders=[Path("run")], data=Path("scenes"), k=np.int64(5), temperature=torch.tensor(0.5))
    options.check()
    assert json.loads(json.dumps(dataclasses.asdict(options)))["encoders"] == ["run"] and type(options.k) is int


EXTREMES = [0, -1, 10**19, 10**400, math.nan, math.inf, -math.inf, 1e39, 1e-46, "x", None, [], (), (1,), {}, b"x", 1j]
EXTREMES += [(0, 0), (math.nan, 1), (0.5, math.inf), (1e-9, 1e-9), (2, 1), object(), Decimal(1), np.zeros(3)]


@pytest.mark.parametrize("option", sorted(set(CONFIG.flat()) - {"method"}))
def test_any_value_is_taken_or_refused_in_one_line(option):
    """What is taken can be stored, and holds no number that torch's types do not."""
    for value in EXTREMES:
        config = CONFIG.replace(**{option: value})
        try:
            config.check()
        except ConfigError as error:
            assert option in str(error) and "\n" not in str(error)
            continue
        assert PretrainConfig.of(**json.loads(json.dumps(config.to_dict()))) == config
        taken = config.flat()[option]
        for number in taken if isinstance(taken, tuple) else (taken,):
            if isinstance(number, (int, float)):
                assert abs(number) < 2**63 and math.isfinite(number)


@pytest.mark.parametrize(
    "value", [value for value in EXTREMES if not isinstance(value, dict)], ids=lambda v: type(v).__name__
)
def test_any_method_is_a_known_one_or_refused_in_one_line(value):
    with pytest.raises(ConfigError, match=rf"^method must be one of {', '.join(METHODS)}, got"):
        CONFIG.replace(method=value)


@pytest.mark.parametrize("method", METHODS)
def test_names_of_options_are_unique_and_defaults_possible(method):
    kinds = [kind for group, kind in GROUPS.items() if group != "method"] + [find_method(method).Options]
    names = [field.name for kind in kinds for field in dataclasses.fields(kind)]
    assert len(names) == len(set(names)) and not set(names) & set(GROUPS) - {"method"}
    PretrainConfig.of(data="photos", out="run", method=method).check()


def test_a_methods_own_defaults_are_taken_unless_given():
    config = PretrainConfig.of(data="photos", out="run", method="simclr").filled("moco_v2")
    assert (config.optim.optimizer, config.optim.lr, config.views.crop_scale) == ("lars", 0.3, (0.08, 1.0))
    assert config.replace(lr=0.1).optim.lr == 0.1
    config = PretrainConfig.of(data="photos", out="run", method="simclr").filled("moco_v3")
    assert (config.optim.optimizer, config.optim.lr, config.views.crop_scale) == ("adamw", MOCO_V3["lr"], (0.08, 1.0))


@pytest.mark.parametrize("method", ["maskco", "moco_v2", "simclr", "densecl"])  # (others may have been registered)
def test_runs_from_before_recipes_are_read_as_what_they_did(method):
    """Whatever their encoder: a ViT's run of then goes on with SGD, single pixels masked."""
    ran = PretrainConfig.of(data="photos", out="run", method=method, encoder="vit_tiny_patch16_224").filled("moco_v2")
    if method == "maskco":
        ran = ran.replace(mask_patch=1)
    stored = without_recipe(ran.to_dict())
    assert stored["optim"]["clip_grad"] is None and "recipe" not in stored["optim"]
    assert PretrainConfig.from_stored(stored) == ran == with_recipe(ran)


def test_views_that_cannot_be_drawn_are_refused():
    with pytest.raises(ConfigError, match="region_scale"):
        CONFIG.replace(region_scale=(0.9, 0.1)).check()
    with pytest.raises(ConfigError, match=r"^regions must be at least 1 for maskco"):
        CONFIG.replace(regions=0).check()
    PretrainConfig.of(data="photos", out="run", method="moco_v2", regions=0).check()


def test_json_and_back(tmp_path):
    config = CONFIG.replace(region_scale=(0.1, 0.3), hidden=7)
    assert PretrainConfig.of(**json.loads(json.dumps(config.to_dict()))) == config
    (tmp_path / "config.json").write_text(json.dumps({"maskco": "0", **config.to_dict()}))
    assert read_config(tmp_path / "config.json") == config
    (tmp_path / "config.json").write_text(json.dumps({"name": "another tool"}))
    with pytest.raises(ConfigError, match="not the configuration of a maskco run"):
        read_config(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"batchsize": 3}, "there is no option 'batchsize'. Did you mean batch_size?"),
        ({"momentum": 0.9}, "there is no option 'momentum' any more. Use key_momentum"),
        ({"method": "simclr", "mask_head": "none"}, "there is no option 'mask_head' of simclr. It is one of maskco"),
        ({"xyz": 1}, "there is no option 'xyz'. See `maskco pretrain --help`"),
    ],
)
def test_an_unknown_option_says_what_was_meant(options, told):
    with pytest.raises(ConfigError, match=re.escape(told)):
        PretrainConfig.of(data="a", out="b", **options)


def test_defaults_are_possible_and_moco_v2_s():
    CONFIG.check()
    demo_config("run").check()
    method, optim = CONFIG.method, CONFIG.filled("moco_v2").optim
    assert (method.queue_size, method.dim, method.temperature, method.key_momentum) == (65536, 128, 0.2, 0.999)
    assert (optim.optimizer, optim.lr, optim.batch_size) == ("sgd", 0.03, 256)
    assert (optim.weight_decay, optim.optimizer_momentum) == (1e-4, 0.9)


def test_differences_name_what_a_resumed_run_may_not_change():
    other = CONFIG.replace(dim=64, out="elsewhere", epochs=3, workers=1, log_every=2)
    assert CONFIG.differences(other) == ["dim: 128, not 64"]


def test_config_and_cli_bring_no_heavy_module():
    """`maskco --help` must not wait for torch and all that comes with it."""
    heavy = {"torch", "timm", "torchvision", "tensorboard", "PIL"}
    code = f"import sys, maskco.cli; print({heavy} & set(sys.modules) or 'none')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "none\n"
