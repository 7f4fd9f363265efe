"""DenseCL (Wang et al., CVPR 2021, arXiv 2011.09157): MoCo v2, and a contrast of every place in the map.

Each place of the query's feature map has as its positive the place of the key's map whose backbone features are most
similar. Negatives of the dense contrast are averages over other images' dense keys, from a queue of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskco import ops
from maskco.data.views import Views
from maskco.methods.base import Method, MomentumOptions, StepOutput, contrast_metrics
from maskco.methods.moco_v2 import embed_views
from maskco.nn import FeatureQueue, forward_in_groups, momentum_copy, shuffled_across_ranks
from maskco.option_values import Share


@dataclass
class DenseCLOptions(MomentumOptions):
    """Options of --method densecl: the paper's, which are MoCo v2's except lr and independent crops."""

    defaults: ClassVar[Mapping[str, Any]] = {"lr": 0.3, "regions": 0, "min_overlap": 0.0}

    dense_share: Share = 0.5
    """Share of the dense contrast in the loss (the paper's λ)."""


class DenseCL(Method):
    """Query view -> encoder -> global and dense head, against the momentum side's key view.

    The dense head is two 1×1 convolutions with a ReLU between.
    """

    Options = DenseCLOptions
    options: DenseCLOptions

    def __init__(self, encoder: str | nn.Module = "resnet50", **options: Any) -> None:
        super().__init__(encoder, **options)
        channels, own = self.encoder.channels, self.options
        hidden = channels if own.hidden is None else own.hidden
        self.projection = own.create_projection(channels)
        self.dense_projection = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, own.dim, 1)
        )
        self.momentum_encoder = momentum_copy(self.encoder)
        self.momentum_projection = momentum_copy(self.projection)
        self.momentum_dense_projection = momentum_copy(self.dense_projection)
        self.queue = FeatureQueue(own.queue_size, own.dim)
        self.dense_queue = FeatureQueue(own.queue_size, own.dim)

    def key_modules(self) -> list[tuple[nn.Module, nn.Module]]:
        return [
            (self.encoder, self.momentum_encoder),
            (self.projection, self.momentum_projection),
            (self.dense_projection, self.momentum_dense_projection),
        ]

    def forward(self, views: Views) -> StepOutput:
        features = self.encoder(views.query)  # [B, C, h, w]
        queries = embed_views(features, self.projection)  # [B, D]
        dense = self.dense_projection(features).flatten(2).float()  # [B, D, h*w]
        with torch.no_grad():
            keys, dense_keys, key_features = self.encode_keys(views)  # [B, D], [B, D, h*w], [B, C, h*w]
            places = most_similar(features.detach().flatten(2).float(), key_features)  # [B, h*w]
            positives = F.normalize(dense_keys, dim=1).mT.gather(1, places[..., None].expand(-1, -1, dense.shape[1]))
        loss, stats = self.contrast(queries, keys, self.queue)
        dense_queries = F.normalize(dense, dim=1).mT.flatten(0, 1)  # [B * h*w, D]
        dense_loss, dense_stats = self.contrast(dense_queries, positives.flatten(0, 1), self.dense_queue)
        metrics = contrast_metrics(stats, queries)
        metrics |= {f"dense_{name}": value for name, value in contrast_metrics(dense_stats, dense_queries).items()}
        share = self.options.dense_share
        pushes = {"queue": keys, "dense_queue": F.normalize(dense_keys.mean(2), dim=1)}
        return StepOutput((1 - share) * loss + share * dense_loss, metrics, pushes)

    def contrast(self, queries: Tensor, keys: Tensor, queue: FeatureQueue) -> tuple[Tensor, ops.InfoNCEStats]:
        loss, stats = ops.info_nce(
            queries,
            keys,
            queue.features,
            valid=queue.valid,
            temperature=self.options.temperature,
            return_stats=True,
        )
        return loss, stats

    def encode_keys(self, views: Views) -> tuple[Tensor, Tensor, Tensor]:
        """The key views on the momentum side: keys [B, D], normalised, dense keys [B, D, h*w], both float32, and the
        backbone's features [B, C, h*w]."""

        def encode(images: Tensor) -> Tensor:
            features = forward_in_groups(self.momentum_encoder, images, self.options.key_group if self.training else 0)
            keys = embed_views(features, self.momentum_projection)
            dense = self.momentum_dense_projection(features)
            maps = torch.cat([dense.float(), features.float()], dim=1).flatten(1)
            return torch.cat([keys, maps], dim=1)  # a row for each image, which ranks can exchange

        shuffled = self.training and self.options.shuffle_keys
        rows = shuffled_across_ranks(encode, views.key) if shuffled else encode(views.key)
        keys, maps = rows.tensor_split([self.options.dim], dim=1)
        dense, features = maps.unflatten(1, (self.options.dim + self.encoder.channels, -1)).tensor_split(
            [self.options.dim], dim=1
        )
        return keys, dense, features


def most_similar(queries: Tensor, keys: Tensor) -> Tensor:
    """For each place of a query map the place of the key map with the highest cosine similarity.

    Args:
        queries, keys: features [B, C, S] and [B, C, T].

    Returns:
        indices [B, S] into T.
    """
    return (F.normalize(queries, dim=1).mT @ F.normalize(keys, dim=1)).argmax(2)
