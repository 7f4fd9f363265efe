"""Fused ops for contrastive learning, for CPU and CUDA tensors; usable without the rest of the package."""

from maskco.ops.info_nce import InfoNCEStats, info_nce

__all__ = ["InfoNCEStats", "info_nce"]
