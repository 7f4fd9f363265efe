"""Fused ops for contrastive learning, for CPU and CUDA tensors; usable without the rest of the package."""

from maskco.ops.info_nce import InfoNCEStats, info_nce
from maskco.ops.queue import queue_push_

__all__ = ["InfoNCEStats", "info_nce", "queue_push_"]
