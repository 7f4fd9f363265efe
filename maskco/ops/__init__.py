"""Fused ops for contrastive learning, for CPU and CUDA tensors; usable without the rest of the package."""
