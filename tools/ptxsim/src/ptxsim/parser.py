"""PTX text -> module tables and, per kernel, a flat instruction list for the C++ core.

Device functions are inlined at every call (no recursion); a ``.param`` of a call becomes per-thread local memory.
"""

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
K_REG, K_PRED, K_INT, K_F32, K_F64, K_SREG, K_MEM, K_VEC, K_LABEL, K_SINK, K_PAIR = range(11)
RED_ZONE = 128


class PtxError(Exception):
    """The PTX text could not be understood."""


def _int(t):
    t = t.rstrip("U")
    if t[:2] in ("0x", "0X"):
        return int(t, 16)
    if len(t) > 1 and t[0] == "0":
        return int(t, 8)
    return int(t)


def _align(x, a):
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
                    count *= _int(toks[i + 1])
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
                    size *= _int(toks[i + 1])
                    i += 3
            out.append(Param(name, typ, size, align or max(1, TYPE_SIZE[typ]), arr))
        off = 0
        for p in out:
            off = _align(off, p.align)
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


class _Scope:
    __slots__ = ("names", "ranges")

    def __init__(self):
        self.names, self.ranges = {}, {}


class KernelBuilder:
    """Expands one entry function into flat arrays for the core."""

    def __init__(self, mod, name, address_of):
        self.mod, self.toks, self.address_of = mod, mod.toks, address_of
        f = mod.funcs[name]
        if not f.entry or f.body is None:
            raise PtxError(f"{name} is not a kernel with a body")
        self.func = f
        self.regw, self.npred = [], 0
        self.opnames, self.opidx, self.pred, self.ostart, self.opnds = {}, [], [], [0], []
        self.text, self.loc = [], []
        self.sregs = {}
        self.labels, self.label_fix, self.dyn_fix = {}, [], []
        self.local_size = 0
        self.shared_vars = []  # (name, offset, size)
        self.shared_off, self.shared_plain = 0, 0
        self.dyn_names = {}
        self.dyn_align = 16
        self.cur_loc = (0, 0)
        self.ninst = 0
        self.stack = []
        self.mod_shared = {}
        self.branch_tables, self.all_scopes = {}, []
        self.params_size = max([p.offset + p.size for p in f.params], default=0)
        root = self._scope()
        for p in f.params:
            root.names[p.name] = ("param", p.offset)
        self._body(f, [root], True)
        self._finish()

    # ---- storage
    def _scope(self):
        self.all_scopes.append(_Scope())  # kept alive: labels are keyed by identity
        return self.all_scopes[-1]

    def _reg(self, width):
        self.regw.append(width)
        return ("reg", len(self.regw) - 1, width)

    def _newpred(self):
        self.npred += 1
        return ("pred", self.npred - 1, 0)

    def _local(self, size, align):
        off = _align(self.local_size, max(align, 1))
        self.local_size = off + max(size, 1)
        return ("local", off)

    def _shared(self, name, var):
        if var.extern and var.size == 0:
            self.dyn_align = max(self.dyn_align, var.align)
            return ("dyn", 0)
        off = _align(self.shared_off, max(var.align, 16))
        self.shared_vars.append((name, off, var.size))
        self.shared_off = _align(off + var.size, RED_ZONE) + RED_ZONE
        self.shared_plain = _align(self.shared_plain, var.align) + var.size
        return ("shared", off)

    # ---- names
    def _lookup(self, scopes, name):
        for s in reversed(scopes):
            r = s.names.get(name)
            if r is not None:
                return r
            if s.ranges:
                m = re.match(r"(.*?)(\d+)$", name)
                if m and m.group(1) in s.ranges:
                    typ, count = s.ranges[m.group(1)]
                    if int(m.group(2)) < count:
                        r = self._newpred() if typ == "pred" else self._reg(max(2, TYPE_SIZE[typ]))
                        s.names[name] = r
                        return r
        v = self.mod.vars.get(name)
        if v is not None:
            if v.space == "shared":
                if name not in self.mod_shared:
                    self.mod_shared[name] = self._shared(name, v)
                return self.mod_shared[name]
            return ("addr", self.address_of(name))
        if name == "WARP_SZ":
            return ("addr", 32)
        if name.startswith("%"):
            return ("sreg", self.sregs.setdefault(name, len(self.sregs)))
        if name in self.mod.funcs:
            raise PtxError(f"address of function {name} is not supported")
        return None

    # ---- operands (parsed from tokens into nested lists, then encoded)
    def _operand(self, i, out, scopes, inst):
        toks = self.toks
        t = toks[i]
        if t == "{":
            j = i + 1
            sub, cnt = [], 0
            while toks[j] != "}":
                if toks[j] == ",":
                    j += 1
                    continue
                j = self._operand(j, sub, scopes, inst)
                cnt += 1
            out += [K_VEC, cnt, 0, *sub]
            return j + 1
        if t == "[":
            j = i + 1
            off, sign = 0, 1
            sym = None
            while toks[j] != "]":
                x = toks[j]
                if x == "+":
                    sign = 1
                elif x == "-":
                    sign = -sign if toks[j - 1] == "+" else -1
                elif x[0].isdigit():
                    off += sign * _int(x)
                elif x == ",":
                    raise PtxError("tensor/multi-operand addresses are not supported")
                else:
                    sym = self._lookup(scopes, x)
                    if sym is None:
                        raise PtxError(f"unknown name {x}")
                j += 1
            if sym is None:
                out += [K_MEM, -1, off]
            elif sym[0] == "reg":
                out += [K_MEM, sym[1], off]
            elif sym[0] == "dyn":
                self.dyn_fix.append((out, len(out) + 2))
                out += [K_MEM, -1, off]
            elif sym[0] == "sreg":
                raise PtxError("special register as an address")
            else:
                out += [K_MEM, -1, sym[1] + off]
            self._last_space = sym[0] if sym else None
            return j + 1
        if t == "(":
            raise PtxError("unexpected (")
        if t == "!":
            r = self._lookup(scopes, toks[i + 1])
            out += [K_PRED, r[1], 1]
            return i + 2
        if t == "-":
            out += [K_INT, -_int(toks[i + 1]), 0]
            return i + 2
        if t == "+":
            return self._operand(i + 1, out, scopes, inst)
        c = t[0]
        if c.isdigit():
            if t[:2] in ("0f", "0F"):
                out += [K_F32, int(t[2:], 16), 0]
            elif t[:2] in ("0d", "0D"):
                out += [K_F64, _s64(int(t[2:], 16)), 0]
            else:
                out += [K_INT, _s64(_int(t)), 0]
            return i + 1
        if t == "_":
            if toks[i + 1] == "|":
                out += [K_PAIR, 2, 0, K_SINK, 0, 0]
                return self._operand(i + 2, out, scopes, inst)
            out += [K_SINK, 0, 0]
            return i + 1
        r = self._lookup(scopes, t)
        if toks[i + 1] == "|":
            out += [K_PAIR, 2, 0]
            self._encode(r, out)
            return self._operand(i + 2, out, scopes, inst)
        if r is None:  # a label or a branch table
            if (inst, t) in self.branch_tables:
                lst = self.branch_tables[(inst, t)]
                out += [K_VEC, len(lst), 0]
                for lab in lst:
                    self.label_fix.append((out, len(out) + 1, [(id(s), lab) for s in reversed(scopes)]))
                    out += [K_LABEL, 0, 0]
                return i + 1
            # labels are local to their { } block: search the enclosing ones from the inside
            self.label_fix.append((out, len(out) + 1, [(id(s), t) for s in reversed(scopes)]))
            out += [K_LABEL, 0, 0]
            return i + 1
        k = i + 1
        add = 0
        while toks[k] in "+-" and toks[k + 1][0].isdigit():
            add += _int(toks[k + 1]) * (1 if toks[k] == "+" else -1)
            k += 2
        self._encode(r, out, add)
        return k

    def _encode(self, r, out, add=0):
        if r is None:
            raise PtxError("unknown name")
        kind = r[0]
        if kind == "reg":
            out += [K_REG, r[1], 0]
        elif kind == "pred":
            out += [K_PRED, r[1], 0]
        elif kind == "sreg":
            out += [K_SREG, r[1], 0]
        elif kind == "dyn":
            self.dyn_fix.append((out, len(out) + 1))
            out += [K_INT, add, 0]
        else:
            out += [K_INT, r[1] + add, 0]

    def _emit(self, op, pred, ops, text):
        self.opidx.append(self.opnames.setdefault(op, len(self.opnames)))
        self.pred.append(pred)
        self.opnds.append(ops)
        self.text.append(text)
        self.loc.append(self.cur_loc)

    # ---- a function body
    def _body(self, f, scopes, is_entry):
        if f.name in self.stack:
            raise PtxError(f"recursive call of {f.name}")
        self.stack.append(f.name)
        inst = self.ninst
        self.ninst += 1
        toks = self.toks
        i, end = f.body
        scopes = [*scopes, self._scope()]
        # branch tables are looked up before their users: collect them first
        for k in range(i, end):
            if toks[k] == ".branchtargets":
                e = toks.index(";", k)
                self.branch_tables[(inst, toks[k - 2])] = [x for x in toks[k + 1 : e] if x != ","]
        while i < end:
            t = toks[i]
            if t == "{":
                scopes.append(self._scope())
                i += 1
            elif t == "}":
                scopes.pop()
                i += 1
            elif t == ";":
                i += 1
            elif t == ".loc":
                self.cur_loc = (int(toks[i + 1]), int(toks[i + 2]))
                i += 4
                if toks[i] == "," and toks[i + 1] == "function_name":
                    i += 3
                    if toks[i] == "+":
                        i += 2
                    if toks[i] == "," and toks[i + 1] == "inlined_at":
                        i += 5
            elif t == ".reg":
                typ = toks[i + 1][1:]
                i += 2
                while True:
                    name = toks[i]
                    if toks[i + 1] == "<":
                        scopes[-1].ranges[name] = (typ, int(toks[i + 2]))
                        i += 4
                    else:
                        scopes[-1].names[name] = self._newpred() if typ == "pred" else self._reg(max(2, TYPE_SIZE[typ]))
                        i += 1
                    if toks[i] == ",":
                        i += 1
                        continue
                    i += 1
                    break
            elif t in (".local", ".shared", ".param", ".const", ".global"):
                table = {}
                i = self.mod.variable(i, table)
                for name, v in table.items():
                    if t == ".shared":
                        key = (f.name, name)
                        if key not in self.mod_shared:
                            self.mod_shared[key] = self._shared(name, v)
                        scopes[-1].names[name] = self.mod_shared[key]
                    else:
                        scopes[-1].names[name] = self._local(v.size, v.align)
            elif t in (".pragma", ".callprototype", ".branchtargets", ".calltargets"):
                while toks[i] != ";":
                    i += 1
                i += 1
            elif toks[i + 1] == ":" and t[0] != "@":
                self.labels[(id(scopes[-1]), t)] = len(self.opidx)
                i += 2
            else:
                i = self._instr(i, scopes, inst, is_entry)
        self.labels[(inst, "$ret")] = len(self.opidx)
        if is_entry:
            self._emit("ret", -1, [], "ret")
        self.stack.pop()

    def _instr(self, i, scopes, inst, is_entry):
        toks = self.toks
        start = i
        pred = -1
        if toks[i] == "@":
            neg = 0
            i += 1
            if toks[i] == "!":
                neg = 1
                i += 1
            r = self._lookup(scopes, toks[i])
            if r is None or r[0] != "pred":
                raise PtxError(f"guard {toks[i]} is not a predicate")
            pred = r[1] * 2 + neg
            i += 1
        op = toks[i]
        i += 1
        if op.startswith("call"):
            return self._call(i, pred, scopes, inst)
        if op in ("ret", "ret.uni") and not is_entry:
            ops = []
            self.label_fix.append((ops, 1, [(inst, "$ret")]))
            ops += [K_LABEL, 0, 0]
            self._emit("bra", pred, ops, "ret")
            return toks.index(";", i) + 1
        ops = []
        self._last_space = None
        bad = None
        try:
            while toks[i] != ";":
                if toks[i] == ",":
                    i += 1
                    continue
                i = self._operand(i, ops, scopes, inst)
        except PtxError as e:
            bad = str(e)
            i = toks.index(";", i)
        text = _join(toks[start:i])
        if bad:
            self._emit(f"{op}.unsupported_operand:{bad}".replace(".", "\x01").replace("\n", " "), pred, [], text)
            return i + 1
        if op.startswith(("ld.param", "st.param")) and (
            self._last_space == "local" or (not is_entry and self._last_space == "reg")
        ):
            op = op.replace(".param", ".local", 1)
        self._emit(op, pred, ops, text)
        return i + 1

    def _list(self, i):
        toks, out = self.toks, []
        i += 1
        while toks[i] != ")":
            if toks[i] != ",":
                out.append(toks[i])
            i += 1
        return out, i + 1

    def _call(self, i, pred, scopes, inst):
        toks = self.toks
        rets, args = [], []
        if toks[i] == "(":
            rets, i = self._list(i)
            i += toks[i] == ","
        target = toks[i]
        i += 1
        i += toks[i] == ","
        if toks[i] == "(":
            args, i = self._list(i)
        end = toks.index(";", i) + 1
        skip = None
        if pred >= 0:
            skip = f"$skip{len(self.opidx)}"
            ops = [K_LABEL, 0, 0]
            self.label_fix.append((ops, 1, [(inst, skip)]))
            self._emit("bra", pred ^ 1, ops, f"call {target}")
        f = self.mod.funcs.get(target)
        if f is None or f.body is None:
            a = [self._lookup(scopes, x) for x in args]

            def load(k, width):
                r = self._reg(width)
                self._emit(f"ld.local.u{8 * width}", -1, [K_REG, r[1], 0, K_MEM, -1, a[k][1]], f"call {target}")
                return [K_REG, r[1], 0]

            if target == "vprintf":
                self._emit("psprintf", -1, load(0, 8) + load(1, 8), "call vprintf")
                ret = self._lookup(scopes, rets[0])
                self._emit("st.local.u32", -1, [K_MEM, -1, ret[1], K_INT, 1, 0], "call vprintf")
            elif target == "__assertfail":
                self._emit("psassert", -1, load(0, 8) + load(1, 8) + load(2, 4), "call __assertfail")
            else:
                self._emit(f"call\x01{target}", -1, [], f"call {target}")
        else:
            env = self._scope()
            for p, x in list(zip(f.rets, rets, strict=False)) + list(zip(f.params, args, strict=False)):
                r = self._lookup(scopes, x)
                if r is None or r[0] != "local":
                    raise PtxError(f"call of {target}: argument {x} is not a .param variable")
                env.names[p.name] = r
            self._body(f, [env], False)
        if skip:
            self.labels[(inst, skip)] = len(self.opidx)
        return end

    def _finish(self):
        for lst, pos, keys in self.label_fix:
            at = next((self.labels[k] for k in keys if k in self.labels), None)
            if at is None:
                raise PtxError(f"unknown name or label {keys[0][1]}")
            lst[pos] = at
        self.dyn_base = _align(self.shared_off, max(self.dyn_align, 16))
        for lst, pos in self.dyn_fix:
            lst[pos] += self.dyn_base
        flat, starts = [], [0]
        for o in self.opnds:
            flat += o
            starts.append(len(flat) // 3)
        self.flat, self.ostart = flat, starts
        self.local_size = _align(self.local_size, 16)
        self.granule = self._granule()

    def _granule(self):
        """log2 of the smallest shared-memory access: the race detector's resolution."""
        best = 16
        for op in self.opnames:
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


def _s64(x):
    return x - (1 << 64) if x >= 1 << 63 else x


def _join(toks):
    s = ""
    for t in toks:
        if t in (",", "]", "}", ")", "+", "|", ">") or s.endswith(("[", "{", "(", "@", "!", "+", "|", "-")) or not s:
            s += t
        else:
            s += " " + t
    return s


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
            x = _int(t)
            i += 1
            if i < len(toks) and toks[i] == "(":  # mask(symbol): one byte of an address
                x_mask, name = x, toks[i + 1]
                i += 2
                add = 0
                while toks[i] != ")":
                    if toks[i][0].isdigit():
                        add = _int(toks[i])
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
                add += _int(toks[i + 1]) * (1 if toks[i] == "+" else -1)
                i += 2
            val = struct.pack("<Q", address_of(t) + add)[:es]
        data[off : off + len(val)] = val
        off += es
    return data
