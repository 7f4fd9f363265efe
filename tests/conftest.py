"""Shared by all tests: the tolerance helper and the three devices that the ops are tested on."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import time
from collections.abc import Iterator
from multiprocessing import forkserver, resource_tracker
from pathlib import Path

import pytest

# The allocator of torch's wheels for aarch64, mimalloc, keeps freed memory for a while, which peak_memory.py would not
# see taken again. It reads this once, when torch is loaded.
os.environ.setdefault("MIMALLOC_PURGE_DELAY", "0")

import torch

from maskco.ops import _library
from simulated import simulated_ops

REQUIRE_CUDA = os.environ.get("MASKCO_REQUIRE_CUDA") == "1"
REQUIRE_SIM = os.environ.get("MASKCO_REQUIRE_SIM") == "1"
DEVICES = ("cpu", "sim", "cuda")


PR_SET_CHILD_SUBREAPER = 36  # prctl.h


@pytest.fixture(scope="session", autouse=True)
def no_process_is_left() -> Iterator[None]:
    """Fails at the end of the suite if a process that it started is still there. Orphans count: on Linux they become
    children of this process. The servers of multiprocessing end with it."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    yield
    deadline = time.monotonic() + 10
    while (left := _processes_left()) and time.monotonic() < deadline:
        time.sleep(0.2)
    if left:
        pytest.fail("processes are left: " + "; ".join(f"{number}: {command}" for number, command in left.items()))


def _processes_left() -> dict[int, str]:
    """Children of this process that run, and their command lines."""
    servers = {forkserver._forkserver._forkserver_pid, resource_tracker._resource_tracker._pid}
    left = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = status.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == os.getpid() and state != "Z" and int(status.parent.name) not in servers:
                command = (status.parent / "cmdline").read_bytes().replace(b"\0", b" ")
                left[int(status.parent.name)] = command.decode(errors="replace")[:200]
    return left


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=DEVICES, help="only the tests that run on this device (default: on any)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The tests of a device other than the CPU are marked with its name."""
    if (wanted := config.getoption("--device")) is None:
        return
    on = [next((name for name in DEVICES if item.get_closest_marker(name)), "cpu") for item in items]
    config.hook.pytest_deselected(items=[item for item, name in zip(items, on, strict=True) if name != wanted])
    items[:] = [item for item, name in zip(items, on, strict=True) if name == wanted]


@pytest.fixture(
    params=["cpu", pytest.param("sim", marks=pytest.mark.sim), pytest.param("cuda", marks=pytest.mark.cuda)]
)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """ "cpu", "cuda", or "sim": the CUDA host code and the compiled PTX of its kernels, run and checked on CPU tensors.

    Yields the torch device to make tensors on. On sim, anything a GPU would get wrong fails the test when it ends:
    out of bounds, misaligned, uninitialised or racing accesses, refused launches.
    """
    if request.param == "cpu":
        yield torch.device("cpu")
    elif request.param == "cuda":
        if not torch.cuda.is_available():
            (pytest.fail if REQUIRE_CUDA else pytest.skip)("no CUDA device")
        yield torch.device("cuda")
    else:
        if shutil.which("nvcc") is None:
            (pytest.fail if REQUIRE_SIM else pytest.skip)("no nvcc: CUDA kernels cannot be compiled for the simulator")
        import ptxsim

        namespace = simulated_ops()
        monkeypatch.setattr(_library, "kernels", lambda device: namespace)
        with ptxsim.device("sm_80", strict=True) as simulated:
            request.node.simulated = simulated
            yield torch.device("cpu")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_runs import make_pictures

    return make_pictures(tmp_path_factory.mktemp("pictures") / "photos")


@pytest.fixture
def simulated(request: pytest.FixtureRequest, device: torch.device):
    """The simulated device with its `launches`, or None on a real one."""
    return getattr(request.node, "simulated", None)
