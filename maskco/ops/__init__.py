"""Fused ops for contrastive learning on CPU and CUDA tensors. They work without the rest of the package."""

from maskco.ops.clip import ClipStats, clip_loss
from maskco.ops.contrastive import InfoNCEStats, info_nce
from maskco.ops.queue import queue_push_
from maskco.ops.region_pool import box_pool, masked_pool
from maskco.ops.siglip import siglip_loss
from maskco.ops.supcon import SupConStats, supcon_loss

__all__ = [
    "ClipStats",
    "InfoNCEStats",
    "SupConStats",
    "box_pool",
    "clip_loss",
    "info_nce",
    "masked_pool",
    "queue_push_",
    "siglip_loss",
    "supcon_loss",
]
