"""One kernel as a flat list of encoded instructions for the core.

Device functions are inlined at every call (no recursion). A ``.param`` of a call becomes local memory of the thread.
"""

import re

from . import abi
from .opcodes import granule_log2
from .parser import TYPE_SIZE, PtxError, integer, round_up

RED_ZONE = 128  # bytes after every static shared variable


class _Scope:
    __slots__ = ("names", "ranges")

    def __init__(self):
        self.names, self.ranges = {}, {}


class KernelBuilder:
    """Expands one entry function into flat arrays for the core.

    Args:
        address_of: name of a module variable -> its device address.

    Attributes:
        opcodes: the different opcodes, by index.
        opcode_index, guards, first_operand, operands, texts, locations: by instruction; see core/decode/decode.h.
        register_width: bytes of every register.
        special_registers: name -> number.
        shared_vars: (name, offset, size) of static shared variables, between red zones.
        static_shared, shared_size, dynamic_base: bytes without and with red zones, start of the dynamic part.
        local_size, params_size: bytes of local memory a thread, and of the parameters.
        granule: log2 of the smallest shared-memory access.
    """

    def __init__(self, mod, name, address_of):
        self.mod, self.toks, self.address_of = mod, mod.toks, address_of
        f = mod.funcs[name]
        if not f.entry or f.body is None:
            raise PtxError(f"{name} is not a kernel with a body")
        self.func = f
        self.register_width, self.num_predicates = [], 0
        self.opcodes, self.opcode_index, self.guards, self.first_operand, self.operand_lists = {}, [], [], [0], []
        self.texts, self.locations = [], []
        self.special_registers = {}
        self.labels, self.label_uses, self.dynamic_uses = {}, [], []
        self.local_size = 0
        self.shared_vars = []  # (name, offset, size)
        self.shared_size, self.static_shared = 0, 0
        self.dynamic_align = 16
        self.location = (0, 0)
        self.num_inlined = 0
        self.stack = []
        self.shared_names = {}
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
        self.register_width.append(width)
        return ("reg", len(self.register_width) - 1, width)

    def _newpred(self):
        self.num_predicates += 1
        return ("pred", self.num_predicates - 1, 0)

    def _local(self, size, alignment):
        off = round_up(self.local_size, max(alignment, 1))
        self.local_size = off + max(size, 1)
        return ("local", off)

    def _shared(self, name, var):
        if var.extern and var.size == 0:
            self.dynamic_align = max(self.dynamic_align, var.align)
            return ("dyn", 0)
        off = round_up(self.shared_size, max(var.align, 16))
        self.shared_vars.append((name, off, var.size))
        self.shared_size = round_up(off + var.size, RED_ZONE) + RED_ZONE
        self.static_shared = round_up(self.static_shared, var.align) + var.size
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
                if name not in self.shared_names:
                    self.shared_names[name] = self._shared(name, v)
                return self.shared_names[name]
            return ("addr", self.address_of(name))
        if name == "WARP_SZ":
            return ("addr", 32)
        if name.startswith("%"):
            return ("sreg", self.special_registers.setdefault(name, len(self.special_registers)))
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
            out += [abi.VEC, cnt, 0, *sub]
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
                    off += sign * integer(x)
                elif x == ",":
                    raise PtxError("tensor/multi-operand addresses are not supported")
                else:
                    sym = self._lookup(scopes, x)
                    if sym is None:
                        raise PtxError(f"unknown name {x}")
                j += 1
            if sym is None:
                out += [abi.MEM, -1, off]
            elif sym[0] == "reg":
                out += [abi.MEM, sym[1], off]
            elif sym[0] == "dyn":
                self.dynamic_uses.append((out, len(out) + 2))
                out += [abi.MEM, -1, off]
            elif sym[0] == "sreg":
                raise PtxError("special register as an address")
            else:
                out += [abi.MEM, -1, sym[1] + off]
            self._last_space = sym[0] if sym else None
            return j + 1
        if t == "(":
            raise PtxError("unexpected (")
        if t == "!":
            r = self._lookup(scopes, toks[i + 1])
            out += [abi.PRED, r[1], 1]
            return i + 2
        if t == "-":
            out += [abi.INT, -integer(toks[i + 1]), 0]
            return i + 2
        if t == "+":
            return self._operand(i + 1, out, scopes, inst)
        c = t[0]
        if c.isdigit():
            if t[:2] in ("0f", "0F"):
                out += [abi.F32, int(t[2:], 16), 0]
            elif t[:2] in ("0d", "0D"):
                out += [abi.F64, _s64(int(t[2:], 16)), 0]
            else:
                out += [abi.INT, _s64(integer(t)), 0]
            return i + 1
        if t == "_":
            if toks[i + 1] == "|":
                out += [abi.PAIR, 2, 0, abi.SINK, 0, 0]
                return self._operand(i + 2, out, scopes, inst)
            out += [abi.SINK, 0, 0]
            return i + 1
        r = self._lookup(scopes, t)
        if toks[i + 1] == "|":
            out += [abi.PAIR, 2, 0]
            self._encode(r, out)
            return self._operand(i + 2, out, scopes, inst)
        if r is None:  # a label or a branch table
            if (inst, t) in self.branch_tables:
                lst = self.branch_tables[(inst, t)]
                out += [abi.VEC, len(lst), 0]
                for lab in lst:
                    self.label_uses.append((out, len(out) + 1, [(id(s), lab) for s in reversed(scopes)]))
                    out += [abi.LABEL, 0, 0]
                return i + 1
            # labels are local to their { } block: search the enclosing ones from the inside
            self.label_uses.append((out, len(out) + 1, [(id(s), t) for s in reversed(scopes)]))
            out += [abi.LABEL, 0, 0]
            return i + 1
        k = i + 1
        add = 0
        while toks[k] in "+-" and toks[k + 1][0].isdigit():
            add += integer(toks[k + 1]) * (1 if toks[k] == "+" else -1)
            k += 2
        self._encode(r, out, add)
        return k

    def _encode(self, r, out, add=0):
        if r is None:
            raise PtxError("unknown name")
        kind = r[0]
        if kind == "reg":
            out += [abi.REG, r[1], 0]
        elif kind == "pred":
            out += [abi.PRED, r[1], 0]
        elif kind == "sreg":
            out += [abi.SREG, r[1], 0]
        elif kind == "dyn":
            self.dynamic_uses.append((out, len(out) + 1))
            out += [abi.INT, add, 0]
        else:
            out += [abi.INT, r[1] + add, 0]

    def _emit(self, op, pred, ops, text):
        self.opcode_index.append(self.opcodes.setdefault(op, len(self.opcodes)))
        self.guards.append(pred)
        self.operand_lists.append(ops)
        self.texts.append(text)
        self.locations.append(self.location)

    # ---- a function body
    def _body(self, f, scopes, is_entry):
        if f.name in self.stack:
            raise PtxError(f"recursive call of {f.name}")
        self.stack.append(f.name)
        inst = self.num_inlined
        self.num_inlined += 1
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
                self.location = (int(toks[i + 1]), int(toks[i + 2]))
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
                        if key not in self.shared_names:
                            self.shared_names[key] = self._shared(name, v)
                        scopes[-1].names[name] = self.shared_names[key]
                    else:
                        scopes[-1].names[name] = self._local(v.size, v.align)
            elif t in (".pragma", ".callprototype", ".branchtargets", ".calltargets"):
                while toks[i] != ";":
                    i += 1
                i += 1
            elif toks[i + 1] == ":" and t[0] != "@":
                self.labels[(id(scopes[-1]), t)] = len(self.opcode_index)
                i += 2
            else:
                i = self._instr(i, scopes, inst, is_entry)
        self.labels[(inst, "$ret")] = len(self.opcode_index)
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
            self.label_uses.append((ops, 1, [(inst, "$ret")]))
            ops += [abi.LABEL, 0, 0]
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
            skip = f"$skip{len(self.opcode_index)}"
            ops = [abi.LABEL, 0, 0]
            self.label_uses.append((ops, 1, [(inst, skip)]))
            self._emit("bra", pred ^ 1, ops, f"call {target}")
        f = self.mod.funcs.get(target)
        if f is None or f.body is None:
            a = [self._lookup(scopes, x) for x in args]

            def load(k, width):
                r = self._reg(width)
                self._emit(f"ld.local.u{8 * width}", -1, [abi.REG, r[1], 0, abi.MEM, -1, a[k][1]], f"call {target}")
                return [abi.REG, r[1], 0]

            if target == "vprintf":
                self._emit("psprintf", -1, load(0, 8) + load(1, 8), "call vprintf")
                ret = self._lookup(scopes, rets[0])
                self._emit("st.local.u32", -1, [abi.MEM, -1, ret[1], abi.INT, 1, 0], "call vprintf")
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
            self.labels[(inst, skip)] = len(self.opcode_index)
        return end

    def _finish(self):
        for lst, pos, keys in self.label_uses:
            at = next((self.labels[k] for k in keys if k in self.labels), None)
            if at is None:
                raise PtxError(f"unknown name or label {keys[0][1]}")
            lst[pos] = at
        self.dynamic_base = round_up(self.shared_size, max(self.dynamic_align, 16))
        for lst, pos in self.dynamic_uses:
            lst[pos] += self.dynamic_base
        flat, starts = [], [0]
        for o in self.operand_lists:
            flat += o
            starts.append(len(flat) // 3)
        self.operands, self.first_operand = flat, starts
        self.local_size = round_up(self.local_size, 16)
        self.granule = granule_log2(self.opcodes)

    def shared_end(self, dynamic):
        """Bytes of a block's shared memory with red zones, with this much dynamic shared memory."""
        return self.dynamic_base + dynamic if dynamic else self.shared_size


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
