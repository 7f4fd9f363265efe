"""One kernel of csrc/cuda without torch: CuPy compiles the queue's `.cuh` by NVRTC and pushes keys into an array.

python -m benchmarks.cupy_example      needs a GPU and cupy (pip install 'maskco[cupy]')
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

CSRC = Path(__file__).resolve().parent.parent / "csrc"
KERNEL, THREADS = "maskco::queue_push_kernel<float, float>", 256
STANDARD_HEADERS = ("climits", "cstddef", "cstdint", "type_traits", "utility")  # NVRTC has them as cuda/std/… only


@contextlib.contextmanager
def nvrtc_options() -> Iterator[tuple[str, ...]]:
    """NVRTC's options for any `.cuh` of csrc/cuda; within the context there is a folder of standard headers for it."""
    with tempfile.TemporaryDirectory() as folder:
        for name in STANDARD_HEADERS:
            lines = ["#pragma once", "namespace cuda { namespace std {} }", f"#include <cuda/std/{name}>"]
            lines += ["namespace std { using namespace cuda::std; }", "using namespace cuda::std;", ""]
            (Path(folder) / name).write_text("\n".join(lines))
        infinity = "-DINFINITY=__int_as_float(0x7f800000)"  # of math.h, which NVRTC doesn't have
        yield ("--std=c++17", "-default-device", f"-I{CSRC}", f"-I{folder}", infinity)


def arguments(queue: Any, cursor: Any, keys: Any) -> list[Any]:
    """Of queue_push_kernel, for dense arrays without ids: keys are normalised, and wrap around the queue's end."""
    (size, channels), count = queue.shape, len(keys)
    strides = (channels, 1, 1, channels, 1, 0, 0)  # queue's rows and columns, cursor, keys' rows and columns, ids
    by_packs = channels % 4 == 0 and channels <= 512
    null, flags = np.uint64(0), (True, True, by_packs)  # normalize, wrap
    return [queue, cursor, keys, null, null, *flags, *map(np.int64, (size, count, channels, *strides))]


def main() -> None:
    try:
        import cupy
    except ImportError:
        raise ConfigError("benchmarks.cupy_example needs cupy. Run pip install 'maskco[cupy]'") from None
    with nvrtc_options() as options:
        code, names = '#include "cuda/queue/queue.cuh"', (KERNEL,)
        module = cupy.RawModule(
            code=code, options=options, name_expressions=names, backend="nvrtc", enable_cooperative_groups=True
        )
        push = module.get_function(KERNEL)
    queue, cursor = cupy.zeros((1000, 128), cupy.float32), cupy.zeros(2, cupy.int64)
    keys = cupy.random.standard_normal((256, 128), dtype=cupy.float32)
    blocks = len(keys) * 32 // THREADS  # a warp for each key: a cooperative launch must fit on the GPU at once
    push((blocks,), (THREADS,), arguments(queue, cursor, keys))
    cupy.testing.assert_allclose(queue[:256], keys / cupy.linalg.norm(keys, axis=1, keepdims=True), rtol=1e-5)
    print(f"pushed {len(keys)} keys; next row and valid rows: {cursor.tolist()}")


if __name__ == "__main__":
    with one_line_errors():
        main()
