// cvt.
#pragma once
#include <algorithm>
#include <cmath>

#include "isa/arithmetic.h"

namespace ptxsim {

inline u64 read_register(const u8* p, int rw, int l) {
  u64 x = 0;
  memcpy(&x, p + (size_t)l * rw, rw);
  return x;
}
inline double to_double(Type t, u64 x) {
  switch (t) {
    case Type::F16:
      return half_to_float(x);
    case Type::BF16:
      return bfloat_to_float(x);
    case Type::F32:
    case Type::TF32:
      return float_of_bits(x);
    default:
      return double_of_bits(x);
  }
}
// noinline and volatile: the compiler must not convert before the rounding mode is set.
__attribute__((noinline)) inline float integer_to_float(bool uns, u64 v) {
  volatile u64 x = v;
  return uns ? (float)(u64)x : (float)(i64)x;
}
__attribute__((noinline)) inline double integer_to_double(bool uns, u64 v) {
  volatile u64 x = v;
  return uns ? (double)(u64)x : (double)(i64)x;
}
__attribute__((noinline)) inline float double_to_float(double v) {
  volatile double x = v;
  return (float)x;
}
inline u64 from_double(Type t, double v, Rounding rounding, bool saturate, bool relu, bool finite) {
  if (relu && !(v > 0)) {
    if (v == v) v = 0;
  }
  if (saturate) v = !(v > 0) ? 0 : v > 1 ? 1 : v;
  switch (t) {
    case Type::F16:
      if (v != v) return 0x7fff;
      return rounding == Rounding::NEAREST && !finite ? Half::store_once_rounded(v)
                                                      : float_to_half((float)round_to_bits(v, 11, -14, 15, rounding));
    case Type::BF16:
      if (v != v) return 0x7fff;
      return rounding == Rounding::NEAREST ? BFloat::store_once_rounded(v)
                                           : bits_of_float((float)round_to_bits(v, 8, -126, 127, rounding)) >> 16;
    case Type::TF32:
      if (v != v) return 0x7fffffff;
      return bits_of_float((float)round_to_bits(v, 11, -126, 127, rounding));
    case Type::F32:
      if (rounding == Rounding::NEAREST) return bits_of_float((float)v);
      {
        RoundGuard g(rounding);
        return bits_of_float(double_to_float(v));
      }
    default:
      return bits_of_double(v);
  }
}
inline void op_cvt(Warp& warp, const Instruction& in) {
  Type td = in.convert.dst, ts = in.convert.src;
  int ss = size_of(ts), ds = size_of(td);
  const u8* A = warp.regs + in.src0;
  u8* D = warp.regs + in.dst;
  for (int l = 0; l < 32; l++)
    if (warp.mask >> l & 1) {
      u64 x = read_register(A, in.reg_width, l), r = 0;
      if (ss < 8) x &= (1ull << (8 * ss)) - 1;
      if (is_float(ts)) {
        double v = to_double(ts, x);
        if (in.flush && ts == Type::F32) v = flush_denormal((float)v);
        if (in.convert.to_integer != ConvertSpec::KEEP) {
          switch (in.convert.to_integer) {
            case ConvertSpec::ROUND:
              v = std::nearbyint(v);
              break;
            case ConvertSpec::TRUNCATE:
              v = std::trunc(v);
              break;
            case ConvertSpec::FLOOR:
              v = std::floor(v);
              break;
            default:
              v = std::ceil(v);
          }
        }
        if (is_float(td)) {
          r = from_double(td, v, in.rounding, in.saturate, in.convert.relu, in.convert.finite);
          if (in.flush && td == Type::F32) r = bits_of_float(flush_denormal(float_of_bits(r)));
        } else {
          int bits = 8 * ds;
          if (v != v)
            r = 0;
          else if (is_signed(td)) {
            double hi = std::ldexp(1.0, bits - 1);
            i64 y = v >= hi ? (i64)((1ull << (bits - 1)) - 1) : v < -hi ? (i64)(~0ull << (bits - 1)) : (i64)v;
            r = (u64)y;
          } else {
            double hi = std::ldexp(1.0, bits);
            r = v >= hi ? (bits == 64 ? ~0ull : (1ull << bits) - 1) : v <= 0 ? 0 : (u64)v;
          }
        }
      } else {
        bool sg = is_signed(ts);
        if (sg) {
          int sh = 64 - 8 * ss;
          x = (u64)((i64)(x << sh) >> sh);
        }
        if (is_float(td)) {
          if (td == Type::F64) {
            RoundGuard g(in.rounding);
            r = bits_of_double(integer_to_double(!sg, x));
            if (in.saturate) r = bits_of_double(std::min(1.0, std::max(0.0, double_of_bits(r))));
          } else if (td == Type::F32) {
            RoundGuard g(in.rounding);
            float f = integer_to_float(!sg, x);
            if (in.saturate) f = saturate_unit(f);
            r = bits_of_float(f);
          } else {
            double v = integer_to_double(!sg, x);
            r = from_double(td, v, in.rounding, in.saturate, false, false);
          }
        } else if (in.saturate) {
          int bits = 8 * ds;
          i128 v = sg ? (i128)(i64)x : (i128)x, lo = is_signed(td) ? -((i128)1 << (bits - 1)) : 0,
               hi = is_signed(td) ? ((i128)1 << (bits - 1)) - 1 : ((i128)1 << bits) - 1;
          v = v < lo ? lo : v > hi ? hi : v;
          r = (u64)v;
        } else
          r = x;
      }
      if (!is_float(td) && ds < 8) {
        int sh = 64 - 8 * ds;
        r = is_signed(td) ? (u64)((i64)(r << sh) >> sh) : r << sh >> sh;
      }
      memcpy(D + (size_t)l * in.size, &r, in.size);
    }
}
inline void op_cvt2(Warp& warp, const Instruction& in) {  // x2 destinations from two f32: a upper, b lower
  const float *a = warp.lanes<float>(in.src0), *b = warp.lanes<float>(in.src1);
  for (int l = 0; l < 32; l++)
    if (warp.mask >> l & 1) {
      float x = a[l], y = b[l];
      if (in.flush) x = flush_denormal(x), y = flush_denormal(y);
      Type t = in.convert.dst == Type::F16X2 ? Type::F16 : Type::BF16;
      if (in.convert.dst == Type::E4M3X2 || in.convert.dst == Type::E5M2X2) {
        if (in.convert.relu) {
          if (x < 0) x = 0;
          if (y < 0) y = 0;
        }
        warp.lanes<u16>(in.dst)[l] = in.convert.dst == Type::E4M3X2 ? (u16)(float_to_e4m3(x) << 8 | float_to_e4m3(y))
                                                                    : (u16)(float_to_e5m2(x) << 8 | float_to_e5m2(y));
        continue;
      }
      warp.lanes<u32>(in.dst)[l] = (u32)from_double(t, x, in.rounding, false, in.convert.relu, in.convert.finite)
                                       << 16 |
                                   (u32)from_double(t, y, in.rounding, false, in.convert.relu, in.convert.finite);
    }
}
inline void op_cvt_fp8(Warp& warp, const Instruction& in) {  // f16x2 <-> e4m3x2/e5m2x2
  for (int l = 0; l < 32; l++)
    if (warp.mask >> l & 1) {
      if (in.convert.dst == Type::F16X2) {
        u16 x = warp.lanes<u16>(in.src0)[l];
        auto f = in.convert.src == Type::E4M3X2 ? e4m3_to_float : e5m2_to_float;
        u16 lo = float_to_half(f(x & 255)), hi = float_to_half(f(x >> 8));
        if (in.convert.relu) {
          if (lo & 0x8000) lo = 0;
          if (hi & 0x8000) hi = 0;
        }
        warp.lanes<u32>(in.dst)[l] = lo | (u32)hi << 16;
      } else {
        u32 x = warp.lanes<u32>(in.src0)[l];
        float a = half_to_float(x), b = half_to_float(x >> 16);
        if (in.convert.relu) {
          if (a < 0) a = 0;
          if (b < 0) b = 0;
        }
        warp.lanes<u16>(in.dst)[l] = in.convert.dst == Type::E4M3X2 ? (u16)(float_to_e4m3(b) << 8 | float_to_e4m3(a))
                                                                    : (u16)(float_to_e5m2(b) << 8 | float_to_e5m2(a));
      }
    }
}
inline void op_cvtpack(Warp& warp, const Instruction& in) {
  const i32 *a = warp.lanes<i32>(in.src0), *b = warp.lanes<i32>(in.src1);
  const u32* c = in.src2 >= 0 ? warp.lanes<u32>(in.src2) : nullptr;
  u32* d = warp.lanes<u32>(in.dst);
  int bits = 8 * size_of(in.convert.dst);
  bool sg = is_signed(in.convert.dst);
  i64 lo = sg ? -(1ll << (bits - 1)) : 0, hi = sg ? (1ll << (bits - 1)) - 1 : (1ll << bits) - 1;
  u32 mask = (u32)((1ull << bits) - 1);
  for_lanes(warp.mask, [&](int l) {
    i64 x = in.convert.src == Type::U32 ? (i64)(u32)a[l] : a[l];
    i64 y = in.convert.src == Type::U32 ? (i64)(u32)b[l] : b[l];
    x = std::min(hi, std::max(lo, x));
    y = std::min(hi, std::max(lo, y));
    u32 r = ((u32)x & mask) << bits | ((u32)y & mask);
    if (c) r |= c[l] << (2 * bits);
    d[l] = r;
  });
}

}  // namespace ptxsim
