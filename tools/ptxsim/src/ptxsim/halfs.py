"""bfloat16 and tf32 helpers; bf16 arrays are passed to kernels as uint16."""

import numpy as np


def f32_to_bf16(x):
    """Round to nearest even; returns uint16."""
    x = np.ascontiguousarray(x, np.float32)
    u = x.view(np.uint32)
    r = ((u.astype(np.uint64) + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FFF), r)


def bf16_to_f32(x):
    """uint16 -> float32, exact."""
    return (np.ascontiguousarray(x).view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def f32_to_tf32(x):
    """Round to nearest, ties away (as cvt.rna.tf32.f32); returns float32."""
    u = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((u + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
