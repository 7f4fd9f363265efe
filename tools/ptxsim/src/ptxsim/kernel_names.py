"""Names in a kernel: registers, predicates, variables in local and shared memory, special registers."""

import re

from .parser import TYPE_SIZE, PtxError, round_up

RED_ZONE = 128  # bytes after every static shared variable


class Scope:
    """Names declared in a { } block: `names` -> symbol, and `ranges` %r<100>: prefix -> (type, count)."""

    __slots__ = ("names", "ranges")

    def __init__(self):
        self.names, self.ranges = {}, {}


class KernelNames:
    """Gives names of a kernel their storage. A symbol is a tuple: kind, number or offset or address, ...

    Kinds: "reg", "pred", "local", "param", "shared", "dyn" (dynamic shared memory), "addr", "sreg".
    """

    def __init__(self, mod, address_of):
        self.mod, self.toks, self.address_of = mod, mod.toks, address_of
        self.register_width, self.num_predicates = [], 0
        self.special_registers = {}
        self.local_size = 0
        self.shared_vars = []  # (name, offset, size)
        self.shared_size, self.static_shared = 0, 0
        self.dynamic_align = 16
        self.shared_names = {}
        self.all_scopes = []

    def new_scope(self):
        self.all_scopes.append(Scope())  # kept alive: labels are keyed by identity
        return self.all_scopes[-1]

    def new_register(self, width):
        self.register_width.append(width)
        return ("reg", len(self.register_width) - 1, width)

    def new_predicate(self):
        self.num_predicates += 1
        return ("pred", self.num_predicates - 1, 0)

    def new_local(self, size, alignment):
        off = round_up(self.local_size, max(alignment, 1))
        self.local_size = off + max(size, 1)
        return ("local", off)

    def new_shared(self, name, var):
        if var.extern and var.size == 0:
            self.dynamic_align = max(self.dynamic_align, var.align)
            return ("dyn", 0)
        off = round_up(self.shared_size, max(var.align, 16))
        self.shared_vars.append((name, off, var.size))
        self.shared_size = round_up(off + var.size, RED_ZONE) + RED_ZONE
        self.static_shared = round_up(self.static_shared, var.align) + var.size
        return ("shared", off)

    def lookup(self, scopes, name):
        for s in reversed(scopes):
            r = s.names.get(name)
            if r is not None:
                return r
            if s.ranges:
                m = re.match(r"(.*?)(\d+)$", name)
                if m and m.group(1) in s.ranges:
                    typ, count = s.ranges[m.group(1)]
                    if int(m.group(2)) < count:
                        r = self.new_predicate() if typ == "pred" else self.new_register(max(2, TYPE_SIZE[typ]))
                        s.names[name] = r
                        return r
        v = self.mod.vars.get(name)
        if v is not None:
            if v.space == "shared":
                if name not in self.shared_names:
                    self.shared_names[name] = self.new_shared(name, v)
                return self.shared_names[name]
            return ("addr", self.address_of(name))
        if name == "WARP_SZ":
            return ("addr", 32)
        if name.startswith("%"):
            return ("sreg", self.special_registers.setdefault(name, len(self.special_registers)))
        if name in self.mod.funcs:
            raise PtxError(f"address of function {name} is not supported")
        return None
