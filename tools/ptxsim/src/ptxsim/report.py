"""What a launch executed, and what its checks found."""

from collections import OrderedDict

from . import abi
from .opcodes import flops, opcode_class


class PtxSimWarning(UserWarning):
    """A finding that did not stop the launch."""


class SimError(Exception):
    """A check that stopped the launch. `finding` has the details, `kind` its kind, `report` what was executed."""

    report = None

    def __init__(self, finding):
        super().__init__(str(finding))
        self.finding = finding
        self.kind = finding.kind


class Finding:
    """One error or warning: kind, kernel, instruction, source line, block, thread, address, how often."""

    def __init__(self, f, kernel):
        self.kind, self.message, self.count = (
            abi.KINDS[f.kind],
            f.message.decode("utf-8", "replace").replace("\x01", "."),
            f.count,
        )
        self.kernel, self.address, self.pc, self.other_pc = kernel.pretty, f.address, f.pc, f.other_pc
        self.block, self.thread = tuple(f.block), tuple(f.thread)
        self.instruction, self.source = kernel.instr_text(f.pc), kernel.source(f.pc)
        self.instruction2 = kernel.instr_text(f.other_pc) if f.other_pc >= 0 else None
        self.source2 = kernel.source(f.other_pc) if f.other_pc >= 0 else None

    def __str__(self):
        s = f"{self.kind}: {self.message}\n  kernel {self.kernel}, block {self.block}, thread {self.thread}"
        s += f", address 0x{self.address:x}" if self.address else ""
        s += f"\n  instruction #{self.pc}: {self.instruction}" + (f"   [{self.source}]" if self.source else "")
        if self.instruction2 is not None:
            s += f"\n  against #{self.other_pc}: {self.instruction2}" + (f"   [{self.source2}]" if self.source2 else "")
        if self.count > 1:
            s += f"\n  seen {self.count} times"
        return s

    __repr__ = __str__


class Report:
    """What one launch executed. Bytes are those the threads asked for; sectors are 32 bytes."""

    def __init__(self, kernel, stats, findings, out, total, grid, block, metrics=True):
        self.metrics, self.dynamic_shared = metrics, 0
        self.kernel, self.stats, self.findings, self.output = kernel, stats, findings, out
        self.grid, self.block = grid, block
        self.warp_instructions = int(total)
        self.thread_instructions = int(stats["thread_exec"].sum())
        self.by_class, self.flops = OrderedDict(), 0.0
        g = {"load_bytes": 0, "store_bytes": 0, "load_sectors": 0, "store_sectors": 0, "load_min": 0, "store_min": 0}
        sh = {"accesses": 0, "wavefronts": 0, "min_wavefronts": 0, "bytes": 0}
        acc = {}
        for pc, op in enumerate(kernel.ops):
            s = stats[pc]
            if not s["warp_exec"]:
                continue
            c = opcode_class(op)
            a = acc.setdefault(c, [0, 0])
            a[0] += int(s["warp_exec"])
            a[1] += int(s["thread_exec"])
            self.flops += flops(op) * int(s["thread_exec"])
            if s["sectors"]:
                k = "store" if op.startswith(("st", "red", "cp.async.bulk.global")) else "load"
                g[k + "_bytes"] += int(s["bytes"])
                g[k + "_sectors"] += int(s["sectors"])
                g[k + "_min"] += int(s["min_sectors"])
            if s["wavefronts"]:
                sh["accesses"] += int(s["accesses"])
                sh["bytes"] += int(s["bytes"])
                sh["wavefronts"] += int(s["wavefronts"])
                sh["min_wavefronts"] += int(s["min_wavefronts"])
        for c in sorted(acc, key=lambda c: -acc[c][0]):
            self.by_class[c] = {"warp": acc[c][0], "thread": acc[c][1]}
        self.global_load_bytes, self.global_store_bytes = g["load_bytes"], g["store_bytes"]
        self.global_load_sectors, self.global_store_sectors = g["load_sectors"], g["store_sectors"]
        self.load_efficiency = g["load_min"] / g["load_sectors"] if g["load_sectors"] else 1.0
        self.store_efficiency = g["store_min"] / g["store_sectors"] if g["store_sectors"] else 1.0
        self.shared_accesses, self.shared_bytes = sh["accesses"], sh["bytes"]
        self.shared_wavefronts, self.shared_min_wavefronts = sh["wavefronts"], sh["min_wavefronts"]
        self.bank_conflict_factor = sh["wavefronts"] / sh["min_wavefronts"] if sh["min_wavefronts"] else 1.0
        self.lane_utilisation = (
            self.thread_instructions / (32 * self.warp_instructions) if self.warp_instructions else 1.0
        )
        self.divergent_branches = int(stats["divergent"].sum())

    def kinds(self):
        """Set of the kinds of the findings."""
        return {f.kind for f in self.findings}

    def accesses(self):
        """Per memory instruction: dict with pc, op, source, accesses, bytes, and efficiency or bank conflicts."""
        out = []
        for pc, op in enumerate(self.kernel.ops):
            s = self.stats[pc]
            if not s["accesses"]:
                continue
            d = {
                "pc": pc,
                "op": op,
                "text": self.kernel.instr_text(pc),
                "source": self.kernel.source(pc),
                "accesses": int(s["accesses"]),
                "bytes": int(s["bytes"]),
            }
            if s["sectors"]:
                d.update(
                    sectors=int(s["sectors"]),
                    min_sectors=int(s["min_sectors"]),
                    efficiency=float(s["min_sectors"] / s["sectors"]),
                    sectors_per_access=float(s["sectors"] / s["accesses"]),
                )
            if s["wavefronts"]:
                d.update(
                    wavefronts=int(s["wavefronts"]),
                    conflict_factor=float(s["wavefronts"] / s["min_wavefronts"]),
                    max_degree=int(s["max_degree"]),
                )
            out.append(d)
        return out

    def by_source(self):
        """Warp instructions per source line, most first: list of (source, warp instructions)."""
        acc = {}
        for pc in range(len(self.kernel.ops)):
            n = int(self.stats[pc]["warp_exec"])
            if n:
                k = self.kernel.source(pc) or "?"
                acc[k] = acc.get(k, 0) + n
        return sorted(acc.items(), key=lambda x: -x[1])

    def unexecuted(self):
        """Source lines of which no instruction was executed (were all paths tested?)."""
        seen, dead = set(), []
        for pc in range(len(self.kernel.ops)):
            src = self.kernel.source(pc)
            if self.stats[pc]["warp_exec"]:
                seen.add(src)
            elif src and not src.endswith(":0"):
                dead.append(src)
        return sorted({d for d in dead if d not in seen}, key=lambda x: (x.rsplit(":", 1)[0], int(x.rsplit(":", 1)[1])))

    def summary(self, worst=8):
        def k(x):
            return f"{x:,}"

        out = [
            f"{self.kernel.pretty}  grid {self.grid} block {self.block}",
            f"  warp instructions {k(self.warp_instructions)}, thread instructions {k(self.thread_instructions)}, "
            f"lanes active {self.lane_utilisation:.0%}, divergent branches {k(self.divergent_branches)}, "
            f"flops {self.flops:.3g}",
            "  " + ", ".join(f"{c} {k(v['warp'])}" for c, v in self.by_class.items()),
            f"  global loads {k(self.global_load_bytes)} B in {k(self.global_load_sectors)} sectors "
            f"(efficiency {self.load_efficiency:.0%}), stores {k(self.global_store_bytes)} B in "
            f"{k(self.global_store_sectors)} sectors ({self.store_efficiency:.0%})",
            f"  shared accesses {k(self.shared_accesses)}, wavefronts {k(self.shared_wavefronts)} "
            f"(bank-conflict factor {self.bank_conflict_factor:.2f})",
        ]
        if not self.metrics:
            out[-2:] = ["  memory metrics were off"]
        a = self.accesses()
        bad = [x for x in a if x.get("efficiency", 1) < 0.9 or x.get("conflict_factor", 1) > 1.1]

        def waste(x):
            return (
                x.get("sectors", 0) - x.get("min_sectors", 0)
                if "sectors" in x
                else x["wavefronts"] - x["wavefronts"] / x["conflict_factor"]
            )

        bad.sort(key=lambda x: -waste(x))
        for x in bad[:worst]:
            what = (
                f"{x['sectors_per_access']:.1f} sectors/access, efficiency {x['efficiency']:.0%}"
                if "efficiency" in x
                else f"bank conflicts x{x['conflict_factor']:.1f} (up to {x['max_degree']}-way)"
            )
            out.append(f"    #{x['pc']} {x['text']}: {what}, {k(x['accesses'])} accesses  [{x['source']}]")
        if self.dynamic_shared > 48 * 1024:
            out.append(
                f"  {self.dynamic_shared} B dynamic shared memory: the host must set "
                "cudaFuncAttributeMaxDynamicSharedMemorySize"
            )
        for f in self.findings:
            out.append("  " + str(f).replace("\n", "\n  "))
        return "\n".join(out)

    __str__ = summary
