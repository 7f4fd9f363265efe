// Small floating-point formats: conversions and roundings.
#pragma once
#include <cfloat>
#include <cmath>
#include <cstring>

#include "engine/program.h"

namespace ptxsim {

inline float float_of_bits(u32 x) {
  float f;
  memcpy(&f, &x, 4);
  return f;
}
inline u32 bits_of_float(float f) {
  u32 x;
  memcpy(&x, &f, 4);
  return x;
}
inline double double_of_bits(u64 x) {
  double f;
  memcpy(&f, &x, 8);
  return f;
}
inline u64 bits_of_double(double f) {
  u64 x;
  memcpy(&x, &f, 8);
  return x;
}
inline float half_to_float(u16 h) {
  _Float16 x;
  memcpy(&x, &h, 2);
  return (float)x;
}
inline u16 float_to_half(float f) {
  if (f != f) return 0x7fff;
  _Float16 x = (_Float16)f;
  u16 h;
  memcpy(&h, &x, 2);
  return h;
}
inline float bfloat_to_float(u16 b) { return float_of_bits((u32)b << 16); }
inline u16 float_to_bfloat(float f) {
  u32 x = bits_of_float(f);
  if (f != f) return 0x7fff;
  return (u16)((x + 0x7fff + ((x >> 16) & 1)) >> 16);
}
inline float round_to_odd(double d) {  // round to odd, so that a second rounding is exact
  float f = (float)d;
  if (d != d || std::isinf(f)) return f;
  double e = d - (double)f;
  if (e == 0) return f;
  u32 x = bits_of_float(f);
  if (x & 1) return f;
  if (x == 0 || x == 0x80000000u) return float_of_bits((d < 0 ? 0x80000000u : 0) | 1);
  return float_of_bits(((e > 0) == (f > 0)) ? x + 1 : x - 1);
}
inline double fma_round_to_odd(float a, float b, float c) {  // a*b exact in double; sum rounded to odd
  double p = (double)a * (double)b, q = c, s = p + q;
  if (!std::isfinite(s)) return s;
  double bb = s - p, err = (p - (s - bb)) + (q - bb);
  if (err == 0) return s;
  u64 x = bits_of_double(s);
  if (x & 1) return s;
  if (s == 0) return err;
  return double_of_bits(((err > 0) == (s > 0)) ? x + 1 : x - 1);
}
// How arithmetic loads and stores a 16-bit format.
struct Half {
  static float load(u16 x) { return half_to_float(x); }
  static u16 store(float f) { return float_to_half(f); }
  static u16 store_once_rounded(double d) {
    if (d != d) return 0x7fff;
    return float_to_half(round_to_odd(d));
  }
};
struct BFloat {
  static float load(u16 x) { return bfloat_to_float(x); }
  static u16 store(float f) { return float_to_bfloat(f); }
  static u16 store_once_rounded(double d) {
    if (d != d) return 0x7fff;
    return float_to_bfloat(round_to_odd(d));
  }
};
// x in a format with p bits of significand and exponents from emin to emax.
inline double round_to_bits(double x, int p, int emin, int emax, Rounding mode) {
  if (x == 0 || x != x || std::isinf(x)) return x;
  int e = std::ilogb(x);
  if (e < emin) e = emin;
  double q = std::scalbn(x, p - 1 - e), r;
  switch (mode) {
    case Rounding::ZERO:
      r = std::trunc(q);
      break;
    case Rounding::DOWN:
      r = std::floor(q);
      break;
    case Rounding::UP:
      r = std::ceil(q);
      break;
    case Rounding::AWAY:
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
    if (mode == Rounding::NEAREST || mode == Rounding::AWAY || (mode == Rounding::DOWN && neg) ||
        (mode == Rounding::UP && !neg))
      y = neg ? -INFINITY : INFINITY;
    else
      y = neg ? -mx : mx;
  }
  return y;
}
inline float flush_denormal(float x) { return std::fabs(x) < FLT_MIN ? std::copysign(0.0f, x) : x; }
inline float saturate_unit(float x) { return !(x > 0) ? 0.0f : x > 1 ? 1.0f : x; }
inline float e4m3_to_float(u8 v) {
  int s = v >> 7, e = v >> 3 & 15, m = v & 7;
  float r;
  if (e == 15 && m == 7) return NAN;
  r = e ? std::ldexp(1.0f + m / 8.0f, e - 7) : std::ldexp(m / 8.0f, -6);
  return s ? -r : r;
}
inline float e5m2_to_float(u8 v) { return half_to_float((u16)v << 8); }
inline u8 float_to_e4m3(double x) {
  if (x != x) return 0x7f;
  u8 s = std::signbit(x) ? 0x80 : 0;
  double y = std::fabs(x);
  y = round_to_bits(y, 4, -6, 8, Rounding::NEAREST);
  if (y > 448) y = 448;
  if (y == 0) return s;
  int e = std::ilogb(y);
  if (e < -6) return s | (u8)std::lround(std::ldexp(y, 9));
  return s | (u8)((e + 7) << 3) | (u8)std::lround((std::ldexp(y, -e) - 1) * 8);
}
inline u8 float_to_e5m2(double x) {
  if (x != x) return 0x7f;
  double y = round_to_bits(x, 3, -14, 15, Rounding::NEAREST);
  if (std::isinf(y)) y = std::copysign(57344.0, x);
  return (u8)(float_to_half((float)y) >> 8);
}

}  // namespace ptxsim
