"""The dry pass before a run: what it refuses, in one line, and that it leaves no trace."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from timm.models import register_model
from torch import nn

import maskco
from maskco.config import METHODS, PretrainConfig
from maskco.errors import ConfigError
from maskco.methods import MaskCo, MoCoV2, build_method
from maskco.nn import Encoder
from maskco.training import rehearsal
from maskco.training.rehearsal import rehearse
from tiny_runs import TINY, make_pictures, tiny

CPU = torch.device("cpu")
BASE = PretrainConfig.of(**{**TINY, "data": "a", "out": "b", "image_size": 64})


def build(**options) -> tuple[nn.Module, PretrainConfig]:
    config = PretrainConfig.of(data="a", out="b", **{**tiny(options.get("method", "maskco"), image_size=64), **options})
    torch.manual_seed(0)
    return build_method(config).train(), config


def own(backbone: nn.Module, channels: int, stride: int, method=MaskCo) -> nn.Module:
    torch.manual_seed(0)
    return method(Encoder(backbone, channels, stride), dim=8, queue_size=12).train()


@pytest.mark.parametrize("method", METHODS)
def test_it_leaves_no_trace(method):
    built, config = build(method=method, mask_fill="noise") if method == "maskco" else build(method=method)
    before = {name: value.clone() for name, value in built.state_dict().items()}
    random = torch.get_rng_state()
    assert rehearse(built, config, CPU, None) == []
    assert all(torch.equal(value, before[name]) for name, value in built.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert built.training and all(parameter.grad is None for parameter in built.parameters())


@pytest.mark.parametrize("encoder", ["convnext_atto", "mambaout_femto"])
def test_masks_of_exactly_the_mean_color_are_refused_where_they_explode(encoder):
    built, config = build(encoder=encoder, mask_fill="mean")
    with pytest.raises(ConfigError, match=rf"{encoder} at image_size 64: masks make the gradient explode .*mask_fill"):
        rehearse(built, config, CPU, None)


@pytest.mark.parametrize("fill", ["grey", "noise"])
@pytest.mark.parametrize("encoder", ["test_resnet", "convnext_atto", "mambaout_femto", "edgenext_xx_small", "test_vit"])
def test_masks_leave_the_gradient_its_size(encoder, fill, monkeypatch):
    norms = []
    monkeypatch.setattr(
        rehearsal,
        "check_gradients",
        lambda _, *both: norms.extend(math.hypot(*(rehearsal.norm(g) for g in each.values())) for each in both),
    )
    rehearse(*build(encoder=encoder, mask_fill=fill), CPU, None)
    masked, plain = norms
    assert plain / 3 < masked < 3 * plain


class Fails(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise AssertionError("wants 7 heads\nand more lines")


class NotFinite(nn.Conv2d):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) + (self.weight.sum() * 0).sqrt()  # 1 / 0 in the gradient


@pytest.mark.parametrize("method", [MaskCo, MoCoV2])
@pytest.mark.parametrize(
    ("backbone", "channels", "stride", "said"),
    [
        (Fails(), 8, 8, r"AssertionError: wants 7 heads\)"),
        (nn.Conv2d(3, 8, 8, 8), 6, 8, r"not \[2, 6, h, w\]"),
        (nn.Conv2d(3, 8, 8, 8), 8, 16, "8x8, which does not fit its .stride of 16"),
        (nn.Conv2d(3, 8, (8, 4), (8, 4)), 8, 8, "8x16, which does not fit"),
        (nn.Flatten(), 8, 8, "must return a feature map"),
        (NotFinite(3, 8, 8, 8), 8, 8, "encoder.backbone.weight is not finite"),
    ],
)  # fmt: skip
def test_encoders_that_cannot_work_are_named_in_one_line(method, backbone, channels, stride, said):
    with pytest.raises(ConfigError, match=said) as caught:
        rehearse(own(backbone, channels, stride, method), BASE.replace(encoder="mine"), CPU, None)
    assert str(caught.value).startswith("encoder mine at image_size 64") and "\n" not in str(caught.value)


def returns(changed):
    """MoCo v2 with another result of a step."""
    return type("Mine", (MoCoV2,), {"forward": lambda self, views: changed(MoCoV2.forward(self, views))})


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (lambda output: None, "returns NoneType, not a StepOutput"),
        (lambda output: output.loss, "returns Tensor, not a StepOutput"),
        (
            lambda output: output._replace(loss=output.loss.detach()),
            r"a loss that is no tensor of shape \[\] with a grad",
        ),
        (lambda output: output._replace(loss=output.loss[None]), r"a loss that is no tensor of shape \[\]"),
        (lambda output: output._replace(metrics={"mine": 1.0}), r"a metric 'mine' that is no tensor of shape \[\]"),
        (lambda output: output._replace(metrics={"loss": output.loss}), "a metric 'loss', which is the name of one of"),
        (lambda output: output._replace(pushes={"bank": torch.ones(2, 8)}), "keys for the queues bank, .* are queue$"),
        (lambda output: output._replace(pushes={}), "keys for the queues none, and its queues are queue$"),
        (lambda output: output.los, r"fails in its first pass \(AttributeError: .*'los'\)\. .* if it is yours$"),
    ],
)
def test_a_method_that_returns_something_else_is_named_in_one_line(changed, said):
    built = own(nn.Conv2d(3, 8, 8, 8), 8, 8, returns(changed))
    with pytest.raises(ConfigError, match=rf"^method maskco with encoder mine at image_size 64 .*{said}"):
        rehearse(built, BASE.replace(encoder="mine"), CPU, None)


def test_a_method_that_pushes_by_itself_may_push_more():
    method = returns(lambda output: output._replace(pushes={**output.pushes, "bank": torch.ones(2, 8)}))
    method.end_step = lambda self, outputs: None
    assert rehearse(own(nn.Conv2d(3, 8, 8, 8), 8, 8, method), BASE.replace(encoder="mine"), CPU, None) == []


@pytest.mark.parametrize("regions", [1, 4, 9])
def test_views_have_as_many_regions_as_a_run(regions):
    config = BASE.replace(regions=regions)
    views = rehearsal.noise_views(config, CPU)
    assert views.query_boxes.shape == views.key_boxes.shape == (2, regions, 4)


@pytest.mark.parametrize("size", [56, 57, 63, 64])
def test_sizes_that_are_no_multiple_of_the_stride_are_fine(size):
    for padding in (0, 1):  # rounded down, and up
        built = own(nn.Conv2d(3, 8, 3 if padding else 8, 8, padding), 8, 8)
        assert rehearse(built, BASE.replace(image_size=size), CPU, None) == []


@register_model
def idle_resnet(pretrained=False, **_):
    """A backbone with a parameter that its map does not depend on."""
    model = timm.create_model("test_resnet", features_only=True, out_indices=(0,))
    model.register_parameter("idle", nn.Parameter(torch.ones(3)))
    return model


def test_parameters_without_gradient_are_said_at_the_start(tmp_path):
    options = {**TINY, "encoder": "idle_resnet", "epochs": 1}
    maskco.pretrain(make_pictures(tmp_path / "images"), tmp_path / "run", **options)
    assert (
        "parameters get no gradient and stay as they are: encoder.backbone." in (tmp_path / "run/log.txt").read_text()
    )


def test_nothing_is_written_or_removed_for_an_encoder_that_fails(tmp_path):
    images = make_pictures(tmp_path / "images")
    with pytest.raises(ConfigError, match="halonet26t at image_size 32"):
        maskco.pretrain(images, tmp_path / "run", **{**TINY, "encoder": "halonet26t"})
    assert not (tmp_path / "run").exists()
    maskco.pretrain(images, tmp_path / "run", **{**TINY, "epochs": 1})
    before = (tmp_path / "run/last.pt").read_bytes()
    with pytest.raises(ConfigError, match="halonet26t at image_size 32"):
        maskco.pretrain(images, tmp_path / "run", overwrite=True, **{**TINY, "encoder": "halonet26t"})
    assert (tmp_path / "run/last.pt").read_bytes() == before
