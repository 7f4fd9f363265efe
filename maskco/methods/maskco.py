"""MaskCo: contrastive mask prediction (Zhao et al., ICCV 2021, arXiv 2108.07954).

A region of the query view is masked, its feature is predicted from what surrounds it, and the prediction has to find
the feature of the same region in the whole key view among the keys of other regions. What is not known of the paper is
ours and named so; the rest follows MoCo v2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskco import ops
from maskco.data.view_config import MaskFill
from maskco.data.views import Views, draw_fill, mask_boxes
from maskco.methods.step import StepOutput
from maskco.nn import (
    FeatureQueue,
    ProjectionHead,
    create_mask_head,
    forward_in_groups,
    momentum_copy,
    momentum_update_,
    shuffled_across_ranks,
)
from maskco.nn.encoder import as_encoder


class MaskCo(nn.Module):
    """Masked query view -> encoder -> mask head -> box_pool -> projection, against the momentum side's whole key view.

    Args:
        encoder: timm name, or a module with `.channels` and `.stride`; `nn.create_encoder` has more options.
        dim: length of queries and keys.
        hidden: hidden width of the projection; None: the encoder's channels.
        mask_share: share of a region's area that is hidden, in its middle (ours: 0.3, which with four regions of 0.25
            to 0.4 of the view's side did best of the tries in benchmarks/results/claims_tries.json).
        mask_fill: "grey", "noise" or "mean", see `data.views.draw_fill` (ours: grey).
        mask_head: "conv", "attention" or "none"; type and depth are ours. (On the demo's scenes conv led attention
            by about two points and none by three, on scenes of CIFAR-10's pictures both by 1.5 or less:
            benchmarks/results/claims.json. The paper calls the head the key to the success.)
        key_head: the key passes a momentum copy of the mask head too (ours: no, since nothing is masked there; "keys
            through the head" in the same file was no better).
        queue_size, temperature, momentum: MoCo v2's defaults.
        local_negatives: the other regions of the same picture are negatives too (ours: yes, "no negatives of the same
            picture" was no better; one region has none).
        key_group: pictures that share batch statistics in the key branch, see `nn.forward_in_groups`; 0: all.
        shuffle_keys: with several ranks, deal the key pictures out anew between them, see `nn.shuffled_across_ranks`.
    """

    def __init__(
        self,
        encoder: str | nn.Module = "resnet50",
        *,
        dim: int = 128,
        hidden: int | None = None,
        mask_share: float = 0.3,
        mask_fill: MaskFill = "grey",
        mask_head: str = "conv",
        mask_head_depth: int = 3,
        key_head: bool = False,
        queue_size: int = 65536,
        temperature: float = 0.2,
        momentum: float = 0.999,
        local_negatives: bool = True,
        key_group: int = 32,
        shuffle_keys: bool = True,
    ) -> None:
        super().__init__()
        self.momentum = momentum
        self.temperature = temperature
        self.mask_share = mask_share
        self.mask_fill = mask_fill
        self.key_head = key_head
        self.local_negatives = local_negatives
        self.key_group = key_group
        self.shuffle_keys = shuffle_keys
        self.encoder = as_encoder(encoder)
        self.mask_head = create_mask_head(mask_head, self.encoder.channels, depth=mask_head_depth)
        self.projection = ProjectionHead(self.encoder.channels, hidden, dim)
        self.momentum_encoder = momentum_copy(self.encoder)
        self.momentum_mask_head = momentum_copy(self.mask_head) if key_head else nn.Identity()
        self.momentum_projection = momentum_copy(self.projection)
        self.queue = FeatureQueue(queue_size, dim)

    def forward(self, views: Views, *, whole_step: bool = True) -> StepOutput:
        """Loss of a batch of B pictures with R regions each. Only training moves the momentum side and the queue.

        Whoever makes a step of several batches passes `whole_step=False` and moves them by hand: `update_momentum_side`
        before the first batch, `queue.push` of all batches' keys after the last.
        """
        if self.training and whole_step:
            self.update_momentum_side()
        queries = self.encode_queries(views)  # [B * R, D]
        with torch.no_grad():
            keys = self.encode_keys(views)  # [B * R, D]
        loss, stats = ops.info_nce(
            queries,
            keys,
            self.queue.features,
            valid=self.queue.valid,
            local_negatives=self.other_regions(keys, views.key_boxes.shape[1]),
            temperature=self.temperature,
            return_stats=True,
        )
        if self.training and whole_step:
            self.queue.push(keys)  # info_nce made the gradient in its forward pass: this does not change it
        return StepOutput(loss, stats, queries.detach(), keys)

    def encode_queries(self, views: Views, *, masked: bool = True) -> Tensor:
        """The masked regions as predicted from their surroundings: [B * R, D] unit vectors. Not `masked`: as seen."""
        images = views.query  # [B, 3, S, S]
        if masked:
            fill = draw_fill(self.mask_fill, images)
            images = mask_boxes(images, views.query_boxes, share=self.mask_share, fill=fill)
        features = self.mask_head(self.encoder(images))  # [B, C, h, w]
        return embed_regions(features, views.query_boxes, self.encoder.stride, self.projection)

    def encode_keys(self, views: Views) -> Tensor:
        """The same regions as the momentum side sees them in the whole key view: [B * R, D] unit vectors."""

        def encode(images: Tensor, boxes: Tensor) -> Tensor:
            features = forward_in_groups(  # [B, C, h, w]
                lambda group: self.momentum_mask_head(self.momentum_encoder(group)),
                images,
                self.key_group if self.training else 0,
            )
            keys = embed_regions(features, boxes, self.encoder.stride, self.momentum_projection)
            return keys.unflatten(0, boxes.shape[:2])  # [B, R, D]: rows of pictures, which ranks can exchange

        if self.training and self.shuffle_keys:
            return shuffled_across_ranks(encode, views.key, views.key_boxes).flatten(0, 1)
        return encode(views.key, views.key_boxes).flatten(0, 1)

    def other_regions(self, keys: Tensor, regions: int) -> Tensor | None:
        """For each query the keys of the other regions of its picture: [B * R, R - 1, D]."""
        if not self.local_negatives or regions == 1:
            return None
        first, shift = torch.arange(regions, device=keys.device)[:, None], torch.arange(1, regions, device=keys.device)
        return keys.unflatten(0, (-1, regions))[:, (first + shift) % regions].flatten(0, 1)

    def update_momentum_side(self) -> None:
        momentum_update_(self.encoder, self.momentum_encoder, self.momentum)
        momentum_update_(self.projection, self.momentum_projection, self.momentum)
        if self.key_head:
            momentum_update_(self.mask_head, self.momentum_mask_head, self.momentum)


def embed_regions(features: Tensor, boxes: Tensor, stride: int, projection: nn.Module) -> Tensor:
    """Pooled, projected and normalised regions: features [B, C, h, w], boxes [B, R, 4] in pixels -> [B * R, D]."""
    count, regions = boxes.shape[:2]
    image = torch.arange(count, device=boxes.device, dtype=boxes.dtype).repeat_interleave(
        regions, output_size=count * regions
    )
    rows = torch.cat([image[:, None], boxes.flatten(0, 1)], dim=1)  # [B * R, 5]: picture by picture
    pooled = ops.box_pool(features, rows, spatial_scale=1 / stride)  # [B * R, C]
    return F.normalize(projection(pooled).float(), dim=1)
