"""python -m ptxsim info FILE.cu [--arch sm_80] [-I DIR] [-D NAME=VALUE] [--block N] [--shared BYTES]"""

import argparse
import sys

from .limits import occupancy
from .module import compile
from .nvcc import resources
from .parser import PtxError


def info(a):
    try:
        rows = resources(a.file, a.arch, a.include, a.define, a.flag)
        mod = compile(a.file, a.arch, a.include, a.define, a.flag)
    except RuntimeError as e:
        sys.exit(str(e))
    print(f"{a.file} for {a.arch}")
    for r in rows:
        k = mod.kernels.get(r["name"])
        threads = a.block or (k.max_threads if k else None)
        spill = (
            f"{r['spill_stores']}/{r['spill_loads']} B spilled (st/ld)"
            if r["spill_stores"] or r["spill_loads"]
            else "no spills"
        )
        print(
            f"\n{r['pretty']}\n  {r['registers']} registers, {spill}, stack {r['stack']} B, "
            f"static shared {r['shared']} B, "
            f"barriers {r['barriers']}, launch bound {k.max_threads if k else None}"
        )
        for t in [threads] if threads else [128, 256, 512]:
            n, w, m, why = occupancy(a.arch, r["registers"], r["shared"] + a.shared, t)
            print(f"  block of {t}: {n} blocks/SM, {w} of {m} warps ({w / m:.0%}), limited by {why}")
        if k:
            try:
                _ = k.built  # decodes it
                bad = sorted({u for _, u in k.unsupported})
                print(f"  {len(k.ops)} PTX instructions" + (f"; the simulator lacks: {'; '.join(bad)}" if bad else ""))
            except PtxError as e:
                print(f"  the simulator cannot load it: {e}")


def main():
    p = argparse.ArgumentParser(prog="ptxsim")
    s = p.add_subparsers(dest="cmd", required=True)
    q = s.add_parser("info", help="registers, spills, shared memory and occupancy per kernel")
    q.add_argument("file")
    q.add_argument("--arch", default="sm_80")
    q.add_argument("-I", dest="include", action="append", default=[])
    q.add_argument("-D", dest="define", action="append", default=[])
    q.add_argument("--flag", action="append", default=[], help="further nvcc flag (repeatable)")
    q.add_argument("--block", type=int, help="threads per block for the occupancy estimate")
    q.add_argument("--shared", type=int, default=0, help="dynamic shared bytes for the occupancy estimate")
    info(p.parse_args())


if __name__ == "__main__":
    main()
