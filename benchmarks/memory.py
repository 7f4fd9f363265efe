"""What allocators do with memory: kept for reuse while timing, counted while measuring the peak of a call.

The peak is that above the inputs; everything is counted, whoever allocates it.

On CUDA: the caching allocator's high-water mark. On the CPU (Linux): the resident set's (VmHWM), in a process of its
own whose allocator gives every freed block back at once, so that the mark is neither hidden by nor raised by leftovers.
A call is measured in a new thread, because what an op keeps per thread between calls is memory too.
"""

from __future__ import annotations

import ctypes
import importlib
import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import BOTH, FORWARD, Passes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _PR_SET_THP_DISABLE = -1, -3, -4, 41  # malloc.h, prctl.h
_CLEAR_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")

Peaks = dict[tuple[str, str], float]  # MiB by (implementation, pass)


def keep_freed_memory() -> bool:
    """Makes glibc's malloc keep what is freed, as jemalloc, tcmalloc and CUDA's caching allocator do; False elsewhere.

    By default it gives large blocks back to the system, and the pages of every large result are fetched and cleared
    anew: for all implementations alike, often for longer than they compute, and unevenly on a virtual machine.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))


class PeakMemory:
    """Measures the cases of one benchmark module; on the CPU in a helper process, which lives as long as this does."""

    def __init__(self, module: str, device: torch.device, threads: int) -> None:
        self.module, self.device, self.threads = module, device, threads
        self._pool: ProcessPoolExecutor | None = None

    def measure(self, case: str, implementations: dict[str, Passes], wanted: set[str], dtype: torch.dtype) -> Peaks:
        """`implementations` run here on CUDA; on the CPU the helper builds its own of the same names."""
        if self.device.type == "cuda":
            return _peaks(implementations, wanted, _cuda_peak)
        if not os.access(_CLEAR_REFS, os.W_OK):
            return {}
        if self._pool is None:
            spawn = multiprocessing.get_context("spawn")  # a fork would inherit the parent's heap and thread pools
            self._pool = ProcessPoolExecutor(1, spawn, initializer=_prepare_process, initargs=(self.threads,))
        try:
            return self._pool.submit(
                _measure_in_helper, self.module, case, list(implementations), wanted, dtype
            ).result()
        except BrokenProcessPool:  # out of memory, most likely: no figure, but the times may still be had
            self._pool = None
            return {}

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()


def _peaks(implementations: dict[str, Passes], wanted: set[str], peak: Callable[[Callable[[], Any]], float]) -> Peaks:
    found: Peaks = {}
    for name, passes in implementations.items():
        if FORWARD in wanted and passes.forward is not None:
            found[name, FORWARD] = peak(passes.forward)
        if BOTH in wanted and passes.backward is not None:
            found[name, BOTH] = peak(lambda passes=passes: passes.backward(passes.training()))
    return found


def _cuda_peak(call: Callable[[], Any]) -> float:
    call()  # cuBLAS workspaces and such are not the op's
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _prepare_process(threads: int) -> None:
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, 64 * 1024)  # blocks from 64 KiB on are mapped when allocated, unmapped when freed
    libc.prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)  # a huge page is resident before its last 2 MiB are used
    os.environ["MKL_DISABLE_FAST_MM"] = "1"  # MKL's own cache of buffers
    torch.set_num_threads(threads)


def _measure_in_helper(module: str, case: str, names: list[str], wanted: set[str], dtype: torch.dtype) -> Peaks:
    found = next(c for c in importlib.import_module(module).cases() if c.name == case)
    inputs = found.make_inputs(torch.device("cpu"), dtype)
    torch._dynamo.reset()
    peaks: Peaks = {}
    for implementation in found.implementations:
        if implementation.name in names:
            peaks |= _peaks({implementation.name: implementation.build(inputs)}, wanted, resident_peak)
    return peaks


def resident_peak(call: Callable[[], Any]) -> float:
    """MiB by which the resident set grew at its highest point during `call`, the third time it runs."""

    def measure() -> None:
        _CLEAR_REFS.write_text("5")  # VmHWM = VmRSS
        before = _status("VmRSS")
        call()
        grown.append(max(0.0, _status("VmHWM") - before))

    grown: list[float] = []
    for _ in range(3):  # code pages, torch.compile and caches of the process are warmed up by the first two
        thread = threading.Thread(target=measure)
        thread.start()
        thread.join()
    return grown[2]


def _status(field: str) -> float:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) / 1024
