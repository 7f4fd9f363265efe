"""The structs that Python and the core share: core/abi.h, mirrored. `check` compares every size and offset."""

import ctypes

import numpy as np

# Kinds of findings, in the order of Kind in core/abi.h.
KINDS = [
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
LEVELS = {"off": 0, "warn": 1, "raise": 2}
SCHEDULES = {"forward": 0, "reverse": 1, "random": 2}
READ_ONLY = 1  # flag of an allocation
UNINITIALISED, RED_ZONE = 0, 2  # states of a byte of shared memory
# Kinds of operands of an encoded instruction
REG, PRED, INT, F32, F64, SREG, MEM, VEC, LABEL, SINK, PAIR = range(11)
NUM_OPERAND_KINDS = 11


class Allocation(ctypes.Structure):
    _fields_ = [
        ("base", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("host", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
    ]


class Finding(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_int32),
        ("pc", ctypes.c_int32),
        ("other_pc", ctypes.c_int32),
        ("unused", ctypes.c_int32),
        ("block", ctypes.c_int32 * 3),
        ("thread", ctypes.c_int32 * 3),
        ("address", ctypes.c_uint64),
        ("count", ctypes.c_uint64),
        ("message", ctypes.c_char * 232),
    ]


class InstructionStats(ctypes.Structure):
    _fields_ = [
        ("warp_exec", ctypes.c_uint64),
        ("thread_exec", ctypes.c_uint64),
        ("divergent", ctypes.c_uint64),
        ("accesses", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("sectors", ctypes.c_uint64),
        ("min_sectors", ctypes.c_uint64),
        ("wavefronts", ctypes.c_uint64),
        ("min_wavefronts", ctypes.c_uint64),
        ("max_degree", ctypes.c_uint64),
    ]


STATS = np.dtype(InstructionStats)


class LaunchConfig(ctypes.Structure):
    _fields_ = [
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("params", ctypes.c_void_p),
        ("params_size", ctypes.c_uint64),
        ("shared_size", ctypes.c_uint64),
        ("shared_state", ctypes.c_void_p),
        ("dynamic_shared", ctypes.c_uint64),
        ("user_shared", ctypes.c_uint64),
        ("local_size", ctypes.c_uint64),
        ("allocations", ctypes.c_void_p),
        ("num_allocations", ctypes.c_uint64),
        ("check_levels", ctypes.c_uint8 * 32),
        ("max_instructions", ctypes.c_uint64),
        ("quantum", ctypes.c_uint64),
        ("seed", ctypes.c_uint64),
        ("grid_barrier", ctypes.c_uint64),
        ("workers", ctypes.c_int32),
        ("resident", ctypes.c_int32),
        ("schedule", ctypes.c_int32),
        ("race", ctypes.c_int32),
        ("metrics", ctypes.c_int32),
        ("granule_log2", ctypes.c_int32),
        ("max_findings", ctypes.c_int32),
        ("print", ctypes.c_int32),
        ("stats", ctypes.c_void_p),
        ("findings", ctypes.c_void_p),
        ("num_findings", ctypes.c_int32),
        ("failed", ctypes.c_int32),
        ("error", Finding),
        ("warp_instructions", ctypes.c_uint64),
        ("output", ctypes.c_void_p),
        ("output_capacity", ctypes.c_uint64),
        ("output_size", ctypes.c_uint64),
    ]


def layout(structs, counts=()):
    """{name: (offset, size)} of ctypes structs and their fields, and of enumerations with their number of values."""
    table = {name: (0, count) for name, count in counts}
    for struct in structs:
        table[struct.__name__] = (0, ctypes.sizeof(struct))
        for name, *_ in struct._fields_:
            field = getattr(struct, name)
            table[f"{struct.__name__}.{name}"] = (field.offset, field.size)
    return table


def check(text, expected, where):
    """Compares "name offset size" lines of a library with the layout that Python has.

    Raises:
        RuntimeError: a struct, a field, an offset or a size differs.
    """
    rows = [line.split() for line in text.splitlines()]
    there = {name: (int(offset), int(size)) for name, offset, size in rows}
    differ = [name for name in {**expected, **there} if expected.get(name) != there.get(name)]
    if differ:
        name = differ[0]
        raise RuntimeError(
            f"the structs of {where} are not those of Python: {name} is (offset, size) {there.get(name)} there and "
            f"{expected.get(name)} here, {len(differ)} differ. Change both sides together."
        )


def check_core(lib):
    """Raises RuntimeError unless the core was compiled from the structs above."""
    lib.ptxsim_layout.restype = ctypes.c_char_p
    expected = layout(
        [Allocation, InstructionStats, Finding, LaunchConfig],
        [("Kind", len(KINDS)), ("OperandKind", NUM_OPERAND_KINDS)],
    )
    check(lib.ptxsim_layout().decode(), expected, "core/abi.h")
