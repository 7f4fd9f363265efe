"""Host code without a GPU: a CUDA extension on a simulated CUDA runtime (cudart_sim.cpp), so that its real launches
run in the simulator, on the memory of CPU tensors."""

import concurrent.futures
import contextlib
import ctypes
import fcntl
import hashlib
import os
import re
import shlex
import subprocess
import tempfile
import threading
import warnings

import numpy as np

from . import build
from .module import Memory, Module, PtxSimWarning, SimError, _sm, config_error, nvcc_path, occupancy, parse_ptxas
from .parser import PtxError


class CudaError(RuntimeError):
    """A launch that the device refuses, or a wrong call of the runtime API; .code is the CUDA name of the error."""

    def __init__(self, code, text):
        super().__init__(f"{code}: {text}")
        self.code = code


class Launch:
    """One kernel launch of the host code.

    `kernel` is the demangled name, `name` the mangled one; `report` what it executed.
    """

    def __init__(self, kernel, L):
        self.kernel, self.name = kernel.pretty, kernel.name
        self.grid, self.block, self.shared = tuple(L.grid), tuple(L.block), L.shared
        self.cooperative, self.stream, self.report = bool(L.cooperative), L.stream, None

    def __repr__(self):
        return f"<{self.kernel} grid {self.grid} block {self.block} shared {self.shared}>"


# ---------------------------------------------------------------- interface to cudart_sim.cpp
class _SimLaunch(ctypes.Structure):
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


class _SimAlloc(ctypes.Structure):
    _fields_ = [(n, ctypes.c_uint64) for n in ("base", "size", "host", "flags")]


class _SimDevice(ctypes.Structure):
    _fields_ = [
        (n, ctypes.c_int)
        for n in ("major", "minor", "sms", "threads_sm", "blocks_sm", "regs_sm", "shared_sm", "shared_block", "l2")
    ]


class _SimFunc(ctypes.Structure):
    _fields_ = [
        (n, ctypes.c_int) for n in ("regs", "static_shared", "local", "constant", "max_threads", "ptx", "active")
    ]


_LAUNCH = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_SimLaunch))
_FUNC = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint64, ctypes.POINTER(_SimFunc)
)
_SYMBOL = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint64), ctypes.POINTER(ctypes.c_uint64)
)
_ERROR = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p)


class _Hooks(ctypes.Structure):
    _fields_ = [("launch", _LAUNCH), ("func", _FUNC), ("symbol", _SYMBOL), ("error", _ERROR)]


_CODE = {
    "out-of-bounds": "cudaErrorIllegalAddress",
    "read-only": "cudaErrorIllegalAddress",
    "misaligned": "cudaErrorMisalignedAddress",
    "trap": "cudaErrorAssert",
    "instruction-limit": "cudaErrorLaunchTimeout",
    "unsupported": "cudaErrorNotSupported",
}
_NEAR = 1 << 25  # half a red zone
_SMS = {75: 40, 80: 108, 86: 84, 87: 16, 89: 128, 90: 132, 100: 148, 120: 170}
_L2_MIB = {75: 4, 80: 40, 86: 6, 87: 4, 89: 72, 90: 50, 100: 126, 120: 96}


class Runtime:
    """The one simulated device of this process."""

    def __init__(self):
        self.path = _link_runtime()
        self.lib = lib = ctypes.CDLL(self.path)
        lib.ptxsim_ptx.restype = ctypes.c_char_p
        lib.ptxsim_allocs.restype = ctypes.c_uint64
        lib.ptxsim_register_buffer.restype = ctypes.c_void_p
        lib.ptxsim_register_buffer.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self.memory, self.modules, self.ptxas, self.lock = Memory(), {}, {}, threading.Lock()
        self.devices = [device("sm_80", _keep=False)]
        self.hooks = _Hooks(
            _LAUNCH(self._hook(self.launch)),
            _FUNC(self._hook(self.func)),
            _SYMBOL(self._hook(self.symbol)),
            _ERROR(self.error),
        )
        lib.ptxsim_hooks(ctypes.byref(self.hooks))
        self.configure()

    @property
    def device(self):
        return self.devices[-1]

    def configure(self):
        n = int(re.sub(r"\D", "", self.device.arch))
        regs, smem, block, threads, blocks = _sm(self.device.arch)
        base = max([k for k in _SMS if k <= n] or [75])
        d = _SimDevice(
            n // 10, n % 10, self.device.sms or _SMS[base], threads, blocks, regs, smem, block, _L2_MIB[base] << 20
        )
        self.sms = d.sms
        self.lib.ptxsim_device(ctypes.byref(d))

    def _hook(self, f):
        def hook(*args):
            try:
                with self.lock:
                    f(*args)
                return 0
            except SimError as e:
                return self._failed(e, _CODE.get(e.kind, "cudaErrorLaunchFailure"))
            except CudaError as e:
                return self._failed(e, e.code)
            except PtxError as e:
                return self._failed(e, "cudaErrorNotSupported")
            except BaseException as e:  # (nothing may pass through the C code)
                return self._failed(e, "cudaErrorUnknown")

        return hook

    def _failed(self, e, code):
        self.error_of(e)
        self.lib.ptxsim_detail((str(e) or repr(e)).encode())
        return self.lib.ptxsim_error_code(code.encode())

    def error_of(self, e):
        if self.device.keep:
            self.device.errors.append(e)

    def error(self, code, text):
        self.error_of(CudaError(self._name(code), text.decode()))

    def _name(self, code):
        f = self.lib.cudaGetErrorName
        f.restype = ctypes.c_char_p
        return f(code).decode()

    def module(self, i):
        if i not in self.modules:
            text = self.lib.ptxsim_ptx(i).decode()
            if ".version" not in text:
                raise CudaError(
                    "cudaErrorNoKernelImageForDevice",
                    "no readable PTX in the fat binary: compile with "
                    "-gencode arch=compute_XX,code=compute_XX -no-compress",
                )
            self.modules[i] = m = Module(text, memory=self.memory)
            for name, a in m._vars.items():
                if "\0" not in name and a.nbytes:
                    addr = m.address_of(name)
                    self.lib.ptxsim_map(
                        ctypes.c_uint64(addr),
                        ctypes.c_uint64(a.nbytes),
                        ctypes.c_void_p(a.ctypes.data),
                        ctypes.c_uint64(self.memory.entries["var", id(m), name][2]),
                    )
        return self.modules[i]

    def kernel(self, i, name):
        return self.module(i).kernels[name.decode()]

    def resources(self, i, k):
        """What ptxas makes of a kernel for the device (compiled when first asked for)."""
        key = i, self.device.arch
        if key not in self.ptxas:
            ptx = os.path.join(
                build.cache_dir(), f"ptxas-{_hash(self.module(i).text, self.device.arch, nvcc_path())}.ptx"
            )
            log = ptx[:-4] + ".log"
            with _locked(ptx):
                if not os.path.exists(log):
                    with open(ptx, "w") as f:
                        f.write(self.module(i).text)
                    try:
                        text = _run(
                            [
                                nvcc_path(),
                                "-cubin",
                                f"-arch={self.device.arch}",
                                "-Xptxas",
                                "-v",
                                ptx,
                                "-o",
                                ptx + ".cubin",
                            ]
                        )
                    except RuntimeError as e:
                        raise CudaError("cudaErrorNoKernelImageForDevice", str(e)) from e
                    with open(log, "w") as f:
                        f.write(text)
                    os.unlink(ptx)
                    os.unlink(ptx + ".cubin")
            self.ptxas[key] = {d["name"]: d for d in parse_ptxas(_read(log).decode())}
        return self.ptxas[key][k.name]

    def max_threads(self, i, k):
        """Threads per block that the registers allow."""
        regs = (max(self.resources(i, k)["registers"], 1) * 32 + 255) // 256 * 256
        return min(k.max_threads or 1024, 65536 // 4 // regs * 4 * 32, 1024)

    def active(self, i, k, threads, shared):
        d = self.resources(i, k)
        return (
            occupancy(self.device.arch, d["registers"], k.static_shared + shared, threads)[0]
            if threads <= self.max_threads(i, k)
            else 0
        )

    # ---- hooks
    def func(self, i, name, block, shared, out):
        k, o = self.kernel(i, name), out.contents
        o.static_shared = k.static_shared
        if block < 0:  # no more than that is wanted
            return
        d = self.resources(i, k)
        o.regs, o.local, o.constant = d["registers"], d["stack"], d["const"]
        o.max_threads = self.max_threads(i, k)
        o.ptx = int(re.sub(r"\D", "", self.module(i).ptx.target))
        o.active = self.active(i, k, block, shared) if block else 0

    def symbol(self, i, name, addr, size):
        m, name = self.module(i), name.decode()
        addr[0], size[0] = m.address_of(name), m._vars[name].nbytes

    def launch(self, L):
        L, dev = L.contents, self.device
        k = self.kernel(L.module, L.kernel)
        grid, block = list(L.grid), list(L.block)
        rec = Launch(k, L)
        if dev.keep:
            dev.launches.append(rec)
        where = f"launch of {k.pretty} with grid {grid}, block {block}, {L.shared} bytes of dynamic shared memory: "
        have, want = (int(re.sub(r"\D", "", a)) for a in (dev.arch, k.mod.ptx.target))
        if have < want or (have != want and k.mod.ptx.target.endswith("a")):
            raise CudaError("cudaErrorNoKernelImageForDevice", where + f"PTX for {k.mod.ptx.target}, device {dev.arch}")
        bad = config_error(
            k, grid, block, L.shared, dev.arch, L.max_dynamic if L.max_dynamic >= 0 else 48 * 1024 - k.static_shared
        )
        if bad:
            raise CudaError(bad[0], where + bad[1])
        n = block[0] * block[1] * block[2]
        if n > 256 and not k.max_threads and n > self.max_threads(L.module, k):
            raise CudaError(
                "cudaErrorLaunchOutOfResources",
                where + f"{self.resources(L.module, k)['registers']} registers a thread allow "
                f"{self.max_threads(L.module, k)} threads a block (__launch_bounds__ would limit the registers)",
            )
        if L.cooperative and int(np.prod(grid)) > (fit := self.active(L.module, k, n, L.shared) * self.sms):
            raise CudaError("cudaErrorCooperativeLaunchTooLarge", where + f"{fit} blocks fit on the device at once")
        if max(L.cluster) > 1:
            raise PtxError(where + "clusters of more than one block are not supported")
        params = bytearray(k.built.params_size)
        for p, a in zip(k.params, L.args[: len(k.params)], strict=False):
            params[p.offset : p.offset + p.size] = ctypes.string_at(a, p.size)
        ents = [(x.base, x.size, x.host, x.flags & 1) for x in self.allocs()]
        self.check_pointers(k, params, ents, where)
        try:
            rec.report = k.mod._run(
                k, grid, block, bytes(params), ents, L.shared, cooperative=bool(L.cooperative), **dev.options
            )
        except SimError as e:
            rec.report = e.report
            self.name_buffer(e, k, params, ents)
            raise
        for f in rec.report.findings:
            warnings.warn(str(f), PtxSimWarning, stacklevel=2)

    def allocs(self):
        n = self.lib.ptxsim_allocs(None, ctypes.c_uint64(0))
        a = (_SimAlloc * max(n, 1))()
        return a[: min(n, self.lib.ptxsim_allocs(a, ctypes.c_uint64(n)))]

    def allocated(self):
        """Bytes of cudaMalloc and the like that are not freed yet."""
        return sum(x.size for x in self.allocs() if x.flags & 2)

    @staticmethod
    def pointers(k, params):
        """(number, type, value) of the kernel's pointer parameters."""
        for n, (p, t) in enumerate(zip(k.params, _param_types(k.pretty, len(k.params)), strict=False)):
            if t.endswith("*") and p.size == 8:
                yield n, t, int.from_bytes(params[p.offset : p.offset + 8], "little")

    def check_pointers(self, k, params, ents, where):
        """A pointer parameter must be null, or at most half a red zone away from a buffer."""
        for n, t, v in self.pointers(k, params):
            if v and not any(b - _NEAR <= v <= b + size + _NEAR for b, size, _, _ in ents):
                raise CudaError(
                    "cudaErrorIllegalAddress",
                    where + f"parameter {n} ({t}) is 0x{v:x}, which is in no registered buffer (a tensor "
                    "whose address did not come from device_ptr, or memory that is gone)",
                )

    def name_buffer(self, e, k, params, ents):
        """Adds to a finding in global memory which parameters point into the nearest buffer."""
        a = e.finding.address
        if (
            e.kind != "out-of-bounds" or a >> 32 == 0 or a >> 32 in range(0x7E00, 0x7E30)
        ):  # (not shared, local, parameters)
            return
        note = (
            "; no registered buffer is near: memory that is gone, an address that is not from device_ptr, or a wild "
            "index"
        )
        for b, size, _, _ in ents:
            if b - _NEAR <= a <= b + size + _NEAR:
                which = [f"{n} ({t})" for n, t, v in self.pointers(k, params) if b <= v <= b + size]
                note = f"; the buffer of parameter {' and '.join(which)}" if which else ""
        e.finding.message += note
        e.args = (str(e.finding),)


def _param_types(pretty, n):
    """The parameter types in a demangled signature; '' where there is none (extern "C")."""
    if not pretty.endswith(")"):
        return [""] * n
    depth, parts, cur = 0, [], ""
    for c in reversed(pretty[:-1]):
        if c == "(" and depth == 0:
            break
        depth += (c in ")>]") - (c in "(<[")
        if c == "," and depth == 0:
            parts.append(cur)
            cur = ""
        else:
            cur += c
    parts = [re.sub(r"\s*(__restrict__|const)?$", "", x[::-1].strip()) for x in [*parts, cur]][::-1]
    return parts if len(parts) == n else [""] * n


_runtime = None


def runtime():
    global _runtime
    if _runtime is None:
        _runtime = Runtime()
    return _runtime


class device(contextlib.AbstractContextManager):
    """`with ptxsim.device(arch='sm_80', strict=True) as dev:` — the device on which ops of sim builds run meanwhile.

    Args:
        arch, sms: what the host code is told, and the limits of launches; default: that for which the newest extension
            was built.
        poison: torch.empty and the like are filled with NaN (integers: the greatest), so that what no kernel writes
            shows.
        options: as for Module.launch: strict, checks, race, metrics, workers, resident, schedule, seed, max_instr,
            quantum, printf.

    `launches` has a Launch for every launch, `leaked` says what was cudaMalloc'ed and not freed (bytes), `errors` has
    the findings and API errors. The first one is raised at the end of the block, whatever the op made of it.
    `take_error()` removes and returns it.
    """

    def __init__(self, arch=None, sms=None, poison=True, _keep=True, **options):
        ok = {
            "strict",
            "checks",
            "race",
            "metrics",
            "workers",
            "resident",
            "schedule",
            "seed",
            "max_instr",
            "quantum",
            "printf",
        }
        if set(options) - ok:
            raise TypeError(f"unknown options {sorted(set(options) - ok)}")
        self.arch, self.sms, self.poison, self.keep, self.options = arch, sms, poison, _keep, options
        self.launches, self.errors, self.leaked = [], [], 0

    def __enter__(self):
        rt = runtime()
        self.arch = self.arch or rt.devices[0].arch
        rt.devices.append(self)
        rt.configure()
        rt.lib.ptxsim_unchecked()  # an old error is not this block's
        self._before = rt.allocated()
        if self.poison:
            import torch

            self._torch = (
                torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled(),
                torch.utils.deterministic.fill_uninitialized_memory,
            )
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.utils.deterministic.fill_uninitialized_memory = True
        return self

    def __exit__(self, kind, exc, tb):
        rt = runtime()
        rt.devices.remove(self)
        rt.configure()
        rt.lib.ptxsim_unchecked()
        rt.lib.ptxsim_forget()
        self.leaked = rt.allocated() - self._before
        if self.poison:
            import torch

            torch.use_deterministic_algorithms(self._torch[0], warn_only=self._torch[1])
            torch.utils.deterministic.fill_uninitialized_memory = self._torch[2]
        if self.errors and exc is not self.errors[0]:
            raise self.errors[0] from exc

    def take_error(self):
        return self.errors.pop(0) if self.errors else None

    def count(self, name):
        """How many launches were of kernels whose name contains this."""
        return sum(name in x.kernel for x in self.launches)


# ---------------------------------------------------------------- building
def _run(cmd):
    r = subprocess.run(cmd, capture_output=True, text=True)
    if r.returncode:
        raise RuntimeError(f"{shlex.join(cmd)}\n{r.stdout}{r.stderr}")
    return r.stderr


def _hash(*parts):
    h = hashlib.sha256()
    for p in parts:
        h.update((p if isinstance(p, bytes) else str(p).encode()) + b"\0")
    return h.hexdigest()[:20]


def _read(path):
    with open(path, "rb") as f:
        return f.read()


@contextlib.contextmanager
def _locked(path):
    with open(path + ".lock", "w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def _link_runtime():
    src = os.path.join(build.CORE, "cudart_sim.cpp")
    path = os.path.join(build.cache_dir(), f"libptxsim_cudart-{_hash(_read(src), nvcc_path())}.so")
    with _locked(path):
        if not os.path.exists(path):
            with tempfile.TemporaryDirectory(prefix="ptxsim-") as tmp:
                # symbols with a version of their own, or those of a real libcudart that torch has loaded would win
                vers = os.path.join(tmp, "map")
                with open(vers, "w") as f:
                    f.write("PTXSIM_CUDART { global: *; };\n")
                out = f"{path}.{os.getpid()}"
                _run(
                    [
                        nvcc_path(),
                        "-shared",
                        "-O2",
                        "-std=c++17",
                        "-cudart",
                        "none",
                        "-Xcompiler",
                        "-fPIC",
                        src,
                        "-o",
                        out,
                        "-Xlinker",
                        f"--version-script={vers},-soname={os.path.basename(path)}",
                    ]
                )
                os.replace(out, path)
    return path


def _object(src, cmd, system):
    """Compiles one file unless an object of the same command, source and headers is in the cache; returns its path."""
    base = os.path.join(build.cache_dir(), f"obj-{_hash(os.path.abspath(src), *cmd)}")
    obj, deps = base + ".o", base + ".d"

    def stamp():
        names = shlex.split(_read(deps).decode().replace("\\\n", " ").split(":", 1)[1])
        return _hash(*[x for n in names if not n.startswith(system) for x in (n, _read(n))])

    with _locked(base):
        try:
            if _read(base + ".stamp").decode() == stamp():
                return obj
        except OSError:
            pass
        _run([*cmd, "-MD", "-MF", deps, "-c", src, "-o", obj])
        with open(base + ".stamp", "w") as f:
            f.write(stamp())
    return obj


class Extension:
    """A loaded sim build. With torch: call torch.ops.<namespace>.<op>. Without: `lib` is a ctypes library."""

    def __init__(self, name, path, lib):
        self.name, self.path, self.lib = name, path, lib

    @staticmethod
    def device_ptr(array, writable=True):
        """Registers a numpy array until the device block ends.

        Returns its device address, for host functions called with ctypes.
        """
        return runtime().lib.ptxsim_register_buffer(array.ctypes.data, array.nbytes, int(writable))


def build_sim_extension(
    name,
    sources,
    include_dirs=(),
    cflags=(),
    nvcc_flags=(),
    file_flags=None,
    arch="sm_80",
    torch=True,
    jobs=2,
    verbose=False,
):
    """Compiles .cu and .cpp files with -DPTXSIM, links them with the simulated runtime, and loads the library.

    cflags are for the host compiler (all sources), nvcc_flags for the .cu files, file_flags by name for some of these.
    Objects are kept in the cache directory."""
    rt = runtime()
    cc = arch.replace("sm_", "compute_")
    dirs = [os.path.abspath(d) for d in include_dirs] + [os.path.join(build.HERE, "include")]
    # (unique symbols are one for the process: inline host code could share its caches with a libtorch_cuda that found
    # no device)
    host, libs, system = ["-fPIC", "-fno-gnu-unique", *cflags], [], ["/usr/include/", "/usr/lib/"]
    system.append(os.path.dirname(_cuda_header()) + "/")
    defs = ["-DPTXSIM"]
    if torch:
        import torch as t

        root = os.path.dirname(t.__file__)
        dirs += [os.path.join(root, "include"), os.path.join(root, "include/torch/csrc/api/include")]
        system.append(root + "/")
        defs += [f"-D_GLIBCXX_USE_CXX11_ABI={int(t._C._GLIBCXX_USE_CXX11_ABI)}", f'-DPTXSIM_TORCH="{t.__version__}"']
        libs = [f"-L{root}/lib", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{root}/lib"]
    common = [
        nvcc_path(),
        "-std=c++20",
        "-O2",
        *defs,
        *[f"-I{d}" for d in dirs],
        *[x for h in host for x in ("-Xcompiler", h)],
    ]

    def compiled(src):
        cu = (
            ["-gencode", f"arch={cc},code={cc}", "-no-compress", "-lineinfo", *nvcc_flags]
            if str(src).endswith(".cu")
            else []
        )
        cu += (file_flags or {}).get(os.path.basename(src), ())
        if verbose:
            print("compiling", src)
        return _object(str(src), common + cu, tuple(system))

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        objs = list(pool.map(compiled, sources))
    cmd = ["g++", "-shared", "-Wl,-z,defs", "-Wl,--as-needed", *objs, rt.path, *libs]
    path = os.path.join(build.cache_dir(), f"{name}-{_hash(*cmd, *[_read(o) for o in objs])}.so")
    with _locked(path):
        if not os.path.exists(path):
            _run([*cmd, "-o", f"{path}.{os.getpid()}"])
            os.replace(f"{path}.{os.getpid()}", path)
    lib = ctypes.CDLL(path)
    if torch:
        t.ops.load_library(path)
    if rt.devices[0].arch != arch:  # outside of `with device`, the newest extension's
        rt.devices[0].arch = arch
        rt.configure()
    return Extension(name, path, lib)


def _cuda_header():
    r = subprocess.run(
        [nvcc_path(), "--dryrun", "-x", "cu", "-c", os.devnull, "-o", "none.o"], capture_output=True, text=True
    )
    for d in re.findall(r'-I\s*"?([^"\s]+)', r.stderr):
        if os.path.exists(os.path.join(d, "cuda_runtime.h")):
            return os.path.realpath(os.path.join(d, "cuda_runtime.h"))
    return "/usr/include/cuda_runtime.h"
