"""PTX text -> tables of a module: variables, functions with their parameters, source files."""

import re
import struct

TOKEN = re.compile(
    r'//[^\n]*|/\*.*?\*/|"(?:[^"\\]|\\.)*"|0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}|0[xX][0-9a-fA-F]+U?|\d+U?'
    r"|[A-Za-z_$%.](?:[\w$.]|::)*|[^\s]",
    re.S,
)

TYPE_SIZE = {
    "b8": 1,
    "u8": 1,
    "s8": 1,
    "b16": 2,
    "u16": 2,
    "s16": 2,
    "f16": 2,
    "bf16": 2,
    "b32": 4,
    "u32": 4,
    "s32": 4,
    "f32": 4,
    "f16x2": 4,
    "bf16x2": 4,
    "b64": 8,
    "u64": 8,
    "s64": 8,
    "f64": 8,
    "b128": 16,
    "tf32": 4,
    "pred": 0,
}


class PtxError(Exception):
    """The PTX text could not be understood."""


def integer(t):
    """The value of an integer token."""
    t = t.rstrip("U")
    if t[:2] in ("0x", "0X"):
        return int(t, 16)
    if len(t) > 1 and t[0] == "0":
        return int(t, 8)
    return int(t)


def round_up(x, a):
    """x, rounded up to a multiple of a."""
    return (x + a - 1) // a * a


class Var:
    """A module variable: space, alignment, element type, byte size, initial values (tokens) or None."""

    def __init__(self, space, align, typ, size, count, init, extern):
        self.space, self.align, self.typ, self.size, self.count, self.init, self.extern = (
            space,
            align,
            typ,
            size,
            count,
            init,
            extern,
        )


class Param:
    def __init__(self, name, typ, size, align, is_array):
        self.name, self.typ, self.size, self.align, self.is_array = name, typ, size, align, is_array
        self.offset = 0

    def __repr__(self):
        return f"{self.typ}{f'[{self.size}]' if self.is_array else ''}"


class Func:
    def __init__(self, name, entry):
        self.name, self.entry = name, entry
        self.params, self.rets, self.attrs, self.body = [], [], {}, None


class PtxModule:
    """Top level of a PTX file."""

    def __init__(self, text):
        self.toks = [t for t in TOKEN.findall(text) if not t.startswith(("//", "/*"))]
        self.vars, self.funcs, self.files = {}, {}, {}
        self.target = ""
        self._parse()

    def _skip_braces(self, i):
        depth = 0
        toks = self.toks
        while True:
            if toks[i] == "{":
                depth += 1
            elif toks[i] == "}":
                depth -= 1
                if depth == 0:
                    return i + 1
            i += 1

    def _parse(self):
        toks, i, n = self.toks, 0, len(self.toks)
        extern = False
        while i < n:
            t = toks[i]
            if t == ".version":
                i += 2
                if toks[i].startswith(".") and toks[i][1:].isdigit():
                    i += 1
            elif t == ".target":
                self.target = toks[i + 1]
                i += 2
                while toks[i] == ",":
                    i += 2
            elif t == ".address_size":
                i += 2
            elif t == ".file":
                self.files[int(toks[i + 1])] = toks[i + 2].strip('"')
                i += 3
                while i < n and toks[i] == ",":
                    i += 2
            elif t == ".section":
                i = self._skip_braces(i + 1 + (toks[i + 1] != "{"))
            elif t in (".visible", ".weak", ".common", ".extern"):
                extern = t == ".extern"
                i += 1
            elif t in (".func", ".entry"):
                i = self._func(i)
                extern = False
            elif t in (".global", ".const", ".shared"):
                i = self.variable(i, self.vars, extern)
                extern = False
            elif t in (".pragma", ".alias"):
                i = toks.index(";", i) + 1
            else:
                i += 1

    def variable(self, i, table, extern=False):
        """Parses `.space [.align n] [.vN] .type name[dims] [= init] {, name} ;`; returns the next index."""
        toks = self.toks
        space, align, typ, vec = toks[i][1:], None, None, 1
        i += 1
        while True:
            t = toks[i]
            if t == ".align":
                align = int(toks[i + 1])
                i += 2
            elif t in (".v2", ".v4"):
                vec = int(t[2])
                i += 1
            elif t == ".attribute":
                while toks[i] != ")":
                    i += 1
                i += 1
            elif t.startswith(".") and t[1:] in TYPE_SIZE:
                typ = t[1:]
                i += 1
            elif t.startswith("."):
                i += 1
            else:
                break
        while True:
            name = toks[i]
            i += 1
            count, unsized = 1, False
            while toks[i] == "[":
                if toks[i + 1] == "]":
                    unsized = True
                    i += 2
                else:
                    count *= integer(toks[i + 1])
                    i += 3
            init = None
            if toks[i] == "=":
                i += 1
                init = []
                if toks[i] == "{":
                    e = self._skip_braces(i)
                    init = [x for x in toks[i:e] if x not in "{}"]
                    i = e
                else:
                    while toks[i] not in (",", ";"):
                        init.append(toks[i])
                        i += 1
            es = TYPE_SIZE[typ] * vec
            table[name] = Var(space, align or es, typ, 0 if unsized else es * count, count, init, extern or unsized)
            if toks[i] == ",":
                i += 1
                continue
            return i + 1

    def _params(self, i):
        """Parses `( .param ..., ... )` at i; returns (list, next index)."""
        toks, out = self.toks, []
        i += 1
        while toks[i] != ")":
            if toks[i] == ",":
                i += 1
                continue
            typ, align, size, arr = None, None, None, False
            i += 1  # .param / .reg
            while True:
                t = toks[i]
                if t == ".align":
                    a = int(toks[i + 1])
                    if typ is None:
                        align = a
                    i += 2
                elif t.startswith(".") and t[1:] in TYPE_SIZE:
                    typ = t[1:]
                    i += 1
                elif t.startswith("."):
                    i += 1
                else:
                    break
            name = toks[i]
            i += 1
            size = TYPE_SIZE[typ]
            if toks[i] == "[":
                arr = True
                if toks[i + 1] == "]":
                    i += 2
                else:
                    size *= integer(toks[i + 1])
                    i += 3
            out.append(Param(name, typ, size, align or max(1, TYPE_SIZE[typ]), arr))
        off = 0
        for p in out:
            off = round_up(off, p.align)
            p.offset = off
            off += p.size
        return out, i + 1

    def _func(self, i):
        toks = self.toks
        f = Func(None, toks[i] == ".entry")
        i += 1
        while toks[i].startswith("."):
            i += 1
        if toks[i] == "(":
            f.rets, i = self._params(i)
        f.name = toks[i]
        i += 1
        if toks[i] == "(":
            f.params, i = self._params(i)
        while toks[i] not in ("{", ";"):
            t = toks[i]
            if t.startswith("."):
                vals = []
                i += 1
                while toks[i] not in ("{", ";") and not toks[i].startswith("."):
                    if toks[i] != ",":
                        vals.append(toks[i])
                    i += 1
                f.attrs[t[1:]] = vals
            else:
                i += 1
        if toks[i] == ";":
            self.funcs.setdefault(f.name, f)
            return i + 1
        e = self._skip_braces(i)
        f.body = (i + 1, e - 1)
        self.funcs[f.name] = f
        return e


def init_bytes(mod, var, address_of):
    """Initial contents of a .global/.const variable."""
    data = bytearray(var.size)
    if not var.init:
        return data
    es = TYPE_SIZE[var.typ]
    toks, i, off = var.init, 0, 0
    while i < len(toks):
        t = toks[i]
        if t == ",":
            i += 1
            continue
        sign = 1
        if t == "-":
            sign = -1
            i += 1
            t = toks[i]
        if t[:2] in ("0f", "0F") and len(t) == 10:
            val = struct.pack("<I", int(t[2:], 16))
            i += 1
        elif t[:2] in ("0d", "0D") and len(t) == 18:
            val = struct.pack("<Q", int(t[2:], 16))
            i += 1
        elif t[0].isdigit():
            x = integer(t)
            i += 1
            if i < len(toks) and toks[i] == "(":  # mask(symbol): one byte of an address
                x_mask, name = x, toks[i + 1]
                i += 2
                add = 0
                while toks[i] != ")":
                    if toks[i][0].isdigit():
                        add = integer(toks[i])
                    i += 1
                i += 1
                a = (address_of(name) + add) & x_mask
                while x_mask and not x_mask & 0xFF:
                    x_mask >>= 8
                    a >>= 8
                val = struct.pack("<Q", a)[:es]
            else:
                val = ((sign * x) & ((1 << (8 * es)) - 1)).to_bytes(es, "little")
        else:
            if t == "generic":
                t = toks[i + 2]
                i += 4
            else:
                i += 1
            add = 0
            while i < len(toks) and toks[i] in "+-":
                add += integer(toks[i + 1]) * (1 if toks[i] == "+" else -1)
                i += 2
            val = struct.pack("<Q", address_of(t) + add)[:es]
        data[off : off + len(val)] = val
        off += es
    return data
