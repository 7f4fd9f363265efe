"""`ops.info_nce` as a module."""

from __future__ import annotations

from torch import Tensor, nn

from maskco import ops
from maskco.nn.queue import FeatureQueue
from maskco.ops._contrast import check_reduction, check_temperature
from maskco.ops.contrastive import check_margin


class InfoNCE(nn.Module):
    """The InfoNCE loss of queries and their positives against negatives. See `maskco.ops.info_nce`.

    Args:
        temperature: divides the dot products. 0.2 is MoCo v2's. A parameter is learned.
        reduction: "mean", "sum" or "none".
        decoupled: leave the positive out of the sum (DCL).
        margin: keys whose dot product exceeds the positive's by more than this are no negatives.

    Raises:
        TypeError, ValueError: an argument that `maskco.ops.info_nce` would refuse. The message names it.
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.2,
        reduction: str = "mean",
        *,
        decoupled: bool = False,
        margin: float | None = None,
    ) -> None:
        super().__init__()
        check_reduction(reduction)
        check_temperature(temperature)
        self.temperature = temperature
        self.reduction = reduction
        self.decoupled, self.margin = decoupled, None if margin is None else check_margin(margin)

    def forward(
        self,
        query: Tensor,
        positive: Tensor,
        queue: FeatureQueue | Tensor | None = None,
        *,
        local_negatives: Tensor | None = None,
        in_batch: bool = False,
        query_ids: Tensor | None = None,
        queue_ids: Tensor | None = None,
        valid: int | Tensor | None = None,
        return_stats: bool = False,
    ) -> Tensor | tuple[Tensor, ops.InfoNCEStats]:
        """The loss, [] or [N], or (loss, InfoNCEStats). Arguments and errors are those of `maskco.ops.info_nce`.

        A `FeatureQueue` has its own ids and its own number of valid rows. The ids are used if you give `query_ids`.

        Args:
            query, positive: [N, C].
            queue: [K, C], or a FeatureQueue.
            local_negatives: [N, M, C].
            in_batch: the other queries' positives are negatives too.
            query_ids, queue_ids: [N] and [K] integers.
            valid: how many rows of the queue count. An int, or a tensor with one element.
            return_stats: also return the `InfoNCEStats`.

        Raises:
            ValueError: `queue_ids` or `valid` is given, and the FeatureQueue has its own.
        """
        if isinstance(queue, FeatureQueue):
            if valid is not None or (queue_ids is not None and queue.ids is not None):
                name = "queue_ids" if valid is None else "valid"
                raise ValueError(
                    f"{name} was given, but the FeatureQueue has its own. Pass queue.features as the queue"
                )
            if queue_ids is None and query_ids is not None:
                queue_ids = queue.ids
            valid, queue = queue.valid, queue.features
        return ops.info_nce(
            query,
            positive,
            queue,
            local_negatives=local_negatives,
            in_batch=in_batch,
            query_ids=query_ids,
            queue_ids=queue_ids,
            valid=valid,
            temperature=self.temperature,
            decoupled=self.decoupled,
            margin=self.margin,
            reduction=self.reduction,
            return_stats=return_stats,
        )

    def extra_repr(self) -> str:
        shown = f"temperature={self.temperature}, reduction={self.reduction!r}"
        return f"{shown}, decoupled={self.decoupled}, margin={self.margin}"
