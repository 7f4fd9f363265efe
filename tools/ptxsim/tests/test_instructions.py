"""Single PTX instructions against independent references."""

import struct

import numpy as np
import pytest

import ptxsim
from ptxsim import bf16_to_f32, f32_to_bf16, f32_to_tf32

rng = np.random.default_rng(1)
N = 256
REG = {1: "b16", 2: "b16", 4: "b32", 8: "b64"}


def run(op, out, ins, imm=""):
    """Executes `op d, a, b, ...` on N lanes; ins are arrays, out a dtype."""
    out = np.dtype(out)
    regs, body = "", ""
    for k, a in enumerate(ins):
        w = a.dtype.itemsize
        regs += f".reg .{REG[w]} %x{k};\n"
        body += f"ld.param.u64 %p, [p{k}]; mad.wide.u32 %q, %t, {w}, %p; ld.global.b{8 * w} %x{k}, [%q];\n"
    w = out.itemsize
    params = ", ".join(f".param .u64 p{k}" for k in range(len(ins) + 1))
    ops = ", ".join(["%d"] + [f"%x{k}" for k in range(len(ins))]) + (", " + imm if imm else "")
    text = f""".version 9.0\n.target sm_90\n.address_size 64
.visible .entry k({params}) {{ .reg .b64 %p, %q; .reg .b32 %t, %c; .reg .{REG[w]} %d; .reg .pred %f, %g; {regs}
mov.u32 %t, %tid.x; {body} {op if ";" in op else op + " " + ops + ";"}
ld.param.u64 %p, [p{len(ins)}]; mad.wide.u32 %q, %t, {w}, %p; st.global.b{8 * w} [%q], %d; ret; }}"""
    res = np.zeros(N, out)
    ptxsim.load_ptx(text).launch("k", 1, N, [*ins, res])
    return res


def ints(dt):
    i = np.iinfo(dt)
    a = rng.integers(i.min, i.max, N, dtype=dt, endpoint=True)
    a[:8] = np.array([0, 1, i.max, i.min, 2, 3, i.max - 1, i.min + 1], dtype=dt)
    a[8:16] = a[:8][::-1]
    a[100:200] = rng.integers(max(i.min, -100), 100, 100).astype(dt)
    return rng.permutation(a)


def floats(dt="f4"):
    a = (rng.standard_normal(N) * 10.0 ** rng.integers(-4, 5, N)).astype(dt)
    a[:12] = [0.0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 0.5, 1.5, -2.5, 2.5, 3.5]
    return rng.permutation(a)


INT_T = {"u16": "u2", "s16": "i2", "u32": "u4", "s32": "i4", "u64": "u8", "s64": "i8"}


def wrap(v, dt):
    n = np.dtype(dt).itemsize * 8
    return np.array([(int(x) & ((1 << n) - 1)) for x in v], dtype=object).astype(f"u{n // 8}").view(dt)


def trunc_div(a, b):
    q = abs(a) // abs(b)
    return q if (a < 0) == (b < 0) else -q


@pytest.mark.parametrize("t", list(INT_T))
def test_integer(t):
    dt = INT_T[t]
    bits = np.dtype(dt).itemsize * 8
    a, b, c = ints(dt), ints(dt), ints(dt)
    A, B, C = ([int(v) for v in x] for x in (a, b, c))
    two = {
        "add": lambda x, y: x + y,
        "sub": lambda x, y: x - y,
        "mul.lo": lambda x, y: x * y,
        "mul.hi": lambda x, y: (x * y) >> bits,
        "min": min,
        "max": max,
    }
    for op, f in two.items():
        full = f"{op}.{t}"
        assert (run(full, dt, [a, b]) == wrap([f(x, y) for x, y in zip(A, B, strict=False)], dt)).all(), op
    nz = np.where(b == 0, 1, b).astype(dt)
    D = [int(v) for v in nz]
    ok = np.array([not (x == -(1 << (bits - 1)) and y == -1) for x, y in zip(A, D, strict=False)])
    assert (run(f"div.{t}", dt, [a, nz]) == wrap([trunc_div(x, y) for x, y in zip(A, D, strict=False)], dt))[ok].all()
    assert (run(f"rem.{t}", dt, [a, nz]) == wrap([x - y * trunc_div(x, y) for x, y in zip(A, D, strict=False)], dt))[
        ok
    ].all()
    for op, f in {
        "mad.lo": lambda x, y, z: x * y + z,
        "mad.hi": lambda x, y, z: ((x * y) >> bits) + z,
        "sad": lambda x, y, z: z + abs(x - y),
    }.items():
        assert (run(f"{op}.{t}", dt, [a, b, c]) == wrap([f(*v) for v in zip(A, B, C, strict=False)], dt)).all(), op
    if bits < 64:
        wd = {"u2": "u4", "i2": "i4", "u4": "u8", "i4": "i8"}[dt]
        w = ints(wd)
        assert (run(f"mul.wide.{t}", wd, [a, b]) == wrap([x * y for x, y in zip(A, B, strict=False)], wd)).all()
        assert (
            run(f"mad.wide.{t}", wd, [a, b, w]) == wrap([x * y + int(z) for x, y, z in zip(A, B, w, strict=False)], wd)
        ).all()
    s = rng.integers(0, bits + 10, N).astype("u4")
    assert (run(f"shr.{t}", dt, [a, s]) == wrap([x >> min(int(y), 200) for x, y in zip(A, s, strict=False)], dt)).all()
    assert (run(f"shl.b{bits}", dt, [a, s]) == wrap([x << int(y) for x, y in zip(A, s, strict=False)], dt)).all()
    if t[0] == "s":
        assert (run(f"neg.{t}", dt, [a]) == wrap([-x for x in A], dt)).all()
        assert (run(f"abs.{t}", dt, [a]) == wrap([abs(x) for x in A], dt)).all()
    if bits >= 32 and t[0] == "u":
        assert (run(f"popc.b{bits}", "u4", [a]) == [bin(x).count("1") for x in A]).all()
        assert (run(f"clz.b{bits}", "u4", [a]) == [bits - x.bit_length() for x in A]).all()
        assert (run(f"brev.b{bits}", dt, [a]) == [int(f"{x:0{bits}b}"[::-1], 2) for x in A]).all()
        assert (run(f"bfind.{t}", "u4", [a]) == [(x.bit_length() - 1) & 0xFFFFFFFF for x in A]).all()
    if bits >= 32:
        pos, ln = rng.integers(0, bits + 4, N).astype("u4"), rng.integers(0, bits + 4, N).astype("u4")

        def bfe(x, p, n):
            m = bits - 1
            sb = 0 if t[0] == "u" or n == 0 else (x >> min(p + n - 1, m)) & 1
            return sum((((x >> (p + i)) & 1) if i < n and p + i <= m else sb) << i for i in range(bits))

        U = [x & ((1 << bits) - 1) for x in A]
        assert (
            run(f"bfe.{t}", dt, [a, pos, ln])
            == wrap([bfe(x, int(p), int(n)) for x, p, n in zip(U, pos, ln, strict=False)], dt)
        ).all()
        if t[0] == "u":

            def bfi(x, y, p, n):
                for i in range(n):
                    if p + i < bits:
                        y = (y & ~(1 << (p + i))) | (((x >> i) & 1) << (p + i))
                return y

            assert (
                run(f"bfi.b{bits}", dt, [a, b, pos, ln])
                == [bfi(x, y, int(p), int(n)) for x, y, p, n in zip(A, B, pos, ln, strict=False)]
            ).all()


def test_bits32():
    a, b, c = ints("u4"), ints("u4"), ints("u4")
    for lut in (0xE8, 0x96, 0x1B, 0xCA):
        ref = [
            sum((((lut >> ((x >> i & 1) * 4 + (y >> i & 1) * 2 + (z >> i & 1))) & 1) << i) for i in range(32))
            for x, y, z in zip(a.tolist(), b.tolist(), c.tolist(), strict=False)
        ]
        assert (run("lop3.b32", "u4", [a, b, c], hex(lut)) == ref).all()
    s = rng.integers(0, 40, N).astype("u4")
    z = [(y << 32 | x, int(k)) for x, y, k in zip(a.tolist(), b.tolist(), s, strict=False)]
    assert (run("shf.l.wrap.b32", "u4", [a, b, s]) == [(v << (k & 31)) >> 32 & 0xFFFFFFFF for v, k in z]).all()
    assert (run("shf.r.wrap.b32", "u4", [a, b, s]) == [v >> (k & 31) & 0xFFFFFFFF for v, k in z]).all()
    assert (run("shf.l.clamp.b32", "u4", [a, b, s]) == [(v << min(k, 32)) >> 32 & 0xFFFFFFFF for v, k in z]).all()
    assert (run("shf.r.clamp.b32", "u4", [a, b, s]) == [v >> min(k, 32) & 0xFFFFFFFF for v, k in z]).all()
    sel = rng.integers(0, 1 << 16, N).astype("u4")

    def prmt(x, y, k):
        by = list(struct.pack("<II", x, y))
        out = 0
        for i in range(4):
            q = k >> 4 * i & 15
            v = by[q & 7]
            if q & 8:
                v = 255 if v & 128 else 0
            out |= v << 8 * i
        return out

    assert (run("prmt.b32", "u4", [a, b, sel]) == [prmt(*map(int, v)) for v in zip(a, b, sel, strict=False)]).all()
    sa, sb = a.view("i1").reshape(N, 4).astype("i8"), b.view("i1").reshape(N, 4).astype("i8")
    assert (run("dp4a.s32.s32", "i4", [a, b, c]) == wrap((sa * sb).sum(1) + c.view("i4"), "i4")).all()
    # 128-bit addition through the carry flag
    x, y = ints("u8"), ints("u8")
    hi = run("add.cc.u64 %d, %x0, %x1; addc.u64 %d, 0, 0;", "u8", [x, y])
    assert (hi == [(int(p) + int(q)) >> 64 for p, q in zip(x, y, strict=False)]).all()
    lo = run("sub.cc.u32 %d, %x0, %x1; subc.u32 %d, 7, 0;", "u4", [a, b])
    assert (lo == [7 - (p < q) for p, q in zip(a, b, strict=False)]).all()


@pytest.mark.parametrize("t,dt", [("f32", "f4"), ("f64", "f8")])
def test_float(t, dt):
    a, b, c = floats(dt), floats(dt), floats(dt)

    def same(x, y):
        return ((x == y) & (np.signbit(x) == np.signbit(y)) | (np.isnan(x) & np.isnan(y))).all()

    with np.errstate(all="ignore"):
        assert same(run(f"add.rn.{t}", dt, [a, b]), a + b)
        assert same(run(f"sub.{t}", dt, [a, b]), a - b)
        assert same(run(f"mul.{t}", dt, [a, b]), a * b)
        assert same(run(f"div.rn.{t}", dt, [a, b]), a / b)
        assert same(run(f"sqrt.rn.{t}", dt, [a]), np.sqrt(a))
        assert same(run(f"rcp.rn.{t}", dt, [a]), 1 / a)
        if dt == "f4":
            p = a.astype("f8") * b.astype("f8")
            got, ref = run("fma.rn.f32", dt, [a, b, c]), (p + c).astype("f4")
            assert np.mean((got == ref) | np.isnan(ref)) > 0.99
            got = run("add.sat.f32", dt, [a, b])
            assert same(got, np.where(np.isnan(a + b), 0, np.clip(a + b, 0, 1)).astype("f4") + np.float32(0))
            tiny = (rng.standard_normal(N) * 1e-39).astype("f4")
            assert (run("add.ftz.f32", dt, [tiny, tiny]) == 0).all() and (
                run("add.f32", dt, [tiny, tiny]) == tiny + tiny
            ).all()
        fin = np.isfinite(a) & np.isfinite(b)
        for mode in ("rz", "rm", "rp"):
            from fractions import Fraction

            got = run(f"add.{mode}.{t}", dt, [a, b])
            for x, y, g in zip(a[fin], b[fin], got[fin], strict=False):
                ex = Fraction(float(x)) + Fraction(float(y))
                gf = Fraction(float(g))
                nxt = (
                    Fraction(float(np.nextafter(g, np.array(np.inf, dt)))),
                    Fraction(float(np.nextafter(g, np.array(-np.inf, dt)))),
                )
                lo = mode == "rm" or (mode == "rz" and ex > 0)
                assert (gf <= ex < nxt[0]) if lo else (gf >= ex > nxt[1]) if ex != 0 else gf == 0
        assert (
            same(run(f"min.{t}", dt, [a, b]), np.fmin(a, b) + 0)
            or (run(f"min.{t}", dt, [a, b]) == np.fmin(a, b)).sum() >= N - 3
        )
        assert same(run(f"neg.{t}", dt, [a]), -a) and same(run(f"abs.{t}", dt, [a]), np.abs(a))
        if dt == "f4":
            assert (np.isnan(run("max.NaN.f32", dt, [a, b])) == (np.isnan(a) | np.isnan(b))).all()
    nan = np.isnan(a) | np.isnan(b)
    for op, f in {
        "eq": np.equal,
        "ne": np.not_equal,
        "lt": np.less,
        "le": np.less_equal,
        "gt": np.greater,
        "ge": np.greater_equal,
    }.items():
        for un in (False, True):
            got = run(f"setp.{op}{'u' if un else ''}.{t} %f, %x0, %x1; selp.u32 %d, 1, 0, %f;", "u4", [a, b])
            assert (got == np.where(nan, un, f(a, b))).all(), (op, un)
    got = run(
        f"setp.lt.{t} %f, %x0, %x1; setp.gt.and.{t} %f|%g, %x0, %x1, %f; selp.u32 %d, 1, 0, %f; @%g add.u32 %d, %d, 2;",
        "u4",
        [a, b],
    )
    assert (got == np.where(a < b, np.where(a > b, 1, 2), 0)).all()


def test_approx():
    a = np.abs(floats("f4")) + np.float32(1e-3)
    a = np.where(np.isfinite(a), a, 2).astype("f4")
    s = (a % 20).astype("f4")

    def rel(g, r):
        return np.abs(g / r - 1).max()

    assert rel(run("ex2.approx.ftz.f32", "f4", [s]), 2.0 ** s.astype("f8")) < 1e-6
    assert rel(run("rsqrt.approx.f32", "f4", [a]), 1 / np.sqrt(a.astype("f8"))) < 1e-6
    assert np.abs(run("lg2.approx.f32", "f4", [a]) - np.log2(a.astype("f8"))).max() < 1e-5
    assert np.abs(run("tanh.approx.f32", "f4", [s]) - np.tanh(s.astype("f8"))).max() < 1e-6
    assert np.abs(run("sin.approx.f32", "f4", [s]) - np.sin(s.astype("f8"))).max() < 1e-6


def test_convert():
    a = floats("f4")
    a[20:60] = (rng.standard_normal(40) * 2.0 ** rng.integers(-20, 18, 40)).astype("f4")

    def same(x, y):
        return ((x == y) | (np.isnan(x) & np.isnan(y))).all()

    with np.errstate(all="ignore"):
        assert same(run("cvt.rn.f16.f32", "f2", [a]).astype("f4"), a.astype("f2").astype("f4"))
        assert (run("cvt.rn.bf16.f32", "u2", [a]) == f32_to_bf16(a)).all()
        assert same(run("cvt.rna.tf32.f32", "f4", [a]), f32_to_tf32(a))
        z = run("cvt.rz.bf16.f32", "u2", [a])
        assert (z == (a.view("u4") >> 16))[~np.isnan(a)].all()
        h = a.astype("f2")
        assert same(run("cvt.f32.f16", "f4", [h]), h.astype("f4"))
        assert same(run("cvt.f32.bf16", "f4", [f32_to_bf16(a)]), bf16_to_f32(f32_to_bf16(a)))
        b = floats("f4")
        assert (run("cvt.rn.bf16x2.f32", "u4", [a, b]) == f32_to_bf16(a).astype("u4") << 16 | f32_to_bf16(b)).all()
        p = run("cvt.rn.f16x2.f32", "u4", [a, b])
        assert same((p >> 16).astype("u2").view("f2"), a.astype("f2")) and same(
            (p & 0xFFFF).astype("u2").view("f2"), b.astype("f2")
        )
        p = run("cvt.rn.relu.bf16x2.f32", "u4", [a, b])
        r = np.where(a > 0, a, np.where(np.isnan(a), a, 0)).astype("f4")
        assert (p >> 16 == f32_to_bf16(r)).all()
        for rd, f in {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}.items():
            v = f(a.astype("f8"))
            assert (
                run(f"cvt.{rd}.s32.f32", "i4", [a])
                == np.where(np.isnan(v), 0, np.clip(v, -(2**31), 2**31 - 1)).astype("i8")
            ).all()
            assert (
                run(f"cvt.{rd}.u8.f32", "u2", [a]) == np.where(np.isnan(v), 0, np.clip(v, 0, 255)).astype("i8")
            ).all()
            assert same(run(f"cvt.{rd}.f32.f32", "f4", [a]), f(a))
        d = floats("f8")
        assert same(run("cvt.rn.f32.f64", "f4", [d]), d.astype("f4"))
        assert (
            run("cvt.rzi.s64.f64", "i8", [d])
            == np.where(np.isnan(d), 0, np.clip(np.trunc(d), -(2.0**63), 2.0**62 * 1.99999)).astype("i8")
        )[np.isfinite(d)].all()
    i, q, s, u = ints("i4"), ints("i8"), ints("i2"), ints("u8")
    assert (run("cvt.rn.f32.s32", "f4", [i]) == i.astype("f4")).all() and (
        run("cvt.rn.f32.s64", "f4", [q]) == q.astype("f4")
    ).all()
    assert (run("cvt.rn.f32.u64", "f4", [u]) == u.astype("f4")).all() and (
        run("cvt.rn.f64.u64", "f8", [u]) == u.astype("f8")
    ).all()
    assert (run("cvt.s64.s32", "i8", [i]) == i).all() and (
        run("cvt.u64.u32", "u8", [i.view("u4")]) == i.view("u4")
    ).all()
    assert (run("cvt.s32.s8", "i4", [s]) == s.astype("i1")).all() and (
        run("cvt.u32.u8", "u4", [s]) == s.astype("u1")
    ).all()
    assert (run("cvt.u16.u32", "u2", [i]) == i.astype("u2")).all() and (
        run("cvt.s32.s64", "i4", [q]) == q.astype("i4")
    ).all()
    assert (run("cvt.sat.u8.s32", "u2", [i]) == np.clip(i, 0, 255)).all() and (
        run("cvt.sat.s16.s32", "i2", [i]) == np.clip(i, -(2**15), 2**15 - 1)
    ).all()
    assert (run("cvt.s16.s8", "i2", [s]) == s.astype("i1")).all() and (
        run("cvt.s8.s32", "i2", [i]) == i.astype("i1")
    ).all()
    j = ints("i4")

    def clip(x):
        return np.clip(x, -(2**15), 2**15 - 1).astype("i2").view("u2").astype("u4")

    assert (run("cvt.pack.sat.s16.s32", "u4", [i, j]) == clip(i) << 16 | clip(j)).all()
    m = run("cvt.rm.f32.s32", "f4", [i]).astype("f8")
    assert (m <= i).all() and (np.nextafter(m.astype("f4"), np.float32(np.inf)) > i).all()


def test_half():
    torch = pytest.importorskip("torch")
    x = (rng.standard_normal((3, N)) * 2.0 ** rng.integers(-6, 6, (3, N))).astype("f4")
    for kind, td in (("f16", torch.float16), ("bf16", torch.bfloat16)):
        t = [torch.from_numpy(v).to(td) for v in x]
        raw = [v.view(torch.int16).numpy().view("u2") for v in t]

        def bits(v, td=td):
            return v.to(td).view(torch.int16).numpy().view("u2")

        assert (run(f"add.{kind}", "u2", raw[:2]) == bits(t[0] + t[1])).all()
        assert (run(f"sub.{kind}", "u2", raw[:2]) == bits(t[0] - t[1])).all()
        assert (run(f"mul.{kind}", "u2", raw[:2]) == bits(t[0] * t[1])).all()
        ref = t[0].double() * t[1].double() + t[2].double()
        assert (run(f"fma.rn.{kind}", "u2", raw) == bits(ref)).mean() > 0.99
        assert (run(f"max.{kind}", "u2", raw[:2]) == bits(torch.maximum(t[0], t[1]))).all()
        assert (run(f"fma.rn.relu.{kind}", "u2", raw) == bits(ref.clamp(min=0))).mean() > 0.99
        pair = [
            (a.astype("u4") | b.astype("u4") << 16) for a, b in ((raw[0], raw[1]), (raw[1], raw[2]), (raw[2], raw[0]))
        ]
        got = run(f"fma.rn.{kind}x2", "u4", pair)
        lo, hi = run(f"fma.rn.{kind}", "u2", raw), run(f"fma.rn.{kind}", "u2", [raw[1], raw[2], raw[0]])
        assert (got == lo.astype("u4") | hi.astype("u4") << 16).all()
        got = run(f"setp.gt.{kind} %f, %x0, %x1; selp.u32 %d, 1, 0, %f;", "u4", raw[:2])
        assert (got == (t[0] > t[1]).numpy()).all()
        got = run(f"neg.{kind}x2", "u4", pair[:1])
        assert (got == pair[0] ^ 0x80008000).all()
        got = run(f"ex2.approx{'.ftz' if kind == 'bf16' else ''}.{kind}", "u2", [bits(t[0].clamp(-8, 8))])
        e = torch.from_numpy(got.view("i2")).view(td).double()
        assert (e / torch.exp2(t[0].clamp(-8, 8).double()) - 1).abs().max() < 0.01
