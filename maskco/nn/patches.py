"""Patches of vision transformers: where an encoder embeds them, and a learned token for hidden patches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class PatchEmbedding(NamedTuple):
    """The patch embedding of an encoder, timm's `patch_embed`."""

    module: nn.Module  # images [B, 3, H, W] -> tokens [B, N, C], [B, h, w, C] or [B, C, h, w]
    projection: nn.Conv2d
    side: int  # of a patch, in pixels


def patch_embedding(encoder: nn.Module) -> PatchEmbedding | None:
    """The patch embedding of an encoder with square patches, such as ViT, Swin or Hiera. None if there is none."""
    for name, module in encoder.named_modules():
        if name.rpartition(".")[2] == "patch_embed":
            projection = getattr(module, "proj", None)
            if isinstance(projection, nn.Conv2d) and projection.stride[0] == projection.stride[1] > 1:
                return PatchEmbedding(module, projection, projection.stride[0])
    return None


@contextmanager
def token_in_place(embedding: PatchEmbedding, hidden: Tensor, token: Tensor) -> Iterator[None]:
    """A context in which hidden patches are embedded as `token`. Positions are added later, as usual.

    Args:
        hidden: bool [B, h, w].
        token: [C].

    Raises:
        ValueError: in the encoder's forward pass, if it embeds another number of patches, or in another form.
    """

    def replace(module: nn.Module, inputs: Any, output: Any) -> Any:
        tokens, *others = output if isinstance(output, tuple) else (output,)  # MViT returns their number too
        where, own = by_token(hidden, token, tokens)
        tokens = torch.where(where, own, tokens)
        return (tokens, *others) if isinstance(output, tuple) else tokens

    hook = embedding.module.register_forward_hook(replace)
    try:
        yield
    finally:
        hook.remove()


def by_token(hidden: Tensor, token: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The mask of hidden patches [B, h, w] and the token [C], reshaped to broadcast to the tokens.

    Raises:
        ValueError: the tokens have none of the forms that `PatchEmbedding` names.
    """
    (batch, height, width), channels, token = hidden.shape, len(token), token.to(tokens.dtype)
    forms = {
        (batch, height * width, channels): (hidden.flatten(1)[..., None], token),
        (batch, channels, height, width): (hidden[:, None], token[:, None, None]),
        (batch, height, width, channels): (hidden[..., None], token),
    }
    if tuple(tokens.shape) not in forms:
        raise ValueError(
            f"patches are embedded as {list(tokens.shape)}, none of {[*map(list, forms)]}, so no token can replace "
            "them. Choose another mask_fill"
        )
    return forms[tuple(tokens.shape)]
