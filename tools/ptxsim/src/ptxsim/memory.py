"""Device addresses of buffers, and the arguments of a launch as bytes."""

import ctypes

import numpy as np

from . import abi

GRID_BARRIER = 0x0F0000000000  # address of the grid-wide barrier's words in a cooperative launch
_FIRST = 0x100000000000
_RED_ZONE = 1 << 26  # bytes between buffers
_PAGE = 1 << 16  # buffers start at multiples of this
NEAR = _RED_ZONE // 2  # addresses this far from a buffer are taken to be meant for it


class Memory:
    """Device address space. Every buffer is an allocation of its own, far from all the others."""

    def __init__(self):
        self._next = _FIRST
        self.entries = {}  # key -> (address, array, flags)

    def place(self, nbytes):
        """A fresh address for this many bytes."""
        address = self._next
        self._next = (address + nbytes + _RED_ZONE + _PAGE - 1) & -_PAGE
        return address

    def add(self, array, flags=0, key=None):
        """Keeps an array. Returns its address, which is the same for the same memory (or the same key)."""
        key = key if key is not None else (array.ctypes.data, array.nbytes)
        if key in self.entries and array.nbytes:
            return self.entries[key][0]
        address = self.place(array.nbytes)
        self.entries[key] = (address, array, flags)
        return address

    def allocations(self):
        """(address, bytes, host address, flags) of every kept array."""
        return [(address, array.nbytes, array.ctypes.data, flags) for address, array, flags in self.entries.values()]


class Pointer:
    """A device address inside an array: `Pointer(array, byte_offset)` as a kernel argument."""

    def __init__(self, array, offset=0):
        self.array, self.offset = array, offset


class Arguments:
    """Arguments of one launch.

    `params` has their bytes, `allocations` the buffers among them as Memory.allocations does.
    `copy_back` writes buffers that are not contiguous.
    """

    def __init__(self, kernel, args, memory):
        params = kernel.params
        if len(args) != len(params):
            raise TypeError(f"{kernel.pretty} takes {len(params)} arguments {params}, got {len(args)}")
        self._memory, self._copies, self._seen, self._kept = memory, [], {}, []
        self.params, self.allocations = bytearray(kernel.built.params_size), []
        for n, (param, arg) in enumerate(zip(params, args, strict=True)):
            raw = self._bytes(n, param, arg)
            if len(raw) != param.size:
                raise TypeError(f"argument {n}: {len(raw)} bytes for a {param.size}-byte parameter")
            self.params[param.offset : param.offset + param.size] = raw

    def copy_back(self):
        for target, source in self._copies:
            target[...] = source

    def _bytes(self, n, param, arg):
        if hasattr(arg, "detach") and hasattr(arg, "numpy"):
            arg = _numpy_of(arg)
        offset = 0
        if isinstance(arg, Pointer):
            arg, offset = arg.array, arg.offset
        if isinstance(arg, np.ndarray) and arg.ndim == 0 and param.size != 8:
            arg = arg[()]
        if arg is None:
            return bytes(param.size)
        if isinstance(arg, np.ndarray) and not (param.is_array and arg.nbytes == param.size):
            if param.size != 8:
                raise TypeError(f"argument {n}: an array for a {param.size}-byte parameter ({param.typ})")
            return (self._address(arg) + offset).to_bytes(8, "little")
        if isinstance(arg, (bytes, bytearray, memoryview, ctypes.Structure, ctypes.Array)):
            return bytes(arg)
        if isinstance(arg, np.ndarray):
            return arg.tobytes()
        if isinstance(arg, (np.generic, bool, int, float)):
            return _scalar(param, arg)
        raise TypeError(f"argument {n}: cannot pass a {type(arg).__name__}")

    def _address(self, array):
        key = (array.ctypes.data, array.nbytes)
        contiguous = array.flags.c_contiguous
        if contiguous and key in self._memory.entries:
            return self._memory.entries[key][0]
        if contiguous and key in self._seen:
            return self._seen[key]
        data = array
        if not contiguous:
            data = np.ascontiguousarray(array)
            if array.flags.writeable:
                self._copies.append((array, data))
        address = self._memory.place(data.nbytes)
        self._kept.append(data)
        flags = 0 if array.flags.writeable else abi.READ_ONLY
        self.allocations.append((address, data.nbytes, data.ctypes.data, flags))
        if array.nbytes:
            self._seen[key] = address
        return address


def _numpy_of(tensor):
    """The memory of a torch CPU tensor."""
    import torch

    tensor = tensor.detach()
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _scalar(param, value):
    as_it_is = isinstance(value, np.generic) and value.nbytes == param.size
    if as_it_is and (param.typ[0] != "f" or value.dtype.kind == "f"):
        return value.tobytes()
    is_float = isinstance(value, (float, np.floating))
    if param.typ in ("f32", "f64", "f16") or (is_float and param.typ in ("b32", "b64")):
        return np.array(value, {2: np.float16, 4: np.float32, 8: np.float64}[param.size]).tobytes()
    if is_float and float(value) != int(value):
        raise TypeError(f"float {value} for an integer parameter ({param.typ})")
    return (int(value) & ((1 << (8 * param.size)) - 1)).to_bytes(param.size, "little")
