"""Compile or load PTX, launch kernels on numpy arrays, and report what they did."""

import ctypes
import os
import re
import shutil
import subprocess
import tempfile
import warnings
from collections import OrderedDict

import numpy as np

from . import build
from .parser import KernelBuilder, PtxError, PtxModule, init_bytes

_KINDS = [
    "none",
    "out-of-bounds",
    "misaligned",
    "uninitialised-shared",
    "race",
    "barrier",
    "barrier-after-exit",
    "barrier-mismatch",
    "shuffle",
    "warp-sync",
    "unsupported",
    "trap",
    "instruction-limit",
    "read-only",
    "async-in-flight",
    "other",
    "warp-race",
]
# what each adjustable check does by default: 'raise', 'warn' or 'off' (the other kinds always raise)
DEFAULT_CHECKS = {
    "misaligned": "raise",
    "uninitialised-shared": "warn",
    "race": "warn",
    "barrier-after-exit": "warn",
    "barrier-mismatch": "warn",
    "shuffle": "warn",
    "async-in-flight": "warn",
    "warp-race": "off",
}
_ALWAYS_RAISE = (
    "out-of-bounds",
    "barrier",
    "warp-sync",
    "unsupported",
    "trap",
    "instruction-limit",
    "read-only",
    "other",
)


class PtxSimWarning(UserWarning):
    """A finding that did not stop the launch."""


class SimError(Exception):
    """A check that stopped the launch; .finding has the details."""

    def __init__(self, finding):
        super().__init__(str(finding))
        self.finding = finding
        self.kind = finding.kind


class _Alloc(ctypes.Structure):
    _fields_ = [
        ("base", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("host", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
    ]


class _Finding(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_int32),
        ("pc", ctypes.c_int32),
        ("pc2", ctypes.c_int32),
        ("pad", ctypes.c_int32),
        ("blk", ctypes.c_int32 * 3),
        ("tid", ctypes.c_int32 * 3),
        ("addr", ctypes.c_uint64),
        ("count", ctypes.c_uint64),
        ("msg", ctypes.c_char * 232),
    ]


_STAT = np.dtype(
    [
        (n, "<u8")
        for n in (
            "warp_exec",
            "thread_exec",
            "divergent",
            "accesses",
            "bytes",
            "sectors",
            "min_sectors",
            "wavefronts",
            "min_wavefronts",
            "max_degree",
        )
    ]
)


class _Launch(ctypes.Structure):
    _fields_ = [
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("params", ctypes.c_void_p),
        ("params_size", ctypes.c_uint64),
        ("shared_size", ctypes.c_uint64),
        ("shared_state", ctypes.c_void_p),
        ("dyn_shared", ctypes.c_uint64),
        ("user_shared", ctypes.c_uint64),
        ("local_size", ctypes.c_uint64),
        ("allocs", ctypes.c_void_p),
        ("nallocs", ctypes.c_uint64),
        ("level", ctypes.c_uint8 * 32),
        ("max_instr", ctypes.c_uint64),
        ("quantum", ctypes.c_uint64),
        ("seed", ctypes.c_uint64),
        ("envreg_ptr", ctypes.c_uint64),
        ("workers", ctypes.c_int32),
        ("resident", ctypes.c_int32),
        ("schedule", ctypes.c_int32),
        ("race", ctypes.c_int32),
        ("metrics", ctypes.c_int32),
        ("granule_log2", ctypes.c_int32),
        ("max_findings", ctypes.c_int32),
        ("printf_on", ctypes.c_int32),
        ("stats", ctypes.c_void_p),
        ("findings", ctypes.c_void_p),
        ("nfindings", ctypes.c_int32),
        ("failed", ctypes.c_int32),
        ("error", _Finding),
        ("total_warp_instr", ctypes.c_uint64),
        ("outbuf", ctypes.c_void_p),
        ("outcap", ctypes.c_uint64),
        ("outlen", ctypes.c_uint64),
    ]


class Finding:
    """One error or warning: kind, kernel, instruction, source line, block, thread, address, how often."""

    def __init__(self, f, kernel):
        self.kind, self.message, self.count = (
            _KINDS[f.kind],
            f.msg.decode("utf-8", "replace").replace("\x01", "."),
            f.count,
        )
        self.kernel, self.address, self.pc, self.pc2 = kernel.pretty, f.addr, f.pc, f.pc2
        self.block, self.thread = tuple(f.blk), tuple(f.tid)
        self.instruction, self.source = kernel.instr_text(f.pc), kernel.source(f.pc)
        self.instruction2 = kernel.instr_text(f.pc2) if f.pc2 >= 0 else None
        self.source2 = kernel.source(f.pc2) if f.pc2 >= 0 else None

    def __str__(self):
        s = f"{self.kind}: {self.message}\n  kernel {self.kernel}, block {self.block}, thread {self.thread}"
        s += f", address 0x{self.address:x}" if self.address else ""
        s += f"\n  instruction #{self.pc}: {self.instruction}" + (f"   [{self.source}]" if self.source else "")
        if self.instruction2 is not None:
            s += f"\n  against #{self.pc2}: {self.instruction2}" + (f"   [{self.source2}]" if self.source2 else "")
        if self.count > 1:
            s += f"\n  seen {self.count} times"
        return s

    __repr__ = __str__


# ---------------------------------------------------------------- opcode classes
def opcode_class(op):
    p = op.split(".")
    n, s = p[0], set(p)
    if n in ("ld", "ldu", "st"):
        for sp in ("global", "local", "const"):
            if sp in s:
                return f"{n[:2]}.{sp}"
        if any(x.startswith("shared") for x in s):
            return f"{n}.shared"
        if any(x.startswith("param") for x in s):
            return "ld.param"
        return f"{n}.generic"
    if n in ("atom", "red"):
        return "atomic.shared" if any(x.startswith("shared") for x in s) else "atomic.global"
    if n in ("mma", "wmma"):
        return "tensor"
    if n in ("ldmatrix", "stmatrix"):
        return "ldmatrix"
    if n in ("cp", "mbarrier"):
        return "cp.async" if n == "cp" else "mbarrier"
    if n in ("bar", "barrier"):
        return "warp sync" if "warp" in s else "barrier"
    if n in ("shfl", "vote", "match", "redux", "activemask", "elect"):
        return "shuffle/vote"
    if n in ("bra", "brx", "ret", "exit", "call"):
        return "control"
    if n in ("membar", "fence"):
        return "fence"
    if n in ("cvt", "cvta"):
        return "convert"
    if n in ("mov", "selp", "slct", "prmt"):
        return "move/select"
    if n in ("setp", "set") or "pred" in s:
        return "compare/predicate"
    if n in ("ex2", "lg2", "sin", "cos", "rcp", "sqrt", "rsqrt", "tanh") or (n == "div" and s & {"f32", "f64"}):
        return "special function"
    if "f64" in s:
        return "fp64"
    if s & {"f16", "f16x2", "bf16", "bf16x2"}:
        return "fp16/bf16"
    if "f32" in s:
        return "fp32"
    return "integer"


def _flops(op):
    """Floating-point operations of one thread's (mma: one thread's share of the warp's) execution of op."""
    p = op.split(".")
    if p[0] in ("mma", "wmma"):
        for x in p:
            m = re.fullmatch(r"m(\d+)n(\d+)k(\d+)", x)
            if m and (p[0] == "mma" or p[1] == "mma"):
                return 2 * int(m[1]) * int(m[2]) * int(m[3]) / 32
        return 0
    if not set(p) & {"f32", "f64", "f16", "bf16", "f16x2", "bf16x2"}:
        return 0
    n = {"fma": 2, "mad": 2, "add": 1, "sub": 1, "mul": 1, "div": 1, "min": 1, "max": 1}.get(p[0], 0)
    return n * (2 if set(p) & {"f16x2", "bf16x2"} else 1)


class Report:
    """What one launch executed. Bytes are those the threads asked for; sectors are 32 bytes."""

    def __init__(self, kernel, stats, findings, out, total, grid, block, metrics=True):
        self.metrics, self.dynamic_shared = metrics, 0
        self.kernel, self.stats, self.findings, self.output = kernel, stats, findings, out
        self.grid, self.block = grid, block
        self.warp_instructions = int(total)
        self.thread_instructions = int(stats["thread_exec"].sum())
        self.by_class, self.flops = OrderedDict(), 0.0
        g = {"load_bytes": 0, "store_bytes": 0, "load_sectors": 0, "store_sectors": 0, "load_min": 0, "store_min": 0}
        sh = {"accesses": 0, "wavefronts": 0, "min_wavefronts": 0, "bytes": 0}
        acc = {}
        for pc, op in enumerate(kernel.ops):
            s = stats[pc]
            if not s["warp_exec"]:
                continue
            c = opcode_class(op)
            a = acc.setdefault(c, [0, 0])
            a[0] += int(s["warp_exec"])
            a[1] += int(s["thread_exec"])
            self.flops += _flops(op) * int(s["thread_exec"])
            if s["sectors"]:
                k = "store" if op.startswith(("st", "red", "cp.async.bulk.global")) else "load"
                g[k + "_bytes"] += int(s["bytes"])
                g[k + "_sectors"] += int(s["sectors"])
                g[k + "_min"] += int(s["min_sectors"])
            if s["wavefronts"]:
                sh["accesses"] += int(s["accesses"])
                sh["bytes"] += int(s["bytes"])
                sh["wavefronts"] += int(s["wavefronts"])
                sh["min_wavefronts"] += int(s["min_wavefronts"])
        for c in sorted(acc, key=lambda c: -acc[c][0]):
            self.by_class[c] = {"warp": acc[c][0], "thread": acc[c][1]}
        self.global_load_bytes, self.global_store_bytes = g["load_bytes"], g["store_bytes"]
        self.global_load_sectors, self.global_store_sectors = g["load_sectors"], g["store_sectors"]
        self.load_efficiency = g["load_min"] / g["load_sectors"] if g["load_sectors"] else 1.0
        self.store_efficiency = g["store_min"] / g["store_sectors"] if g["store_sectors"] else 1.0
        self.shared_accesses, self.shared_bytes = sh["accesses"], sh["bytes"]
        self.shared_wavefronts, self.shared_min_wavefronts = sh["wavefronts"], sh["min_wavefronts"]
        self.bank_conflict_factor = sh["wavefronts"] / sh["min_wavefronts"] if sh["min_wavefronts"] else 1.0
        self.lane_utilisation = (
            self.thread_instructions / (32 * self.warp_instructions) if self.warp_instructions else 1.0
        )
        self.divergent_branches = int(stats["divergent"].sum())

    def kinds(self):
        """Set of the kinds of the findings."""
        return {f.kind for f in self.findings}

    def accesses(self):
        """Per memory instruction: dict with pc, op, source, accesses, bytes, and efficiency or bank conflicts."""
        out = []
        for pc, op in enumerate(self.kernel.ops):
            s = self.stats[pc]
            if not s["accesses"]:
                continue
            d = {
                "pc": pc,
                "op": op,
                "text": self.kernel.instr_text(pc),
                "source": self.kernel.source(pc),
                "accesses": int(s["accesses"]),
                "bytes": int(s["bytes"]),
            }
            if s["sectors"]:
                d.update(
                    sectors=int(s["sectors"]),
                    min_sectors=int(s["min_sectors"]),
                    efficiency=float(s["min_sectors"] / s["sectors"]),
                    sectors_per_access=float(s["sectors"] / s["accesses"]),
                )
            if s["wavefronts"]:
                d.update(
                    wavefronts=int(s["wavefronts"]),
                    conflict_factor=float(s["wavefronts"] / s["min_wavefronts"]),
                    max_degree=int(s["max_degree"]),
                )
            out.append(d)
        return out

    def by_source(self):
        """Warp instructions per source line, most first: list of (source, warp instructions)."""
        acc = {}
        for pc in range(len(self.kernel.ops)):
            n = int(self.stats[pc]["warp_exec"])
            if n:
                k = self.kernel.source(pc) or "?"
                acc[k] = acc.get(k, 0) + n
        return sorted(acc.items(), key=lambda x: -x[1])

    def unexecuted(self):
        """Source lines of which no instruction was executed (were all paths tested?)."""
        seen, dead = set(), []
        for pc in range(len(self.kernel.ops)):
            src = self.kernel.source(pc)
            if self.stats[pc]["warp_exec"]:
                seen.add(src)
            elif src and not src.endswith(":0"):
                dead.append(src)
        return sorted({d for d in dead if d not in seen}, key=lambda x: (x.rsplit(":", 1)[0], int(x.rsplit(":", 1)[1])))

    def summary(self, worst=8):
        def k(x):
            return f"{x:,}"

        out = [
            f"{self.kernel.pretty}  grid {self.grid} block {self.block}",
            f"  warp instructions {k(self.warp_instructions)}, thread instructions {k(self.thread_instructions)}, "
            f"lanes active {self.lane_utilisation:.0%}, divergent branches {k(self.divergent_branches)}, "
            f"flops {self.flops:.3g}",
            "  " + ", ".join(f"{c} {k(v['warp'])}" for c, v in self.by_class.items()),
            f"  global loads {k(self.global_load_bytes)} B in {k(self.global_load_sectors)} sectors "
            f"(efficiency {self.load_efficiency:.0%}), stores {k(self.global_store_bytes)} B in "
            f"{k(self.global_store_sectors)} sectors ({self.store_efficiency:.0%})",
            f"  shared accesses {k(self.shared_accesses)}, wavefronts {k(self.shared_wavefronts)} "
            f"(bank-conflict factor {self.bank_conflict_factor:.2f})",
        ]
        if not self.metrics:
            out[-2:] = ["  memory metrics were off"]
        a = self.accesses()
        bad = [x for x in a if x.get("efficiency", 1) < 0.9 or x.get("conflict_factor", 1) > 1.1]

        def waste(x):
            return (
                x.get("sectors", 0) - x.get("min_sectors", 0)
                if "sectors" in x
                else x["wavefronts"] - x["wavefronts"] / x["conflict_factor"]
            )

        bad.sort(key=lambda x: -waste(x))
        for x in bad[:worst]:
            what = (
                f"{x['sectors_per_access']:.1f} sectors/access, efficiency {x['efficiency']:.0%}"
                if "efficiency" in x
                else f"bank conflicts x{x['conflict_factor']:.1f} (up to {x['max_degree']}-way)"
            )
            out.append(f"    #{x['pc']} {x['text']}: {what}, {k(x['accesses'])} accesses  [{x['source']}]")
        if self.dynamic_shared > 48 * 1024:
            out.append(
                f"  {self.dynamic_shared} B dynamic shared memory: the host must set "
                "cudaFuncAttributeMaxDynamicSharedMemorySize"
            )
        for f in self.findings:
            out.append("  " + str(f).replace("\n", "\n  "))
        return "\n".join(out)

    __str__ = summary


class Kernel:
    """One entry function, decoded for the core at its first launch."""

    def __init__(self, mod, name, pretty):
        self.mod, self.name, self.pretty = mod, name, pretty
        self.func = mod.ptx.funcs[name]
        self._built = None

    @property
    def params(self):
        return self.func.params

    @property
    def max_threads(self):
        v = self.func.attrs.get("maxntid")
        return int(np.prod([int(x) for x in v])) if v else None

    @property
    def reqntid(self):
        v = self.func.attrs.get("reqntid")
        return tuple([int(x) for x in v] + [1] * (3 - len(v))) if v else None

    @property
    def static_shared(self):
        return self.built.shared_plain

    @property
    def built(self):
        if self._built is None:
            self._build()
        return self._built

    def _build(self):
        b = KernelBuilder(self.mod.ptx, self.name, self.mod.address_of)
        lib = build.core()
        ops = list(b.opnames)
        self.ops = [ops[k].replace("\x01", ".") for k in b.opidx]
        n = len(b.opidx)
        opidx, pred = np.array(b.opidx, np.int32), np.array(b.pred, np.int32)
        ostart, flat = np.array(b.ostart, np.int32), np.array(b.flat or [0], np.int64)
        regw = np.array(b.regw or [4], np.uint8)
        buf = ctypes.create_string_buffer(1 << 16)

        def p(a):
            return a.ctypes.data_as(ctypes.c_void_p)

        self._prog = lib.ps_prog(
            "\n".join(ops).encode(),
            "\n".join(b.sregs).encode(),
            n,
            p(opidx),
            p(pred),
            p(ostart),
            p(flat),
            len(b.regw),
            p(regw),
            b.npred,
            buf,
            len(buf),
        )
        self.unsupported = [
            tuple(x.split("\t")) for x in buf.value.decode("utf-8", "replace").replace("\x01", ".").splitlines()
        ]
        self._text, self._loc = b.text, b.loc
        b.opnds = b.flat = None
        self._built = b

    def instr_text(self, pc):
        return self._text[pc] if 0 <= pc < len(self._text) else "?"

    def source(self, pc):
        if not 0 <= pc < len(self._loc):
            return ""
        f, line = self._loc[pc]
        name = self.mod.ptx.files.get(f)
        return f"{os.path.basename(name)}:{line}" if name else ""

    def __repr__(self):
        return f"<kernel {self.pretty}>"


def _demangle(names):
    tool = shutil.which("c++filt") or shutil.which("cu++filt")
    if not tool or not names:
        return {n: n for n in names}
    r = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True)
    out = r.stdout.splitlines()
    return dict(zip(names, out, strict=False)) if len(out) == len(names) else {n: n for n in names}


_COOP = 0x0F0000000000  # the grid-wide barrier's words of a cooperative launch


class Memory:
    """Device address space. Every buffer is an allocation of its own, far from all the others (red zones)."""

    def __init__(self):
        self.next = 0x100000000000
        self.entries = {}  # key -> (address, array, flags)

    def add(self, arr, flags=0, key=None):
        size = arr.nbytes
        key = key if key is not None else (arr.ctypes.data, size)
        if key in self.entries and size:
            return self.entries[key][0]
        addr = self.next
        self.next = (addr + size + (1 << 26) + 0xFFFF) & ~0xFFFF
        self.entries[key] = (addr, arr, flags)
        return addr


class Pointer:
    """A device address inside an array: `Pointer(array, byte_offset)` as a kernel argument."""

    def __init__(self, array, offset=0):
        self.array, self.offset = array, offset


class Module:
    """A loaded PTX module."""

    def __init__(self, text, source=None, memory=None):
        self.text, self.source = text, source
        self.ptx = PtxModule(text)
        self.mem = memory or Memory()
        self._vars = {}
        names = [n for n, f in self.ptx.funcs.items() if f.entry and f.body]
        pretty = _demangle(names)
        self.kernels = OrderedDict((n, Kernel(self, n, pretty[n])) for n in names)
        for n, v in self.ptx.vars.items():
            if v.space in ("global", "const") and not (v.extern and not v.size):
                self._vars[n] = np.zeros(max(v.size, 1), np.uint8)[: v.size]
                self._vars[n + "\0addr"] = self.mem.add(
                    self._vars[n], 1 if v.space == "const" else 0, key=("var", id(self), n)
                )
        for n, v in self.ptx.vars.items():
            if n in self._vars and v.init:
                self._vars[n][:] = np.frombuffer(bytes(init_bytes(self.ptx, v, self.address_of)), np.uint8)

    # ---- module variables
    def address_of(self, name):
        a = self._vars.get(name + "\0addr")
        if a is None:
            raise PtxError(f"no address for {name}")
        return a

    def variable(self, name, dtype=np.uint8):
        """The contents of a __device__/__constant__ variable as a live numpy view (C or mangled name)."""
        if name not in self._vars:
            dm = _demangle([n for n in self._vars if "\0" not in n])
            hit = [n for n, d in dm.items() if d == name or d.split("::")[-1] == name]
            if len(hit) != 1:
                raise KeyError(name)
            name = hit[0]
        return self._vars[name].view(dtype)

    # ---- buffers that outlive a launch
    def ptr(self, array, offset=0):
        """Registers an array for the life of the module; returns its device address (for pointers inside structs)."""
        if not array.flags.c_contiguous:
            raise ValueError("array must be contiguous")
        return self.mem.add(array, 0 if array.flags.writeable else 1) + offset

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

    def launch(
        self,
        name,
        grid,
        block,
        args=(),
        shared=0,
        checks=None,
        strict=False,
        race=True,
        metrics=True,
        workers=None,
        resident=1,
        cooperative=False,
        schedule="forward",
        seed=0,
        max_instr=1 << 32,
        quantum=1 << 22,
        printf=True,
        warn=True,
    ):
        """Runs a kernel. Arrays among the arguments are device buffers, changed in place.

        checks      dict kind -> 'raise' | 'warn' | 'off' (see DEFAULT_CHECKS); strict: every finding raises
        race        shared-memory race detection; metrics: coalescing and bank-conflict counts
        workers     host threads over blocks (default 1: deterministic)
        resident    blocks run side by side by one worker; cooperative=True: all of them (grid-wide sync, spinning)
        schedule    order of warps between barriers: 'forward', 'reverse' or 'random' (with seed)
        Returns a Report; raises SimError.
        """
        k = self.find(name)
        grid, block = _dim3(grid), _dim3(block)
        bad = config_error(k, grid, block, shared, self.ptx.target)
        if bad:
            raise ValueError(bad[1])
        params, temp, copies = self._params(k, args)
        ents = [(a, arr.nbytes, arr.ctypes.data, fl) for a, arr, fl in list(self.mem.entries.values()) + temp]
        try:
            rep = self._run(
                k,
                grid,
                block,
                params,
                ents,
                shared,
                checks,
                strict,
                race,
                metrics,
                workers,
                resident,
                cooperative,
                schedule,
                seed,
                max_instr,
                quantum,
                printf,
            )
        finally:
            for dst, src in copies:
                dst[...] = src
        if warn:
            for f in rep.findings:
                warnings.warn(str(f), PtxSimWarning, stacklevel=2)
        return rep

    def _run(
        self,
        k,
        grid,
        block,
        params,
        ents,
        shared=0,
        checks=None,
        strict=False,
        race=True,
        metrics=True,
        workers=None,
        resident=1,
        cooperative=False,
        schedule="forward",
        seed=0,
        max_instr=1 << 32,
        quantum=1 << 22,
        printf=True,
    ):
        """Runs a kernel on raw parameter bytes.

        ents: allocations (device address, size, host address, flags: 1 read-only).
        """
        b = k.built
        lib = build.core()
        cluster = int(np.prod([int(x) for x in k.func.attrs.get("reqnctapercluster", [])] or [1]))
        if cluster > 1:
            raise PtxError(f"clusters of {cluster} blocks are not supported")
        # shared memory: static variables between red zones, the dynamic part at the end
        size = b.dyn_base + shared if shared else b.shared_off
        state = np.full(max(size, 1), 2, np.uint8)
        for _, off, n in b.shared_vars:
            state[off : off + n] = 0
        if shared:
            state[b.dyn_base : b.dyn_base + shared] = 0
        ents = sorted(ents)
        if cooperative:
            coop = np.zeros(64, np.uint8)
            ents.insert(0, (_COOP, coop.nbytes, coop.ctypes.data, 0))
            resident, workers = 1 << 30, 1
        allocs = (_Alloc * max(1, len(ents)))(*[_Alloc(*e) for e in ents])
        npc = len(k.ops) + 1
        stats = np.zeros(npc, _STAT)
        fnd = (_Finding * 256)()
        out = ctypes.create_string_buffer(1 << 20)
        L = _Launch()
        L.grid[:], L.block[:] = grid, block
        pbuf = ctypes.create_string_buffer(bytes(params) + b"\0", len(params) + 1)
        L.params, L.params_size = ctypes.addressof(pbuf), len(params)
        L.shared_size, L.shared_state = size, state.ctypes.data
        L.dyn_shared, L.user_shared, L.local_size = shared, shared + b.shared_plain, b.local_size
        L.allocs, L.nallocs = ctypes.addressof(allocs), len(ents)
        lv = dict(DEFAULT_CHECKS)
        for key, val in (checks or {}).items():
            if key not in DEFAULT_CHECKS:
                raise ValueError(f"unknown check {key!r}; there are {sorted(DEFAULT_CHECKS)}")
            lv[key] = val
        for i, kind in enumerate(_KINDS):
            s = "raise" if kind in _ALWAYS_RAISE or (strict and lv.get(kind) != "off") else lv.get(kind, "raise")
            L.level[i] = {"off": 0, "warn": 1, "raise": 2}[s]
        if lv["race"] == "off":
            race = False
        L.max_instr, L.quantum, L.seed = (
            int(max_instr),
            int(quantum if not cooperative and resident == 1 else min(quantum, 20000)),
            seed,
        )
        if cooperative:
            L.envreg_ptr = _COOP
            L.quantum = 2000
        L.workers, L.resident = workers or 1, min(resident, int(np.prod(grid)))
        L.schedule = {"forward": 0, "reverse": 1, "random": 2}[schedule]
        L.race, L.metrics, L.granule_log2, L.max_findings, L.printf_on = (
            (2 if lv["warp-race"] != "off" else int(bool(race))) if race else 0,
            bool(metrics),
            b.granule,
            256,
            bool(printf),
        )
        L.stats, L.findings = stats.ctypes.data, ctypes.addressof(fnd)
        L.outbuf, L.outcap = ctypes.addressof(out), len(out)
        lib.ps_launch(ctypes.c_void_p(k._prog), ctypes.byref(L))
        findings = [Finding(fnd[i], k) for i in range(L.nfindings)]
        rep = Report(
            k,
            stats,
            findings,
            out.raw[: L.outlen].decode("utf-8", "replace"),
            L.total_warp_instr,
            tuple(grid),
            tuple(block),
            bool(metrics),
        )
        rep.dynamic_shared = shared
        if L.failed:
            e = SimError(Finding(L.error, k))
            e.report = rep
            raise e
        if rep.output and printf:
            print(rep.output, end="")
        return rep

    def _params(self, k, args):
        ps = k.params
        if len(args) != len(ps):
            raise TypeError(f"{k.pretty} takes {len(ps)} arguments {ps}, got {len(args)}")
        buf = bytearray(k.built.params_size)
        temp, copies, seen = [], [], {}
        for n, (p, a) in enumerate(zip(ps, args, strict=False)):
            if hasattr(a, "detach") and hasattr(a, "numpy"):  # a torch CPU tensor
                import torch

                a = a.detach()
                a = (a.view(torch.int16) if a.dtype == torch.bfloat16 else a).numpy()
            off = 0
            if isinstance(a, Pointer):
                a, off = a.array, a.offset
            if isinstance(a, np.ndarray) and a.ndim == 0 and p.size != 8:
                a = a[()]
            if a is None:
                raw = bytes(p.size)
            elif isinstance(a, np.ndarray) and not (p.is_array and a.nbytes == p.size):
                if p.size != 8:
                    raise TypeError(f"argument {n}: an array for a {p.size}-byte parameter ({p.typ})")
                key = (a.ctypes.data, a.nbytes)
                if key in self.mem.entries and a.flags.c_contiguous:
                    addr = self.mem.entries[key][0]
                elif key in seen and a.flags.c_contiguous:
                    addr = seen[key]
                else:
                    d = a
                    if not a.flags.c_contiguous:
                        d = np.ascontiguousarray(a)
                        if a.flags.writeable:
                            copies.append((a, d))
                    addr = self.mem.next
                    self.mem.next = (addr + d.nbytes + (1 << 26) + 0xFFFF) & ~0xFFFF
                    temp.append((addr, d, 0 if a.flags.writeable else 1))
                    if a.nbytes:
                        seen[key] = addr
                raw = (addr + off).to_bytes(8, "little")
            elif isinstance(a, (bytes, bytearray, memoryview, ctypes.Structure, ctypes.Array)):
                raw = bytes(a)
            elif isinstance(a, np.ndarray):
                raw = a.tobytes()
            elif isinstance(a, (np.generic, bool, int, float)):
                raw = _scalar(p, a)
            else:
                raise TypeError(f"argument {n}: cannot pass a {type(a).__name__}")
            if len(raw) != p.size:
                raise TypeError(f"argument {n}: {len(raw)} bytes for a {p.size}-byte parameter")
            buf[p.offset : p.offset + p.size] = raw
        return buf, temp, copies


def _scalar(p, a):
    if isinstance(a, np.generic) and a.nbytes == p.size and not (p.typ[0] == "f" and a.dtype.kind != "f"):
        return a.tobytes()
    isf = isinstance(a, (float, np.floating))
    if p.typ in ("f32", "f64", "f16") or (isf and p.typ in ("b32", "b64")):
        return np.array(a, {2: np.float16, 4: np.float32, 8: np.float64}[p.size]).tobytes()
    if isf and float(a) != int(a):
        raise TypeError(f"float {a} for an integer parameter ({p.typ})")
    return (int(a) & ((1 << (8 * p.size)) - 1)).to_bytes(p.size, "little")


def config_error(k, grid, block, shared, arch, max_dynamic=None, max_threads=1024):
    """Why a device would refuse the launch: (name of the CUDA error, text), or None.

    max_dynamic: what the host opted in to.
    """
    n, static, limit = int(np.prod(block)), k.static_shared, _sm(arch)[2]
    bad = "cudaErrorInvalidConfiguration"
    if n < 1 or n > max_threads or block[2] > 64:
        return bad, f"block {block} is not launchable"
    if min(grid) < 1 or grid[0] >= 1 << 31 or grid[1] > 65535 or grid[2] > 65535:
        return bad, f"grid {grid} is not launchable"
    if k.reqntid and tuple(block) != k.reqntid:
        return bad, f"kernel requires block {k.reqntid}"
    if k.max_threads and n > k.max_threads:
        return (
            "cudaErrorLaunchOutOfResources",
            f"block of {n} threads, but the kernel is compiled for at most {k.max_threads} (__launch_bounds__)",
        )
    if shared + static > limit or static > 48 * 1024:
        return "cudaErrorInvalidValue", (
            f"{static} static + {shared} dynamic bytes of shared memory exceed what a block can have "
            f"({limit} on {arch}, 48 KiB static)"
        )
    if max_dynamic is not None and shared > max_dynamic:
        return "cudaErrorInvalidValue", (
            f"{shared} bytes of dynamic shared memory, but the kernel may have {max_dynamic}: "
            f"cudaFuncSetAttribute(cudaFuncAttributeMaxDynamicSharedMemorySize) is missing or too small"
        )


def _dim3(x):
    x = [int(v) for v in x] if isinstance(x, (tuple, list)) else [int(x)]
    return x + [1] * (3 - len(x))


def nvcc_path():
    p = os.environ.get("NVCC") or shutil.which("nvcc") or "/usr/local/bin/nvcc"
    return p


def _flags(arch, include_dirs, defines, extra):
    f = [f"-arch={arch}", "-std=c++17"]
    f += [f"-I{d}" for d in include_dirs or ()]
    if isinstance(defines, dict):
        defines = [k if v is None else f"{k}={v}" for k, v in defines.items()]
    f += [f"-D{d}" for d in defines or ()]
    return f + list(extra or ())


def run_nvcc(source, args, suffix):
    """Compiles a .cu path or source text; returns (path of the output in a temp dir, stderr, temp dir object)."""
    tmp = tempfile.TemporaryDirectory(prefix="ptxsim-")
    if "\n" in str(source) or not os.path.exists(source):
        if "\n" not in str(source) and str(source).endswith((".cu", ".cuh", ".cpp")):
            raise FileNotFoundError(source)
        path = os.path.join(tmp.name, "kernel.cu")
        with open(path, "w") as f:
            f.write(source)
    else:
        path = os.path.abspath(source)
    out = os.path.join(tmp.name, "out" + suffix)
    r = subprocess.run([nvcc_path(), *args, path, "-o", out], capture_output=True, text=True)
    if r.returncode:
        raise RuntimeError(f"nvcc failed ({' '.join(args)}):\n{r.stdout}{r.stderr}")
    return out, r.stderr, tmp


def compile(source, arch="sm_80", include_dirs=(), defines=(), flags=()):
    """nvcc -ptx of a .cu file (path) or of source text; returns a Module."""
    out, _, tmp = run_nvcc(source, ["-ptx", "-lineinfo", *_flags(arch, include_dirs, defines, flags)], ".ptx")
    with open(out) as f, tmp:
        return Module(f.read(), source)


def load_ptx(text):
    """A Module from PTX text."""
    return Module(text)


# ---------------------------------------------------------------- resources
_SM = {  # registers per SM, shared bytes per SM, max shared per block, max threads, max blocks
    80: (65536, 164 << 10, 163 << 10, 2048, 32),
    86: (65536, 100 << 10, 99 << 10, 1536, 16),
    87: (65536, 164 << 10, 163 << 10, 1536, 16),
    89: (65536, 100 << 10, 99 << 10, 1536, 24),
    90: (65536, 228 << 10, 227 << 10, 2048, 32),
    100: (65536, 228 << 10, 227 << 10, 2048, 32),
    120: (65536, 100 << 10, 99 << 10, 1536, 24),
    75: (65536, 64 << 10, 64 << 10, 1024, 16),
}


def _sm(arch):
    n = int(re.sub(r"\D", "", arch) or 80)
    return _SM.get(n, _SM[max(k for k in _SM if k <= max(n, min(_SM)))])


def occupancy(arch, regs, shared, threads):
    """(blocks per SM, warps per SM, warps the SM can hold, what limits) for one kernel configuration."""
    sm = _sm(arch)
    warps = (threads + 31) // 32
    per_warp = (regs * 32 + 255) // 256 * 256
    lim = {
        "threads": sm[3] // 32 // warps,
        "blocks": sm[4],
        "registers": (sm[0] // 4 // per_warp) * 4 // warps if regs else sm[4],
        "shared memory": sm[1] // ((shared + 1024 + 127) // 128 * 128) if shared else sm[4],
    }
    n = min(lim.values())
    return n, n * warps, sm[3] // 32, min(lim, key=lim.get)


def parse_ptxas(err):
    """The lines of `ptxas -v` as a list of dicts."""
    out, cur, last = [], None, None
    for line in err.splitlines():
        m = re.search(r"Compiling entry function '([^']+)' for '([^']+)'", line)
        if m:
            cur = {
                "name": m[1],
                "arch": m[2],
                "registers": 0,
                "spill_stores": 0,
                "spill_loads": 0,
                "stack": 0,
                "shared": 0,
                "const": 0,
                "barriers": 0,
            }
            out.append(cur)
            continue
        m = re.search(r"Function properties for (\S+)", line)
        if m:
            last = m[1]
            continue
        m = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line)
        if m and cur is not None and last in (None, cur["name"]):
            cur["stack"], cur["spill_stores"], cur["spill_loads"] = int(m[1]), int(m[2]), int(m[3])
        m = re.search(r"Used (\d+) registers", line)
        if m and cur is not None:
            cur["registers"] = int(m[1])
            for key, pat in (
                ("shared", r"(\d+) bytes smem"),
                ("barriers", r"used (\d+) barriers"),
                ("const", r"(\d+) bytes cmem\[0\]"),
            ):
                q = re.search(pat, line)
                if q:
                    cur[key] = int(q[1])
    return out


def resources(source, arch="sm_80", include_dirs=(), defines=(), flags=()):
    """Per kernel, what ptxas reports.

    A list of dicts: name, pretty, registers, spill_stores, spill_loads, stack, shared, barriers.
    """
    _, err, tmp = run_nvcc(source, ["-cubin", "-Xptxas", "-v", *_flags(arch, include_dirs, defines, flags)], ".cubin")
    tmp.cleanup()
    out = parse_ptxas(err)
    pretty = _demangle([k["name"] for k in out])
    for k in out:
        k["pretty"] = pretty[k["name"]]
    return out
