"""`ops.info_nce` as a module, for code that builds its losses as modules."""

from __future__ import annotations

from torch import Tensor, nn

from maskco import ops
from maskco.nn.queue import FeatureQueue


class InfoNCE(nn.Module):
    """Contrast each query with its positive against a queue; see `maskco.ops.contrastive`.

    Args:
        temperature: the logits are dot products over this; 0.2 is MoCo v2's. A parameter is learned.
        reduction: "mean", "sum" or "none".
    """

    def __init__(self, temperature: float | Tensor = 0.2, reduction: str = "mean") -> None:
        super().__init__()
        self.temperature = temperature
        self.reduction = reduction

    def forward(
        self,
        query: Tensor,
        positive: Tensor,
        queue: FeatureQueue | Tensor | None = None,
        *,
        query_ids: Tensor | None = None,
        local_negatives: Tensor | None = None,
        in_batch: bool = False,
        return_stats: bool = False,
    ) -> Tensor | tuple[Tensor, ops.InfoNCEStats]:
        """query, positive [N, C]; queue [K, C] or a FeatureQueue, of which only the rows that hold keys count."""
        ids = valid = None
        if isinstance(queue, FeatureQueue):
            ids, valid, queue = queue.ids if query_ids is not None else None, queue.valid, queue.features
        return ops.info_nce(
            query,
            positive,
            queue,
            local_negatives=local_negatives,
            in_batch=in_batch,
            query_ids=query_ids,
            queue_ids=ids,
            valid=valid,
            temperature=self.temperature,
            reduction=self.reduction,
            return_stats=return_stats,
        )

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, reduction={self.reduction!r}"
