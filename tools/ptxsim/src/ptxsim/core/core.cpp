// ptxsim core: executes a decoded PTX kernel on the CPU, warp by warp.
//
// * Every register is an array over the 32 lanes of a warp; predicates are 32-bit masks.
// * Divergence: a warp is a set of (pc, lane mask) groups; the runnable group with the lowest pc
//   runs, groups that meet at one pc merge (min-PC reconvergence).
// * Warp-synchronous instructions wait until all live lanes named by their mask are present.
// * Warps of a block run one after another until they block at a barrier (or use up a quantum).
// All addresses are virtual; every access is checked against allocations.
#include <algorithm>
#include <array>
#include <atomic>
#include <cfenv>
#include <cfloat>
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int8_t i8;
typedef int16_t i16;
typedef int32_t i32;
typedef int64_t i64;
typedef unsigned __int128 u128;
typedef __int128 i128;

static const u64 SHARED_WIN = 0x7e0000000000ull, LOCAL_WIN = 0x7e1000000000ull, PARAM_WIN = 0x7e2000000000ull,
                 WIN_SIZE = 0x1000000000ull;

// ---------------------------------------------------------------- shared structs (mirror: module.py)
struct Alloc {
  u64 base, size;
  u8* host;
  u64 flags;
};  // flags bit0: read-only
struct PcStat {
  u64 warp_exec, thread_exec, divergent;
  u64 accesses, bytes, sectors, min_sectors, wavefronts, min_wavefronts, max_degree;
};
struct Finding {
  i32 kind, pc, pc2, pad;
  i32 blk[3], tid[3];
  u64 addr, count;
  char msg[232];
};
enum {
  F_NONE = 0,
  F_OOB,
  F_ALIGN,
  F_UNINIT,
  F_RACE,
  F_BARRIER,
  F_BARRIER_EXIT,
  F_BARRIER_PC,
  F_SHFL,
  F_SYNC,
  F_UNSUPPORTED,
  F_TRAP,
  F_LIMIT,
  F_READONLY,
  F_INFLIGHT,
  F_OTHER,
  F_WARPRACE,
  F_NKIND
};
struct LaunchCfg {
  u32 grid[3], block[3];
  u8* params;
  u64 params_size;
  u64 shared_size;
  const u8* shared_state;  // template: 0 uninit, 1 initialised, 2 red zone
  u64 dyn_shared, user_shared;
  u64 local_size;
  const Alloc* allocs;
  u64 nallocs;
  u8 level[32];   // per kind: 0 off, 1 report, 2 raise
  u64 max_instr;  // warp instructions, all blocks together
  u64 quantum;
  u64 seed;
  u64 envreg_ptr;
  i32 workers, resident, schedule, race, metrics, granule_log2, max_findings, printf_on;
  PcStat* stats;  // one per pc
  Finding* findings;
  i32 nfindings;
  i32 failed;
  Finding error;
  u64 total_warp_instr;
  char* outbuf;
  u64 outcap, outlen;  // printf output
};

// ---------------------------------------------------------------- program
enum { K_REG, K_PRED, K_INT, K_F32, K_F64, K_SREG, K_MEM, K_VEC, K_LABEL, K_SINK, K_PAIR };
enum { C_NORMAL, C_BRA, C_BRX, C_EXIT, C_BAR, C_WSYNC, C_TRAP, C_UNSUP, C_YIELD };
struct Warp;
struct I;
typedef void (*Fn)(Warp&, const I&);
struct I {
  Fn fn = nullptr;
  int d = 0, a = 0, b = 0, c = 0, e = 0;  // byte offsets into the warp's register file / predicate codes
  i64 imm = 0;
  int pred = -1;  // guard: index*2+neg
  int target = -1;
  int pc = 0;
  int ex = 0, nex = 0;  // slice of Prog::extra
  int f1 = 0, f2 = 0, f3 = 0;
  u8 ctl = 0, sz = 0, vec = 1, regw = 0, aw = 8, space = 0, sgn = 0, ftz = 0, sat = 0, rnd = 0, op = 0, ty = 0;
};
struct SregInit {
  int id, off, width;
};
struct Prog {
  std::vector<I> code;
  std::vector<int> extra;
  std::vector<int> regoff;
  std::vector<u8> regw;
  int npred = 0, regbytes = 0, varbytes = 0;
  std::vector<u8> tmpl;  // initial contents from varbytes on (constants)
  std::vector<SregInit> sregs;
  std::vector<std::string> unsup;  // by pc, empty if ok
  std::map<std::pair<u64, int>, int> consts;
  std::map<std::pair<int, int>, int> sregmap;
  int sinkoff = -1;
};

struct SimError {
  Finding f;
};

struct Shadow {
  u32 wclk, wpc, rclk, rpc;
  u8 wwarp, rwarp, watom, wlane, rlane;
  u32 wep, rep;
};  // wep, rep: the warp's own sync count
struct AsyncOp {
  u32 dst;
  u8 n, lane;
  u32 group;
  u8 data[16];
  int pc;
};
struct Grp {
  int pc;
  u32 mask;
  bool wait;
};
struct Block;
struct Worker;
struct Warp {
  u8* R;
  u32* P;
  u32 m = 0;
  u32 act = 0, live = 0, exists = 0;
  int pc = 0, id = 0;
  int ng = 0, minOther = INT32_MAX;
  Grp g[32];
  u32 cc = 0;
  int state = 0;  // 0 run, 1 at barrier, 2 done
  int barid = -1, barpc = -1;
  Block* blk = nullptr;
  Worker* wk = nullptr;
  PcStat* st = nullptr;
  u8* local = nullptr;
  u64 lsize = 0;
  u32 vc[64] = {0}, epoch = 1;  // vector clock over the block's warps; count of this warp's __syncwarp/barriers
  std::vector<AsyncOp> pend;
  u32 agroup[32] = {0};
  std::vector<u8> store;
  u32 barpred = 0;
};
struct Barrier {
  u32 arrived = 0;  // threads (counted in whole warps)
  u32 warps = 0;    // warps that arrived
  u32 expect = 0;
  bool explicitCount = false;
  int pc = -1, firstwarp = -1;
  u64 waiting = 0;
  u32 vc[64] = {0};
  u32 popc = 0;
  u32 all = 1, any = 0;
};
struct BulkOp {
  u32 dst, n;
  u32 warp, clk;
  int pc;
  std::vector<u8> data;
};
struct MBar {
  u32 expected = 0, pending = 0;
  i64 tx = 0;
  u32 phase = 0;
  u32 vc[64] = {0}, vcDone[64] = {0};
  std::vector<BulkOp> ops;
};
struct Block {
  std::map<u32, MBar> mbar;
  u32 id[3];
  u64 lin;
  int nw = 0;
  u32 nthreads = 0;
  std::vector<Warp> w;
  std::vector<u8> sh, shst;
  std::vector<Shadow> shadow;
  std::vector<std::array<u32, 64>> rvec;
  Barrier bar[17];
  const LaunchCfg* L = nullptr;
  int done = 0;
  bool exitWarned = false;
};
struct Worker {
  const Prog* P;
  LaunchCfg* L;
  std::vector<PcStat> stats;
  std::map<std::array<int, 3>, Finding> finds;
  Alloc last{0, 0, nullptr, 0};
  u64 icount = 0;
  std::string out;
  u64 rng = 0;
};
static std::mutex g_atom;
static std::atomic<u64> g_icount;
static std::atomic<bool> g_stop;

static inline void tidOf(const Warp& w, int lane, i32* t) {
  u32 l = w.id * 32 + lane;
  const u32* b = w.blk->L->block;
  t[0] = l % b[0];
  t[1] = l / b[0] % b[1];
  t[2] = l / b[0] / b[1];
}
static Finding mkf(Warp& w, int kind, int pc, int lane, u64 addr, const char* fmt, va_list ap) {
  Finding f;
  memset(&f, 0, sizeof f);
  f.kind = kind;
  f.pc = pc;
  f.pc2 = -1;
  f.addr = addr;
  f.count = 1;
  for (int k = 0; k < 3; k++) f.blk[k] = w.blk->id[k];
  tidOf(w, lane < 0 ? 0 : lane, f.tid);
  vsnprintf(f.msg, sizeof f.msg, fmt, ap);
  return f;
}
[[noreturn]] static void fail(Warp& w, int kind, int pc, int lane, u64 addr, const char* fmt, ...) {
  va_list ap;
  va_start(ap, fmt);
  SimError e{mkf(w, kind, pc, lane, addr, fmt, ap)};
  va_end(ap);
  throw e;
}
// report according to the level of its kind; returns only when the simulation goes on
static void report(Warp& w, int kind, int pc, int pc2, int lane, u64 addr, const char* fmt, ...) {
  int lv = w.blk->L->level[kind];
  if (!lv) return;
  auto& m = w.wk->finds;
  std::array<int, 3> key{kind, pc, pc2};
  auto it = m.find(key);
  if (it != m.end()) {
    it->second.count++;
    if (lv < 2) return;
  }
  va_list ap;
  va_start(ap, fmt);
  Finding f = mkf(w, kind, pc, lane, addr, fmt, ap);
  va_end(ap);
  f.pc2 = pc2;
  if (lv >= 2) throw SimError{f};
  m[key] = f;
}

// ---------------------------------------------------------------- small floats
static inline float bitsf(u32 x) {
  float f;
  memcpy(&f, &x, 4);
  return f;
}
static inline u32 fbits(float f) {
  u32 x;
  memcpy(&x, &f, 4);
  return x;
}
static inline double bitsd(u64 x) {
  double f;
  memcpy(&f, &x, 8);
  return f;
}
static inline u64 dbits(double f) {
  u64 x;
  memcpy(&x, &f, 8);
  return x;
}
static inline float h2f(u16 h) {
  _Float16 x;
  memcpy(&x, &h, 2);
  return (float)x;
}
static inline u16 f2h(float f) {
  if (f != f) return 0x7fff;
  _Float16 x = (_Float16)f;
  u16 h;
  memcpy(&h, &x, 2);
  return h;
}
static inline float b2f(u16 b) { return bitsf((u32)b << 16); }
static inline u16 f2b(float f) {
  u32 x = fbits(f);
  if (f != f) return 0x7fff;
  return (u16)((x + 0x7fff + ((x >> 16) & 1)) >> 16);
}
static inline float d2f_odd(double d) {  // round to odd, so that a second rounding is exact
  float f = (float)d;
  if (d != d || std::isinf(f)) return f;
  double e = d - (double)f;
  if (e == 0) return f;
  u32 x = fbits(f);
  if (x & 1) return f;
  if (x == 0 || x == 0x80000000u) return bitsf((d < 0 ? 0x80000000u : 0) | 1);
  return bitsf(((e > 0) == (f > 0)) ? x + 1 : x - 1);
}
static inline double fma_odd(float a, float b, float c) {  // a*b exact in double; sum rounded to odd
  double p = (double)a * (double)b, q = c, s = p + q;
  if (!std::isfinite(s)) return s;
  double bb = s - p, err = (p - (s - bb)) + (q - bb);
  if (err == 0) return s;
  u64 x = dbits(s);
  if (x & 1) return s;
  if (s == 0) return err;
  return bitsd(((err > 0) == (s > 0)) ? x + 1 : x - 1);
}
struct HF {
  static float g(u16 x) { return h2f(x); }
  static u16 p(float f) { return f2h(f); }
  static u16 pd(double d) {
    if (d != d) return 0x7fff;
    return f2h(d2f_odd(d));
  }
};
struct HB {
  static float g(u16 x) { return b2f(x); }
  static u16 p(float f) { return f2b(f); }
  static u16 pd(double d) {
    if (d != d) return 0x7fff;
    return f2b(d2f_odd(d));
  }
};
enum { RN, RZ, RM, RP, RNA };
static double roundSmall(double x, int p, int emin, int emax, int mode) {  // to p-bit floats
  if (x == 0 || x != x || std::isinf(x)) return x;
  int e = std::ilogb(x);
  if (e < emin) e = emin;
  double q = std::scalbn(x, p - 1 - e), r;
  switch (mode) {
    case RZ:
      r = std::trunc(q);
      break;
    case RM:
      r = std::floor(q);
      break;
    case RP:
      r = std::ceil(q);
      break;
    case RNA:
      r = std::round(q);
      break;
    default:
      r = std::nearbyint(q);
  }
  if (r == 0) return std::copysign(0.0, x);
  double y = std::scalbn(r, e - (p - 1));
  double mx = std::scalbn(2.0 - std::scalbn(1.0, 1 - p), emax);
  if (std::fabs(y) > mx) {
    bool neg = x < 0;
    if (mode == RN || mode == RNA || (mode == RM && neg) || (mode == RP && !neg))
      y = neg ? -INFINITY : INFINITY;
    else
      y = neg ? -mx : mx;
  }
  return y;
}
static inline float fz(float x) { return std::fabs(x) < FLT_MIN ? std::copysign(0.0f, x) : x; }
static inline float satf(float x) { return !(x > 0) ? 0.0f : x > 1 ? 1.0f : x; }
static float e4m3_f(u8 v) {
  int s = v >> 7, e = v >> 3 & 15, m = v & 7;
  float r;
  if (e == 15 && m == 7) return NAN;
  r = e ? std::ldexp(1.0f + m / 8.0f, e - 7) : std::ldexp(m / 8.0f, -6);
  return s ? -r : r;
}
static float e5m2_f(u8 v) { return h2f((u16)v << 8); }
static u8 f_e4m3(double x) {
  if (x != x) return 0x7f;
  u8 s = std::signbit(x) ? 0x80 : 0;
  double y = std::fabs(x);
  y = roundSmall(y, 4, -6, 8, RN);
  if (y > 448) y = 448;
  if (y == 0) return s;
  int e = std::ilogb(y);
  if (e < -6) return s | (u8)std::lround(std::ldexp(y, 9));
  return s | (u8)((e + 7) << 3) | (u8)std::lround((std::ldexp(y, -e) - 1) * 8);
}
static u8 f_e5m2(double x) {
  if (x != x) return 0x7f;
  double y = roundSmall(x, 3, -14, 15, RN);
  if (std::isinf(y)) y = std::copysign(57344.0, x);
  return (u8)(f2h((float)y) >> 8);
}

// ---------------------------------------------------------------- lane loops
#define REG(T, off) ((T*)(w.R + (off)))
#define LOOP(BODY)                                                \
  {                                                               \
    u32 m_ = w.m;                                                 \
    if (m_ == ~0u) {                                              \
      _Pragma("GCC ivdep") for (int l = 0; l < 32; l++) { BODY; } \
    } else                                                        \
      for (int l = 0; l < 32; l++)                                \
        if (m_ >> l & 1) {                                        \
          BODY;                                                   \
        }                                                         \
  }
template <class D, class A, auto F>
static void m1(Warp& w, const I& i) {
  D* d = REG(D, i.d);
  const A* a = REG(A, i.a);
  LOOP(d[l] = F(a[l]))
}
template <class D, class A, class B, auto F>
static void m2(Warp& w, const I& i) {
  D* d = REG(D, i.d);
  const A* a = REG(A, i.a);
  const B* b = REG(B, i.b);
  LOOP(d[l] = F(a[l], b[l]))
}
template <class D, class A, class B, class C, auto F>
static void m3(Warp& w, const I& i) {
  D* d = REG(D, i.d);
  const A* a = REG(A, i.a);
  const B* b = REG(B, i.b);
  const C* c = REG(C, i.c);
  LOOP(d[l] = F(a[l], b[l], c[l]))
}
static inline u32 getp(const Warp& w, int code) {
  u32 v = w.P[code >> 1];
  return code & 1 ? ~v : v;
}
static inline void setp_(Warp& w, int code, u32 v) {
  if (code >= 0) {
    u32& p = w.P[code >> 1];
    p = (p & ~w.m) | (v & w.m);
  }
}

// ---------------------------------------------------------------- types
enum {
  T_NONE,
  T_U8,
  T_S8,
  T_B8,
  T_U16,
  T_S16,
  T_B16,
  T_U32,
  T_S32,
  T_B32,
  T_U64,
  T_S64,
  T_B64,
  T_F16,
  T_BF16,
  T_F32,
  T_F64,
  T_F16X2,
  T_BF16X2,
  T_TF32,
  T_PRED,
  T_B128,
  T_E4M3X2,
  T_E5M2X2,
  T_E4M3,
  T_E5M2,
  T_U16X2,
  T_S16X2
};
static const char* TN[] = {"",     "u8",   "s8",     "b8",     "u16",  "s16",  "b16",   "u32",   "s32",    "b32",
                           "u64",  "s64",  "b64",    "f16",    "bf16", "f32",  "f64",   "f16x2", "bf16x2", "tf32",
                           "pred", "b128", "e4m3x2", "e5m2x2", "e4m3", "e5m2", "u16x2", "s16x2"};
static int typeOf(const std::string& s) {
  for (int t = 1; t < (int)(sizeof TN / sizeof *TN); t++)
    if (s == TN[t]) return t;
  return 0;
}
static int tsize(int t) {
  switch (t) {
    case T_U8:
    case T_S8:
    case T_B8:
    case T_E4M3:
    case T_E5M2:
      return 1;
    case T_U16:
    case T_S16:
    case T_B16:
    case T_F16:
    case T_BF16:
    case T_E4M3X2:
    case T_E5M2X2:
      return 2;
    case T_U64:
    case T_S64:
    case T_B64:
    case T_F64:
      return 8;
    case T_B128:
      return 16;
    default:
      return 4;
  }
}
static bool isFloatT(int t) { return t == T_F16 || t == T_BF16 || t == T_F32 || t == T_F64 || t == T_TF32; }
static bool isSignedT(int t) { return t == T_S8 || t == T_S16 || t == T_S32 || t == T_S64; }

// ---------------------------------------------------------------- memory
enum { SP_GEN, SP_GLB, SP_SHR, SP_LOC, SP_PAR, SP_CST };
static inline void addrs(Warp& w, const I& i, u64* ad) {
  if (i.a < 0) {
    for (int l = 0; l < 32; l++) ad[l] = i.imm;
  } else if (i.aw == 8) {
    const u64* a = REG(u64, i.a);
    for (int l = 0; l < 32; l++) ad[l] = a[l] + i.imm;
  } else {
    const u32* a = REG(u32, i.a);
    for (int l = 0; l < 32; l++) ad[l] = (u32)(a[l] + (u32)i.imm);
  }
}
static const Alloc* findAlloc(const LaunchCfg* L, u64 a) {
  u64 lo = 0, hi = L->nallocs;
  while (lo < hi) {
    u64 mid = (lo + hi) / 2;
    if (L->allocs[mid].base <= a)
      lo = mid + 1;
    else
      hi = mid;
  }
  return lo ? &L->allocs[lo - 1] : nullptr;
}
static void oobGlobal(Warp& w, const I& i, int l, u64 a, int bytes, bool wr) {
  const Alloc* A = findAlloc(w.blk->L, a);
  if (A && a < A->base + A->size)
    fail(w, F_OOB, i.pc, l, a, "%d-byte %s crosses the end of a %llu-byte buffer: offset %llu", bytes,
         wr ? "write" : "read", (unsigned long long)A->size, (unsigned long long)(a - A->base));
  const Alloc* N = A ? (A + 1 < w.blk->L->allocs + w.blk->L->nallocs ? A + 1 : nullptr)
                     : (w.blk->L->nallocs ? w.blk->L->allocs : nullptr);
  if (a < 4096)
    fail(w, F_OOB, i.pc, l, a, "%d-byte %s through a null pointer (0x%llx)", bytes, wr ? "write" : "read",
         (unsigned long long)a);
  if (N && (!A || N->base - a < a - (A->base + A->size)))
    fail(w, F_OOB, i.pc, l, a, "%d-byte %s out of bounds: %llu bytes before the start of a %llu-byte buffer", bytes,
         wr ? "write" : "read", (unsigned long long)(N->base - a), (unsigned long long)N->size);
  if (A)
    fail(w, F_OOB, i.pc, l, a, "%d-byte %s out of bounds: offset %llu of a %llu-byte buffer", bytes,
         wr ? "write" : "read", (unsigned long long)(a - A->base), (unsigned long long)A->size);
  fail(w, F_OOB, i.pc, l, a, "%d-byte %s out of bounds (no buffer there)", bytes, wr ? "write" : "read");
}
static void resGlobal(Warp& w, const I& i, u32 m, const u64* ad, u8** hp, int bytes, bool wr, int align, bool metric) {
  u64 lo = ~0ull, hi = 0, orr = 0;
  for (int l = 0; l < 32; l++)
    if (m >> l & 1) {
      u64 a = ad[l];
      orr |= a;
      if (a < lo) lo = a;
      if (a > hi) hi = a;
    }
  if (orr & (align - 1))
    for (int l = 0; l < 32; l++)
      if ((m >> l & 1) && (ad[l] & (align - 1)))
        report(w, F_ALIGN, i.pc, -1, l, ad[l], "misaligned %d-byte global %s (address must be a multiple of %d)", bytes,
               wr ? "write" : "read", align);
  Alloc& c = w.wk->last;
  if (!(lo >= c.base && hi + bytes <= c.base + c.size && hi < c.base + c.size)) {
    const Alloc* A = findAlloc(w.blk->L, lo);
    if (A && hi >= lo && hi + bytes <= A->base + A->size)
      c = *A;
    else {
      for (int l = 0; l < 32; l++)
        if (m >> l & 1) {
          const Alloc* B = findAlloc(w.blk->L, ad[l]);
          if (!B || ad[l] + bytes > B->base + B->size || ad[l] + bytes < ad[l]) oobGlobal(w, i, l, ad[l], bytes, wr);
          if (wr && (B->flags & 1))
            fail(w, F_READONLY, i.pc, l, ad[l], "write to read-only memory (a constant, or a buffer passed as const)");
          hp[l] = B->host + (ad[l] - B->base);
        }
      goto met;
    }
  }
  if (wr && (c.flags & 1))
    fail(w, F_READONLY, i.pc, __builtin_ctz(m), lo,
         "write to read-only memory (a constant, or a buffer passed as const)");
  for (int l = 0; l < 32; l++) hp[l] = c.host + (ad[l] - c.base);
met:
  if (metric && w.blk->L->metrics) {
    PcStat& s = w.st[i.pc];
    u64 t[32];
    int n = 0;
    bool mono = true;
    u64 prev = 0;
    for (int l = 0; l < 32; l++)
      if (m >> l & 1) {
        u64 a = ad[l];
        if (a < prev) mono = false;
        prev = a;
        t[n++] = a;
      }
    if (!mono) std::sort(t, t + n);
    u64 uq = 0, sec = 0, pa = ~0ull, ps = ~0ull;
    for (int k = 0; k < n; k++) {
      if (t[k] == pa) continue;
      pa = t[k];
      uq++;
      u64 s0 = t[k] >> 5, s1 = (t[k] + bytes - 1) >> 5;
      sec += s1 - s0 + 1;
      if (s0 == ps) sec--;
      ps = s1;
    }
    s.accesses++;
    s.bytes += (u64)n * bytes;
    s.sectors += sec;
    s.min_sectors += (uq * bytes + 31) / 32;
  }
}
// bank conflicts: words of one phase; returns the degree
static inline u32 bankDegree(const u64* a, int n, int bytes) {
  u64 lo = ~0ull, hi = 0;
  for (int k = 0; k < n; k++) {
    if (a[k] < lo) lo = a[k];
    if (a[k] > hi) hi = a[k];
  }
  if (hi + bytes - (lo & ~3ull) <= 128) return 1;
  u8 cnt[32] = {0};
  u32 words[32][32];
  u32 deg = 1;
  int nw = bytes < 4 ? 1 : bytes / 4;
  for (int k = 0; k < n; k++)
    for (int j = 0; j < nw; j++) {
      u32 wd = (u32)(a[k] >> 2) + j, b = wd & 31;
      bool seen = false;
      for (int q = 0; q < cnt[b]; q++)
        if (words[b][q] == wd) {
          seen = true;
          break;
        }
      if (!seen && cnt[b] < 32) {
        words[b][cnt[b]++] = wd;
        if (cnt[b] > deg) deg = cnt[b];
      }
    }
  return deg;
}
static void sharedMetric(Warp& w, const I& i, u32 m, const u64* ad, int bytes) {
  int per = bytes <= 4 ? 32 : bytes == 8 ? 16 : 8;
  PcStat& s = w.st[i.pc];
  u64 t[32];
  u64 wf = 0, mn = 0;
  for (int p = 0; p < 32; p += per) {
    int n = 0;
    for (int l = p; l < p + per; l++)
      if (m >> l & 1) t[n++] = ad[l];
    if (!n) continue;
    u32 d = bankDegree(t, n, bytes);
    wf += d;
    mn++;
    if (d > s.max_degree) s.max_degree = d;
  }
  s.accesses++;
  s.bytes += (u64)__builtin_popcount(m) * bytes;
  s.wavefronts += wf;
  s.min_wavefronts += mn;
}
// the race shadow: FastTrack-like, one record per granule of shared memory
static void raceHit(Warp& w, const I& i, int l, u64 a, const char* what, int pc2, int other) {
  report(w, F_RACE, i.pc, pc2, l, a, "shared-memory race: %s, warps %d and %d, no barrier between", what, other, w.id);
}
static inline void warpRace(Warp& w, const I& i, int l, u64 a, int pc2, int lane2, const char* what) {
  report(w, F_WARPRACE, i.pc, pc2, l, a, "%s by lanes %d and %d of one warp, no __syncwarp between", what, lane2, l);
}
static inline void raceRead(Warp& w, const I& i, int l, u64 a, Shadow& s) {
  u32 me = w.id;
  if (w.blk->L->race > 1) {
    if (s.wclk && s.wwarp == me && s.wep == w.epoch && s.wlane != l)
      warpRace(w, i, l, a, s.wpc, s.wlane, "shared write and read");
    if (s.rep == w.epoch && s.rwarp == me && s.rlane != l)
      s.rlane = 255;
    else
      s.rlane = l;
    s.rep = w.epoch;
  }
  if (s.wclk && s.wwarp != me && s.wclk > w.vc[s.wwarp])
    raceHit(w, i, l, a, "read after unordered write", s.wpc, s.wwarp);
  if (s.rwarp == 255) {
    w.blk->rvec[s.rclk][me] = w.vc[me];
    s.rpc = i.pc;
    return;
  }
  if (!s.rclk || s.rwarp == me || s.rclk <= w.vc[s.rwarp]) {
    s.rwarp = me;
    s.rclk = w.vc[me];
    s.rpc = i.pc;
    return;
  }
  std::array<u32, 64> v;
  v.fill(0);
  v[s.rwarp] = s.rclk;
  v[me] = w.vc[me];
  w.blk->rvec.push_back(v);
  s.rclk = (u32)w.blk->rvec.size() - 1;
  s.rwarp = 255;
  s.rpc = i.pc;
}
static inline void raceWrite(Warp& w, const I& i, int l, u64 a, Shadow& s, bool atom) {
  u32 me = w.id;
  if (w.blk->L->race > 1) {
    if (s.wclk && s.wwarp == me && s.wep == w.epoch && s.wlane != l && !(atom && s.watom) && (int)s.wpc != i.pc)
      warpRace(w, i, l, a, s.wpc, s.wlane, "two shared writes");
    if (s.rclk && s.rwarp == me && s.rep == w.epoch && s.rlane != l)
      warpRace(w, i, l, a, s.rpc, s.rlane, "shared read and write");
    s.wlane = l;
    s.wep = w.epoch;
    s.rep = 0;
  }
  if (s.wclk && s.wwarp != me && s.wclk > w.vc[s.wwarp] && !(atom && s.watom))
    raceHit(w, i, l, a, "two unordered writes", s.wpc, s.wwarp);
  if (s.rwarp == 255) {
    auto& v = w.blk->rvec[s.rclk];
    for (int k = 0; k < w.blk->nw; k++)
      if (k != (int)me && v[k] > w.vc[k]) {
        raceHit(w, i, l, a, "write after unordered read", s.rpc, k);
        break;
      }
    s.rwarp = 0;
    s.rclk = 0;
  } else if (s.rclk && s.rwarp != me && s.rclk > w.vc[s.rwarp])
    raceHit(w, i, l, a, "write after unordered read", s.rpc, s.rwarp);
  s.wwarp = me;
  s.wclk = w.vc[me];
  s.wpc = i.pc;
  s.watom = atom;
  s.rclk = 0;
  s.rwarp = 0;
}
enum { A_READ = 0, A_WRITE = 1, A_ATOM = 2, A_ASYNC = 3 };
static void sharedState(Warp& w, const I& i, int l, u64 a, int bytes, int mode) {
  Block& b = *w.blk;
  u8* st = &b.shst[a];
  static const u8 ONES[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  bool clean = bytes == 4    ? !memcmp(st, ONES, 4)
               : bytes == 16 ? !memcmp(st, ONES, 16)
               : bytes == 8  ? !memcmp(st, ONES, 8)
               : bytes == 2  ? !memcmp(st, ONES, 2)
                             : st[0] == 1 && bytes == 1;
  if (!clean && (mode == A_READ || mode == A_ATOM)) {
    for (int k = 0; k < bytes; k++)
      if (st[k] != 1) {
        if (st[k] & 2)
          fail(w, F_OOB, i.pc, l, a + k, "%d-byte shared %s at offset %llu runs out of its array (into a red zone)",
               bytes, mode ? "atomic" : "read", (unsigned long long)a);
        if (st[k] & 4)
          report(w, F_INFLIGHT, i.pc, -1, l, a + k,
                 "read of shared memory while a cp.async to it is in flight (no wait_group/barrier before)");
        else
          report(w, F_UNINIT, i.pc, -1, l, a + k, "read of uninitialised shared memory (%d bytes at offset %llu)",
                 bytes, (unsigned long long)a);
        break;
      }
  }
  if (mode == A_ASYNC || (mode && !clean))
    for (int k = 0; k < bytes; k++) {
      if (st[k] & 2)
        fail(w, F_OOB, i.pc, l, a + k, "%d-byte shared write at offset %llu runs out of its array (into a red zone)",
             bytes, (unsigned long long)a);
      st[k] = mode == A_ASYNC ? (st[k] & 1) | 4 : 1;
    }
  if (b.L->race && (b.nw > 1 || b.L->race > 1)) {
    int g = b.L->granule_log2;
    u64 g0 = a >> g, g1 = (a + bytes - 1) >> g;
    for (u64 q = g0; q <= g1; q++) {
      if (mode == A_READ)
        raceRead(w, i, l, a, b.shadow[q]);
      else
        raceWrite(w, i, l, a, b.shadow[q], mode == A_ATOM);
    }
  }
}
static void resShared(Warp& w, const I& i, u32 m, const u64* ad, u8** hp, int bytes, int mode, int align, bool metric) {
  Block& b = *w.blk;
  u64 size = b.L->shared_size;
  for (int l = 0; l < 32; l++)
    if (m >> l & 1) {
      u64 a = ad[l];
      if (a & (align - 1))
        report(w, F_ALIGN, i.pc, -1, l, a, "misaligned %d-byte shared %s (offset must be a multiple of %d)", bytes,
               mode ? "write" : "read", align);
      if (a + bytes > size || a >= size)
        fail(w, F_OOB, i.pc, l, a,
             "%d-byte shared %s out of bounds: offset %llu (0x%llx), block has %llu bytes (%llu dynamic)", bytes,
             mode ? "write" : "read", (unsigned long long)a, (unsigned long long)a,
             (unsigned long long)b.L->user_shared, (unsigned long long)b.L->dyn_shared);
      hp[l] = b.sh.data() + a;
      sharedState(w, i, l, a, bytes, mode);
    }
  if (metric && b.L->metrics) sharedMetric(w, i, m, ad, bytes);
}
static void resLocal(Warp& w, const I& i, u32 m, const u64* ad, u8** hp, int bytes, bool wr, int align) {
  for (int l = 0; l < 32; l++)
    if (m >> l & 1) {
      u64 a = ad[l];
      if (a & (align - 1)) report(w, F_ALIGN, i.pc, -1, l, a, "misaligned %d-byte local access", bytes);
      if (a + bytes > w.lsize || a >= w.lsize)
        fail(w, F_OOB, i.pc, l, a, "%d-byte local %s out of bounds: offset %lld of %llu", bytes, wr ? "write" : "read",
             (long long)a, (unsigned long long)w.lsize);
      hp[l] = w.local + (u64)l * w.lsize + a;
    }
}
static void resParam(Warp& w, const I& i, u32 m, const u64* ad, u8** hp, int bytes, bool wr) {
  const LaunchCfg* L = w.blk->L;
  for (int l = 0; l < 32; l++)
    if (m >> l & 1) {
      if (ad[l] + bytes > L->params_size || ad[l] >= L->params_size)
        fail(w, F_OOB, i.pc, l, ad[l], "%d-byte read of kernel parameters out of bounds: offset %lld of %llu", bytes,
             (long long)ad[l], (unsigned long long)L->params_size);
      if (wr) fail(w, F_READONLY, i.pc, l, ad[l], "write to kernel parameter memory");
      hp[l] = L->params + ad[l];
    }
}
static inline bool inWin(u64 a, u64 win) { return a - win < WIN_SIZE; }
static void resolve(Warp& w, const I& i, u64* ad, u8** hp, int bytes, int mode, int align) {
  u32 m = w.m;
  bool wr = mode != A_READ;
  switch (i.space) {
    case SP_GLB:
      resGlobal(w, i, m, ad, hp, bytes, wr, align, true);
      return;
    case SP_CST:
      resGlobal(w, i, m, ad, hp, bytes, wr, align, false);
      return;
    case SP_SHR:
      resShared(w, i, m, ad, hp, bytes, mode, align, true);
      return;
    case SP_LOC:
      resLocal(w, i, m, ad, hp, bytes, wr, align);
      return;
    case SP_PAR:
      resParam(w, i, m, ad, hp, bytes, wr);
      return;
  }
  u32 ms = 0, ml = 0, mp = 0;
  for (int l = 0; l < 32; l++)
    if (m >> l & 1) {
      u64 a = ad[l];
      if (a < SHARED_WIN) continue;
      if (inWin(a, SHARED_WIN))
        ms |= 1u << l, ad[l] -= SHARED_WIN;
      else if (inWin(a, LOCAL_WIN))
        ml |= 1u << l, ad[l] -= LOCAL_WIN;
      else if (inWin(a, PARAM_WIN))
        mp |= 1u << l, ad[l] -= PARAM_WIN;
    }
  u32 mg = m & ~(ms | ml | mp);
  if (mg) resGlobal(w, i, mg, ad, hp, bytes, wr, align, true);
  if (ms) resShared(w, i, ms, ad, hp, bytes, mode, align, true);
  if (ml) resLocal(w, i, ml, ad, hp, bytes, wr, align);
  if (mp) resParam(w, i, mp, ad, hp, bytes, wr);
}
template <class M, class D>
static inline void ldcopy(Warp& w, u8** hp, int off, D* d) {
  u32 m = w.m;
  for (int l = 0; l < 32; l++)
    if (m >> l & 1) {
      M x;
      memcpy(&x, hp[l] + off, sizeof x);
      d[l] = (D)x;
    }
}
static void op_ld(Warp& w, const I& i) {
  u64 ad[32];
  u8* hp[32];
  addrs(w, i, ad);
  int by = i.sz * i.vec;
  resolve(w, i, ad, hp, by, A_READ, by);
  const int* ex = &w.wk->P->extra[i.ex];
  for (int v = 0; v < i.vec; v++) {
    int o = v * i.sz;
    u8* d = w.R + ex[v];
    int rw = i.regw;
    switch (i.sz * 100 + rw * 10 + i.sgn) {
      case 120:
        ldcopy<u8>(w, hp, o, (u16*)d);
        break;
      case 121:
        ldcopy<i8>(w, hp, o, (i16*)d);
        break;
      case 140:
        ldcopy<u8>(w, hp, o, (u32*)d);
        break;
      case 141:
        ldcopy<i8>(w, hp, o, (i32*)d);
        break;
      case 180:
        ldcopy<u8>(w, hp, o, (u64*)d);
        break;
      case 181:
        ldcopy<i8>(w, hp, o, (i64*)d);
        break;
      case 220:
      case 221:
        ldcopy<u16>(w, hp, o, (u16*)d);
        break;
      case 240:
        ldcopy<u16>(w, hp, o, (u32*)d);
        break;
      case 241:
        ldcopy<i16>(w, hp, o, (i32*)d);
        break;
      case 280:
        ldcopy<u16>(w, hp, o, (u64*)d);
        break;
      case 281:
        ldcopy<i16>(w, hp, o, (i64*)d);
        break;
      case 440:
      case 441:
        ldcopy<u32>(w, hp, o, (u32*)d);
        break;
      case 480:
        ldcopy<u32>(w, hp, o, (u64*)d);
        break;
      case 481:
        ldcopy<i32>(w, hp, o, (i64*)d);
        break;
      case 880:
      case 881:
        ldcopy<u64>(w, hp, o, (u64*)d);
        break;
      default:
        fail(w, F_UNSUPPORTED, i.pc, -1, 0, "ld: size %d into %d-byte register", i.sz, rw);
    }
  }
}
static void op_st(Warp& w, const I& i) {
  u64 ad[32];
  u8* hp[32];
  addrs(w, i, ad);
  int by = i.sz * i.vec;
  resolve(w, i, ad, hp, by, A_WRITE, by);
  const int* ex = &w.wk->P->extra[i.ex];
  u32 m = w.m;
  for (int v = 0; v < i.vec; v++) {
    int o = v * i.sz;
    const u8* s = w.R + ex[v];
    int rw = i.regw;
    switch (i.sz) {
      case 4:
        if (rw == 4) {
          for (int l = 0; l < 32; l++)
            if (m >> l & 1) memcpy(hp[l] + o, s + l * 4, 4);
          break;
        }
        [[fallthrough]];
      default:
        for (int l = 0; l < 32; l++)
          if (m >> l & 1) memcpy(hp[l] + o, s + l * rw, i.sz);
    }
  }
}
// atomics
enum { AT_ADD, AT_MIN, AT_MAX, AT_AND, AT_OR, AT_XOR, AT_EXCH, AT_CAS, AT_INC, AT_DEC };
template <class T>
static inline T atomInt(int op, T o, T b, T c) {
  switch (op) {
    case AT_ADD:
      return o + b;
    case AT_MIN:
      return o < b ? o : b;
    case AT_MAX:
      return o > b ? o : b;
    case AT_AND:
      return o & b;
    case AT_OR:
      return o | b;
    case AT_XOR:
      return o ^ b;
    case AT_EXCH:
      return b;
    case AT_CAS:
      return o == b ? c : o;
    case AT_INC:
      return o >= b ? 0 : o + 1;
    case AT_DEC:
      return (o == 0 || o > b) ? b : o - 1;
  }
  return o;
}
template <class T>
static inline T atomFlt(int op, T o, T b) {
  switch (op) {
    case AT_ADD:
      return o + b;
    case AT_MIN:
      return b < o || o != o ? b : o;
    case AT_MAX:
      return b > o || o != o ? b : o;
    case AT_EXCH:
      return b;
  }
  return o;
}
template <class H>
static inline u16 atomH(int op, u16 o, u16 b) {
  float x = H::g(o), y = H::g(b);
  switch (op) {
    case AT_ADD:
      return H::p(x + y);
    case AT_MIN:
      return y < x ? b : o;
    case AT_MAX:
      return y > x ? b : o;
  }
  return b;
}
static u64 atomApply(int ty, int op, u64 o, u64 b, u64 c) {
  switch (ty) {
    case T_U16:
    case T_B16:
      return (u16)atomInt<u16>(op, o, b, c);
    case T_U32:
    case T_B32:
      return atomInt<u32>(op, o, b, c);
    case T_S32:
      return (u32)atomInt<i32>(op, o, b, c);
    case T_U64:
    case T_B64:
      return atomInt<u64>(op, o, b, c);
    case T_S64:
      return (u64)atomInt<i64>(op, o, b, c);
    case T_F32:
      return fbits(atomFlt<float>(op, bitsf(o), bitsf(b)));
    case T_F64:
      return dbits(atomFlt<double>(op, bitsd(o), bitsd(b)));
    case T_F16:
      return atomH<HF>(op, o, b);
    case T_BF16:
      return atomH<HB>(op, o, b);
    case T_F16X2:
      return (u64)atomH<HF>(op, o, b) | (u64)atomH<HF>(op, o >> 16, b >> 16) << 16;
    case T_BF16X2:
      return (u64)atomH<HB>(op, o, b) | (u64)atomH<HB>(op, o >> 16, b >> 16) << 16;
  }
  return o;
}
static void op_atom(Warp& w, const I& i) {
  u64 ad[32];
  u8* hp[32];
  addrs(w, i, ad);
  int by = i.sz * i.vec;
  resolve(w, i, ad, hp, by, A_ATOM, by);
  bool lock = w.blk->L->workers > 1;
  if (lock) g_atom.lock();
  const int* ex = &w.wk->P->extra[i.ex];
  u32 m = w.m;
  int sz = i.sz, rw = i.regw;
  for (int v = 0; v < i.vec; v++)
    for (int l = 0; l < 32; l++)
      if (m >> l & 1) {
        u64 o = 0, b = 0, c = 0;
        u8* p = hp[l] + v * sz;
        memcpy(&o, p, sz);
        memcpy(&b, w.R + ex[2 * v + 1] + l * rw, sz);
        if (i.c >= 0) memcpy(&c, w.R + i.c + l * rw, sz);
        u64 n = atomApply(i.ty, i.op, o, b, c);
        memcpy(p, &n, sz);
        if (ex[2 * v] >= 0) memcpy(w.R + ex[2 * v] + l * rw, &o, sz);
      }
  if (lock) g_atom.unlock();
}
// cp.async: the source is read at once, the destination is written as late as the program allows
static void op_cpasync(Warp& w, const I& i) {
  u64 ad[32], sd[32];
  u8 *hp[32], *sp[32];
  addrs(w, i, ad);
  int n = i.sz;
  if (i.space == SP_GEN)
    for (int l = 0; l < 32; l++) ad[l] -= SHARED_WIN;
  for (int l = 0; l < 32; l++) {
    if (i.f1 < 0)
      sd[l] = i.f3;
    else if (i.f2 == 8)
      sd[l] = REG(u64, i.f1)[l] + i.f3;
    else
      sd[l] = REG(u32, i.f1)[l] + i.f3;
  }
  u32 sn[32], mr = 0, full = w.m;
  for (int l = 0; l < 32; l++) {
    sn[l] = i.c >= 0 ? REG(u32, i.c)[l] : (u32)n;
    if (i.e >= 0 && (getp(w, i.e) >> l & 1)) sn[l] = 0;
    if ((full >> l & 1) && sn[l] > (u32)n) fail(w, F_OTHER, i.pc, l, 0, "cp.async src-size %u > cp-size %d", sn[l], n);
    if ((full >> l & 1) && sn[l]) mr |= 1u << l;
  }
  if (mr) {
    bool same = true;
    for (int l = 0; l < 32; l++)
      if ((mr >> l & 1) && sn[l] != (u32)n) same = false;
    if (same)
      resGlobal(w, i, mr, sd, sp, n, false, n, true);
    else
      for (int l = 0; l < 32; l++)
        if (mr >> l & 1) {
          if (sd[l] & (n - 1)) report(w, F_ALIGN, i.pc, -1, l, sd[l], "misaligned %d-byte cp.async source", n);
          u64 a2[32];
          u8* p2[32];
          a2[l] = sd[l];
          resGlobal(w, i, 1u << l, a2, p2, sn[l], false, 1, false);
          sp[l] = p2[l];
        }
  }
  bool met = w.blk->L->metrics;
  PcStat sv = w.st[i.pc];
  resShared(w, i, full, ad, hp, n, A_ASYNC, n, false);
  if (met) {
    PcStat& s = w.st[i.pc];
    u64 acc = s.accesses, by = s.bytes;
    sharedMetric(w, i, full, ad, n);
    s.accesses = acc;
    s.bytes = by;
    if (!mr) s.accesses = sv.accesses + 1;
  }
  for (int l = 0; l < 32; l++)
    if (full >> l & 1) {
      AsyncOp o;
      o.dst = (u32)ad[l];
      o.n = n;
      o.lane = l;
      o.group = w.agroup[l];
      o.pc = i.pc;
      memset(o.data, 0, 16);
      if (sn[l]) memcpy(o.data, sp[l], sn[l]);
      w.pend.push_back(o);
    }
}
static void joinVC(u32* d, const u32* s, int n) {
  for (int k = 0; k < n; k++)
    if (s[k] > d[k]) d[k] = s[k];
}
static void asyncFlush(Warp& w, u32 lanes, int keep, bool all) {
  Block& b = *w.blk;
  size_t k = 0;
  for (size_t q = 0; q < w.pend.size(); q++) {
    AsyncOp& o = w.pend[q];
    // groups 0..agroup-1 are committed; the newest `keep` of them may stay pending; `all` also takes uncommitted ones
    bool done = (lanes >> o.lane & 1) && (all || (i64)o.group < (i64)w.agroup[o.lane] - keep);
    if (!done) {
      if (k != q) w.pend[k] = o;
      k++;
      continue;
    }
    memcpy(b.sh.data() + o.dst, o.data, o.n);
    memset(&b.shst[o.dst], 1, o.n);
    if (b.L->race && (b.nw > 1 || b.L->race > 1)) {
      int g = b.L->granule_log2;
      for (u64 q2 = o.dst >> g; q2 <= (u64)(o.dst + o.n - 1) >> g; q2++) {
        Shadow& s = b.shadow[q2];
        s.wlane = o.lane;
        s.wep = w.epoch;
        s.wwarp = w.id;
        s.wclk = w.vc[w.id];
        s.wpc = o.pc;
        s.watom = 0;
      }
    }
  }
  w.pend.resize(k);
}
static void op_cpcommit(Warp& w, const I&) {
  for (int l = 0; l < 32; l++)
    if (w.m >> l & 1) w.agroup[l]++;
}
static void op_cpwait(Warp& w, const I& i) {
  if (!w.pend.empty()) asyncFlush(w, w.m, (int)i.imm, i.op == 1);
}
// mbarrier objects: arrive releases, a successful wait acquires; bulk copies land as late as the waits allow
static inline u64 memAddr(Warp& w, int off, int width, i64 imm, int l) {
  return off < 0 ? (u64)imm : width == 8 ? REG(u64, off)[l] + imm : (u64)(u32)(REG(u32, off)[l] + (u32)imm);
}
static u32 sharedOff(u64 a) { return (u32)(a - SHARED_WIN < WIN_SIZE ? a - SHARED_WIN : a); }
static MBar& mbarAt(Warp& w, const I& i, int l, u32 a) {
  if (a & 7) report(w, F_ALIGN, i.pc, -1, l, a, "misaligned mbarrier");
  auto it = w.blk->mbar.find(a);
  if (it == w.blk->mbar.end()) fail(w, F_OTHER, i.pc, l, a, "mbarrier at shared offset %u was not initialised", a);
  return it->second;
}
static void mbarStep(Block& b, MBar& m, bool land) {
  if (land && m.pending == 0 && !m.ops.empty()) {
    for (auto& o : m.ops) {
      memcpy(b.sh.data() + o.dst, o.data.data(), o.n);
      memset(&b.shst[o.dst], 1, o.n);
      m.tx -= o.n;
    }
    m.ops.clear();
  }
  if (m.pending == 0 && m.tx == 0 && m.ops.empty()) {
    m.phase++;
    m.pending = m.expected;
    memcpy(m.vcDone, m.vc, sizeof m.vc);
  }
}
enum { MB_INIT, MB_INVAL, MB_EXPECT, MB_ARRIVE, MB_ARRIVE_TX, MB_DROP, MB_TEST, MB_PARITY, MB_COMPLETE, MB_CPARRIVE };
static void op_mbarrier(Warp& w, const I& i) {  // b: count/tx/state/parity slot or -1 ; d: destination
  Block& b = *w.blk;
  u32 pm = 0;
  for (int l = 0; l < 32; l++)
    if (w.m >> l & 1) {
      u32 a = sharedOff(memAddr(w, i.a, i.aw, i.imm, l));
      if ((u64)a + 8 > b.L->shared_size) fail(w, F_OOB, i.pc, l, a, "mbarrier out of shared memory");
      u32 v = i.b >= 0 && i.op != MB_TEST ? REG(u32, i.b)[l] : 1;
      if (i.op == MB_INIT) {
        if (!v || v > (1u << 20) - 1) fail(w, F_OTHER, i.pc, l, a, "mbarrier count %u", v);
        for (int k = 0; k < 8; k++) {
          if (b.shst[a + k] & 2) fail(w, F_OOB, i.pc, l, a, "mbarrier in a red zone");
          b.shst[a + k] = 1;
        }
        MBar m;
        m.expected = m.pending = v;
        b.mbar[a] = m;
        continue;
      }
      MBar& m = mbarAt(w, i, l, a);
      switch (i.op) {
        case MB_INVAL:
          b.mbar.erase(a);
          break;
        case MB_EXPECT:
          m.tx += v;
          break;
        case MB_COMPLETE:
          m.tx -= v;
          mbarStep(b, m, false);
          break;
        case MB_CPARRIVE:
          if (!w.pend.empty()) asyncFlush(w, 1u << l, 0, true);
          joinVC(m.vc, w.vc, b.nw);
          if (!i.f1) break;
          [[fallthrough]];
        case MB_ARRIVE:
        case MB_ARRIVE_TX:
        case MB_DROP: {
          if (i.op == MB_ARRIVE_TX) {
            m.tx += v;
            v = 1;
          }
          if (i.d >= 0) REG(u64, i.d)[l] = m.phase;
          if (i.op == MB_DROP) m.expected -= v;
          if (v > m.pending) fail(w, F_BARRIER, i.pc, l, a, "mbarrier: more arrivals than its count of %u", m.expected);
          m.pending -= v;
          joinVC(m.vc, w.vc, b.nw);
          mbarStep(b, m, false);
          break;
        }
        default: {
          mbarStep(b, m, true);
          u64 want = i.op == MB_TEST ? REG(u64, i.b)[l] : 0;
          bool ok = i.op == MB_TEST ? m.phase > (u32)want : ((m.phase & 1) != (v & 1));
          if (ok) {
            pm |= 1u << l;
            joinVC(w.vc, m.vcDone, b.nw);
            w.epoch++;
          }
        }
      }
    }
  if (i.op == MB_ARRIVE || i.op == MB_ARRIVE_TX || i.op == MB_DROP || i.op == MB_CPARRIVE) w.vc[w.id]++;
  if (i.op == MB_TEST || i.op == MB_PARITY) setp_(w, i.e, pm);
}
static void op_bulk(Warp& w, const I& i) {  // cp.async.bulk: op 0 global->shared with mbarrier, 1 shared->global
  Block& b = *w.blk;
  const int* x = &w.wk->P->extra[i.ex];
  for (int l = 0; l < 32; l++)
    if (w.m >> l & 1) {
      u64 d = memAddr(w, i.a, i.aw, i.imm, l), s = memAddr(w, x[0], x[1], x[2], l);
      u32 n = REG(u32, i.b)[l];
      u64 g = i.op ? d : s;
      u32 h = sharedOff(i.op ? s : d);
      if (!n || n % 16) fail(w, F_ALIGN, i.pc, l, g, "cp.async.bulk size %u is not a multiple of 16", n);
      if ((g & 15) || (h & 15))
        fail(w, F_ALIGN, i.pc, l, g & 15 ? g : h, "cp.async.bulk address is not a multiple of 16");
      const Alloc* A = findAlloc(b.L, g);
      if (!A || g + n > A->base + A->size) oobGlobal(w, i, l, g, (int)n, i.op);
      if (i.op && (A->flags & 1))
        fail(w, F_READONLY, i.pc, l, g, "write to read-only memory (a constant, or a buffer passed as const)");
      if ((u64)h + n > b.L->shared_size)
        fail(w, F_OOB, i.pc, l, h, "cp.async.bulk of %u bytes at shared offset %u: out of bounds", n, h);
      for (u32 k = 0; k < n; k += 16) sharedState(w, i, l, h + k, 16, i.op ? A_READ : A_ASYNC);
      if (b.L->metrics) {
        PcStat& st = w.st[i.pc];
        st.accesses++;
        st.bytes += n;
        u64 sec = ((g + n - 1) >> 5) - (g >> 5) + 1;
        st.sectors += sec;
        st.min_sectors += (n + 31) / 32;
      }
      u8* gp = A->host + (g - A->base);
      if (i.op) {
        memcpy(gp, b.sh.data() + h, n);
        continue;
      }
      MBar& m = mbarAt(w, i, l, sharedOff(memAddr(w, x[3], x[4], x[5], l)));
      BulkOp o{h, n, (u32)w.id, w.vc[w.id], i.pc, std::vector<u8>(gp, gp + n)};
      joinVC(m.vc, w.vc, b.nw);
      m.ops.push_back(std::move(o));
    }
  w.vc[w.id]++;
}
// ldmatrix / stmatrix, 8x8 of b16
static void op_ldmatrix(Warp& w, const I& i) {
  u64 ad[32];
  addrs(w, i, ad);
  if (i.space == SP_GEN)
    for (int l = 0; l < 32; l++) ad[l] -= SHARED_WIN;
  int x = i.vec;
  const int* ex = &w.wk->P->extra[i.ex];
  u8* hp[32];
  u32 lm = x == 4 ? ~0u : (1u << (8 * x)) - 1;
  bool st = i.op == 1;
  u16 mat[4][8][8];
  resShared(w, i, lm, ad, hp, 16, st ? A_WRITE : A_READ, 16, true);
  if (!st) {
    for (int q = 0; q < x; q++)
      for (int r = 0; r < 8; r++) memcpy(mat[q][r], hp[q * 8 + r], 16);
    for (int q = 0; q < x; q++) {
      u32* d = REG(u32, ex[q]);
      for (int l = 0; l < 32; l++) {
        int r = l >> 2, c = (l & 3) * 2;
        d[l] = i.f1 ? (u32)mat[q][c][r] | (u32)mat[q][c + 1][r] << 16 : (u32)mat[q][r][c] | (u32)mat[q][r][c + 1] << 16;
      }
    }
  } else {
    for (int q = 0; q < x; q++) {
      const u32* d = REG(u32, ex[q]);
      for (int l = 0; l < 32; l++) {
        int r = l >> 2, c = (l & 3) * 2;
        u16 lo = d[l], hi = d[l] >> 16;
        if (i.f1)
          mat[q][c][r] = lo, mat[q][c + 1][r] = hi;
        else
          mat[q][r][c] = lo, mat[q][r][c + 1] = hi;
      }
    }
    for (int q = 0; q < x; q++)
      for (int r = 0; r < 8; r++) memcpy(hp[q * 8 + r], mat[q][r], 16);
  }
}

// ---------------------------------------------------------------- tensor cores
static inline double tf32v(u32 x) { return bitsf(x & 0xffffe000u); }
struct MmaShape {
  int m, n, k;
};
// element e of register r: value of a packed 32-bit register as double
static inline float unpack(int ty, u32 x, int e) {
  switch (ty) {
    case T_F16:
      return h2f(x >> (16 * e));
    case T_BF16:
      return b2f(x >> (16 * e));
    case T_TF32:
      return (float)tf32v(x);
    case T_E4M3:
      return e4m3_f(x >> (8 * e));
    case T_E5M2:
      return e5m2_f(x >> (8 * e));
    case T_F32:
      return bitsf(x);
  }
  return 0;
}
static void op_mma(Warp& w, const I& i) {  // m16n8kK, f16/bf16/tf32/fp8 -> f32 or f16
  const int* ex = &w.wk->P->extra[i.ex];
  int K = i.f1, ta = i.f2 & 255, tb = i.f2 >> 8, td = i.f3 & 255, tc = i.f3 >> 8;
  int es = ta == T_TF32 ? 4 : (ta == T_E4M3 || ta == T_E5M2) ? 1 : 2, ep = 4 / es;  // elements per register
  int na = 16 * K / 32 / ep, nb = 8 * K / 32 / ep, nd = td == T_F32 ? 4 : 2, nc = tc == T_F32 ? 4 : 2;
  const int *rd = ex, *ra = ex + nd, *rb = ra + na, *rc = rb + nb;
  alignas(64) float A[16][32];
  alignas(64) double B[32][8], C[16][8];
  for (int r = 0; r < na; r++) {
    const u32* a = REG(u32, ra[r]);
    int dr = (r & 1) * 8, dc = (r >> 1) * ep * 4;
    for (int l = 0; l < 32; l++)
      for (int e = 0; e < ep; e++) A[(l >> 2) + dr][(l & 3) * ep + e + dc] = unpack(ta, a[l], e);
  }
  for (int r = 0; r < nb; r++) {
    const u32* b = REG(u32, rb[r]);
    for (int l = 0; l < 32; l++)
      for (int e = 0; e < ep; e++) B[(l & 3) * ep + e + r * ep * 4][l >> 2] = unpack(tb, b[l], e);
  }
  if (tc == T_F32)
    for (int r = 0; r < 4; r++) {
      const float* c = REG(float, rc[r]);
      for (int l = 0; l < 32; l++) C[(l >> 2) + (r >> 1) * 8][(l & 3) * 2 + (r & 1)] = c[l];
    }
  else
    for (int r = 0; r < 2; r++) {
      const u32* c = REG(u32, rc[r]);
      for (int l = 0; l < 32; l++)
        for (int e = 0; e < 2; e++) C[(l >> 2) + r * 8][(l & 3) * 2 + e] = h2f(c[l] >> (16 * e));
    }
  for (int y = 0; y < 16; y++) {
    double acc[8];
    for (int x = 0; x < 8; x++) acc[x] = C[y][x];
    for (int k = 0; k < K; k++) {
      double a = A[y][k];
      for (int x = 0; x < 8; x++) acc[x] += a * B[k][x];
    }
    for (int x = 0; x < 8; x++) C[y][x] = acc[x];
  }
  if (td == T_F32)
    for (int r = 0; r < 4; r++) {
      float* d = REG(float, rd[r]);
      for (int l = 0; l < 32; l++) d[l] = (float)C[(l >> 2) + (r >> 1) * 8][(l & 3) * 2 + (r & 1)];
    }
  else
    for (int r = 0; r < 2; r++) {
      u32* d = REG(u32, rd[r]);
      for (int l = 0; l < 32; l++)
        d[l] = HF::pd(C[(l >> 2) + r * 8][(l & 3) * 2]) | (u32)HF::pd(C[(l >> 2) + r * 8][(l & 3) * 2 + 1]) << 16;
    }
}
static void op_mma_i8(Warp& w, const I& i) {  // m16n8k16 / m16n8k32 s8,u8 -> s32
  const int* ex = &w.wk->P->extra[i.ex];
  int K = i.f1;
  bool sa = i.f2 & 1, sb = i.f2 >> 1 & 1;
  int na = K / 8, nb = K / 16;
  const int *rd = ex, *ra = ex + 4, *rb = ra + na, *rc = rb + nb;
  i32 A[16][32], B[32][8];
  i64 C[16][8];
  auto dec = [](u32 x, int e, bool s) -> i32 {
    u8 v = x >> (8 * e);
    return s ? (i32)(i8)v : (i32)v;
  };
  for (int r = 0; r < na; r++) {
    const u32* a = REG(u32, ra[r]);
    for (int l = 0; l < 32; l++)
      for (int e = 0; e < 4; e++) A[(l >> 2) + (r & 1) * 8][(l & 3) * 4 + e + (r >> 1) * 16] = dec(a[l], e, sa);
  }
  for (int r = 0; r < nb; r++) {
    const u32* b = REG(u32, rb[r]);
    for (int l = 0; l < 32; l++)
      for (int e = 0; e < 4; e++) B[(l & 3) * 4 + e + r * 16][l >> 2] = dec(b[l], e, sb);
  }
  for (int r = 0; r < 4; r++) {
    const i32* c = REG(i32, rc[r]);
    for (int l = 0; l < 32; l++) C[(l >> 2) + (r >> 1) * 8][(l & 3) * 2 + (r & 1)] = c[l];
  }
  for (int y = 0; y < 16; y++)
    for (int k = 0; k < K; k++)
      for (int x = 0; x < 8; x++) C[y][x] += A[y][k] * B[k][x];
  for (int r = 0; r < 4; r++) {
    i32* d = REG(i32, rd[r]);
    for (int l = 0; l < 32; l++) {
      i64 v = C[(l >> 2) + (r >> 1) * 8][(l & 3) * 2 + (r & 1)];
      if (i.sat) v = std::min<i64>(INT32_MAX, std::max<i64>(INT32_MIN, v));
      d[l] = (i32)v;
    }
  }
}
static void op_dmma(Warp& w, const I& i) {  // m8n8k4 f64 (f1=0) and m16n8k4/8/16 f64
  const int* ex = &w.wk->P->extra[i.ex];
  int K = i.f1, M = i.f2;
  int na = M * K / 32, nb = 8 * K / 32, nd = M * 8 / 32;
  const int *rd = ex, *ra = ex + nd, *rb = ra + na, *rc = rb + nb;
  double A[16][16], B[16][8], C[16][8];
  int mr = M / 8;
  for (int r = 0; r < na; r++) {
    const double* a = REG(double, ra[r]);
    for (int l = 0; l < 32; l++) A[(l >> 2) + (r % mr) * 8][(l & 3) + (r / mr) * 4] = a[l];
  }
  for (int r = 0; r < nb; r++) {
    const double* b = REG(double, rb[r]);
    for (int l = 0; l < 32; l++) B[(l & 3) + r * 4][l >> 2] = b[l];
  }
  for (int r = 0; r < nd; r++) {
    const double* c = REG(double, rc[r]);
    for (int l = 0; l < 32; l++) C[(l >> 2) + (r >> 1) * 8][(l & 3) * 2 + (r & 1)] = c[l];
  }
  for (int y = 0; y < M; y++)
    for (int k = 0; k < K; k++)
      for (int x = 0; x < 8; x++) C[y][x] = std::fma(A[y][k], B[k][x], C[y][x]);
  for (int r = 0; r < nd; r++) {
    double* d = REG(double, rd[r]);
    for (int l = 0; l < 32; l++) d[l] = C[(l >> 2) + (r >> 1) * 8][(l & 3) * 2 + (r & 1)];
  }
}
// wmma: the fragment layout is ours (opaque by specification): element index = (lane*epl + pos) mod total, row-major
struct WFrag {
  int rows, cols, esz, nreg;
};
static int wIndex(const WFrag& f, int lane, int r, int e) {
  int ep = 4 / f.esz, epl = f.nreg * ep;
  return (lane * epl + r * ep + e) % (f.rows * f.cols);
}
static void op_wmma_ls(Warp& w,
                       const I& i) {  // f1: rows<<8|cols, f2: column-major, op: 0 load 1 store, sz: element size
  u64 ad[32];
  addrs(w, i, ad);
  const int* ex = &w.wk->P->extra[i.ex];
  WFrag f{i.f1 >> 8, i.f1 & 255, i.sz, i.nex};
  bool st = i.op;
  int ep = 4 / f.esz;
  u32 stride = i.b >= 0 ? REG(u32, i.b)[0] : (u32)(i.f2 & 1 ? f.rows : f.cols);
  bool col = i.f2 & 1;
  for (int l = 1; l < 32; l++)
    if (ad[l] != ad[0]) fail(w, F_OTHER, i.pc, l, ad[l], "wmma address differs between lanes");
  u32 save = w.m;
  for (int r = 0; r < f.nreg; r++)
    for (int e = 0; e < ep; e++) {
      u64 a2[32];
      u8* hp[32];
      for (int l = 0; l < 32; l++) {
        int x = wIndex(f, l, r, e), y = x / f.cols, c = x % f.cols;
        a2[l] = ad[0] + (u64)f.esz * (col ? (u64)c * stride + y : (u64)y * stride + c);
      }
      resolve(w, i, a2, hp, f.esz, st ? A_WRITE : A_READ, f.esz);
      for (int l = 0; l < 32; l++) {
        u8* reg = w.R + ex[r] + l * 4 + e * f.esz;
        if (st)
          memcpy(hp[l], reg, f.esz);
        else
          memcpy(reg, hp[l], f.esz);
      }
    }
  w.m = save;
}
static void op_wmma(Warp& w, const I& i) {  // f1: m<<16|n<<8|k ; ty a/b ; regs d,a,b,c
  const int* ex = &w.wk->P->extra[i.ex];
  int M = i.f1 >> 16, N = i.f1 >> 8 & 255, K = i.f1 & 255, ta = i.f2 & 255, td = i.f3 & 255, tc = i.f3 >> 8;
  int na = i.d, nb = i.b, nd = i.c, nc = i.e;
  int es = ta == T_TF32 ? 4 : (ta == T_S8 || ta == T_U8) ? 1 : 2;
  auto csz = [](int t) { return t == T_F16 ? 2 : 4; };
  WFrag fa{M, K, es, na}, fb{K, N, es, nb}, fc{M, N, csz(tc), nc}, fd{M, N, csz(td), nd};
  const int *rd = ex, *ra = ex + nd, *rb = ra + na, *rc = rb + nb;
  std::vector<double> A(M * K), B(K * N), C(M * N);
  auto val = [&](int t, u32 x, int e) -> double {
    if (t == T_S8) return (i8)(x >> (8 * e));
    if (t == T_U8) return (u8)(x >> (8 * e));
    if (t == T_S32) return (i32)x;
    return unpack(t, x, e);
  };
  auto fill = [&](std::vector<double>& V, const WFrag& f, const int* rr, int t) {
    for (int r = 0; r < f.nreg; r++)
      for (int l = 0; l < 32; l++)
        for (int e = 0; e < 4 / f.esz; e++) V[wIndex(f, l, r, e)] = val(t, REG(u32, rr[r])[l], e);
  };
  fill(A, fa, ra, ta);
  fill(B, fb, rb, ta);
  fill(C, fc, rc, tc);
  for (int y = 0; y < M; y++)
    for (int k = 0; k < K; k++) {
      double a = A[y * K + k];
      for (int x = 0; x < N; x++) C[y * N + x] += a * B[k * N + x];
    }
  for (int r = 0; r < nd; r++) {
    u32* d = REG(u32, rd[r]);
    for (int l = 0; l < 32; l++) {
      if (td == T_F32)
        d[l] = fbits((float)C[wIndex(fd, l, r, 0)]);
      else if (td == T_S32)
        d[l] = (u32)(i32)(i64)C[wIndex(fd, l, r, 0)];
      else
        d[l] = HF::pd(C[wIndex(fd, l, r, 0)]) | (u32)HF::pd(C[wIndex(fd, l, r, 1)]) << 16;
    }
  }
}

// ---------------------------------------------------------------- warp-level communication (w.m: participating lanes)
enum { SH_UP, SH_DOWN, SH_BFLY, SH_IDX };
static void op_shfl(Warp& w, const I& i) {
  u32 src[32];
  memcpy(src, REG(u32, i.a), 128);
  const u32 *b = REG(u32, i.b), *c = REG(u32, i.c);
  u32* d = REG(u32, i.d);
  u32 pm = 0;
  u32 out[32];
  for (int l = 0; l < 32; l++)
    if (w.m >> l & 1) {
      int bv = b[l] & 31, cv = c[l] & 31, seg = c[l] >> 8 & 31, mx = (l & seg) | (cv & ~seg), mn = l & seg, j;
      bool p;
      switch (i.op) {
        case SH_UP:
          j = l - bv;
          p = j >= mx;
          break;
        case SH_DOWN:
          j = l + bv;
          p = j <= mx;
          break;
        case SH_BFLY:
          j = l ^ bv;
          p = j <= mx;
          break;
        default:
          j = mn | (bv & ~seg);
          p = j <= mx;
      }
      if (!p)
        j = l;
      else
        pm |= 1u << l;
      if (!(w.m >> j & 1))
        report(w, F_SHFL, i.pc, -1, l, 0, "shfl.sync reads lane %d, which does not take part (value undefined)", j);
      out[l] = src[j];
    }
  for (int l = 0; l < 32; l++)
    if (w.m >> l & 1) d[l] = out[l];
  setp_(w, i.e, pm);
}
static void op_vote(Warp& w, const I& i) {
  u32 p = getp(w, i.a) & w.m, r;
  switch (i.op) {
    case 0:
      r = p == w.m ? ~0u : 0;
      break;
    case 1:
      r = p ? ~0u : 0;
      break;
    case 2:
      r = (p == w.m || !p) ? ~0u : 0;
      break;
    default: {
      u32* d = REG(u32, i.d);
      LOOP(d[l] = p) return;
    }
  }
  setp_(w, i.d, r);
}
static void op_match(Warp& w, const I& i) {
  u64 v[32];
  for (int l = 0; l < 32; l++) v[l] = i.sz == 8 ? REG(u64, i.a)[l] : REG(u32, i.a)[l];
  u32* d = REG(u32, i.d);
  u32 res[32];
  u32 pm = 0;
  for (int l = 0; l < 32; l++)
    if (w.m >> l & 1) {
      u32 r = 0;
      for (int k = 0; k < 32; k++)
        if ((w.m >> k & 1) && v[k] == v[l]) r |= 1u << k;
      if (i.op) {
        bool all = r == w.m;
        res[l] = all ? w.m : 0;
        if (all) pm |= 1u << l;
      } else
        res[l] = r;
    }
  for (int l = 0; l < 32; l++)
    if (w.m >> l & 1) d[l] = res[l];
  if (i.op) setp_(w, i.e, pm);
}
static void op_redux(Warp& w, const I& i) {
  const u32* a = REG(u32, i.a);
  u32* d = REG(u32, i.d);
  bool first = true;
  u32 r = 0;
  for (int l = 0; l < 32; l++)
    if (w.m >> l & 1) {
      if (first) {
        r = a[l];
        first = false;
        continue;
      }
      if (i.ty == T_F32) {
        float x = bitsf(r), y = bitsf(a[l]);
        r = fbits(i.op == AT_MIN ? std::fmin(x, y) : std::fmax(x, y));
      } else if (i.ty == T_S32)
        r = (u32)atomInt<i32>(i.op, r, a[l], 0);
      else
        r = atomInt<u32>(i.op, r, a[l], 0);
    }
  LOOP(d[l] = r)
}
static void op_nop(Warp&, const I&) {}
static void op_syncwarp(Warp& w, const I&) { w.epoch++; }
static void op_activemask(Warp& w, const I& i) {
  u32* d = REG(u32, i.d);
  u32 a = w.act;
  LOOP(d[l] = a)
}
static void op_elect(Warp& w, const I& i) {
  int lead = __builtin_ctz(w.m);
  if (i.d >= 0) {
    u32* d = REG(u32, i.d);
    LOOP(d[l] = lead)
  }
  setp_(w, i.e, 1u << lead);
}
static void op_clock(Warp& w, const I& i) {
  u64 c = w.wk->icount;
  if (i.sz == 8) {
    u64* d = REG(u64, i.d);
    LOOP(d[l] = c)
  } else {
    u32* d = REG(u32, i.d);
    LOOP(d[l] = (u32)c)
  }
}

// ---------------------------------------------------------------- float arithmetic with every modifier (slow path)
enum { FO_ADD, FO_SUB, FO_MUL, FO_FMA, FO_DIV, FO_RCP, FO_SQRT };
struct RoundGuard {
  int old;
  RoundGuard(int r) {
    old = fegetround();
    static const int M[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD, FE_TONEAREST};
    fesetround(M[r]);
  }
  ~RoundGuard() { fesetround(old); }
};
template <class T>
__attribute__((noinline)) static T farith(int op, T a, T b, T c) {
  volatile T x = a, y = b, z = c, r;
  switch (op) {
    case FO_ADD:
      r = x + y;
      break;
    case FO_SUB:
      r = x - y;
      break;
    case FO_MUL:
      r = x * y;
      break;
    case FO_FMA:
      r = std::fma((T)x, (T)y, (T)z);
      break;
    case FO_DIV:
      r = x / y;
      break;
    case FO_RCP:
      r = (T)1 / x;
      break;
    default:
      r = std::sqrt((T)x);
  }
  return r;
}
template <class T>
static void op_farith(Warp& w, const I& i) {
  RoundGuard g(i.rnd);
  T* d = REG(T, i.d);
  const T* a = REG(T, i.a);
  const T* b = i.b >= 0 ? REG(T, i.b) : a;
  const T* c = i.c >= 0 ? REG(T, i.c) : a;
  for (int l = 0; l < 32; l++)
    if (w.m >> l & 1) {
      T x = a[l], y = b[l], z = c[l];
      if (i.ftz && sizeof(T) == 4) x = fz(x), y = fz(y), z = fz(z);
      T r = farith<T>(i.op, x, y, z);
      if (i.ftz && sizeof(T) == 4) r = fz(r);
      if (i.sat) r = satf(r);
      d[l] = r;
    }
}
// half/bfloat arithmetic, N=1 or 2 values per register
template <class H, int N>
static void op_harith(Warp& w, const I& i) {
  u16* d = REG(u16, i.d);
  const u16 *a = REG(u16, i.a), *b = REG(u16, i.b), *c = i.c >= 0 ? REG(u16, i.c) : a;
  for (int q = 0; q < 32 * N; q++)
    if (w.m >> (q / N) & 1) {
      u16 r;
      float x = H::g(a[q]), y = H::g(b[q]);
      switch (i.op) {
        case FO_ADD:
          r = H::p(x + y);
          break;
        case FO_SUB:
          r = H::p(x - y);
          break;
        case FO_MUL:
          r = H::p(x * y);
          break;
        default:
          r = H::pd(fma_odd(x, y, H::g(c[q])));
      }
      if (i.sat == 1) r = H::p(satf(H::g(r)));
      if (i.sat == 2 && (r & 0x8000) && (r & 0x7fff) <= (H::p(INFINITY))) r = 0;
      d[q] = r;
    }
}
template <class H, int N>
static void op_hminmax(Warp& w, const I& i) {  // op 0 min 1 max, f1: NaN
  u16* d = REG(u16, i.d);
  const u16 *a = REG(u16, i.a), *b = REG(u16, i.b);
  for (int q = 0; q < 32 * N; q++)
    if (w.m >> (q / N) & 1) {
      float x = H::g(a[q]), y = H::g(b[q]);
      u16 r;
      if (x != x || y != y)
        r = i.f1 ? 0x7fff : (x != x && y != y) ? 0x7fff : x != x ? b[q] : a[q];
      else if (x == y)
        r = (i.op == 0) == !!(a[q] & 0x8000) ? a[q] : b[q];
      else
        r = ((x < y) == (i.op == 0)) ? a[q] : b[q];
      d[q] = r;
    }
}
enum { HU_NEG, HU_ABS, HU_EX2, HU_TANH };
template <class H, int N>
static void op_hunary(Warp& w, const I& i) {
  u16* d = REG(u16, i.d);
  const u16* a = REG(u16, i.a);
  for (int q = 0; q < 32 * N; q++)
    if (w.m >> (q / N) & 1) switch (i.op) {
        case HU_NEG:
          d[q] = a[q] ^ 0x8000;
          break;
        case HU_ABS:
          d[q] = a[q] & 0x7fff;
          break;
        case HU_EX2:
          d[q] = H::p(exp2f(H::g(a[q])));
          break;
        default:
          d[q] = H::p(tanhf(H::g(a[q])));
      }
}
// ---------------------------------------------------------------- compare
enum { CM_EQ, CM_NE, CM_LT, CM_LE, CM_GT, CM_GE, CM_EQU, CM_NEU, CM_LTU, CM_LEU, CM_GTU, CM_GEU, CM_NUM, CM_NAN };
template <int OP, class T>
static inline bool cmp(T a, T b) {
  bool nan = a != a || b != b;
  switch (OP) {
    case CM_EQ:
      return a == b;
    case CM_NE:
      return !nan && a != b;
    case CM_LT:
      return a < b;
    case CM_LE:
      return a <= b;
    case CM_GT:
      return a > b;
    case CM_GE:
      return a >= b;
    case CM_EQU:
      return nan || a == b;
    case CM_NEU:
      return nan || a != b;
    case CM_LTU:
      return nan || a < b;
    case CM_LEU:
      return nan || a <= b;
    case CM_GTU:
      return nan || a > b;
    case CM_GEU:
      return nan || a >= b;
    case CM_NUM:
      return !nan;
    default:
      return nan;
  }
}
template <class T>
struct Id {
  typedef T S;
  typedef T V;
  static T g(T x) { return x; }
};
struct IdH {
  typedef u16 S;
  typedef float V;
  static float g(u16 x) { return h2f(x); }
};
struct IdB {
  typedef u16 S;
  typedef float V;
  static float g(u16 x) { return b2f(x); }
};
struct IdZ {
  typedef float S;
  typedef float V;
  static float g(float x) { return fz(x); }
};
template <class L, int OP>
static u32 cmpmask(Warp& w, const I& i) {
  const typename L::S *a = REG(typename L::S, i.a), *b = REG(typename L::S, i.b);
  u8 t[32];
  for (int l = 0; l < 32; l++) t[l] = cmp<OP, typename L::V>(L::g(a[l]), L::g(b[l]));
  u32 r = 0;
  for (int l = 0; l < 32; l++) r |= (u32)t[l] << l;
  return r;
}
static inline u32 combine(Warp& w, const I& i, u32 r) {
  switch (i.op) {
    case 1:
      return r & getp(w, i.c);
    case 2:
      return r | getp(w, i.c);
    case 3:
      return r ^ getp(w, i.c);
  }
  return r;
}
template <class L, int OP>
static void op_setp(Warp& w, const I& i) {
  u32 r = cmpmask<L, OP>(w, i);
  u32 x = combine(w, i, r), y = combine(w, i, ~r);
  setp_(w, i.d, x);
  setp_(w, i.e, y);
}
template <class L, int OP>
static void op_set(Warp& w, const I& i) {
  u32 r = combine(w, i, cmpmask<L, OP>(w, i));
  if (i.ty == T_F32) {
    float* d = REG(float, i.d);
    LOOP(d[l] = r >> l & 1 ? 1.0f : 0.0f)
  } else if (i.ty == T_F16 || i.ty == T_BF16) {
    u16 one = i.ty == T_F16 ? 0x3c00 : 0x3f80;
    u16* d = REG(u16, i.d);
    LOOP(d[l] = r >> l & 1 ? one : 0)
  } else if (i.sz == 2) {
    u16* d = REG(u16, i.d);
    LOOP(d[l] = r >> l & 1 ? 0xffff : 0)
  } else {
    u32* d = REG(u32, i.d);
    LOOP(d[l] = r >> l & 1 ? ~0u : 0u)
  }
}
template <class L, int S>
static Fn cmpFn(int op) {
#define CF(O) \
  case O:     \
    return S ? &op_set<L, O> : &op_setp<L, O>;
  switch (op) {
    CF(CM_EQ)
    CF(CM_NE)
    CF(CM_LT)
    CF(CM_LE)
    CF(CM_GT)
    CF(CM_GE)
    CF(CM_EQU)
    CF(CM_NEU)
    CF(CM_LTU)
    CF(CM_LEU)
    CF(CM_GTU)
    CF(CM_GEU)
    CF(CM_NUM)
    CF(CM_NAN)
  }
  return nullptr;
#undef CF
}
static bool cmpF(int op, float a, float b) {
  switch (op) {
#define CF(O) \
  case O:     \
    return cmp<O, float>(a, b);
    CF(CM_EQ)
    CF(CM_NE)
    CF(CM_LT)
    CF(CM_LE)
    CF(CM_GT)
    CF(CM_GE)
    CF(CM_EQU)
    CF(CM_NEU)
    CF(CM_LTU)
    CF(CM_LEU)
    CF(CM_GTU)
    CF(CM_GEU)
    CF(CM_NUM)
    CF(CM_NAN)
#undef CF
  }
  return false;
}
template <class H>
static void op_cmp2(Warp& w,
                    const I& i) {  // f16x2/bf16x2 compare; f1: cmp; f2: 0 setp p|q, 1 set->x2 of same kind, 2 set->u32
  const u32 *a = REG(u32, i.a), *b = REG(u32, i.b);
  u32 lo = 0, hi = 0;
  for (int l = 0; l < 32; l++) {
    lo |= (u32)cmpF(i.f1, H::g(a[l]), H::g(b[l])) << l;
    hi |= (u32)cmpF(i.f1, H::g(a[l] >> 16), H::g(b[l] >> 16)) << l;
  }
  if (i.f2 == 0) {
    setp_(w, i.d, combine(w, i, lo));
    setp_(w, i.e, combine(w, i, hi));
    return;
  }
  u32* d = REG(u32, i.d);
  u32 one = H::p(1.0f);
  u32 T = i.f2 == 1 ? one : 0xffff;
  LOOP(d[l] = (lo >> l & 1 ? T : 0) | (hi >> l & 1 ? T << 16 : 0))
}
// ---------------------------------------------------------------- predicates, selp, mov
static void op_plogic(Warp& w, const I& i) {
  u32 a = getp(w, i.a), b = i.b >= 0 ? getp(w, i.b) : 0, r;
  switch (i.op) {
    case 0:
      r = a & b;
      break;
    case 1:
      r = a | b;
      break;
    case 2:
      r = a ^ b;
      break;
    case 3:
      r = ~a;
      break;
    default:
      r = a;
  }
  setp_(w, i.d, r);
}
template <class T>
static void op_selp(Warp& w, const I& i) {
  T* d = REG(T, i.d);
  const T *a = REG(T, i.a), *b = REG(T, i.b);
  u32 p = getp(w, i.c);
  LOOP(d[l] = p >> l & 1 ? a[l] : b[l])
}
static void op_selpred(Warp& w, const I& i) {
  u32 p = getp(w, i.c);
  setp_(w, i.d, (getp(w, i.a) & p) | (getp(w, i.b) & ~p));
}
template <class T>
static void op_slct(Warp& w, const I& i) {
  T* d = REG(T, i.d);
  const T *a = REG(T, i.a), *b = REG(T, i.b);
  if (i.op) {
    const float* c = REG(float, i.c);
    LOOP(d[l] = c[l] >= 0 ? a[l] : b[l])
  } else {
    const i32* c = REG(i32, i.c);
    LOOP(d[l] = c[l] >= 0 ? a[l] : b[l])
  }
}
template <class T>
static void op_mov(Warp& w, const I& i) {
  T* d = REG(T, i.d);
  const T* a = REG(T, i.a);
  LOOP(d[l] = a[l])
}
static void op_pack(Warp& w, const I& i) {  // sz: total, regw: part size
  const int* ex = &w.wk->P->extra[i.ex];
  for (int l = 0; l < 32; l++)
    if (w.m >> l & 1) {
      u64 v[2] = {0, 0};
      for (int k = 0; k < i.nex; k++) memcpy((u8*)v + k * i.regw, w.R + ex[k] + l * i.regw, i.regw);
      memcpy(w.R + i.d + l * i.sz, v, i.sz);
    }
}
static void op_unpack(Warp& w, const I& i) {
  const int* ex = &w.wk->P->extra[i.ex];
  for (int l = 0; l < 32; l++)
    if (w.m >> l & 1) {
      u64 v[2] = {0, 0};
      memcpy(v, w.R + i.a + l * i.sz, i.sz);
      for (int k = 0; k < i.nex; k++)
        if (ex[k] >= 0) memcpy(w.R + ex[k] + l * i.regw, (u8*)v + k * i.regw, i.regw);
    }
}
template <int S>
static void op_unpack2(Warp& w, const I& i) {
  const int* ex = &w.wk->P->extra[i.ex];
  typedef typename std::conditional<S == 2, u16, u32>::type T;
  T v[64];
  memcpy(v, w.R + i.a, sizeof v);
  for (int k = 0; k < 2; k++)
    if (ex[k] >= 0) {
      T* d = REG(T, ex[k]);
      LOOP(d[l] = v[2 * l + k])
    }
}
template <int S>
static void op_pack2(Warp& w, const I& i) {
  const int* ex = &w.wk->P->extra[i.ex];
  typedef typename std::conditional<S == 2, u16, u32>::type T;
  T v[64];
  const T *a = REG(T, ex[0]), *b = REG(T, ex[1]);
  for (int l = 0; l < 32; l++) v[2 * l] = a[l], v[2 * l + 1] = b[l];
  typedef typename std::conditional<S == 2, u32, u64>::type W;
  W x[32];
  memcpy(x, v, sizeof v);
  W* d = REG(W, i.d);
  LOOP(d[l] = x[l])
}
// ---------------------------------------------------------------- carry chain
template <class T>
static void op_cc(Warp& w, const I& i) {  // op bit0: sub, bit1: uses carry in, bit2: writes cc ; f1: mad (1 lo, 2 hi)
  T* d = REG(T, i.d);
  const T *a = REG(T, i.a), *b = REG(T, i.b);
  typedef typename std::conditional<sizeof(T) == 4, u64, u128>::type W;
  const T* c = i.f1 ? REG(T, i.c) : nullptr;
  u32 ncc = w.cc;
  for (int l = 0; l < 32; l++)
    if (w.m >> l & 1) {
      W x, y;
      W cin = (i.op & 2) ? (w.cc >> l & 1) : 0, r;
      bool co;
      if (i.f1) {
        W p;
        if (i.f1 == 2 && i.sgn) {
          if constexpr (sizeof(T) == 4)
            p = (u64)((i64)(i32)a[l] * (i64)(i32)b[l]);
          else
            p = (u128)((i128)(i64)a[l] * (i128)(i64)b[l]);
        } else
          p = (W)a[l] * b[l];
        x = i.f1 == 2 ? (W)(T)(p >> (8 * sizeof(T))) : (W)(T)p;
        y = c[l];
      } else {
        x = a[l];
        y = b[l];
      }
      if (i.op & 1) {
        r = x - y - cin;
        co = (x < y + cin);
      } else {
        r = x + y + cin;
        co = (r >> (8 * sizeof(T))) != 0;
      }
      if (i.op & 4) ncc = (ncc & ~(1u << l)) | ((u32)co << l);
      d[l] = (T)r;
    }
  w.cc = ncc;
}
// ---------------------------------------------------------------- misc integer
static inline u32 prmt(u32 a, u32 b, u32 s, int mode) {
  u64 v = (u64)b << 32 | a;
  u32 r = 0;
  if (mode == 0) {
    for (int k = 0; k < 4; k++) {
      u32 sel = s >> (4 * k) & 15;
      u8 x = v >> (8 * (sel & 7));
      if (sel & 8) x = (x & 0x80) ? 0xff : 0;
      r |= (u32)x << (8 * k);
    }
    return r;
  }
  s &= 3;
  static const u8 T[6][4][4] = {{{0, 1, 2, 3}, {1, 2, 3, 4}, {2, 3, 4, 5}, {3, 4, 5, 6}},
                                {{0, 7, 6, 5}, {1, 0, 7, 6}, {2, 1, 0, 7}, {3, 2, 1, 0}},
                                {{0, 0, 0, 0}, {1, 1, 1, 1}, {2, 2, 2, 2}, {3, 3, 3, 3}},
                                {{0, 1, 2, 3}, {1, 1, 2, 3}, {2, 2, 2, 3}, {3, 3, 3, 3}},
                                {{0, 0, 0, 0}, {0, 1, 1, 1}, {0, 1, 2, 2}, {0, 1, 2, 3}},
                                {{0, 1, 0, 1}, {2, 3, 2, 3}, {0, 1, 0, 1}, {2, 3, 2, 3}}};
  for (int k = 0; k < 4; k++) r |= (u32)(u8)(v >> (8 * T[mode - 1][s][k])) << (8 * k);
  return r;
}
static void op_prmt(Warp& w, const I& i) {
  u32* d = REG(u32, i.d);
  const u32 *a = REG(u32, i.a), *b = REG(u32, i.b), *c = REG(u32, i.c);
  LOOP(d[l] = prmt(a[l], b[l], c[l], i.op))
}
static inline u32 lop3(u32 a, u32 b, u32 c, u32 t) {
  u32 r = 0;
  if (t & 1) r |= ~a & ~b & ~c;
  if (t & 2) r |= ~a & ~b & c;
  if (t & 4) r |= ~a & b & ~c;
  if (t & 8) r |= ~a & b & c;
  if (t & 16) r |= a & ~b & ~c;
  if (t & 32) r |= a & ~b & c;
  if (t & 64) r |= a & b & ~c;
  if (t & 128) r |= a & b & c;
  return r;
}
static void op_lop3(Warp& w, const I& i) {
  u32* d = REG(u32, i.d);
  const u32 *a = REG(u32, i.a), *b = REG(u32, i.b), *c = REG(u32, i.c);
  u32 t = (u32)i.imm;
  u32 p = 0;
  LOOP(d[l] = lop3(a[l], b[l], c[l], t)) if (i.f1) {
    for (int l = 0; l < 32; l++)
      if ((w.m >> l & 1) && d[l]) p |= 1u << l;
    u32 q = getp(w, i.f3);
    setp_(w, i.e, i.f1 == 1 ? p | q : p & q);
  }
}
template <class T>
static inline T bfe(T a, u32 b, u32 c) {
  const int W = 8 * sizeof(T);
  u32 pos = b & 255, len = c & 255;
  typedef typename std::make_unsigned<T>::type U;
  bool sg = std::is_signed<T>::value;
  if (len == 0) return 0;
  u32 msb = W - 1;
  u32 sp = std::min(pos + len - 1, msb);
  U sbit = sg ? ((U)a >> sp) & 1 : 0;
  U r = 0;
  if (pos <= msb) {
    r = (U)a >> pos;
  }
  u32 n = pos > msb ? 0 : std::min(len, msb - pos + 1);
  if (n < (u32)W) {
    U mask = n == 0 ? 0 : (((U)1 << n) - 1);
    r &= mask;
    if (sbit) r |= ~mask;
  }
  return (T)r;
}
template <class T>
static inline T bfi(T a, T b, u32 c, u32 dd) {
  const u32 W = 8 * sizeof(T);
  u32 pos = c & 255, len = dd & 255;
  if (pos >= W || len == 0) return b;
  u32 n = std::min(len, W - pos);
  T mask = (n >= W ? ~(T)0 : (((T)1 << n) - 1)) << pos;
  return (b & ~mask) | ((a << pos) & mask);
}
template <class T>
static void op_bfi(Warp& w, const I& i) {
  T* d = REG(T, i.d);
  const T *a = REG(T, i.a), *b = REG(T, i.b);
  const u32 *c = REG(u32, i.c), *e = REG(u32, i.e);
  LOOP(d[l] = bfi<T>(a[l], b[l], c[l], e[l]))
}
template <class T>
static inline T divi(T a, T b) {
  if (b == 0) return (T) ~(T)0;
  if (std::is_signed<T>::value && b == (T)-1) return (T)(0 - (typename std::make_unsigned<T>::type)a);
  return a / b;
}
template <class T>
static inline T remi(T a, T b) {
  if (b == 0) return a;
  if (std::is_signed<T>::value && b == (T)-1) return 0;
  return a % b;
}
template <class T>
static inline T fmn(T a, T b) {
  if (a != a) return b;
  if (b != b) return a;
  if (a == b) return std::signbit(a) ? a : b;
  return a < b ? a : b;
}
template <class T>
static inline T fmx(T a, T b) {
  if (a != a) return b;
  if (b != b) return a;
  if (a == b) return std::signbit(a) ? b : a;
  return a > b ? a : b;
}
static void op_fminmax(Warp& w, const I& i) {
  float* d = REG(float, i.d);
  const float *a = REG(float, i.a), *b = REG(float, i.b);  // all modifiers
  for (int l = 0; l < 32; l++)
    if (w.m >> l & 1) {
      float x = a[l], y = b[l], r;
      if (i.ftz) x = fz(x), y = fz(y);
      bool xs = i.f2 && (std::signbit(x) != std::signbit(y));
      if (i.f2) x = std::fabs(x), y = std::fabs(y);
      if (i.f1 && (x != x || y != y))
        r = bitsf(0x7fffffff);
      else if (x != x && y != y)
        r = bitsf(0x7fffffff);
      else
        r = i.op ? fmx(x, y) : fmn(x, y);
      if (xs) r = -r;
      d[l] = r;
    }
}
static void op_dp4a(Warp& w, const I& i) {
  u32* d = REG(u32, i.d);
  const u32 *a = REG(u32, i.a), *b = REG(u32, i.b), *c = REG(u32, i.c);
  LOOP(u32 r = c[l]; for (int k = 0; k < 4; k++) {
    i32 x = (i.f1 & 1) ? (i32)(i8)(a[l] >> 8 * k) : (i32)(u8)(a[l] >> 8 * k);
    i32 y = (i.f1 & 2) ? (i32)(i8)(b[l] >> 8 * k) : (i32)(u8)(b[l] >> 8 * k);
    r += (u32)(x * y);
  } d[l] = r)
}
static void op_isspacep(Warp& w, const I& i) {
  const u64* a = REG(u64, i.a);
  u32 r = 0;
  for (int l = 0; l < 32; l++) {
    u64 x = a[l];
    bool v;
    switch (i.space) {
      case SP_SHR:
        v = inWin(x, SHARED_WIN);
        break;
      case SP_LOC:
        v = inWin(x, LOCAL_WIN);
        break;
      case SP_PAR:
        v = inWin(x, PARAM_WIN);
        break;
      case SP_GLB:
        v = x < SHARED_WIN;
        break;
      default:
        v = false;
    }
    r |= (u32)v << l;
  }
  setp_(w, i.d, r);
}
static void op_testp(Warp& w, const I& i) {
  u32 r = 0;
  for (int l = 0; l < 32; l++) {
    double x = i.sz == 8 ? REG(double, i.a)[l] : (double)REG(float, i.a)[l];
    bool sub = i.sz == 8 ? std::fpclassify(x) == FP_SUBNORMAL : std::fpclassify(REG(float, i.a)[l]) == FP_SUBNORMAL;
    bool v;
    switch (i.op) {
      case 0:
        v = std::isfinite(x);
        break;
      case 1:
        v = std::isinf(x);
        break;
      case 2:
        v = x == x;
        break;
      case 3:
        v = x != x;
        break;
      case 4:
        v = std::isfinite(x) && x != 0 && !sub;
        break;
      default:
        v = sub;
    }
    r |= (u32)v << l;
  }
  setp_(w, i.d, r);
}
// ---------------------------------------------------------------- cvt (generic path)
static inline u64 rdreg(const u8* p, int rw, int l) {
  u64 x = 0;
  memcpy(&x, p + (size_t)l * rw, rw);
  return x;
}
static double getFloat(int t, u64 x) {
  switch (t) {
    case T_F16:
      return h2f(x);
    case T_BF16:
      return b2f(x);
    case T_F32:
    case T_TF32:
      return bitsf(x);
    default:
      return bitsd(x);
  }
}
__attribute__((noinline)) static float i2f(bool uns, u64 v) {
  volatile u64 x = v;
  return uns ? (float)(u64)x : (float)(i64)x;
}
__attribute__((noinline)) static double i2d(bool uns, u64 v) {
  volatile u64 x = v;
  return uns ? (double)(u64)x : (double)(i64)x;
}
__attribute__((noinline)) static float d2f(double v) {
  volatile double x = v;
  return (float)x;
}
static u64 putFloat(int t, double v, int rnd, bool sat, bool relu, bool satfinite) {
  if (relu && !(v > 0)) {
    if (v == v) v = 0;
  }
  if (sat) v = !(v > 0) ? 0 : v > 1 ? 1 : v;
  switch (t) {
    case T_F16:
      if (v != v) return 0x7fff;
      return rnd == RN && !satfinite ? HF::pd(v) : f2h((float)roundSmall(v, 11, -14, 15, rnd));
    case T_BF16:
      if (v != v) return 0x7fff;
      return rnd == RN ? HB::pd(v) : fbits((float)roundSmall(v, 8, -126, 127, rnd)) >> 16;
    case T_TF32:
      if (v != v) return 0x7fffffff;
      return fbits((float)roundSmall(v, 11, -126, 127, rnd));
    case T_F32:
      if (rnd == RN) return fbits((float)v);
      {
        RoundGuard g(rnd);
        return fbits(d2f(v));
      }
    default:
      return dbits(v);
  }
}
// f1 dst type, f2 src type, rnd mode, f3: irnd (0 none,1 rni,2 rzi,3 rmi,4 rpi), regw src reg width, sz dst reg width,
// op bit0 relu bit1 satfinite
static void op_cvt(Warp& w, const I& i) {
  int td = i.f1, ts = i.f2, ss = tsize(ts), ds = tsize(td);
  const u8* A = w.R + i.a;
  u8* D = w.R + i.d;
  for (int l = 0; l < 32; l++)
    if (w.m >> l & 1) {
      u64 x = rdreg(A, i.regw, l), r = 0;
      if (ss < 8) x &= (1ull << (8 * ss)) - 1;
      if (isFloatT(ts)) {
        double v = getFloat(ts, x);
        if (i.ftz && ts == T_F32) v = fz((float)v);
        if (i.f3) {
          switch (i.f3) {
            case 1:
              v = std::nearbyint(v);
              break;
            case 2:
              v = std::trunc(v);
              break;
            case 3:
              v = std::floor(v);
              break;
            default:
              v = std::ceil(v);
          }
        }
        if (isFloatT(td)) {
          r = putFloat(td, v, i.rnd, i.sat, i.op & 1, i.op & 2);
          if (i.ftz && td == T_F32) r = fbits(fz(bitsf(r)));
        } else {
          int bits = 8 * ds;
          if (v != v)
            r = 0;
          else if (isSignedT(td)) {
            double hi = std::ldexp(1.0, bits - 1);
            i64 y = v >= hi ? (i64)((1ull << (bits - 1)) - 1) : v < -hi ? (i64)(~0ull << (bits - 1)) : (i64)v;
            r = (u64)y;
          } else {
            double hi = std::ldexp(1.0, bits);
            r = v >= hi ? (bits == 64 ? ~0ull : (1ull << bits) - 1) : v <= 0 ? 0 : (u64)v;
          }
        }
      } else {
        bool sg = isSignedT(ts);
        if (sg) {
          int sh = 64 - 8 * ss;
          x = (u64)((i64)(x << sh) >> sh);
        }
        if (isFloatT(td)) {
          if (td == T_F64) {
            RoundGuard g(i.rnd);
            r = dbits(i2d(!sg, x));
            if (i.sat) r = dbits(std::min(1.0, std::max(0.0, bitsd(r))));
          } else if (td == T_F32) {
            RoundGuard g(i.rnd);
            float f = i2f(!sg, x);
            if (i.sat) f = satf(f);
            r = fbits(f);
          } else {
            double v = i2d(!sg, x);
            r = putFloat(td, v, i.rnd, i.sat, false, false);
          }
        } else if (i.sat) {
          int bits = 8 * ds;
          i128 v = sg ? (i128)(i64)x : (i128)x, lo = isSignedT(td) ? -((i128)1 << (bits - 1)) : 0,
               hi = isSignedT(td) ? ((i128)1 << (bits - 1)) - 1 : ((i128)1 << bits) - 1;
          v = v < lo ? lo : v > hi ? hi : v;
          r = (u64)v;
        } else
          r = x;
      }
      if (!isFloatT(td) && ds < 8) {
        int sh = 64 - 8 * ds;
        r = isSignedT(td) ? (u64)((i64)(r << sh) >> sh) : r << sh >> sh;
      }
      memcpy(D + (size_t)l * i.sz, &r, i.sz);
    }
}
static void op_cvt2(Warp& w, const I& i) {  // x2 destinations from two f32: a upper, b lower
  const float *a = REG(float, i.a), *b = REG(float, i.b);
  for (int l = 0; l < 32; l++)
    if (w.m >> l & 1) {
      float x = a[l], y = b[l];
      if (i.ftz) x = fz(x), y = fz(y);
      int t = i.f1 == T_F16X2 ? T_F16 : T_BF16;
      if (i.f1 == T_E4M3X2 || i.f1 == T_E5M2X2) {
        if (i.op & 1) {
          if (x < 0) x = 0;
          if (y < 0) y = 0;
        }
        REG(u16, i.d)[l] = i.f1 == T_E4M3X2 ? (u16)(f_e4m3(x) << 8 | f_e4m3(y)) : (u16)(f_e5m2(x) << 8 | f_e5m2(y));
        continue;
      }
      REG(u32, i.d)
      [l] = (u32)putFloat(t, x, i.rnd, false, i.op & 1, i.op & 2) << 16 |
            (u32)putFloat(t, y, i.rnd, false, i.op & 1, i.op & 2);
    }
}
static void op_cvt_fp8(Warp& w, const I& i) {  // f16x2 <-> e4m3x2/e5m2x2
  for (int l = 0; l < 32; l++)
    if (w.m >> l & 1) {
      if (i.f1 == T_F16X2) {
        u16 x = REG(u16, i.a)[l];
        auto f = i.f2 == T_E4M3X2 ? e4m3_f : e5m2_f;
        u16 lo = f2h(f(x & 255)), hi = f2h(f(x >> 8));
        if (i.op & 1) {
          if (lo & 0x8000) lo = 0;
          if (hi & 0x8000) hi = 0;
        }
        REG(u32, i.d)[l] = lo | (u32)hi << 16;
      } else {
        u32 x = REG(u32, i.a)[l];
        float a = h2f(x), b = h2f(x >> 16);
        if (i.op & 1) {
          if (a < 0) a = 0;
          if (b < 0) b = 0;
        }
        REG(u16, i.d)[l] = i.f1 == T_E4M3X2 ? (u16)(f_e4m3(b) << 8 | f_e4m3(a)) : (u16)(f_e5m2(b) << 8 | f_e5m2(a));
      }
    }
}
static void op_cvtpack(Warp& w, const I& i) {
  const i32 *a = REG(i32, i.a), *b = REG(i32, i.b);
  const u32* c = i.c >= 0 ? REG(u32, i.c) : nullptr;
  u32* d = REG(u32, i.d);
  int bits = 8 * tsize(i.f1);
  if (i.f3) bits = i.f3;
  bool sg = isSignedT(i.f1);
  i64 lo = sg ? -(1ll << (bits - 1)) : 0, hi = sg ? (1ll << (bits - 1)) - 1 : (1ll << bits) - 1;
  u32 mask = (u32)((1ull << bits) - 1);
  LOOP(i64 x = i.f2 == T_U32 ? (i64)(u32)a[l] : a[l]; i64 y = i.f2 == T_U32 ? (i64)(u32)b[l] : b[l];
       x = std::min(hi, std::max(lo, x)); y = std::min(hi, std::max(lo, y));
       u32 r = ((u32)x & mask) << bits | ((u32)y & mask); if (c) r |= c[l] << (2 * bits); d[l] = r)
}
// ---------------------------------------------------------------- printf / assert
static std::string cstr(Warp& w, u64 a) {
  std::string s;
  const Alloc* A = findAlloc(w.blk->L, a);
  if (!A) return s;
  for (u64 k = a - A->base; k < A->size && A->host[k]; k++) s += (char)A->host[k];
  return s;
}
static void op_printf(Warp& w, const I& i) {
  if (!w.blk->L->printf_on) return;
  for (int l = 0; l < 32; l++)
    if (w.m >> l & 1) {
      std::string f = cstr(w, REG(u64, i.a)[l]);
      u64 ap = REG(u64, i.b)[l] - LOCAL_WIN;
      const u8* base = w.local + (u64)l * w.lsize;
      u64 off = ap;
      std::string o;
      for (size_t k = 0; k < f.size(); k++) {
        if (f[k] != '%') {
          o += f[k];
          continue;
        }
        if (f[k + 1] == '%') {
          o += '%';
          k++;
          continue;
        }
        std::string sp = "%";
        k++;
        int lng = 0;
        while (k < f.size() && !strchr("diouxXcsfFeEgGaAp", f[k])) {
          if (f[k] == 'l')
            lng++;
          else if (f[k] == 'h' || f[k] == 'z') {
            if (f[k] == 'z') lng = 2;
          } else
            sp += f[k];
          k++;
        }
        if (k >= f.size()) break;
        char c = f[k];
        int n = (strchr("fFeEgGaAps", c) || lng) ? 8 : 4;
        off = (off + n - 1) & ~(u64)(n - 1);
        if (off + n > w.lsize) break;
        u64 v = 0;
        memcpy(&v, base + off, n);
        off += n;
        char b[128];
        if (strchr("fFeEgGaA", c)) {
          sp += c;
          snprintf(b, sizeof b, sp.c_str(), bitsd(v));
          o += b;
        } else if (c == 's')
          o += cstr(w, v);
        else if (c == 'p') {
          snprintf(b, sizeof b, "0x%llx", (unsigned long long)v);
          o += b;
        } else if (c == 'c')
          o += (char)v;
        else {
          sp += "ll";
          sp += c;
          if (n == 4 && (c == 'd' || c == 'i')) v = (u64)(i64)(i32)v;
          snprintf(b, sizeof b, sp.c_str(), (long long)v);
          o += b;
        }
      }
      w.wk->out += o;
    }
}
static void op_assert(Warp& w, const I& i) {
  int l = __builtin_ctz(w.m);
  fail(w, F_TRAP, i.pc, l, 0, "device assert failed: %s (%s:%u)", cstr(w, REG(u64, i.a)[l]).c_str(),
       cstr(w, REG(u64, i.b)[l]).c_str(), REG(u32, i.c)[l]);
}
#include "decode.inc"
#include "engine.inc"
