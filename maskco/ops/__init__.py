"""Fused ops for contrastive learning, for CPU and CUDA tensors; usable without the rest of the package."""

from maskco.ops.contrastive import InfoNCEStats, info_nce
from maskco.ops.queue import queue_push_
from maskco.ops.region_pool import box_pool, masked_pool

__all__ = ["InfoNCEStats", "box_pool", "info_nce", "masked_pool", "queue_push_"]
