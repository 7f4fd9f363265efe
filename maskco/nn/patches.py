"""The patches that vision transformers embed: where an encoder does so, and a learned token in place of hidden ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class PatchEmbedding(NamedTuple):
    """timm's `patch_embed` in an encoder."""

    module: nn.Module  # images [B, 3, H, W] -> tokens [B, N, C], [B, h, w, C] or [B, C, h, w]
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

    def replace(module: nn.Module, inputs: Any, output: Any) -> Any:
        tokens, *others = output if isinstance(output, tuple) else (output,)  # MViT returns their number beside them
        where = by_token(hidden, tokens, len(token))
        own = token.view(-1, *[1] * (where.ndim - 2)) if where.shape[1] == 1 else token  # channels first, or last
        tokens = torch.where(where, own.to(tokens.dtype), tokens)
        return (tokens, *others) if isinstance(output, tuple) else tokens

    hook = embedding.module.register_forward_hook(replace)
    try:
        yield
    finally:
        hook.remove()


def by_token(hidden: Tensor, tokens: Tensor, channels: int) -> Tensor:
    """Which patches are hidden [B, h, w], in a form that broadcasts to the tokens. Raises ValueError if none does."""
    batch, height, width = hidden.shape
    forms = {
        (batch, height * width, channels): hidden.flatten(1)[..., None],
        (batch, channels, height, width): hidden[:, None],
        (batch, height, width, channels): hidden[..., None],
    }
    if tuple(tokens.shape) not in forms:
        raise ValueError(
            f"patches are embedded as {list(tokens.shape)}, none of {[*map(list, forms)]}, so no token can replace "
            "them: choose another mask_fill"
        )
    return forms[tuple(tokens.shape)]
