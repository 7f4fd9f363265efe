"""The step tried before a run: what it refuses, what it freezes, and that it leaves no trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_train import same
from tiny_runs import TINY, make_pictures
from torch import Tensor, nn

from maskco.config import ConfigError, PretrainConfig
from maskco.data.views import Views
from maskco.methods import MaskCo, MoCoV2, build_method
from maskco.nn import Encoder
from maskco.nn.encoder import map_scale
from maskco.rehearsal import rehearse
from maskco.train import pretrain

CPU = torch.device("cpu")


def tiny(**options: Any) -> PretrainConfig:
    return PretrainConfig(data="a", out="b", **{**TINY, **options})


class Stem(nn.Module):
    """Patches of 8 pixels, and a layer that nothing depends on."""

    def __init__(self, factor: float = 1.0, padding: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 8, 8)
        self.unused = nn.Linear(3, 3)
        self.factor, self.padding = factor, padding

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv(images * self.factor)
        return features[..., self.padding :, self.padding :].contiguous()


def method_of(stem: nn.Module, kind: type[MaskCo] | type[MoCoV2] = MaskCo) -> MaskCo | MoCoV2:
    torch.manual_seed(0)
    return kind(Encoder(stem, channels=8, stride=8), dim=8, queue_size=12)


@pytest.mark.parametrize("method", ["maskco", "moco_v2"])
def test_leaves_no_trace(method):
    torch.manual_seed(0)
    config = tiny(method=method, mask_fill="noise" if method == "maskco" else "grey")
    built = build_method(config).train()
    before = {name: value.clone() for name, value in built.state_dict().items()}
    random = torch.get_rng_state()
    assert rehearse(built, config, CPU) == []
    assert torch.equal(torch.get_rng_state(), random)
    assert same(built.state_dict(), before)
    assert all(parameter.grad is None for parameter in built.parameters())
    assert built.training and built.shuffle_keys


def test_parameters_without_gradient_are_told_and_frozen():
    method = method_of(Stem())
    lines = rehearse(method, tiny(), CPU)
    assert len(lines) == 1 and lines[0].startswith("2 of ") and "encoder.backbone.unused.weight" in lines[0]
    assert not any(p.requires_grad for p in method.encoder.backbone.unused.parameters())
    assert all(p.requires_grad for p in method.encoder.backbone.conv.parameters())


@pytest.mark.parametrize("factor", [1e6, float("nan"), float("inf")])
@pytest.mark.parametrize("kind", [MaskCo, MoCoV2])
def test_exploding_and_infinite_gradients_name_the_module(factor, kind):
    class Scaled(torch.autograd.Function):
        @staticmethod
        def forward(context, value):
            return value.clone()

        @staticmethod
        def backward(context, gradient):
            return gradient * factor

    class Exploding(Stem):
        def forward(self, images: Tensor) -> Tensor:
            return Scaled.apply(self.conv(images))

    with pytest.raises(ConfigError, match=r"explodes.*most of it in backbone\.conv"):
        rehearse(method_of(Exploding(), kind), tiny(), CPU)


@pytest.mark.parametrize("name", ["convnext_atto", "mambaout_femto", "focalnet_tiny_srf"])
def test_the_mean_colour_explodes_behind_layer_norm_and_is_refused(name):
    config = tiny(encoder=name, image_size=64, mask_fill="mean")
    torch.manual_seed(0)
    with pytest.raises(ConfigError, match="choose another mask_fill"):
        rehearse(build_method(config), config, CPU)


@pytest.mark.parametrize("fill", ["grey", "noise"])
@pytest.mark.parametrize("name", ["convnext_atto", "mambaout_femto", "focalnet_tiny_srf", "test_resnet", "test_vit"])
def test_masks_leave_the_first_gradient_as_large_as_without_them(name, fill):
    config = tiny(encoder=name, image_size=64, mask_fill=fill, mask_share=1.0, region_scale=(0.4, 0.4))
    torch.manual_seed(0)
    method = build_method(config).train()
    images = torch.randn(2, 3, 64, 64)
    boxes = torch.tensor([[[0.0, 0, 26, 26], [30, 30, 60, 60]]] * 2)

    def norm(masked: bool) -> float:
        method.zero_grad()
        # (boxes that hide nothing, for the query's masks alone)
        share = method.mask_share
        method.mask_share = share if masked else 1e-9
        queries = method.encode_queries(Views(images, images, boxes, boxes))
        method.mask_share = share
        (queries * torch.linspace(-1, 1, queries.numel()).view_as(queries)).sum().backward()
        return torch.stack([p.grad.norm() for p in method.encoder.parameters() if p.grad is not None]).norm().item()

    assert 0.2 < norm(True) / norm(False) < 5


def test_an_encoder_that_fails_at_this_size_is_refused_before_anything_is_written(tmp_path):
    pictures = make_pictures(tmp_path / "pictures")
    with pytest.raises(ConfigError, match=r"encoder inception_v3 cannot be trained at image_size 32: .*image_size"):
        pretrain(pictures, tmp_path / "run", **{**TINY, "encoder": "inception_v3"})
    assert not (tmp_path / "run").exists()


def test_maps_whose_size_denies_the_stride_are_refused_for_regions_only():
    shifted = Stem(padding=1)
    with pytest.raises(ConfigError, match=r"map of 32 x 32 pixels is 3 x 3, not 4 x 4 as its stride 8 says"):
        rehearse(method_of(shifted), tiny(), CPU)
    rehearse(method_of(shifted, MoCoV2), tiny(), CPU)  # which averages the whole map


@pytest.mark.parametrize(("side", "size", "fits"), [(224, 7, True), (225, 7, True), (225, 8, True), (224, 5, False),
                                                    (224, 8, False), (20, 1, True)])  # fmt: skip
def test_a_map_is_as_large_as_its_stride_says(side, size, fits):
    features, images = torch.zeros(1, 4, size, size), torch.zeros(1, 3, side, side)
    if fits:
        assert map_scale(features, images, 32) == 1 / 32
    else:
        with pytest.raises(ValueError, match="stride 32"):
            map_scale(features, images, 32)
