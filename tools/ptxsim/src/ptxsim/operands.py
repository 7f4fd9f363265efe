"""Operands of PTX instructions: tokens -> (kind, value, detail) triples for the core."""

from . import abi
from .kernel_names import KernelNames
from .parser import PtxError, integer


class OperandEncoder(KernelNames):
    """Encodes operands. Labels and dynamic shared memory are filled in at the end of the kernel."""

    def __init__(self, mod, address_of):
        super().__init__(mod, address_of)
        self.label_uses = []  # (list, position, keys of the label from the innermost scope)
        self.dynamic_uses = []  # (list, position)
        self.branch_tables = {}  # (inlined function, name) -> labels
        self.last_space = None  # kind of the symbol in the last address

    def operand(self, i, out, scopes, inst):
        """Appends the operand at token i to `out`. Returns the index of the token after it."""
        toks = self.toks
        t = toks[i]
        if t == "{":
            return self._vector(i, out, scopes, inst)
        if t == "[":
            return self._address(i, out, scopes)
        if t == "(":
            raise PtxError("an operand starts with a parenthesis. Correct the PTX")
        if t == "!":
            out += [abi.PRED, self.lookup(scopes, toks[i + 1])[1], 1]
            return i + 2
        if t == "-":
            out += [abi.INT, -integer(toks[i + 1]), 0]
            return i + 2
        if t == "+":
            return self.operand(i + 1, out, scopes, inst)
        if t[0].isdigit():
            out += _literal(t)
            return i + 1
        symbol = None if t == "_" else self.lookup(scopes, t)
        if toks[i + 1] == "|":
            out += [abi.PAIR, 2, 0]
            if t == "_":
                out += [abi.SINK, 0, 0]
            else:
                self._symbol(symbol, out)
            return self.operand(i + 2, out, scopes, inst)
        if t == "_":
            out += [abi.SINK, 0, 0]
            return i + 1
        if symbol is None:
            self._labels(t, out, scopes, inst)
            return i + 1
        i += 1
        offset = 0
        while toks[i] in "+-" and toks[i + 1][0].isdigit():
            offset += integer(toks[i + 1]) * (1 if toks[i] == "+" else -1)
            i += 2
        self._symbol(symbol, out, offset)
        return i

    def _vector(self, i, out, scopes, inst):
        parts, count = [], 0
        i += 1
        while self.toks[i] != "}":
            if self.toks[i] == ",":
                i += 1
                continue
            i = self.operand(i, parts, scopes, inst)
            count += 1
        out += [abi.VEC, count, 0, *parts]
        return i + 1

    def _address(self, i, out, scopes):
        toks = self.toks
        i += 1
        offset, sign, symbol = 0, 1, None
        while toks[i] != "]":
            x = toks[i]
            if x == "+":
                sign = 1
            elif x == "-":
                sign = -sign if toks[i - 1] == "+" else -1
            elif x[0].isdigit():
                offset += sign * integer(x)
            elif x == ",":
                raise PtxError("tensor/multi-operand addresses are not supported")
            else:
                symbol = self.lookup(scopes, x)
                if symbol is None:
                    raise PtxError(f"the name {x} is not declared. Declare it in the PTX")
            i += 1
        kind = symbol[0] if symbol else None
        if kind == "sreg":
            raise PtxError("a special register is used as an address. Move it to a register first")
        if kind == "dyn":
            self.dynamic_uses.append((out, len(out) + 2))
        if kind == "reg":
            out += [abi.MEM, symbol[1], offset]
        elif kind is None or kind == "dyn":
            out += [abi.MEM, -1, offset]
        else:
            out += [abi.MEM, -1, symbol[1] + offset]
        self.last_space = kind
        return i + 1

    def _symbol(self, symbol, out, offset=0):
        if symbol is None:
            raise PtxError("a name in a pair a|b is not declared. Declare it in the PTX")
        kind = symbol[0]
        if kind in ("reg", "pred", "sreg"):
            out += [{"reg": abi.REG, "pred": abi.PRED, "sreg": abi.SREG}[kind], symbol[1], 0]
        elif kind == "dyn":
            self.dynamic_uses.append((out, len(out) + 1))
            out += [abi.INT, offset, 0]
        else:
            out += [abi.INT, symbol[1] + offset, 0]

    def _labels(self, name, out, scopes, inst):
        """A label, or the labels of a branch table."""
        labels = [name]
        if (inst, name) in self.branch_tables:
            labels = self.branch_tables[(inst, name)]
            out += [abi.VEC, len(labels), 0]
        for label in labels:
            # labels are local to their { } block: search the enclosing ones from the inside
            self.label_uses.append((out, len(out) + 1, [(id(s), label) for s in reversed(scopes)]))
            out += [abi.LABEL, 0, 0]


def _literal(token):
    if token[:2] in ("0f", "0F"):
        return [abi.F32, int(token[2:], 16), 0]
    if token[:2] in ("0d", "0D"):
        return [abi.F64, _signed(int(token[2:], 16)), 0]
    return [abi.INT, _signed(integer(token)), 0]


def _signed(x):
    return x - (1 << 64) if x >= 1 << 63 else x
