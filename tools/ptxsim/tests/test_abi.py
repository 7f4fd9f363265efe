"""The structs of Python are those of the C++ side."""

import ctypes

import pytest

from ptxsim import abi, build, runtime


def test_core_and_runtime_have_the_layout_of_python():
    abi.check_core(build.core())
    lib = runtime.runtime().lib
    structs = [runtime.SimLaunch, runtime.SimAllocation, runtime.SimDevice, runtime.SimFunction, runtime.SimHooks]
    abi.check(lib.ptxsim_cudart_layout().decode(), abi.layout(structs), "cudart/abi.h")


class Pair(ctypes.Structure):
    _fields_ = [("a", ctypes.c_int32), ("b", ctypes.c_uint64)]


LINES = "Pair 0 16\nPair.a 0 4\nPair.b 8 8\n"


def test_equal_layouts_pass():
    abi.check(LINES, abi.layout([Pair]), "here")


@pytest.mark.parametrize(
    ("lines", "name"),
    [
        (LINES.replace("Pair.b 8 8", "Pair.b 8 4"), "Pair.b"),
        (LINES.replace("Pair.b 8 8", "Pair.b 4 8"), "Pair.b"),
        (LINES.replace("Pair 0 16", "Pair 0 24"), "Pair"),
        (LINES + "Pair.c 16 8\n", "Pair.c"),
        (LINES.replace("Pair.b 8 8\n", ""), "Pair.b"),
    ],
)
def test_a_difference_names_the_field(lines, name):
    with pytest.raises(RuntimeError, match=f"the structs of here .*: {name} is"):
        abi.check(lines, abi.layout([Pair]), "here")
