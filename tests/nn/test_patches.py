"""Where encoders embed patches, and tokens in place of hidden ones."""

from __future__ import annotations

import pytest
import torch

from maskco.nn import create_encoder
from maskco.nn.patches import PatchEmbedding, patch_embedding, token_in_place

FORMS = {  # encoder: (side of the images, side of a patch)
    "test_vit": (64, 16),  # [B, N, C]
    "swin_tiny_patch4_window7_224": (64, 4),  # [B, h, w, C]
    "nest_tiny": (224, 4),  # [B, C, h, w]
    "mvitv2_tiny": (224, 4),  # a tuple
    "hiera_tiny_224": (64, 4),  # patches overlap
}


def embedded(found: PatchEmbedding, encoder: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """What the rest of the encoder gets: tokens [B, N, C]."""
    seen = []
    hook = found.module.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        encoder(images)
    finally:
        hook.remove()
    tokens = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    channels = found.projection.out_channels
    if tokens.ndim == 4:
        tokens = tokens.flatten(1, 2) if tokens.shape[3] == channels else tokens.flatten(2).mT
    return tokens


@pytest.mark.parametrize(("name", "side", "patch"), [(name, *sizes) for name, sizes in FORMS.items()])
def test_hidden_patches_and_no_others_are_embedded_as_the_token(name, side, patch):
    torch.manual_seed(0)
    encoder = create_encoder(name, stage=0, image_size=side).eval()
    found = patch_embedding(encoder)
    assert found is not None and found.side == patch
    images, hidden = torch.randn(2, 3, side, side), torch.rand(2, side // patch, side // patch) < 0.3
    token = torch.randn(found.projection.out_channels, requires_grad=True)
    with torch.no_grad():
        before = embedded(found, encoder, images)
    with token_in_place(found, hidden, token):
        tokens = embedded(found, encoder, images)
    where = hidden.flatten(1)
    assert where.any() and not where.all()
    assert torch.equal(tokens[where], token.expand_as(tokens[where])) and torch.equal(tokens[~where], before[~where])
    tokens.sum().backward()
    assert torch.equal(token.grad, torch.full_like(token, float(where.sum())))
    with torch.no_grad():
        assert torch.equal(embedded(found, encoder, images), before)  # nothing stays behind


def test_what_stands_below_hidden_patches_does_not_matter():
    """All the way through a vision transformer, whose patches do not overlap."""
    torch.manual_seed(0)
    encoder = create_encoder("test_vit", image_size=64).eval()
    hidden = torch.zeros(1, 4, 4, dtype=torch.bool)
    hidden[0, 1, 2] = True
    images = torch.randn(1, 3, 64, 64)
    others = images.clone()
    others[..., 16:32, 32:48] = torch.randn(3, 16, 16)
    with torch.no_grad(), token_in_place(patch_embedding(encoder), hidden, torch.zeros(64)):
        assert torch.equal(encoder(images), encoder(others))
    with torch.no_grad():
        assert not torch.equal(encoder(images), encoder(others))


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "mambaout_femto", "focalnet_tiny_srf", "test_coatnet"])
def test_other_encoders_embed_no_patches(name):
    assert patch_embedding(create_encoder(name, stage=0)) is None


def test_another_number_of_patches_is_told():
    encoder = create_encoder("test_vit", image_size=64)
    with (
        pytest.raises(
            ValueError, match=r"patches are embedded as \[2, 4, 4, 64\], none of .* Choose another mask_fill"
        ),
        token_in_place(patch_embedding(encoder), torch.zeros(2, 3, 3, dtype=torch.bool), torch.zeros(64)),
    ):
        encoder(torch.randn(2, 3, 64, 64))
    encoder(torch.randn(2, 3, 64, 64))
