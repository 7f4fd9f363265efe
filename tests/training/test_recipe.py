"""Recipes: which suits an encoder, what it fills in, and that a run keeps to it."""

from __future__ import annotations

import pytest
import torch

from maskco.config import METHODS, PretrainConfig
from maskco.errors import ConfigError
from maskco.methods import build_method
from maskco.recipes import MOCO_V2, MOCO_V3, RECIPES
from maskco.runs.checkpoint import load_run, read_checkpoint
from maskco.training.loop import pretrain
from maskco.training.recipe import recipe_line, with_recipe
from resuming import same
from tiny_runs import TINY, rows, tiny

SUITED = {
    "resnet18": "moco_v2",
    "regnetx_002": "moco_v2",
    "mobilenetv4_conv_small": "moco_v2",
    "efficientnet_b0": "moco_v2",
    "densenet121": "moco_v2",
    "gcresnet33ts": "moco_v2",  # a LayerNorm in each gate
    "resnest14d": "moco_v2",  # attends to channels
    "test_nfnet": "moco_v2",  # no norm at all
    "convnext_atto": "moco_v3",
    "convnextv2_atto": "moco_v3",
    "mambaout_femto": "moco_v3",
    "swin_tiny_patch4_window7_224": "moco_v3",
    "vit_tiny_patch16_224": "moco_v3",
    "hiera_tiny_224": "moco_v3",
    "focalnet_tiny_srf": "moco_v3",
    "poolformer_s12": "moco_v3",
    "levit_128s": "moco_v3",  # attention between batch norms
    "test_coatnet": "moco_v3",
}


def config(**options: object) -> PretrainConfig:
    return PretrainConfig.of(data="photos", out="run", **options)


@pytest.mark.parametrize(("encoder", "recipe"), SUITED.items())
def test_auto_looks_at_what_the_encoder_is_made_of(encoder, recipe):
    state = torch.get_rng_state()
    filled = with_recipe(config(encoder=encoder)).flat()
    wanted = dict(RECIPES[recipe])
    if not encoder.startswith("vit"):
        wanted["freeze_patch_embedding"] = False  # no patches are embedded, or such as are finer than the map
    assert {name: filled[name] for name in ("recipe", *MOCO_V2)} == {"recipe": recipe, **wanted}
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("encoder", "frozen"), [("test_vit", True), ("swin_tiny_patch4_window7_224", False)])
def test_the_patch_embedding_is_frozen_by_itself_or_where_asked_for(encoder, frozen):
    """MoCo v3 froze that of ViTs, whose patches are as coarse as their map."""
    assert with_recipe(config(encoder=encoder)).optim.freeze_patch_embedding is frozen
    for given in (True, False):
        filled = with_recipe(config(encoder=encoder, freeze_patch_embedding=given))
        assert filled.optim.freeze_patch_embedding is given


def test_only_what_is_used_of_the_encoder_counts():
    """CoAtNet attends in its last stages alone."""
    assert with_recipe(config(encoder="test_coatnet", stage=1)).optim.recipe == "moco_v2"


def test_all_recipes_are_of_the_same_options_which_default_to_them():
    assert {tuple(values) for values in RECIPES.values()} == {tuple(MOCO_V2)}
    assert all(config().flat()[option] is None for option in MOCO_V2)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("option", MOCO_V2)
def test_each_value_can_be_given(method, option):
    value = MOCO_V3[option] if option != "freeze_patch_embedding" else False
    filled = with_recipe(config(method=method, encoder="test_resnet", **{option: value}))
    assert filled.flat()[option] == value and filled.optim.recipe == "moco_v2"
    others = [name for name in MOCO_V2 if name != option]
    expected = {**MOCO_V2, **filled.method.defaults}
    assert [filled.flat()[name] for name in others] == [expected[name] for name in others]
    assert with_recipe(filled) == filled
    filled.check()


def test_a_rate_for_another_optimizer_is_told():
    encoder = build_method(config(encoder="test_resnet")).encoder
    told = recipe_line(with_recipe(config(encoder="test_resnet", optimizer="adamw")), encoder)
    assert told.endswith(". This lr is for sgd. Give one for adamw")
    for options in ({}, {"optimizer": "adamw", "lr": 1e-3}, {"method": "simclr"}):
        assert "this lr" not in recipe_line(with_recipe(config(encoder="test_resnet", **options)), encoder)


def test_steps_of_warm_up_take_the_place_of_the_share():
    filled = with_recipe(config(encoder="test_vit", warmup_steps=7))
    assert (filled.optim.warmup_steps, filled.optim.warmup_share) == (7, 0.0)
    filled = with_recipe(config(encoder="test_vit", warmup_steps=0))
    assert (filled.optim.warmup_steps, filled.optim.warmup_share) == (0, 0.0)
    with pytest.raises(ConfigError, match=r"^warmup_steps: 7 was given together with `warmup_share=0.1`"):
        config(warmup_steps=7, warmup_share=0.1).check()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"recipe": "byol"}, "^recipe must be one of auto, moco_v2, moco_v3, got byol"),
        (
            {"recipe": "moco_v2", "encoder": "test_vit"},
            "^recipe moco_v2 is for batch norms, and encoder test_vit is made of LayerNorm and attention. Leave it out",
        ),
        ({"recipe": "moco_v2", "encoder": "levit_128s"}, "made of BatchNorm and attention"),
        (
            {"freeze_patch_embedding": True, "encoder": "resnet18"},
            "^freeze_patch_embedding: resnet18 embeds no patches. Leave it out",
        ),
        (
            {"mask_fill": "token", "encoder": "test_resnet"},
            "^mask_fill token replaces embedded patches, and the encoder embeds no patches. Choose grey",
        ),
        (
            {"mask_fill": "token", "encoder": "test_vit", "mask_patch": 4},
            "the encoder embeds patches of 16 pixels, not 4. Choose grey",
        ),
        ({"warmup_share": 1.5}, "^warmup_share must be between 0 and 1"),
        ({"clip_grad": -1.0}, "^clip_grad must be between 0"),
    ],
)
def test_what_the_encoder_cannot_take_is_refused_in_one_line(pictures, tmp_path, options, told):
    with pytest.raises(ConfigError, match=told) as caught:
        pretrain(pictures, tmp_path / "run", **{**TINY, **options})
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_a_resnet_learns_by_moco_v3_too(pictures, tmp_path):
    pretrain(pictures, tmp_path / "run", **{**TINY, "recipe": "moco_v3", "lr": 1e-3})
    stored, method, _ = load_run(tmp_path / "run")
    assert stored.optim.optimizer == "adamw" and any("BatchNorm1d" in str(m) for m in method.projection)


@pytest.mark.parametrize("method", METHODS)
def test_a_vision_transformer_keeps_its_patch_embedding_and_learns_the_rest(pictures, tmp_path, method):
    options = tiny(method, encoder="test_vit", lr=1e-3)
    pretrain(pictures, tmp_path / "run", **options)
    stored, trained, _ = load_run(tmp_path / "run")
    assert stored.optim.recipe == "moco_v3"
    torch.manual_seed(0)
    before = build_method(stored).encoder.state_dict()
    after = trained.encoder.state_dict()
    kept = {name for name in after if torch.equal(before[name], after[name])}
    assert {name for name in kept if "patch_embed" in name} == {name for name in after if "patch_embed.proj" in name}
    assert not [name for name in kept if "qkv.weight" in name]
    (line,) = [line for line in (tmp_path / "run/log.txt").read_text().splitlines() if " recipe " in line]
    assert line.endswith(recipe_line(stored, trained.encoder)) and "(test_vit is made of LayerNorm and att" in line
    assert "optimizer adamw, lr 0.001, " in line


def test_masks_by_token_are_learned_and_resumed_bit_for_bit(pictures, tmp_path):
    options = {**TINY, "encoder": "test_vit", "mask_fill": "token", "lr": 1e-3, "log_every": 1}
    pretrain(pictures, tmp_path / "whole", **options)
    pretrain(pictures, tmp_path / "parts", **{**options, "save_every_steps": 3, "keep": 2})
    (tmp_path / "parts/step-6.pt").replace(tmp_path / "parts/last.pt")
    pretrain(out=tmp_path / "parts", resume=True)
    whole, parts = (read_checkpoint(tmp_path / name / "last.pt") | {"config": 0} for name in ("whole", "parts"))
    assert same(whole, parts) and rows(tmp_path / "whole") == rows(tmp_path / "parts")
    stored, trained, _ = load_run(tmp_path / "whole")
    torch.manual_seed(0)
    fresh = build_method(stored)
    assert stored.method.mask_patch == 16
    assert trained.mask_token.shape == (64,) and not torch.equal(trained.mask_token, fresh.mask_token)
