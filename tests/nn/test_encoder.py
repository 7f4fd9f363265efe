"""Encoders from timm: shapes, strides, and errors that name the way out."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from maskco.nn import Encoder, create_encoder
from maskco.nn.encoder import as_encoder, same_padding
from maskco.ops import box_pool


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("test_resnet", {}),
        ("test_resnet", {"stage": -2}),
        ("test_resnet", {"output_stride": 16}),
        ("test_vit", {"image_size": 64}),
        ("test_efficientnet", {}),
    ],
)
def test_map_has_the_channels_and_stride_that_the_encoder_says(name, options):
    encoder = create_encoder(name, **options).eval()
    features = encoder(torch.randn(2, 3, 64, 64))
    assert features.shape == (2, encoder.channels, 64 // encoder.stride, 64 // encoder.stride)
    if "output_stride" in options:
        assert encoder.stride == options["output_stride"]


def test_backbones_that_give_channels_last_maps_are_turned():
    class Turned(nn.Module):
        def forward(self, images):
            return [images.permute(0, 2, 3, 1)]

    images = torch.randn(2, 3, 4, 5)
    assert torch.equal(Encoder(Turned(), channels=3, stride=1, channels_last=True)(images), images)


def test_swin_gives_a_channels_first_map():
    encoder = create_encoder("swin_tiny_patch4_window7_224", stage=0, image_size=56).eval()
    assert encoder(torch.randn(1, 3, 56, 56)).shape == (1, encoder.channels, 14, 14)


@pytest.mark.parametrize("name", ["test_resnet", "regnetx_002"])
def test_fresh_residual_branches_begin_as_in_moco_v2(name):
    """timm lets them begin at zero, as is seen in its own model."""
    own = timm.create_model(name)
    norms = [[m for m in model.modules() if isinstance(m, nn.BatchNorm2d)] for model in (own, create_encoder(name))]
    assert not all(norm.weight.all() for norm in norms[0])
    assert all((norm.weight == 1).all() for norm in norms[1])


@pytest.mark.parametrize("name", ["swinv2_cr_tiny_ns_224", "nf_resnet26", "levit_128s", "efficientvim_m1"])
def test_a_fresh_cell_sees_its_surroundings(name):
    """timm lets branches begin at or near zero, here by layer norms, gains, 1d batch norms and layer scales."""
    torch.manual_seed(0)
    encoder = create_encoder(name).eval()
    side = encoder.image_size or 224
    images = torch.randn(1, 3, side, side)
    changed = images.clone()
    changed[..., side // 2 :] += 5
    with torch.no_grad():
        apart = (encoder(images) - encoder(changed)).abs().amax((0, 1, 2)) / encoder(images).abs().max()
    assert apart[len(apart) // 2 - 1] > 1e-3, apart


@pytest.mark.parametrize("name", ["convnext_atto", "deit3_small_patch16_224", "cait_xxs24_224", "poolformer_s12"])
def test_fresh_layer_scales_begin_at_1(name):
    """timm lets them begin near zero, as is seen in its own model: constants, a number for each channel."""
    own = dict(timm.create_model(name).named_parameters())
    small = {flat(name) for name, p in own.items() if p.ndim < 4 and p.unique().numel() == 1 and 0 < p.max() < 1e-3}
    fresh = {flat(name.removeprefix("backbone.")): p for name, p in create_encoder(name).named_parameters()}
    assert small and all((fresh[name] == 1).all() for name in small & fresh.keys())
    rest = {flat(name) for name in own} - small
    assert all(fresh[name].detach().abs().max() != 1 for name in rest & fresh.keys() if "bias" in name)


def flat(name: str) -> str:
    return name.removeprefix("model.").replace(".", "_")


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"'resnet5O' is not a timm model. Did you mean .*resnet50") as caught:
        create_encoder("resnet5O")
    assert "\n" not in str(caught.value)


def test_a_prefix_is_taken_and_a_wrong_tag_is_a_one_line_error():
    assert create_encoder("timm/test_resnet").channels == create_encoder("test_resnet").channels
    with pytest.raises(
        ValueError, match=r"'resnet18.best': timm has no such weights. It has .*resnet18.a1_in1k"
    ) as caught:
        create_encoder("resnet18.best")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"stage": 9}, {"output_stride": 7}, {"stage": -9}])
def test_an_impossible_map_is_a_one_line_error(options):
    with pytest.raises(ValueError, match=r"gives no feature map with .*[^.]\. Choose another `stage`") as caught:
        create_encoder("resnet18", **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("test_vit", r"\(100\) should be divisible"), ("maxvit_tiny_tf_224", r"\(25\) must be divisible")],
)
def test_a_size_that_the_backbone_fails_on_is_a_one_line_error(name, reason):
    with pytest.raises(
        ValueError, match=rf"'{name}' takes no images of 100 pixels: .*{reason}.*[^.]\. Choose"
    ) as caught:
        create_encoder(name, image_size=100)
    assert "\n" not in str(caught.value)


def test_own_modules_must_say_channels_and_stride():
    with pytest.raises(ValueError, match=r"integer attribute \.channels"):
        as_encoder(nn.Conv2d(3, 4, 1))
    with pytest.raises(TypeError, match="timm name or a"):
        as_encoder(7)
    own = Encoder(nn.Conv2d(3, 4, 2, 2), channels=4, stride=2)
    assert as_encoder(own) is own


def test_a_backbone_without_a_map_is_named():
    encoder = Encoder(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), channels=5, stride=1)
    with pytest.raises(ValueError, match=r"feature map \[B, C, H, W\], got \(2, 5\)"):
        encoder(torch.randn(2, 3, 2, 2))


def unpadded() -> Encoder:
    layers = [nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 3), nn.MaxPool2d(3, 2), nn.Conv2d(8, 8, 3, 2), nn.Conv2d(8, 8, 5)]
    return Encoder(nn.Sequential(*layers), channels=8, stride=8)


def looks_at(encoder: Encoder, box: list[float], size: int = 224) -> tuple[float, float]:
    """Where in the image the feature pooled from a box comes from: the gradient's centre of mass, x and y."""
    images = torch.randn(1, 3, size, size, requires_grad=True)
    pooled = box_pool(encoder(images), torch.tensor([[0, *box]]), spatial_scale=1 / encoder.stride)
    (gradient,) = torch.autograd.grad(pooled.square().sum(), images)
    mass, place = gradient.abs().sum((0, 1)), torch.arange(size) + 0.5
    return (mass.sum(0) @ place / mass.sum()).item(), (mass.sum(1) @ place / mass.sum()).item()


@pytest.mark.parametrize("corner", [0.0, 40.0, 92.0, 150.0, 184.0])
def test_regions_of_unpadded_backbones_are_pooled_where_they_are(corner):
    torch.manual_seed(0)
    encoder = unpadded()
    before, after = encoder.padding = same_padding(encoder)
    assert encoder(torch.randn(1, 3, 224, 224)).shape[-2:] == (28, 28) and after - before in (0, 1)
    box = [corner, 184 - corner, corner + 40, 224 - corner]
    x, y = looks_at(encoder, box)
    cells = 1 if corner in (0, 184) else 0.5  # at the border part of the receptive field lies outside the image
    assert abs(x - corner - 20) < 8 * cells and abs(y - 204 + corner) < 8 * cells
    if corner == 184:  # as it was: off the map
        encoder.padding = (0, 0)
        features = encoder(torch.randn(1, 3, 224, 224))
        assert not box_pool(features, torch.tensor([[0, *box]]), spatial_scale=1 / encoder.stride).any()


def test_inception_covers_the_whole_image():
    encoder = create_encoder("inception_v3", image_size=224).eval()
    assert encoder.padding == (21, 22)
    for size in (64, 224, 299):
        side = encoder(torch.randn(1, 3, size, size)).shape[-1]
        assert size // 32 <= side <= -(-size // 32)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "resnet18"])
def test_padded_backbones_stay_as_they_are(name):
    assert create_encoder(name).padding == (0, 0)
