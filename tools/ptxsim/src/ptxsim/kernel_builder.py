"""One kernel as a flat list of encoded instructions for the core.

Device functions are inlined at every call (no recursion). A ``.param`` of a call becomes local memory of the thread.
"""

from . import abi
from .opcodes import granule_log2
from .operands import OperandEncoder
from .parser import TYPE_SIZE, PtxError, round_up


class KernelBuilder(OperandEncoder):
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
        super().__init__(mod, address_of)
        f = mod.funcs[name]
        if not f.entry or f.body is None:
            raise PtxError(f"{name} is not a kernel with a body")
        self.func = f
        self.opcodes, self.opcode_index, self.guards, self.first_operand, self.operand_lists = {}, [], [], [0], []
        self.texts, self.locations = [], []
        self.labels = {}
        self.location = (0, 0)  # (file, line) of .loc
        self.num_inlined = 0
        self.stack = []  # names of the functions that are being inlined
        self.params_size = max([p.offset + p.size for p in f.params], default=0)
        root = self.new_scope()
        for p in f.params:
            root.names[p.name] = ("param", p.offset)
        self._body(f, [root], True)
        self._finish()

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
        scopes = [*scopes, self.new_scope()]
        # branch tables are looked up before their users: collect them first
        for k in range(i, end):
            if toks[k] == ".branchtargets":
                e = toks.index(";", k)
                self.branch_tables[(inst, toks[k - 2])] = [x for x in toks[k + 1 : e] if x != ","]
        while i < end:
            t = toks[i]
            if t == "{":
                scopes.append(self.new_scope())
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
                        scopes[-1].names[name] = (
                            self.new_predicate() if typ == "pred" else self.new_register(max(2, TYPE_SIZE[typ]))
                        )
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
                            self.shared_names[key] = self.new_shared(name, v)
                        scopes[-1].names[name] = self.shared_names[key]
                    else:
                        scopes[-1].names[name] = self.new_local(v.size, v.align)
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
            r = self.lookup(scopes, toks[i])
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
        self.last_space = None
        bad = None
        try:
            while toks[i] != ";":
                if toks[i] == ",":
                    i += 1
                    continue
                i = self.operand(i, ops, scopes, inst)
        except PtxError as e:
            bad = str(e)
            i = toks.index(";", i)
        text = _join(toks[start:i])
        if bad:
            self._emit(f"{op}.unsupported_operand:{bad}".replace(".", "\x01").replace("\n", " "), pred, [], text)
            return i + 1
        if op.startswith(("ld.param", "st.param")) and (
            self.last_space == "local" or (not is_entry and self.last_space == "reg")
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
            a = [self.lookup(scopes, x) for x in args]

            def load(k, width):
                r = self.new_register(width)
                self._emit(f"ld.local.u{8 * width}", -1, [abi.REG, r[1], 0, abi.MEM, -1, a[k][1]], f"call {target}")
                return [abi.REG, r[1], 0]

            if target == "vprintf":
                self._emit("psprintf", -1, load(0, 8) + load(1, 8), "call vprintf")
                ret = self.lookup(scopes, rets[0])
                self._emit("st.local.u32", -1, [abi.MEM, -1, ret[1], abi.INT, 1, 0], "call vprintf")
            elif target == "__assertfail":
                self._emit("psassert", -1, load(0, 8) + load(1, 8) + load(2, 4), "call __assertfail")
            else:
                self._emit(f"call\x01{target}", -1, [], f"call {target}")
        else:
            env = self.new_scope()
            for p, x in list(zip(f.rets, rets, strict=False)) + list(zip(f.params, args, strict=False)):
                r = self.lookup(scopes, x)
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


def _join(toks):
    s = ""
    for t in toks:
        if t in (",", "]", "}", ")", "+", "|", ">") or s.endswith(("[", "{", "(", "@", "!", "+", "|", "-")) or not s:
            s += t
        else:
            s += " " + t
    return s
