"""The simulated CUDA runtime of this process: host code calls it, and its launches run in the simulator."""

import ctypes
import os
import tempfile
import threading
import warnings
from dataclasses import replace

import numpy as np

from . import abi, build, pointers
from .limits import capability, config_error, limits_of, occupancy, registers_per_warp
from .memory import Memory
from .module import Module
from .nvcc import nvcc_path, parse_ptxas
from .options import LaunchOptions
from .parser import PtxError
from .report import PtxSimWarning, SimError


class CudaError(RuntimeError):
    """A launch that the device refuses, or a wrong call of the runtime API. `code` is the CUDA name of the error."""

    def __init__(self, code, text):
        super().__init__(f"{code}: {text}")
        self.code = code


class Launch:
    """One kernel launch of the host code.

    `kernel` is the demangled name, `name` the mangled one, `report` what it executed.
    """

    def __init__(self, kernel, call):
        self.kernel, self.name = kernel.pretty, kernel.name
        self.grid, self.block, self.shared = tuple(call.grid), tuple(call.block), call.shared
        self.cooperative, self.stream, self.report = bool(call.cooperative), call.stream, None

    def __repr__(self):
        return f"<{self.kernel} grid {self.grid} block {self.block} shared {self.shared}>"


class DeviceState:
    """What the simulated device is, and what happened on it. See ptxsim.device."""

    def __init__(self, arch=None, sms=None, poison=True, keep=True, options=None):
        self.arch, self.sms, self.poison, self.keep = arch, sms, poison, keep
        self.options = options or LaunchOptions()
        self.launches, self.errors, self.leaked = [], [], 0


# ---------------------------------------------------------------- cudart/abi.h, mirrored
class SimLaunch(ctypes.Structure):
    _fields_ = [
        ("kernel", ctypes.c_char_p),
        ("module", ctypes.c_int),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("cluster", ctypes.c_uint * 3),
        ("max_dynamic", ctypes.c_int),
        ("cooperative", ctypes.c_int),
        ("shared", ctypes.c_uint64),
        ("stream", ctypes.c_uint64),
        ("args", ctypes.POINTER(ctypes.c_void_p)),
    ]


class SimAllocation(ctypes.Structure):
    READ_ONLY, ALLOCATED = 1, 2  # flags
    _fields_ = [(n, ctypes.c_uint64) for n in ("base", "size", "host", "flags")]


class SimDevice(ctypes.Structure):
    _fields_ = [
        (n, ctypes.c_int)
        for n in ("major", "minor", "sms", "threads_sm", "blocks_sm", "regs_sm", "shared_sm", "shared_block", "l2")
    ]


class SimFunction(ctypes.Structure):
    _fields_ = [
        (n, ctypes.c_int) for n in ("regs", "static_shared", "local", "constant", "max_threads", "ptx", "active")
    ]


_U64P = ctypes.POINTER(ctypes.c_uint64)
_LAUNCH = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(SimLaunch))
_FUNCTION = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint64, ctypes.POINTER(SimFunction)
)
_SYMBOL = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, _U64P, _U64P)
_ERROR = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p)


class SimHooks(ctypes.Structure):
    _fields_ = [("launch", _LAUNCH), ("function", _FUNCTION), ("symbol", _SYMBOL), ("error", _ERROR)]


_CODE_OF_KIND = {
    "out-of-bounds": "cudaErrorIllegalAddress",
    "read-only": "cudaErrorIllegalAddress",
    "misaligned": "cudaErrorMisalignedAddress",
    "trap": "cudaErrorAssert",
    "instruction-limit": "cudaErrorLaunchTimeout",
    "unsupported": "cudaErrorNotSupported",
}


def _link_runtime():
    """The library of cudart/*.cpp, compiled at the first use."""
    sources = build.sources_in(build.CUDART)
    key = build.digest(*[build.read(path) for path in sources], nvcc_path())
    path = os.path.join(build.cache_dir(), f"libptxsim_cudart-{key}.so")
    with tempfile.TemporaryDirectory(prefix="ptxsim-") as folder:
        # Symbols have a version of their own, or those of a real libcudart that torch has loaded would win.
        versions = os.path.join(folder, "map")
        with open(versions, "w") as f:
            f.write("PTXSIM_CUDART { global: *; };\n")
        flags = ["-shared", "-O2", "-std=c++17", "-cudart", "none", "-Xcompiler", "-fPIC", f"-I{build.CUDART}"]
        link = ["-Xlinker", f"--version-script={versions},-soname={os.path.basename(path)}"]
        units = [source for source in sources if source.endswith(".cpp")]
        return build.build_once(path, [nvcc_path(), *flags, *units, *link])


class Runtime:
    """The one simulated device of this process."""

    def __init__(self):
        self.path = _link_runtime()
        self.lib = lib = ctypes.CDLL(self.path)
        lib.ptxsim_cudart_layout.restype = ctypes.c_char_p
        layout = abi.layout([SimLaunch, SimAllocation, SimDevice, SimFunction, SimHooks])
        abi.check(lib.ptxsim_cudart_layout().decode(), layout, "cudart/abi.h")
        lib.ptxsim_ptx.restype = ctypes.c_char_p
        lib.ptxsim_allocs.restype = ctypes.c_uint64
        lib.ptxsim_register_buffer.restype = ctypes.c_void_p
        lib.ptxsim_register_buffer.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        lib.cudaGetErrorName.restype = ctypes.c_char_p
        self.memory, self.modules, self.ptxas, self.lock = Memory(), {}, {}, threading.Lock()
        self.devices = [DeviceState("sm_80", keep=False)]
        self.hooks = SimHooks(
            _LAUNCH(self._hook(self.launch)),
            _FUNCTION(self._hook(self.function)),
            _SYMBOL(self._hook(self.symbol)),
            _ERROR(self.error),
        )
        lib.ptxsim_hooks(ctypes.byref(self.hooks))
        self.configure()

    @property
    def device(self):
        return self.devices[-1]

    def configure(self):
        """Tells the library what the current device is."""
        number, limits = capability(self.device.arch), limits_of(self.device.arch)
        self.sms = self.device.sms or limits.sms
        d = SimDevice(
            number // 10,
            number % 10,
            self.sms,
            limits.threads,
            limits.blocks,
            limits.registers,
            limits.shared,
            limits.shared_per_block,
            limits.l2_mib << 20,
        )
        self.lib.ptxsim_device(ctypes.byref(d))

    # ---- errors
    def _hook(self, f):
        """f as a callback of the library: returns the code of a CUDA error instead of raising."""

        def hook(*args):
            try:
                with self.lock:
                    f(*args)
                return 0
            except SimError as e:
                return self._failed(e, _CODE_OF_KIND.get(e.kind, "cudaErrorLaunchFailure"))
            except CudaError as e:
                return self._failed(e, e.code)
            except PtxError as e:
                return self._failed(e, "cudaErrorNotSupported")
            except BaseException as e:  # (nothing may pass through the C code)
                return self._failed(e, "cudaErrorUnknown")

        return hook

    def _failed(self, e, code):
        self._keep_error(e)
        self.lib.ptxsim_detail((str(e) or repr(e)).encode())
        return self.lib.ptxsim_error_code(code.encode())

    def _keep_error(self, e):
        if self.device.keep:
            self.device.errors.append(e)

    def error(self, code, text):
        """Callback: a wrong call of the API."""
        self._keep_error(CudaError(self.lib.cudaGetErrorName(code).decode(), text.decode()))

    # ---- modules
    def module(self, i):
        """The Module of the i-th fat binary that extensions registered."""
        if i not in self.modules:
            text = self.lib.ptxsim_ptx(i).decode()
            if ".version" not in text:
                raise CudaError(
                    "cudaErrorNoKernelImageForDevice",
                    "no readable PTX in the fat binary: compile with "
                    "-gencode arch=compute_XX,code=compute_XX -no-compress",
                )
            self.modules[i] = m = Module(text, memory=self.memory)
            for address, array, flags in m.variable_memory():
                if array.nbytes:
                    numbers = (address, array.nbytes, array.ctypes.data, flags)
                    self.lib.ptxsim_map(*[ctypes.c_uint64(n) for n in numbers])
        return self.modules[i]

    def kernel(self, i, name):
        return self.module(i).kernels[name.decode()]

    def resources(self, i, kernel):
        """What ptxas makes of a kernel for the device. A module is compiled when first asked for."""
        key = i, self.device.arch
        if key not in self.ptxas:
            text = self.module(i).text
            log = os.path.join(build.cache_dir(), f"ptxas-{build.digest(text, self.device.arch, nvcc_path())}.log")
            with build.locked(log):
                if not os.path.exists(log):
                    self._run_ptxas(text, log)
            self.ptxas[key] = {d["name"]: d for d in parse_ptxas(build.read(log).decode())}
        return self.ptxas[key][kernel.name]

    def _run_ptxas(self, text, log):
        with tempfile.TemporaryDirectory(prefix="ptxsim-") as folder:
            ptx, cubin = os.path.join(folder, "module.ptx"), os.path.join(folder, "module.cubin")
            with open(ptx, "w") as f:
                f.write(text)
            flags = ["-cubin", f"-arch={self.device.arch}", "-Xptxas", "-v"]
            try:
                printed = build.run([nvcc_path(), *flags, ptx, "-o", cubin])
            except RuntimeError as e:
                raise CudaError("cudaErrorNoKernelImageForDevice", str(e)) from e
        with open(log, "w") as f:
            f.write(printed)

    def max_threads(self, i, kernel):
        """Threads per block that the registers allow."""
        registers = registers_per_warp(max(self.resources(i, kernel)["registers"], 1))
        return min(kernel.max_threads or 1024, 65536 // 4 // registers * 4 * 32, 1024)

    def active(self, i, kernel, threads, shared):
        """Blocks per SM."""
        if threads > self.max_threads(i, kernel):
            return 0
        registers = self.resources(i, kernel)["registers"]
        return occupancy(self.device.arch, registers, kernel.static_shared + shared, threads)[0]

    # ---- callbacks
    def function(self, i, name, block, shared, out):
        """Attributes of a kernel. block -1: only the static shared memory, 0: all but the occupancy."""
        kernel, out = self.kernel(i, name), out.contents
        out.static_shared = kernel.static_shared
        if block < 0:
            return
        ptxas = self.resources(i, kernel)
        out.regs, out.local, out.constant = ptxas["registers"], ptxas["stack"], ptxas["const"]
        out.max_threads = self.max_threads(i, kernel)
        out.ptx = capability(self.module(i).ptx.target)
        out.active = self.active(i, kernel, block, shared) if block else 0

    def symbol(self, i, name, address, size):
        m, name = self.module(i), name.decode()
        address[0], size[0] = m.address_of(name), m.variable(name).nbytes

    def launch(self, call):
        call, device = call.contents, self.device
        kernel = self.kernel(call.module, call.kernel)
        grid, block = list(call.grid), list(call.block)
        record = Launch(kernel, call)
        if device.keep:
            device.launches.append(record)
        where = (
            f"launch of {kernel.pretty} with grid {grid}, block {block}, {call.shared} bytes of dynamic shared memory: "
        )
        self._check_launch(call, kernel, grid, block, where)
        params = bytearray(kernel.built.params_size)
        for param, arg in zip(kernel.params, call.args[: len(kernel.params)], strict=True):
            params[param.offset : param.offset + param.size] = ctypes.string_at(arg, param.size)
        allocations = [(a.base, a.size, a.host, a.flags & SimAllocation.READ_ONLY) for a in self.allocations()]
        wild = pointers.outside(kernel, params, allocations)
        if wild:
            raise CudaError("cudaErrorIllegalAddress", where + wild)
        options = replace(device.options, cooperative=bool(call.cooperative))
        try:
            record.report = kernel.module.run_raw(kernel, grid, block, params, allocations, call.shared, options)
        except SimError as e:
            record.report = e.report
            pointers.name_buffer(e, kernel, params, allocations)
            raise
        for f in record.report.findings:
            warnings.warn(str(f), PtxSimWarning, stacklevel=2)

    def _check_launch(self, call, kernel, grid, block, where):
        """Raises what a device would refuse."""
        target, i = kernel.module.ptx.target, call.module
        have, want = capability(self.device.arch), capability(target)
        if have < want or (have != want and target.endswith("a")):
            text = f"PTX for {target}, device {self.device.arch}"
            raise CudaError("cudaErrorNoKernelImageForDevice", where + text)
        max_dynamic = call.max_dynamic if call.max_dynamic >= 0 else 48 * 1024 - kernel.static_shared
        refused = config_error(kernel, grid, block, call.shared, self.device.arch, max_dynamic)
        if refused:
            raise CudaError(refused[0], where + refused[1])
        threads = int(np.prod(block))
        if threads > 256 and not kernel.max_threads and threads > self.max_threads(i, kernel):
            raise CudaError(
                "cudaErrorLaunchOutOfResources",
                where + f"{self.resources(i, kernel)['registers']} registers a thread allow "
                f"{self.max_threads(i, kernel)} threads a block (__launch_bounds__ would limit the registers)",
            )
        if call.cooperative:
            fit = self.active(i, kernel, threads, call.shared) * self.sms
            if int(np.prod(grid)) > fit:
                raise CudaError("cudaErrorCooperativeLaunchTooLarge", where + f"{fit} blocks fit on the device at once")
        if max(call.cluster) > 1:
            raise PtxError(where + "clusters of more than one block are not supported")

    # ---- buffers
    def allocations(self):
        """SimAllocations of all buffers."""
        n = self.lib.ptxsim_allocs(None, ctypes.c_uint64(0))
        table = (SimAllocation * max(n, 1))()
        return table[: min(n, self.lib.ptxsim_allocs(table, ctypes.c_uint64(n)))]

    def allocated(self):
        """Bytes of cudaMalloc and the like that are not freed yet."""
        return sum(a.size for a in self.allocations() if a.flags & SimAllocation.ALLOCATED)


_runtime = None


def runtime():
    """The Runtime, made at the first call."""
    global _runtime
    if _runtime is None:
        _runtime = Runtime()
    return _runtime
