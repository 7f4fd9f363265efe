"""Pointers among the raw parameters of a kernel: whether they point to buffers, and to which."""

import re

from .memory import NEAR


def _param_types(pretty, n):
    """The parameter types in a demangled signature. They are "" where there is none (extern "C")."""
    if not pretty.endswith(")"):
        return [""] * n
    depth, parts, current = 0, [], ""
    for c in reversed(pretty[:-1]):  # from the end: the name may have parentheses too
        if c == "(" and depth == 0:
            break
        depth += (c in ")>]") - (c in "(<[")
        if c == "," and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += c
    parts = [re.sub(r"\s*(__restrict__|const)?$", "", x[::-1].strip()) for x in [*parts, current]][::-1]
    return parts if len(parts) == n else [""] * n


def _pointers(kernel, params):
    """(number, type, value) of the kernel's pointer parameters."""
    types = _param_types(kernel.pretty, len(kernel.params))
    for n, (param, type_) in enumerate(zip(kernel.params, types, strict=True)):
        if type_.endswith("*") and param.size == 8:
            yield n, type_, int.from_bytes(params[param.offset : param.offset + 8], "little")


def outside(kernel, params, allocations):
    """What is wrong with a pointer that is neither null nor within half a red zone of a buffer, or None."""
    for n, type_, value in _pointers(kernel, params):
        if value and not any(base - NEAR <= value <= base + size + NEAR for base, size, _, _ in allocations):
            return (
                f"parameter {n} ({type_}) is 0x{value:x}, which is in no registered buffer (a tensor "
                "whose address did not come from device_ptr, or memory that is gone)"
            )
    return None


def name_buffer(error, kernel, params, allocations):
    """Adds to a finding in global memory which parameters point into the nearest buffer."""
    address = error.finding.address
    in_window = address >> 32 in range(0x7E00, 0x7E30)  # of shared, local or parameter memory
    if error.kind != "out-of-bounds" or address >> 32 == 0 or in_window:
        return
    note = (
        "; no registered buffer is near: memory that is gone, an address that is not from device_ptr, or a wild index"
    )
    for base, size, _, _ in allocations:
        if base - NEAR <= address <= base + size + NEAR:
            which = [f"{n} ({t})" for n, t, value in _pointers(kernel, params) if base <= value <= base + size]
            note = f"; the buffer of parameter {' and '.join(which)}" if which else ""
    error.finding.message += note
    error.args = (str(error.finding),)
