"""The optimizer: MoCo v2's SGD by hand, timm's others by name, parameter groups, schedule and clipping."""

from __future__ import annotations

import copy
import math
import re

import pytest
import timm
import torch
from torch import nn

from maskco.config import OptimOptions, PretrainConfig
from maskco.errors import ConfigError
from maskco.methods import Method, build_method
from maskco.runs.checkpoint import read_checkpoint
from maskco.training.loop import pretrain
from maskco.training.optim import (
    clip_gradient,
    create_optimizer,
    layer_scales,
    learning_rate,
    load_optimizer,
    parameter_groups,
    set_learning_rate,
)
from resuming import same
from tiny_runs import TINY, rows, tiny


def optim(**options: object) -> OptimOptions:
    """Filled in as for a ResNet."""
    return PretrainConfig.of(data="a", out="b", **options).filled("moco_v2").optim


def built(encoder: str = "test_resnet", **options: object) -> Method:
    torch.manual_seed(0)
    return build_method(PretrainConfig.of(data="a", out="b", **tiny("moco_v2", **{"encoder": encoder, **options})))


def decayed(method: Method, options: OptimOptions) -> set[str]:
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    groups = parameter_groups(method, options, "test_resnet")
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(
        id(p) for p in method.parameters() if p.requires_grad
    )
    return {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}


def test_the_default_is_torchs_sgd_of_every_parameter_alike():
    """Bit for bit, over some steps."""
    method = built()
    twin = copy.deepcopy(method)
    optimizer = create_optimizer(method, optim(), "test_resnet", fused=False)
    assert len(optimizer.param_groups) == 1
    plain = torch.optim.SGD([p for p in twin.parameters() if p.requires_grad], lr=0.03, momentum=0.9, weight_decay=1e-4)
    generator = torch.Generator().manual_seed(0)
    for step in range(4):
        set_learning_rate(optimizer, 0.1 * (step + 1))
        plain.param_groups[0]["lr"] = 0.1 * (step + 1)
        for ours, theirs in zip(method.parameters(), twin.parameters(), strict=True):
            if ours.requires_grad:
                ours.grad = torch.randn(ours.shape, generator=generator)
                theirs.grad = ours.grad.clone()
        optimizer.step()
        plain.step()
    assert same(dict(method.state_dict()), dict(twin.state_dict()))


def test_norms_and_biases_decay_with_sgd_alone():
    method = built()
    learned = {name for name, parameter in method.named_parameters() if parameter.requires_grad}
    matrices = {name for name in learned if name.endswith("weight") and method.get_parameter(name).ndim > 1}
    assert decayed(method, optim()) == learned
    assert decayed(method, optim(optimizer="adamw")) == matrices != learned
    assert decayed(method, optim(optimizer="adamw", decay_norms=True)) == learned
    assert decayed(method, optim(decay_norms=False)) == matrices


def test_tokens_and_position_embeddings_do_not_decay():
    method = built("test_vit")
    names = decayed(method, optim(optimizer="adamw"))
    assert not [name for name in names if "pos_embed" in name or "cls_token" in name]
    assert any("pos_embed" in name for name, _ in method.named_parameters())


@pytest.mark.parametrize("encoder", ["test_resnet", "test_vit", "convnext_atto"])
def test_layer_decay_is_timms(encoder):
    """Each parameter of the backbone against timm's own groups of the whole model, relative to its last layer used."""
    method = built(encoder, image_size=96)
    scales = layer_scales(method, 0.5, encoder)
    own = {name for name, _ in method.named_parameters() if name.startswith("encoder.backbone.")}
    assert own <= scales.keys() and max(scales[name] for name in own) == 1
    whole = timm.create_model(encoder, num_classes=0, **({"img_size": 96} if "vit" in encoder else {}))
    by_flat_name = {name.replace(".", "_"): parameter for name, parameter in whole.named_parameters()}
    groups = timm.optim.param_groups_layer_decay(whole, layer_decay=0.5)
    theirs = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    factors = set()
    for name in own:
        flat = name.removeprefix("encoder.backbone.").removeprefix("model.").replace(".", "_")
        factors.add(scales[name] / theirs[id(by_flat_name[flat])])
    assert len(factors) == 1 and len({scales[name] for name in own}) > 2


def test_the_schedule_holds_for_every_group():
    method = built("convnext_atto", image_size=64)
    options = optim(optimizer="adamw", layer_decay=0.7, lr=0.001, batch_size=512)
    optimizer = create_optimizer(method, options, "convnext_atto", fused=False)
    set_learning_rate(optimizer, learning_rate(options, 0, 10))
    rates = {group["lr"] for group in optimizer.param_groups}
    assert max(rates) == pytest.approx(0.002) and len(rates) > 3
    assert all(group["lr"] == pytest.approx(0.002 * group["lr_scale"]) for group in optimizer.param_groups)


@pytest.mark.parametrize("optimizer", ["adamw", "lars", "lamb", "lion", "nadamw", "muon", "mars"])
def test_runs_with_other_optimizers_resume_bit_for_bit(pictures, tmp_path, optimizer):
    options = {**TINY, "optimizer": optimizer, "lr": 0.01, "clip_grad": 1.0, "layer_decay": 0.9, "log_every": 1}
    pretrain(pictures, tmp_path / "whole", **options)
    pretrain(pictures, tmp_path / "parts", **{**options, "save_every_steps": 3, "keep": 2, "epochs": 2})
    kept = tmp_path / "parts/step-6.pt"
    assert read_checkpoint(kept)["step"] == 6
    kept.replace(tmp_path / "parts/last.pt")
    pretrain(out=tmp_path / "parts", resume=True)
    whole, parts = (read_checkpoint(tmp_path / name / "last.pt") | {"config": 0} for name in ("whole", "parts"))
    assert same(whole, parts) and rows(tmp_path / "whole") == rows(tmp_path / "parts")
    assert all(math.isfinite(row["loss"]) for row in rows(tmp_path / "whole"))


def test_text_is_a_hyperparameter_or_refused():
    optimizer = create_optimizer(Holder(), optim(optimizer="muon"), "test_resnet", fused=False)
    state = optimizer.state_dict()
    assert any(isinstance(value, str) for value in state["param_groups"][0].values())
    with pytest.raises(TypeError, match="momentum_buffer of the optimizer is text"):
        load_optimizer(optimizer, state | {"state": {0: {"momentum_buffer": "text"}}})
    load_optimizer(optimizer, state)


@pytest.mark.parametrize("name", timm.optim.list_optimizers())
def test_every_optimizer_of_timm_is_made_or_refused_in_one_line(name):
    model = Holder()
    try:
        optimizer = create_optimizer(model, optim(optimizer=name), "test_resnet", fused=False)
    except ConfigError as error:
        assert name in str(error) and "\n" not in str(error)
        return
    assert len([p for group in optimizer.param_groups for p in group["params"]]) == 2
    assert {group["weight_decay"] for group in optimizer.param_groups} <= {0.0, 1e-4}


class Holder(nn.Module):
    """A method as far as the optimizer looks at it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.backbone = nn.Linear(4, 3)


def test_clipping_scales_the_whole_gradient():
    model = nn.Linear(3, 2)
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=1), torch.amp.GradScaler("cpu", enabled=False)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    for largest in (0.0, 1.0):
        assert clip_gradient(optimizer, scaler, largest).tolist() == pytest.approx([3 * math.sqrt(6), 3 * math.sqrt(2)])
    assert torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"optimizer": "adamW"}, "optimizer must be one that timm has, got 'adamW'. Did you mean adamw?"),
        (
            {"optimizer": "xyz"},
            "optimizer must be one that timm has, got 'xyz'. timm.optim.list_optimizers() lists them",
        ),
        ({"betas": (0.9, 0.99)}, "betas"),
        ({"optimizer": "adan", "betas": (0.9, 0.99)}, "optimizer adan cannot be made"),
        ({"optimizer": "adahessian"}, "optimizer adahessian needs second derivatives"),
        ({"optimizer": "bnbadam"}, "optimizer bnbadam cannot be made"),
    ],
)
def test_what_an_optimizer_cannot_do_is_one_line(pictures, tmp_path, options, told):
    with pytest.raises(ConfigError, match=re.escape(told)) as caught:
        pretrain(pictures, tmp_path / "run", **{**TINY, **options})
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()
