"""A PTX module: its kernels and variables, and launches on numpy arrays."""

import ctypes
import re
import warnings
from collections import OrderedDict

import numpy as np

from . import abi, build
from .kernel import Kernel
from .limits import config_error
from .memory import GRID_BARRIER, Arguments, Memory
from .nvcc import compile_flags, demangle, run_nvcc
from .options import LaunchOptions
from .parser import PtxError, PtxModule, init_bytes
from .report import Finding, PtxSimWarning, Report, SimError

_MAX_FINDINGS = 256
_MAX_OUTPUT = 1 << 20  # bytes of printf


class Module:
    """A loaded PTX module."""

    def __init__(self, text, source=None, memory=None):
        self.text, self.source = text, source
        self.ptx = PtxModule(text)
        self.mem = memory or Memory()
        names = [n for n, f in self.ptx.funcs.items() if f.entry and f.body]
        pretty = demangle(names)
        self.kernels = OrderedDict((n, Kernel(self, n, pretty[n])) for n in names)
        self._variables = {}  # name -> (address, array, flags)
        for n, v in self.ptx.vars.items():
            if v.space in ("global", "const") and not (v.extern and not v.size):
                array = np.zeros(max(v.size, 1), np.uint8)[: v.size]
                flags = abi.READ_ONLY if v.space == "const" else 0
                self._variables[n] = (self.mem.add(array, flags, key=("var", id(self), n)), array, flags)
        for n, (_, array, _) in self._variables.items():
            if self.ptx.vars[n].init:
                array[:] = np.frombuffer(bytes(init_bytes(self.ptx, self.ptx.vars[n], self.address_of)), np.uint8)

    # ---- module variables
    def address_of(self, name):
        """The device address of a module variable, by mangled name."""
        if name not in self._variables:
            raise PtxError(f"no address for {name}")
        return self._variables[name][0]

    def variable_memory(self):
        """(address, array, flags) of every variable."""
        return list(self._variables.values())

    def variable(self, name, dtype=np.uint8):
        """The contents of a __device__/__constant__ variable as a live numpy view (C or mangled name)."""
        if name not in self._variables:
            dm = demangle(list(self._variables))
            hit = [n for n, d in dm.items() if d == name or d.split("::")[-1] == name]
            if len(hit) != 1:
                there = ", ".join(dm.values()) or "none"
                raise KeyError(f"{len(hit)} variables have the name {name!r}, not one. There are: {there}")
            name = hit[0]
        return self._variables[name][1].view(dtype)

    # ---- buffers that outlive a launch
    def ptr(self, array, offset=0):
        """Registers an array for the life of the module; returns its device address (for pointers inside structs)."""
        if not array.flags.c_contiguous:
            raise ValueError("array must be contiguous")
        return self.mem.add(array, 0 if array.flags.writeable else abi.READ_ONLY) + offset

    def find(self, name):
        """The kernel by mangled name, full demangled signature, or a unique part of it (up to template arguments)."""
        if isinstance(name, Kernel):
            return name
        if name in self.kernels:
            return self.kernels[name]

        def squeeze(s):
            return re.sub(r"\s+", "", s)

        want = squeeze(name)

        def base(k):
            s = re.sub(r"^void ", "", k.pretty)
            depth = 0
            for i, c in enumerate(s):  # cut the parameter list
                depth += c == "<"
                depth -= c == ">"
                if c == "(" and depth == 0 and not s.startswith("(anonymous namespace)", i):
                    return s[:i]
            return s

        ks = list(self.kernels.values())
        for test in (
            lambda k: squeeze(k.pretty) == want,
            lambda k: squeeze(base(k)) == want,
            lambda k: squeeze(base(k)).split("<")[0].split("::")[-1] == want,
            lambda k: squeeze(base(k)).split("::")[-1] == want,
            lambda k: want in squeeze(k.pretty),
        ):
            hit = [k for k in ks if test(k)]
            if len(hit) == 1:
                return hit[0]
            if len(hit) > 1:
                raise KeyError(f"{name!r} is ambiguous: " + "; ".join(k.pretty for k in hit))
        raise KeyError(f"no kernel {name!r}; there are: " + "; ".join(k.pretty for k in ks))

    def launch(self, name, grid, block, args=(), shared=0, warn=True, **options):
        """Runs a kernel. Arrays among the arguments are device buffers, changed in place.

        Args:
            name: mangled, or an unambiguous part of the demangled signature; see `find`.
            grid, block: a number or up to three.
            shared: bytes of dynamic shared memory.
            warn: findings that do not raise become PtxSimWarnings.
            options: see LaunchOptions.

        Returns:
            A Report.

        Raises:
            SimError: a check stopped the launch.
            ValueError: a device would refuse the launch.
        """
        kernel = self.find(name)
        options = LaunchOptions(**options)
        grid, block = _dim3(grid), _dim3(block)
        refused = config_error(kernel, grid, block, shared, self.ptx.target)
        if refused:
            raise ValueError(refused[1])
        arguments = Arguments(kernel, args, self.mem)
        allocations = self.mem.allocations() + arguments.allocations
        try:
            report = self.run_raw(kernel, grid, block, arguments.params, allocations, shared, options)
        finally:
            arguments.copy_back()
        if warn:
            for f in report.findings:
                warnings.warn(str(f), PtxSimWarning, stacklevel=2)
        return report

    def run_raw(self, kernel, grid, block, params, allocations, shared, options):
        """Runs a kernel on raw parameter bytes.

        Args:
            allocations: (device address, bytes, host address, flags) of every buffer.
            options: LaunchOptions.
        """
        built = kernel.built
        if kernel.cluster_size > 1:
            raise PtxError(f"clusters of {kernel.cluster_size} blocks are not supported")
        allocations = sorted(allocations)
        resident, workers, quantum = options.resident, options.workers, options.quantum
        if resident > 1:
            quantum = min(quantum, 20000)  # blocks that wait for each other
        config = abi.LaunchConfig()
        if options.cooperative:
            words = np.zeros(64, np.uint8)
            allocations.insert(0, (GRID_BARRIER, words.nbytes, words.ctypes.data, 0))
            resident, workers, quantum = 1 << 30, 1, 2000
            config.grid_barrier = GRID_BARRIER
        state = _shared_state(built, shared)
        table = (abi.Allocation * max(1, len(allocations)))(*[abi.Allocation(*a) for a in allocations])
        stats = np.zeros(len(kernel.ops) + 1, abi.STATS)
        findings = (abi.Finding * _MAX_FINDINGS)()
        output = ctypes.create_string_buffer(_MAX_OUTPUT)
        raw_params = ctypes.create_string_buffer(bytes(params) + b"\0", len(params) + 1)

        config.grid[:], config.block[:] = grid, block
        config.params, config.params_size = ctypes.addressof(raw_params), len(params)
        config.shared_size, config.shared_state = built.shared_end(shared), state.ctypes.data
        config.dynamic_shared, config.user_shared = shared, shared + built.static_shared
        config.local_size = built.local_size
        config.allocations, config.num_allocations = ctypes.addressof(table), len(allocations)
        config.check_levels[: len(abi.KINDS)] = [abi.LEVELS[options.level(kind)] for kind in abi.KINDS]
        config.max_instructions, config.quantum, config.seed = int(options.max_instr), int(quantum), options.seed
        config.workers, config.resident = workers or 1, min(resident, int(np.prod(grid)))
        config.schedule = abi.SCHEDULES[options.schedule]
        config.race, config.metrics = options.race_detection, bool(options.metrics)
        config.granule_log2, config.max_findings, config.print = built.granule, _MAX_FINDINGS, bool(options.printf)
        config.stats, config.findings = stats.ctypes.data, ctypes.addressof(findings)
        config.output, config.output_capacity = ctypes.addressof(output), _MAX_OUTPUT
        build.core().ptxsim_run(ctypes.c_void_p(kernel.program), ctypes.byref(config))

        report = Report(
            kernel,
            stats,
            [Finding(f, kernel) for f in findings[: config.num_findings]],
            output.raw[: config.output_size].decode("utf-8", "replace"),
            config.warp_instructions,
            tuple(grid),
            tuple(block),
            bool(options.metrics),
        )
        report.dynamic_shared = shared
        if config.failed:
            error = SimError(Finding(config.error, kernel))
            error.report = report
            raise error
        if report.output and options.printf:
            print(report.output, end="")
        return report


def _shared_state(built, dynamic):
    """State of every byte of a block's shared memory: variables between red zones, then the dynamic part."""
    state = np.full(max(built.shared_end(dynamic), 1), abi.RED_ZONE, np.uint8)
    for _, offset, size in built.shared_vars:
        state[offset : offset + size] = abi.UNINITIALISED
    if dynamic:
        state[built.dynamic_base : built.dynamic_base + dynamic] = abi.UNINITIALISED
    return state


def _dim3(x):
    x = [int(v) for v in x] if isinstance(x, (tuple, list)) else [int(x)]
    return x + [1] * (3 - len(x))


def compile(source, arch="sm_80", include_dirs=(), defines=(), flags=()):
    """nvcc -ptx of a .cu file (path) or of source text. Returns a Module."""
    out, _, tmp = run_nvcc(source, ["-ptx", "-lineinfo", *compile_flags(arch, include_dirs, defines, flags)], ".ptx")
    with open(out) as f, tmp:
        return Module(f.read(), source)


def load_ptx(text):
    """A Module from PTX text."""
    return Module(text)
