"""Device code without torch and without host code: as NVRTC compiles it, and as benchmarks/cupy_example.py calls it."""

from __future__ import annotations

import ctypes
import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from benchmarks import cupy_example

FLASH = "maskco::Flash<maskco::Tf32Product<3>, 64, 4, 2, 32, 2>"
TILE = "maskco::LogitTile<maskco::HalfProduct<__nv_bfloat16>, 2, 4, 4, 4, 1>"
INSTANCES = {
    "cuda/region_pool/pool.cuh": "maskco::pool_kernel<float, float, maskco::MaskWeights<float, float>>",
    "cuda/region_pool/spread.cuh": "maskco::label_spread_kernel<float, __nv_bfloat16>",
    "cuda/queue/queue.cuh": cupy_example.KERNEL,
    "cuda/contrast/softmax.cuh": f"maskco::contrast_weigh_kernel<{TILE}>",
    "cuda/contrast/sigmoid.cuh": f"maskco::contrast_sigmoid_kernel<{TILE}>",
    "cuda/contrast/finish.cuh": "maskco::clip_finish_kernel<float>",
    "cuda/info_nce/general.cuh": "maskco::info_nce_gradient_kernel<__half, float>",
    "cuda/info_nce/flash_queries.cuh": f"maskco::info_nce_flash_kernel<{FLASH}, true>",
    "cuda/info_nce/flash_keys.cuh": f"maskco::info_nce_flash_keys_kernel<{FLASH}>",
    "cuda/info_nce/combine.cuh": "maskco::info_nce_combine_kernel<__nv_bfloat16>",
}
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")


def nvrtc() -> ctypes.CDLL:
    """The library that comes with CUDA builds of torch. It needs no GPU."""
    nvidia = importlib.util.find_spec("nvidia")
    folders = [Path(f) for f in nvidia.submodule_search_locations] if nvidia else []
    found = sorted(path for folder in folders for path in folder.glob("**/libnvrtc.so.*[0-9]"))
    if not found:
        pytest.skip("no libnvrtc")
    return ctypes.CDLL(str(found[0]))


def cuda_include() -> str:
    dry = subprocess.run(
        ["nvcc", "--dryrun", "-x", "cu", "-c", "/dev/null", "-o", "none"], capture_output=True, text=True
    )
    return re.search(r'"-I([^"]+)"', dry.stderr)[1]


@needs_nvcc
@pytest.mark.parametrize("file", INSTANCES)
def test_nvrtc_compiles_it(file):
    library, program = nvrtc(), ctypes.c_void_p()
    source = f'#include "{file}"'.encode()
    assert library.nvrtcCreateProgram(ctypes.byref(program), source, b"kernel.cu", 0, None, None) == 0
    assert library.nvrtcAddNameExpression(program, INSTANCES[file].encode()) == 0
    include = cuda_include()
    with cupy_example.nvrtc_options() as options:
        options = [*options, f"-I{include}", f"-I{include}/cccl", "-arch=compute_80"]
        array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        result = library.nvrtcCompileProgram(program, len(options), array)
    size = ctypes.c_size_t()
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    assert result == 0, log.value.decode()


@needs_nvcc
@pytest.mark.sim
def test_the_cupy_example(tmp_path):
    """Its arguments, in two pushes of which the second wraps, on the simulated device."""
    import ptxsim

    parameters = ["float*, int64_t*, const float*, const int64_t*, int64_t*, bool, bool, bool", *["int64_t"] * 10]
    instance = f"""#include "cuda/queue/queue.cuh"
template __global__ void {cupy_example.KERNEL}({", ".join(parameters)});
"""
    module = ptxsim.compile(instance, arch="sm_80", include_dirs=[str(cupy_example.CSRC)])
    random = np.random.default_rng(0)
    for channels in (128, 30):  # by packs of 16 bytes, and by elements
        queue, cursor = np.zeros((12, channels), np.float32), np.zeros(2, np.int64)
        keys = random.standard_normal((8, channels), dtype=np.float32)
        expected = keys / np.linalg.norm(keys, axis=1, keepdims=True)
        for first, valid in ((0, 8), (8, 12)):
            arguments = [None if isinstance(x, np.uint64) else x for x in cupy_example.arguments(queue, cursor, keys)]
            module.launch(
                "queue_push_kernel", grid=1, block=cupy_example.THREADS, args=arguments, cooperative=True, strict=True
            )
            np.testing.assert_allclose(queue[(first + np.arange(8)) % 12], expected, rtol=1e-5)
            assert cursor.tolist() == [(first + 8) % 12, valid]
