"""Launches info_nce's flash kernel straight from its .cuh file (CuPy compiles it by NVRTC) and sweeps the splits.

Reports the tensor rate reached beside that of one cuBLAS product of the same queries and keys. For choosing how many
parts the keys are cut into; the op itself is timed by `python -m benchmarks.info_nce --device cuda`.

python -m benchmarks.flash_cupy      needs a GPU and cupy (pip install 'maskco[cupy]')
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from benchmarks.kernels_cupy import gpu, milliseconds, nvrtc_options, standard_headers

TEMPERATURE = 0.2
Features = np.dtype([("rows", "u8"), ("row_stride", "i8"), ("count", "i8"), ("ids", "u8")])
Temperature = np.dtype([("value", "f8"), ("tensor", "u8")])
KINDS = {"float16": "HalfProduct<__half>", "float32": "Tf32Product<3>"}


class Shape(NamedTuple):
    """flash_shape() of flash.cuh, and what follows from it."""

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


def flash_shape(element_size: int, channels: int) -> Shape:
    if element_size == 2:
        if channels <= 128:
            return Shape(4, 2, 32, 3 if channels <= 32 else 2)
        return Shape(8, 1, 64 if channels <= 192 else 32, 1)
    if channels <= 64:
        return Shape(4, 2, 32, 2)
    return Shape(8, 1, 32, 1) if channels <= 128 else Shape(4, 1, 16, 2 if channels <= 192 else 1)


def kernel_name(dtype: str, channels: int) -> str:
    return f"maskco::info_nce_flash_kernel<maskco::Flash<maskco::{KINDS[dtype]}, {channels}>, true>"


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
    sms = cupy.cuda.Device().attributes["MultiProcessorCount"]
    names = {(dtype, c): kernel_name(dtype, c) for dtype in KINDS for c in (64, 128, 256)}
    with standard_headers() as headers:
        code, options = '#include "info_nce_flash.cuh"', nvrtc_options(headers)
        module = cupy.RawModule(code=code, options=options, name_expressions=tuple(names.values()), backend="nvrtc")
        kernels = {key: module.get_function(name) for key, name in names.items()}
    for (dtype, c), kernel in kernels.items():
        query, positive, queue = (cupy.random.standard_normal((rows, c), dtype="f4") for rows in (n, n, k))
        query, positive, queue = (
            (x / cupy.linalg.norm(x, axis=1, keepdims=True)).astype(dtype) for x in (query, positive, queue)
        )
        logits = query.astype("f4") @ queue.astype("f4").T / TEMPERATURE
        expected = cupy.log(cupy.exp(logits).sum(1))
        product_ms = milliseconds(cupy, lambda query=query, queue=queue: query @ queue.T)
        print(f"{dtype}, C = {c}: cuBLAS's product {2 * n * k * c / product_ms / 1e9:.1f} TFLOP/s")
        shape = flash_shape(query.itemsize, c)
        blocks, shared = -(-n // shape.rows), shape.shared_bytes(c * query.itemsize)
        kernel.max_dynamic_shared_size_bytes = shared
        for waves in (0.5, 1, 2):
            splits = max(1, int(waves * shape.blocks_per_sm * sms / blocks))
            product, state = cupy.empty(n, "f4"), cupy.empty((splits, n, 4), "f4")
            sums = cupy.empty((splits, n, c), "f4")
            at = {"query": query.data.ptr, "positive": positive.data.ptr, "queue": queue.data.ptr}
            called = (*arguments(n, k, c, **at), product, state, sums)

            def run(kernel=kernel, grid=(blocks, splits), threads=shape.threads, called=called, shared=shared):
                kernel(grid, (threads,), called, shared_mem=shared)

            run()
            cupy.testing.assert_allclose(log_sum_exp(cupy, state), expected, rtol=1e-3)
            ms = milliseconds(cupy, run)
            print(f"  {splits} splits: {ms:.3f} ms, {4 * n * k * c / ms / 1e9:.1f} TFLOP/s")


if __name__ == "__main__":
    main()
