"""One kernel of a module, decoded for the core at its first launch."""

import ctypes
import os

import numpy as np

from . import build
from .kernel_builder import KernelBuilder


class Kernel:
    """One entry function. `ops` are its PTX opcodes, `unsupported` those that the core lacks: (pc, reason)."""

    def __init__(self, module, name, pretty):
        self.module, self.name, self.pretty = module, name, pretty
        self.func = module.ptx.funcs[name]
        self._built = None

    @property
    def params(self):
        return self.func.params

    @property
    def max_threads(self):
        """Threads of a block by __launch_bounds__, or None."""
        v = self.func.attrs.get("maxntid")
        return int(np.prod([int(x) for x in v])) if v else None

    @property
    def reqntid(self):
        v = self.func.attrs.get("reqntid")
        return tuple([int(x) for x in v] + [1] * (3 - len(v))) if v else None

    @property
    def cluster_size(self):
        """Blocks of a cluster, by __cluster_dims__."""
        return int(np.prod([int(x) for x in self.func.attrs.get("reqnctapercluster", [])] or [1]))

    @property
    def static_shared(self):
        return self.built.static_shared

    @property
    def built(self):
        """The KernelBuilder of the kernel."""
        if self._built is None:
            self._build()
        return self._built

    @property
    def program(self):
        """Handle of the decoded kernel in the core."""
        _ = self.built
        return self._program

    def _build(self):
        b = KernelBuilder(self.module.ptx, self.name, self.module.address_of)
        opcodes = list(b.opcodes)
        self.ops = [opcodes[k].replace("\x01", ".") for k in b.opcode_index]
        opcode, guard = np.array(b.opcode_index, np.int32), np.array(b.guards, np.int32)
        first_operand, operands = np.array(b.first_operand, np.int32), np.array(b.operands or [0], np.int64)
        register_width = np.array(b.register_width or [4], np.uint8)
        unsupported = ctypes.create_string_buffer(1 << 16)

        def p(array):
            return array.ctypes.data_as(ctypes.c_void_p)

        self._program = build.core().ptxsim_decode(
            "\n".join(opcodes).encode(),
            "\n".join(b.special_registers).encode(),
            len(b.opcode_index),
            p(opcode),
            p(guard),
            p(first_operand),
            p(operands),
            len(b.register_width),
            p(register_width),
            b.num_predicates,
            unsupported,
            len(unsupported),
        )
        lines = unsupported.value.decode("utf-8", "replace").replace("\x01", ".").splitlines()
        self.unsupported = [tuple(line.split("\t")) for line in lines]
        self._text, self._loc = b.texts, b.locations
        b.operand_lists = b.operands = None  # (large, and only the core needs them)
        self._built = b

    def instr_text(self, pc):
        """The PTX of an instruction."""
        return self._text[pc] if 0 <= pc < len(self._text) else "?"

    def source(self, pc):
        """ "file.cu:line" of an instruction, or "" if the PTX does not say."""
        if not 0 <= pc < len(self._loc):
            return ""
        f, line = self._loc[pc]
        name = self.module.ptx.files.get(f)
        return f"{os.path.basename(name)}:{line}" if name else ""

    def __repr__(self):
        return f"<kernel {self.pretty}>"
