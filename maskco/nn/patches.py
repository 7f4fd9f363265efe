"""The patches that vision transformers embed: where an encoder does so, and a learned token in place of hidden ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class PatchEmbedding(NamedTuple):
    """timm's `patch_embed` in an encoder."""

    module: nn.Module  # images [B, 3, H, W] -> tokens [B, N, C] or [B, h, w, C]
    projection: nn.Conv2d
    side: int  # of a patch, in pixels


def patch_embedding(encoder: nn.Module) -> PatchEmbedding | None:
    """Where an encoder embeds square patches, as ViT, Swin, Hiera and their kin do; None: nowhere."""
    for name, module in encoder.named_modules():
        if name.rpartition(".")[2] == "patch_embed":
            projection = getattr(module, "proj", None)
            if isinstance(projection, nn.Conv2d) and projection.stride[0] == projection.stride[1] > 1:
                return PatchEmbedding(module, projection, projection.stride[0])
    return None


@contextmanager
def token_in_place(embedding: PatchEmbedding, hidden: Tensor, token: Tensor) -> Iterator[None]:
    """While it lasts, hidden patches are embedded as `token`. Positions are added later and stay.

    Args:
        hidden: bool [B, h, w].
        token: [C].

    Raises ValueError, in the encoder's forward pass, if it embeds another number of patches, or in another form.
    """

    def replace(module: nn.Module, inputs: Any, tokens: Any) -> Tensor:
        batch, height, width = hidden.shape
        shapes = ((batch, height * width, len(token)), (batch, height, width, len(token)))
        if not isinstance(tokens, Tensor) or tuple(tokens.shape) not in shapes:
            found = list(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
            raise ValueError(f"patches are embedded as {found}, not {list(shapes[0])} or {list(shapes[1])}")
        where = hidden.flatten(1) if tokens.ndim == 3 else hidden
        return torch.where(where[..., None], token.to(tokens.dtype), tokens)

    hook = embedding.module.register_forward_hook(replace)
    try:
        yield
    finally:
        hook.remove()
