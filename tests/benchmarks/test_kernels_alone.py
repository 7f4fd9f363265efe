"""Device code without torch and without host code: as NVRTC compiles it, and as benchmarks/kernels_cupy.py calls it."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from benchmarks import flash_cupy, kernels_cupy, roofline

INSTANCES = {
    "pool.cuh": kernels_cupy.POOL,
    "spread.cuh": "maskco::label_spread_kernel<float, __nv_bfloat16>",
    "queue.cuh": "maskco::queue_push_kernel<__half, float>",
    "info_nce_flash.cuh": flash_cupy.kernel_name("float32", 64, flash_cupy.Shape(4, 2, 32, 2)),
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
    with kernels_cupy.standard_headers() as headers:
        options = [*kernels_cupy.nvrtc_options(headers), f"-I{include}", f"-I{include}/cccl", "-arch=compute_80"]
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
def test_arguments_of_the_cupy_benchmark():
    """They are laid out by hand there: right on the simulated device for every tile size that it sweeps."""
    import ptxsim

    source = f"""#include "pool.cuh"
template __global__ void {kernels_cupy.POOL}(maskco::MaskWeights<float, float>, maskco::PoolPlan, maskco::Map,
                                            const float*, const float*, bool, float*, float*);
"""
    module = ptxsim.compile(source, arch="sm_80", include_dirs=[str(kernels_cupy.KERNELS)])
    random = np.random.default_rng(0)
    batch, channels, height, width, regions = shape = (2, 140, 7, 5, 3)
    x = random.standard_normal((batch, height, width, channels), dtype=np.float32)
    masks = random.random((batch, regions, height, width), dtype=np.float32)
    expected = np.einsum("bhwc,brhw->brc", x, masks) / masks.sum((2, 3))[..., None]
    for tile_k, j_per_block in ((32, 1), (96, 2)):
        area, pooled = np.full((batch, regions), np.nan, np.float32), np.full((batch, regions, channels), np.nan, "f4")
        weights, plan, where, grid, shared = kernels_cupy.arguments(
            shape[:4], regions, tile_k, j_per_block, masks=module.ptr(masks)
        )
        structs = [struct.tobytes() for struct in (weights, plan, where)]
        arguments = [*structs, x, None, True, area, pooled]
        module.launch("pool_kernel", grid=grid, block=kernels_cupy.THREADS, args=arguments, shared=shared, strict=True)
        np.testing.assert_allclose(pooled, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(area, masks.sum((2, 3)), rtol=1e-5)


SHARED_KIB = {"sm_80": 163, "sm_86": 99, "sm_89": 99, "sm_90": 227, "sm_100": 227, "sm_120": 99}  # of a block


@pytest.mark.parametrize("dtype", flash_cupy.KINDS)
def test_the_flash_benchmark_sweeps_the_shapes_of_the_table(dtype):
    """The table is flash_shape() of flash.cuh; shapes stand in the names of the kernels that each GPU runs."""
    pattern = rf"flash_kernel<Flash<{re.escape(flash_cupy.KINDS[dtype])}, (\d+), (\d+), (\d+), (\d+), (\d+)>, true"
    seen = set()
    for launch in json.loads(roofline.RESULTS.read_text())["flash"]:
        if found := re.search(pattern, launch["kernel"]):
            channels, *shape = map(int, found.groups())
            for arch in launch["warps_per_sm"]:
                assert shape in map(list, flash_cupy.shapes(np.dtype(dtype).itemsize, channels, SHARED_KIB[arch] << 10))
                seen.add((channels, arch))
    assert len(seen) == 6 * len(SHARED_KIB)


@needs_nvcc
@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.parametrize("dtype, c", [("float16", 64), ("float16", 256), ("float32", 192)])
def test_every_shape_of_the_flash_benchmark(dtype, c):
    """Its arguments and geometry, on as much shared memory as an A100 has."""
    import ptxsim

    features, n, k, splits = "__half" if dtype == "float16" else "float", 40, 300, 3
    shapes = flash_cupy.shapes(np.dtype(dtype).itemsize, c, SHARED_KIB["sm_80"] << 10)
    parameters = f"""(
    maskco::FlashFeatures<{features}>, maskco::FlashFeatures<{features}>, maskco::FlashFeatures<{features}>,
    const int64_t*, bool, maskco::Temperature<float>, float*, maskco::FlashRow*, float*);"""
    instances = [f"template __global__ void {flash_cupy.kernel_name(dtype, c, x)}{parameters}" for x in shapes]
    source = "\n".join(['#include "info_nce_flash.cuh"', *instances, ""])
    module = ptxsim.compile(source, arch="sm_80", include_dirs=[str(kernels_cupy.KERNELS)])
    random = np.random.default_rng(0)
    rows = {name: random.standard_normal((count, c)) for name, count in (("query", n), ("positive", n), ("queue", k))}
    rows = {name: (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(dtype) for name, x in rows.items()}
    query, positive, queue = (x.astype("f8") for x in rows.values())
    expected = np.log(np.exp(query @ queue.T / flash_cupy.TEMPERATURE).sum(1))
    called = flash_cupy.arguments(n, k, c, **{name: module.ptr(x) for name, x in rows.items()})
    called = [x.tobytes() if isinstance(x, np.ndarray) else None if x is called[3] else x for x in called]
    for shape in shapes:
        product, state = np.full(n, np.nan, "f4"), np.full((splits, n, 4), np.nan, "f4")
        sums = np.full((splits, n, c), np.nan, "f4")
        grid, shared = (-(-n // shape.rows), splits), shape.shared_bytes(c * rows["query"].itemsize)
        name = flash_cupy.kernel_name(dtype, c, shape).removesuffix(">")  # a parameter more, which has a default
        arguments = [*called, product, state, sums]
        module.launch(name, grid=grid, block=shape.threads, args=arguments, shared=shared, strict=True)
        np.testing.assert_allclose(product, (query * positive).sum(1), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(flash_cupy.log_sum_exp(np, state), expected, rtol=1e-4)
