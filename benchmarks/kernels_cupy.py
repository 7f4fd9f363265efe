"""Launches the region pooling kernel straight from its .cuh file (CuPy compiles it by NVRTC) and sweeps tile sizes.

Reports the bandwidth reached, in bytes that have to move, beside that of a copy on the same device. For choosing tile
sizes; the ops themselves are timed by `python -m benchmarks.region_pool --device cuda`.

python -m benchmarks.kernels_cupy      needs a GPU and cupy (pip install 'maskco[cupy]')
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from maskco.console import one_line_errors
from maskco.errors import ConfigError

KERNELS = Path(__file__).resolve().parent.parent / "csrc/cuda/kernels"
STANDARD_HEADERS = ("climits", "cstddef", "cstdint", "type_traits", "utility")  # NVRTC has them as cuda/std/… only
THREADS, TILE_J, REGIONS, SUMS_STRIDE = 256, 64, 16, 80  # of tile.cuh, region_weights.cuh, pool.cuh

Axis = np.dtype([("size", "i8"), ("inner", "i8"), ("outer_stride", "i8"), ("stride", "i8")])
Map = np.dtype([("images", "i8"), ("image_stride", "i8"), ("k", Axis), ("j", Axis)])
Tiling = np.dtype(
    [
        *(("along_k", "?"), ("flat", "?"), ("pad", "V2")),
        *((name, "i4") for name in ("copy", "tile_k", "tile_j", "stride_k", "stride_j", "access", "lane_j", "next_j")),
        *(("pieces", "u4"), ("inverse", "u4")),
    ]
)
Plan = np.dtype(
    [
        *(("tiling", Tiling), ("tiles_j", "i4"), ("tiles_k", "i4"), ("j_per_block", "i4"), ("weights_stay", "?")),
        *(("pad", "V3"), ("weights_stride", "i4"), ("weights_at", "i4"), ("sums_at", "i4"), ("scratch_at", "i4")),
    ]
)
MaskWeights = np.dtype(
    [
        *(("masks", "u8"), ("soft", "?"), ("pad", "V7"), ("image_stride", "i8"), ("region_stride", "i8")),
        *(("pixels", Axis), ("per_image", "i8"), ("area", "u8")),
    ]
)
POOL = "maskco::pool_kernel<float, float, maskco::MaskWeights<float, float>>"


@contextlib.contextmanager
def standard_headers() -> Iterator[str]:
    """A folder of the standard headers that the kernels include, for NVRTC."""
    with tempfile.TemporaryDirectory() as folder:
        for name in STANDARD_HEADERS:
            lines = ["#pragma once", "namespace cuda { namespace std {} }", f"#include <cuda/std/{name}>"]
            lines += ["namespace std { using namespace cuda::std; }", "using namespace cuda::std;", ""]
            (Path(folder) / name).write_text("\n".join(lines))
        yield folder


def nvrtc_options(headers: str) -> tuple[str, ...]:
    infinity = "-DINFINITY=__int_as_float(0x7f800000)"  # of math.h, which NVRTC doesn't have
    return ("--std=c++17", "-default-device", f"-I{KERNELS}", f"-I{headers}", infinity)


def arguments(shape: tuple[int, int, int, int], regions: int, tile_k: int, j_per_block: int, **address: int) -> Any:
    """(weights, plan, map, grid, bytes of shared memory) of soft masks on a float32 map [B, H, W, C] in memory."""
    batch, channels, height, width = shape
    pixels = height * width
    tiling = np.zeros((), Tiling)
    tiling["copy"], tiling["tile_k"], tiling["tile_j"] = 16, tile_k, TILE_J
    tiling["stride_k"], tiling["stride_j"], tiling["lane_j"], tiling["next_j"] = TILE_J, 1, 1, 32
    tiling["pieces"] = TILE_J // 4
    tiling["inverse"] = 2**32 // (TILE_J // 4)
    plan = np.zeros((), Plan)
    plan["tiling"], plan["j_per_block"] = tiling, j_per_block
    plan["tiles_j"], plan["tiles_k"] = -(-channels // TILE_J), -(-pixels // tile_k)
    stay = REGIONS * (-(-pixels // 4) * 4) * 4 <= 16 * 1024
    stride = -(-pixels // 4) * 4 if stay else tile_k
    plan["weights_stay"], plan["weights_stride"] = stay, stride
    plan["weights_at"] = 2 * tile_k * TILE_J * 4
    plan["sums_at"] = plan["scratch_at"] = plan["weights_at"] + REGIONS * stride * 4 * (1 if stay else 2)
    where = np.zeros((), Map)
    where["images"], where["image_stride"] = batch, channels * pixels
    where["k"], where["j"] = (pixels, pixels, 0, channels), (channels, channels, 0, 1)
    weights = np.zeros((), MaskWeights)
    weights["masks"], weights["soft"] = address["masks"], True
    weights["image_stride"], weights["region_stride"] = regions * pixels, pixels
    weights["pixels"], weights["per_image"] = (pixels, pixels, 0, 1), regions
    grid = batch * -(-int(plan["tiles_j"]) // j_per_block)
    return weights, plan, where, grid, int(plan["sums_at"]) + THREADS // 32 * 4 * SUMS_STRIDE * 4


def milliseconds(cupy: Any, function: Any, repeats: int = 20) -> float:
    from cupyx.profiler import benchmark

    return float(np.median(benchmark(function, n_repeat=repeats, n_warmup=3).gpu_times)) * 1e3


def gpu(module: str) -> Any:
    """CuPy, if it is there and finds a GPU. Raises ConfigError."""
    try:
        import cupy

        cupy.cuda.runtime.getDeviceCount()
    except ImportError:
        raise ConfigError(f"{module} needs cupy: pip install cupy-cuda13x") from None
    except Exception as error:  # (cupy's own class of error is only known with cupy)
        raise ConfigError(f"{module} needs a GPU: {error}") from error
    return cupy


def main() -> None:
    cupy = gpu("benchmarks.kernels_cupy")
    with standard_headers() as headers:
        module = cupy.RawModule(
            code='#include "pool.cuh"', options=nvrtc_options(headers), name_expressions=(POOL,), backend="nvrtc"
        )
        kernel = module.get_function(POOL)
    shape, regions = (64, 2048, 14, 14), 16
    batch, channels, height, width = shape
    x = cupy.random.standard_normal((batch, height, width, channels), dtype=cupy.float32)
    masks = cupy.random.random((batch, regions, height, width), dtype=cupy.float32)
    area = cupy.empty((batch, regions), cupy.float32)
    pooled = cupy.empty((batch, regions, channels), cupy.float32)
    expected = cupy.einsum("bhwc,brhw->brc", x, masks) / masks.sum((2, 3))[:, :, None]
    copied = cupy.empty_like(x)
    copy_ms = milliseconds(cupy, lambda: cupy.copyto(copied, x))
    print(f"copy of the features: {2 * x.nbytes / copy_ms / 1e6:.0f} GB/s")
    for tile_k in (32, 64, 96, 104):
        for j_per_block in (1, 2, 4, 8):
            weights, plan, where, grid, shared = arguments(shape, regions, tile_k, j_per_block, masks=masks.data.ptr)
            kernel.max_dynamic_shared_size_bytes = shared

            def run(values=(weights, plan, where), grid=grid, shared=shared):
                kernel((grid,), (THREADS,), (*values, x, np.uint64(0), True, area, pooled), shared_mem=shared)

            pooled.fill(cupy.nan)
            run()
            cupy.testing.assert_allclose(pooled, expected, rtol=1e-3, atol=1e-4)
            ms = milliseconds(cupy, run)
            moved = x.nbytes + masks.nbytes + pooled.nbytes
            print(f"{tile_k} pixels, {j_per_block} tiles of channels a block: {ms:.3f} ms, {moved / ms / 1e6:.0f} GB/s")


if __name__ == "__main__":
    with one_line_errors():
        main()
