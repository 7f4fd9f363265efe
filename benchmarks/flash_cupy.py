"""Launches info_nce's flash kernel straight from its .cuh file (CuPy compiles it by NVRTC) and sweeps tile shapes and
the splits of the keys.

Reports the tensor rate reached beside that of one cuBLAS product of the same queries and keys. For choosing the table
of shapes in flash.cuh; the op itself is timed by `python -m benchmarks.info_nce --device cuda`.

python -m benchmarks.flash_cupy      needs a GPU and cupy (pip install 'maskco[cupy]')
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np

from benchmarks.kernels_cupy import gpu, milliseconds, nvrtc_options, standard_headers
from maskco.console import one_line_errors

TEMPERATURE = 0.2
CHANNELS = (64, 128, 192, 256)
Features = np.dtype([("rows", "u8"), ("row_stride", "i8"), ("count", "i8"), ("ids", "u8")])
Temperature = np.dtype([("value", "f8"), ("tensor", "u8")])
KINDS = {"float16": "HalfProduct<__half>", "float32": "Tf32Product<3>"}


class Shape(NamedTuple):
    """FlashShape of flash.cuh, and what follows from it."""

    warps: int
    row_blocks: int
    columns: int
    blocks_per_sm: int

    @property
    def threads(self) -> int:
        return 32 * self.warps

    @property
    def rows(self) -> int:
        return 16 * self.warps * self.row_blocks

    def shared_bytes(self, row_bytes: int) -> int:
        """Without ids: the rows, two tiles of columns, and the logits of the rows' positives."""
        return (self.rows + 2 * self.columns) * row_bytes + 4 * self.rows


def shapes(itemsize: int, channels: int, allowed: int) -> list[Shape]:
    """To sweep: those of a thread's sums in at most 128 registers, in as many bytes of shared memory as a block may
    have, on SMs that have 1 KiB more. Eight warps are planned on an SM, with all the registers a thread can have; of
    few channels, whose sums leave registers free, twelve as well."""
    found, row_bytes = [], itemsize * channels
    for warps, row_blocks, columns in itertools.product((4, 8), (1, 2), (16, 32, 64)):
        shape = Shape(warps, row_blocks, columns, 1)
        team = max(4 if row_bytes % 128 else 8, shape.threads // columns)  # threads that copy a row
        if row_blocks * channels > 256 or row_bytes // 16 % team or shape.shared_bytes(row_bytes) > allowed:
            continue
        fit = (allowed + 1024) // (shape.shared_bytes(row_bytes) + 1024)
        for planned in (8, 12) if channels <= 32 else (8,):
            found.append(shape._replace(blocks_per_sm=min(planned // warps, fit)))
    return list(dict.fromkeys(found))


def kernel_name(dtype: str, channels: int, shape: Shape) -> str:
    flash = f"maskco::Flash<maskco::{KINDS[dtype]}, {', '.join(map(str, (channels, *shape)))}>"
    return f"maskco::info_nce_flash_kernel<{flash}, true>"


def arguments(n: int, k: int, c: int, **address: int) -> list[Any]:
    """The kernel's arguments up to its outputs: dense rows without ids, a queue that is full, not in batch."""
    structs = []
    for name, count in (("query", n), ("positive", n), ("queue", k)):
        features = np.zeros((), Features)
        features["rows"], features["row_stride"], features["count"] = address[name], c, count
        structs.append(features)
    tau = np.zeros((), Temperature)
    tau["value"] = TEMPERATURE
    return [*structs, np.uint64(0), False, tau]


def log_sum_exp(xp: Any, split_rows: Any) -> Any:
    """Of the negatives, by the splits' maxima and sums: [S, N, 4] float32, of which the first two count."""
    maxima, sums = split_rows[..., 0], split_rows[..., 1]
    top = maxima.max(0)
    return (xp.log2((sums * xp.exp2(maxima - top)).sum(0)) + top) * np.log(2)


def main() -> None:
    cupy = gpu("benchmarks.flash_cupy")
    n, k = 256, 65536
    attributes = cupy.cuda.Device().attributes
    sms, allowed = attributes["MultiProcessorCount"], attributes["MaxSharedMemoryPerBlockOptin"]
    for dtype, c in itertools.product(KINDS, CHANNELS):
        query, positive, queue = (cupy.random.standard_normal((rows, c), dtype="f4") for rows in (n, n, k))
        query, positive, queue = (
            (x / cupy.linalg.norm(x, axis=1, keepdims=True)).astype(dtype) for x in (query, positive, queue)
        )
        logits = query.astype("f4") @ queue.astype("f4").T / TEMPERATURE
        expected = cupy.log(cupy.exp(logits).sum(1))
        product_ms = milliseconds(cupy, lambda query=query, queue=queue: query @ queue.T)
        print(f"{dtype}, C = {c}: cuBLAS's product {2 * n * k * c / product_ms / 1e9:.1f} TFLOP/s")
        swept = {shape: kernel_name(dtype, c, shape) for shape in shapes(query.itemsize, c, allowed)}
        with standard_headers() as headers:
            code, options = '#include "info_nce_flash.cuh"', nvrtc_options(headers)
            names = tuple(swept.values())
            module = cupy.RawModule(code=code, options=options, name_expressions=names, backend="nvrtc")
            kernels = {shape: module.get_function(name) for shape, name in swept.items()}
        at = {"query": query.data.ptr, "positive": positive.data.ptr, "queue": queue.data.ptr}
        for (shape, kernel), waves in itertools.product(kernels.items(), (0.5, 1, 2)):
            blocks, shared = -(-n // shape.rows), shape.shared_bytes(c * query.itemsize)
            kernel.max_dynamic_shared_size_bytes = shared
            splits = max(1, int(waves * shape.blocks_per_sm * sms / blocks))
            product, state = cupy.empty(n, "f4"), cupy.full((splits, n, 4), cupy.nan, "f4")
            sums = cupy.empty((splits, n, c), "f4")
            called = (*arguments(n, k, c, **at), product, state, sums)

            def run(kernel=kernel, grid=(blocks, splits), threads=shape.threads, called=called, shared=shared):
                kernel(grid, (threads,), called, shared_mem=shared)

            run()
            cupy.testing.assert_allclose(log_sum_exp(cupy, state), expected, rtol=1e-3)
            ms = milliseconds(cupy, run)
            tile = f"{shape.warps} warps of {16 * shape.row_blocks} rows, {shape.columns} columns"
            print(f"  {tile}, {splits} splits: {ms:.3f} ms, {4 * n * k * c / ms / 1e9:.1f} TFLOP/s")


if __name__ == "__main__":
    with one_line_errors():
        main()
