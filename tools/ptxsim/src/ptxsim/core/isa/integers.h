// Integer functions of single instructions.
#pragma once
#include <algorithm>
#include <type_traits>

#include "engine/state.h"

namespace ptxsim {

constexpr u8 PRMT_SELECTORS = 0;  // mode with a selector for each byte; the others are the named modes
// Picks four bytes of a and b.
inline u32 prmt(u32 a, u32 b, u32 s, int mode) {
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
inline void op_prmt(Warp& warp, const Instruction& in) {
  u32* d = warp.lanes<u32>(in.dst);
  const u32 *a = warp.lanes<u32>(in.src0), *b = warp.lanes<u32>(in.src1), *c = warp.lanes<u32>(in.src2);
  for_lanes(warp.mask, [&](int l) { d[l] = prmt(a[l], b[l], c[l], in.operation); });
}
inline u32 lop3(u32 a, u32 b, u32 c, u32 t) {
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
inline void op_lop3(Warp& warp, const Instruction& in) {
  u32* d = warp.lanes<u32>(in.dst);
  const u32 *a = warp.lanes<u32>(in.src0), *b = warp.lanes<u32>(in.src1), *c = warp.lanes<u32>(in.src2);
  u32 t = (u32)in.immediate;
  for_lanes(warp.mask, [&](int l) { d[l] = lop3(a[l], b[l], c[l], t); });
  if (in.operation != BoolOp::NONE) {
    u32 p = 0;
    for (int l = 0; l < 32; l++)
      if ((warp.mask >> l & 1) && d[l]) p |= 1u << l;
    u32 q = predicate(warp, in.pred_c);
    set_predicate(warp, in.pred_dst, in.operation == BoolOp::OR ? p | q : p & q);
  }
}
template <class T>
inline T bfe(T a, u32 b, u32 c) {
  const int W = 8 * sizeof(T);
  u32 pos = b & 255, len = c & 255;
  using U = std::make_unsigned_t<T>;
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
inline T bfi(T a, T b, u32 c, u32 dd) {
  const u32 W = 8 * sizeof(T);
  u32 pos = c & 255, len = dd & 255;
  if (pos >= W || len == 0) return b;
  u32 n = std::min(len, W - pos);
  T mask = (n >= W ? ~(T)0 : (((T)1 << n) - 1)) << pos;
  return (b & ~mask) | ((a << pos) & mask);
}
template <class T>
inline void op_bfi(Warp& warp, const Instruction& in) {
  T* d = warp.lanes<T>(in.dst);
  const T *a = warp.lanes<T>(in.src0), *b = warp.lanes<T>(in.src1);
  const u32 *c = warp.lanes<u32>(in.src2), *e = warp.lanes<u32>(in.src3);
  for_lanes(warp.mask, [&](int l) { d[l] = bfi<T>(a[l], b[l], c[l], e[l]); });
}
template <class T>
inline T divide(T a, T b) {
  if (b == 0) return (T) ~(T)0;
  if (std::is_signed<T>::value && b == (T)-1) return (T)(0 - (typename std::make_unsigned<T>::type)a);
  return a / b;
}
template <class T>
inline T remainder(T a, T b) {
  if (b == 0) return a;
  if (std::is_signed<T>::value && b == (T)-1) return 0;
  return a % b;
}
inline void op_dp4a(Warp& warp, const Instruction& in) {
  u32* d = warp.lanes<u32>(in.dst);
  const u32 *a = warp.lanes<u32>(in.src0), *b = warp.lanes<u32>(in.src1), *c = warp.lanes<u32>(in.src2);
  for_lanes(warp.mask, [&](int l) {
    u32 r = c[l];
    for (int k = 0; k < 4; k++) {
      i32 x = (in.signs.a) ? (i32)(i8)(a[l] >> 8 * k) : (i32)(u8)(a[l] >> 8 * k);
      i32 y = (in.signs.b) ? (i32)(i8)(b[l] >> 8 * k) : (i32)(u8)(b[l] >> 8 * k);
      r += (u32)(x * y);
    }
    d[l] = r;
  });
}
// add.cc, addc, sub.cc, subc, mad.cc, madc: warp.carry has the carry of every lane.
template <class T>
inline void op_cc(Warp& warp, const Instruction& in) {
  T* d = warp.lanes<T>(in.dst);
  const T *a = warp.lanes<T>(in.src0), *b = warp.lanes<T>(in.src1);
  using W = std::conditional_t<sizeof(T) == 4, u64, u128>;
  const T* c = in.carry.product != CarrySpec::NONE ? warp.lanes<T>(in.src2) : nullptr;
  u32 carry_out = warp.carry;
  for (int l = 0; l < 32; l++)
    if (warp.mask >> l & 1) {
      W x, y;
      W cin = in.carry.use ? (warp.carry >> l & 1) : 0, r;
      bool carries;
      if (in.carry.product != CarrySpec::NONE) {
        W p;
        if (in.carry.product == CarrySpec::HIGH && in.is_signed) {
          if constexpr (sizeof(T) == 4)
            p = (u64)((i64)(i32)a[l] * (i64)(i32)b[l]);
          else
            p = (u128)((i128)(i64)a[l] * (i128)(i64)b[l]);
        } else
          p = (W)a[l] * b[l];
        x = in.carry.product == CarrySpec::HIGH ? (W)(T)(p >> (8 * sizeof(T))) : (W)(T)p;
        y = c[l];
      } else {
        x = a[l];
        y = b[l];
      }
      if (in.carry.subtract) {
        r = x - y - cin;
        carries = (x < y + cin);
      } else {
        r = x + y + cin;
        carries = (r >> (8 * sizeof(T))) != 0;
      }
      if (in.carry.set) carry_out = (carry_out & ~(1u << l)) | ((u32)carries << l);
      d[l] = (T)r;
    }
  warp.carry = carry_out;
}

}  // namespace ptxsim
