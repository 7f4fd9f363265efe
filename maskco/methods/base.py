"""The contract of a method. The loop, its monitors, reports and exports know a method by this alone.

A step of the loop, with one batch or several (`accumulate`):

    method.start_step(step / steps)                       # the momentum side follows
    outputs = [method(views) for views in micro_batches]  # each followed by its loss.backward()
    method.end_step(outputs)                              # keys are pushed
    optimizer.step()

A method is one file: an options class, a subclass of `Method`, and an entry in `maskco.config.METHODS`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from maskco.config import MethodOptions
from maskco.data.views import Views
from maskco.nn import FeatureQueue, ProjectionHead, momentum_update_
from maskco.nn.encoder import as_encoder
from maskco.nn.projection import Projection
from maskco.ops import InfoNCEStats
from maskco.option_values import Between, Count, Natural, Share
from maskco.view_options import ViewConfig


class StepOutput(NamedTuple):
    """The results of a batch.

    The loss is [] with gradient. Metrics are [] each, without gradient, by name: the loop averages them over
    micro-batches, ranks and steps. "loss", "lr", "step", "epoch", "seconds" and "images_per_s" are the loop's own.
    Monitors know "accuracy" and "top5" (contrast accuracy, percent) and "embedding_std". Pushes are keys [any, dim]
    without gradient, by the name of their queue. Embeddings [any, dim] without gradient are those of a method without
    queues: monitors look at their deviation.
    """

    loss: Tensor
    metrics: dict[str, Tensor]
    pushes: dict[str, Tensor]
    embeddings: Tensor | None = None


class Method(nn.Module):
    """Base of all methods. Parameters that require gradients are learned.

    Args:
        encoder: timm name, or a module with `.channels` and `.stride`. `nn.create_encoder` has more options.
        options: fields of the method's `Options`, where they are explained. Raises ConfigError for impossible values.
    """

    Options: ClassVar[type[MethodOptions]] = MethodOptions
    options: Any  # an instance of Options; subclasses annotate theirs

    def __init__(self, encoder: str | nn.Module = "resnet50", **options: Any) -> None:
        super().__init__()
        self.options = self.Options(**options)
        self.options.check()
        self.encoder = as_encoder(encoder)

    @property
    def queues(self) -> dict[str, FeatureQueue]:
        """The method's queues by name: its children of that type."""
        return {name: child for name, child in self.named_children() if isinstance(child, FeatureQueue)}

    def key_modules(self) -> list[tuple[nn.Module, nn.Module]]:
        """Pairs of a module and its momentum copy. A method that has some needs an option `key_momentum`, as
        `MomentumOptions` has, or a `start_step` of its own."""
        return []

    def other_negatives(self, regions: int) -> int:
        """How many negatives a query has next to those of its queue, with so many regions in a view."""
        return 0

    def start_step(self, progress: float = 0.0) -> None:
        """Before the first batch of a step: the momentum side follows.

        progress: the share of the run's steps that are done, from 0 at the first step to less than 1 at the last.
        """
        for online, copy in self.key_modules():
            momentum_update_(online, copy, key_momentum_at(self.options, progress))

    def forward(self, views: Views) -> StepOutput:
        """The loss of B images. Changes nothing but batch norms' statistics."""
        raise NotImplementedError

    def end_step(self, outputs: Sequence[StepOutput]) -> None:
        """After the last backward pass of a step: pushes the keys of all its batches. All ranks must call it."""
        for name, queue in self.queues.items():
            queue.push(torch.cat([output.pushes[name] for output in outputs]))

    def plain_loss(self, views: Views) -> Tensor | None:
        """The loss without masks or whatever else may make a fresh encoder's gradients explode. None if nothing may.

        The rehearsal before a run compares gradients with and without it.
        """
        return None

    def warnings(self, views: Views) -> dict[str, str]:
        """Faults of views that were learned from, by a short name. Each is reported once."""
        return {}


def encoders(method: Method) -> list[nn.Module]:
    """A method's encoder, and its momentum copy if it has one."""
    return [method.encoder, *(copy for online, copy in method.key_modules() if online is method.encoder)]


@dataclass
class ProjectionOptions(MethodOptions):
    """Options of methods that contrast projections."""

    dim: Count = 128
    """Length of embeddings (queries and keys)."""
    hidden: Count | None = None
    """Hidden width of the projection. Default: the encoder's channels, as MoCo v2 with a ResNet-50 (ours)."""
    projection: Projection | None = None
    """moco_v2: linear, ReLU, linear. moco_v3: three linear layers, each with a batch norm. Default: the recipe's."""

    def create_projection(self, channels: int) -> ProjectionHead:
        return ProjectionHead(channels, self.hidden, self.dim, kind=self.projection or "moco_v2")


@dataclass
class MomentumOptions(ProjectionOptions):
    """Options of methods with a queue and a momentum encoder."""

    queue_size: Count = 65536
    """Number of keys from earlier steps that serve as negatives."""
    temperature: Annotated[float, Between(1e-4, 1e4)] = 0.2
    """Logits are cosine similarities divided by this."""
    key_momentum: Share = 0.999
    """Share of the momentum (key) encoder that each step keeps."""
    key_momentum_end: Share | None = None
    """Raise --key-momentum to this by half a cosine over the run, as BYOL and MoCo v3 do. Default: it stays."""
    key_group: Natural = 32
    """Number of images that share batch statistics on the key side, shuffled (ours). 0: the whole batch."""
    shuffle_keys: bool = True
    """Draw these images from all ranks, as MoCo's shuffled batch norm does."""

    def check(self) -> None:
        super().check()
        self.require("key_group", self.key_group != 1, "0, or at least 2")
        rises = self.key_momentum_end is None or self.key_momentum_end >= self.key_momentum
        self.require("key_momentum_end", rises, f"at least key_momentum, {self.key_momentum}")

    def memory(self, images: int, views: ViewConfig) -> Iterator[tuple[str, float, str]]:
        rows = max(self.queue_size, self.hidden or 0)
        named = f"queue_size {self.queue_size}, hidden {self.hidden} and dim {self.dim}"
        yield named, 4.0 * rows * self.dim, "lower them"


def key_momentum_at(options: Any, progress: float) -> float:
    """The key encoder's momentum after a share of the run: `key_momentum`, or on the way to `key_momentum_end`.

    With an end of 1 it is BYOL's 1 − (1 − m)(cos(πk/K) + 1)/2 (Grill et al., arXiv 2006.07733, section 3.2).
    """
    start, end = options.key_momentum, getattr(options, "key_momentum_end", None)
    return start if end is None else end - (end - start) * (math.cos(math.pi * progress) + 1) / 2


def contrast_metrics(stats: InfoNCEStats, queries: Tensor) -> dict[str, Tensor]:
    """Contrast accuracy of some queries [Q, D], in percent, and their deviation."""
    return {
        "accuracy": 100 * (stats.rank < 1).float().mean(),
        "top5": 100 * (stats.rank < 5).float().mean(),
        "embedding_std": embedding_std(queries.detach()),
    }


def embedding_std(embeddings: Tensor) -> Tensor:
    """Standard deviation of unit vectors [N, D] over N, averaged over D: 0-d float32.

    Near 1/√D where they point everywhere, 0 where they are all the same (Chen & He, arXiv 2011.10566, section 4.1).
    """
    return embeddings.float().std(0, correction=0).mean()
