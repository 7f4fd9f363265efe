// Floating-point arithmetic with every modifier, and that of 16-bit formats.
#pragma once
#include <cfenv>
#include <cmath>

#include "engine/state.h"
#include "isa/floats.h"

namespace ptxsim {

struct RoundGuard {
  int old;
  RoundGuard(Rounding r) {
    old = fegetround();
    static const int MODES[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD, FE_TONEAREST};
    fesetround(MODES[int(r)]);
  }
  ~RoundGuard() { fesetround(old); }
};
// noinline and volatile: the compiler must not move arithmetic out of the rounding mode.
template <class T>
__attribute__((noinline)) inline T float_arithmetic(int op, T a, T b, T c) {
  volatile T x = a, y = b, z = c, r;
  switch (op) {
    case FloatOp::ADD:
      r = x + y;
      break;
    case FloatOp::SUB:
      r = x - y;
      break;
    case FloatOp::MUL:
      r = x * y;
      break;
    case FloatOp::FMA:
      r = std::fma((T)x, (T)y, (T)z);
      break;
    case FloatOp::DIV:
      r = x / y;
      break;
    case FloatOp::RCP:
      r = (T)1 / x;
      break;
    default:
      r = std::sqrt((T)x);
  }
  return r;
}
template <class T>
inline void op_farith(Warp& warp, const Instruction& in) {
  RoundGuard g(in.rounding);
  T* d = warp.lanes<T>(in.dst);
  const T* a = warp.lanes<T>(in.src0);
  const T* b = in.src1 >= 0 ? warp.lanes<T>(in.src1) : a;
  const T* c = in.src2 >= 0 ? warp.lanes<T>(in.src2) : a;
  for (int l = 0; l < 32; l++)
    if (warp.mask >> l & 1) {
      T x = a[l], y = b[l], z = c[l];
      if (in.flush && sizeof(T) == 4) x = flush_denormal(x), y = flush_denormal(y), z = flush_denormal(z);
      T r = float_arithmetic<T>(in.operation, x, y, z);
      if (in.flush && sizeof(T) == 4) r = flush_denormal(r);
      if (in.saturate) r = saturate_unit(r);
      d[l] = r;
    }
}
// half/bfloat arithmetic, N=1 or 2 values per register
template <class H, int N>
inline void op_harith(Warp& warp, const Instruction& in) {
  u16* d = warp.lanes<u16>(in.dst);
  const u16 *a = warp.lanes<u16>(in.src0), *b = warp.lanes<u16>(in.src1),
            *c = in.src2 >= 0 ? warp.lanes<u16>(in.src2) : a;
  for (int q = 0; q < 32 * N; q++)
    if (warp.mask >> (q / N) & 1) {
      u16 r;
      float x = H::load(a[q]), y = H::load(b[q]);
      switch (in.operation) {
        case FloatOp::ADD:
          r = H::store(x + y);
          break;
        case FloatOp::SUB:
          r = H::store(x - y);
          break;
        case FloatOp::MUL:
          r = H::store(x * y);
          break;
        default:
          r = H::store_once_rounded(fma_round_to_odd(x, y, H::load(c[q])));
      }
      if (in.saturate == 1) r = H::store(saturate_unit(H::load(r)));
      if (in.saturate == 2 && (r & 0x8000) && (r & 0x7fff) <= (H::store(INFINITY))) r = 0;
      d[q] = r;
    }
}
template <class H, int N>
inline void op_hminmax(Warp& warp, const Instruction& in) {
  u16* d = warp.lanes<u16>(in.dst);
  const u16 *a = warp.lanes<u16>(in.src0), *b = warp.lanes<u16>(in.src1);
  for (int q = 0; q < 32 * N; q++)
    if (warp.mask >> (q / N) & 1) {
      float x = H::load(a[q]), y = H::load(b[q]);
      u16 r;
      if (x != x || y != y)
        r = in.minmax.nan ? 0x7fff : (x != x && y != y) ? 0x7fff : x != x ? b[q] : a[q];
      else if (x == y)
        r = (!in.minmax.maximum) == !!(a[q] & 0x8000) ? a[q] : b[q];
      else
        r = ((x < y) == (!in.minmax.maximum)) ? a[q] : b[q];
      d[q] = r;
    }
}
template <class H, int N>
inline void op_hunary(Warp& warp, const Instruction& in) {
  u16* d = warp.lanes<u16>(in.dst);
  const u16* a = warp.lanes<u16>(in.src0);
  for (int q = 0; q < 32 * N; q++)
    if (warp.mask >> (q / N) & 1) switch (in.operation) {
        case HalfOp::NEG:
          d[q] = a[q] ^ 0x8000;
          break;
        case HalfOp::ABS:
          d[q] = a[q] & 0x7fff;
          break;
        case HalfOp::EX2:
          d[q] = H::store(exp2f(H::load(a[q])));
          break;
        default:
          d[q] = H::store(tanhf(H::load(a[q])));
      }
}
template <class T>
inline T float_min(T a, T b) {
  if (a != a) return b;
  if (b != b) return a;
  if (a == b) return std::signbit(a) ? a : b;
  return a < b ? a : b;
}
template <class T>
inline T float_max(T a, T b) {
  if (a != a) return b;
  if (b != b) return a;
  if (a == b) return std::signbit(a) ? b : a;
  return a > b ? a : b;
}
template <class T, bool Maximum>
inline void op_minmax(Warp& warp, const Instruction& in) {
  T* d = warp.lanes<T>(in.dst);
  const T *a = warp.lanes<T>(in.src0), *b = warp.lanes<T>(in.src1);
  for_lanes(warp.mask, [&](int l) { d[l] = Maximum ? float_max(a[l], b[l]) : float_min(a[l], b[l]); });
}
// With .ftz, .NaN or .xorsign.
inline void op_fminmax(Warp& warp, const Instruction& in) {
  float* d = warp.lanes<float>(in.dst);
  const float *a = warp.lanes<float>(in.src0), *b = warp.lanes<float>(in.src1);
  for (int l = 0; l < 32; l++)
    if (warp.mask >> l & 1) {
      float x = a[l], y = b[l], r;
      if (in.flush) x = flush_denormal(x), y = flush_denormal(y);
      bool xs = in.minmax.xorsign && (std::signbit(x) != std::signbit(y));
      if (in.minmax.xorsign) x = std::fabs(x), y = std::fabs(y);
      if (in.minmax.nan && (x != x || y != y))
        r = float_of_bits(0x7fffffff);
      else if (x != x && y != y)
        r = float_of_bits(0x7fffffff);
      else
        r = in.minmax.maximum ? float_max(x, y) : float_min(x, y);
      if (xs) r = -r;
      d[l] = r;
    }
}
inline void op_testp(Warp& warp, const Instruction& in) {
  u32 r = 0;
  for (int l = 0; l < 32; l++) {
    double x = in.size == 8 ? warp.lanes<double>(in.src0)[l] : (double)warp.lanes<float>(in.src0)[l];
    bool sub = in.size == 8 ? std::fpclassify(x) == FP_SUBNORMAL
                            : std::fpclassify(warp.lanes<float>(in.src0)[l]) == FP_SUBNORMAL;
    bool v;
    switch (in.operation) {
      case TestOp::FINITE:
        v = std::isfinite(x);
        break;
      case TestOp::INFINITE:
        v = std::isinf(x);
        break;
      case TestOp::NUMBER:
        v = x == x;
        break;
      case TestOp::NOTANUMBER:
        v = x != x;
        break;
      case TestOp::NORMAL:
        v = std::isfinite(x) && x != 0 && !sub;
        break;
      default:
        v = sub;
    }
    r |= (u32)v << l;
  }
  set_predicate(warp, in.pred_dst, r);
}

}  // namespace ptxsim
