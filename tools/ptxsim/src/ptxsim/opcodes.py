"""What opcodes are: their class, floating-point operations, and bytes of shared memory."""

import re

from .parser import TYPE_SIZE


def opcode_class(op):
    """The class of an opcode in Report.by_class: "fp32", "ld.global", "barrier", ..."""
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


def flops(op):
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


def granule_log2(opcodes):
    """log2 of the smallest shared-memory access: the race detector's resolution."""
    best = 16
    for op in opcodes:
        p = op.split(".")
        if p[0] in ("ld", "st", "atom", "red") and not {"global", "local", "param", "const"} & set(p):
            size = next((TYPE_SIZE[x] for x in reversed(p) if x in TYPE_SIZE), 1)
            for v in (2, 4, 8):
                if f"v{v}" in p:
                    size *= v
            best = min(best, size)
        elif p[0] == "wmma":
            best = min(best, 2 if ("f16" in p or "bf16" in p) else 4 if "s8" not in p and "u8" not in p else 1)
        elif p[0] == "cp":
            best = min(best, 4)
    return max(0, best.bit_length() - 1)
