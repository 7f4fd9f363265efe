// Communication between the lanes of a warp. warp.mask has the lanes that take part.
#pragma once
#include <cmath>
#include <cstring>

#include "isa/atomics.h"

namespace ptxsim {

inline void op_shfl(Warp& warp, const Instruction& in) {
  u32 src[32];
  memcpy(src, warp.lanes<u32>(in.src0), 128);
  const u32 *b = warp.lanes<u32>(in.src1), *c = warp.lanes<u32>(in.src2);
  u32* d = warp.lanes<u32>(in.dst);
  u32 in_range = 0;
  u32 out[32];
  for (int l = 0; l < 32; l++)
    if (warp.mask >> l & 1) {
      int bv = b[l] & 31, cv = c[l] & 31, seg = c[l] >> 8 & 31, mx = (l & seg) | (cv & ~seg), mn = l & seg, j;
      bool p;
      switch (in.operation) {
        case Shuffle::UP:
          j = l - bv;
          p = j >= mx;
          break;
        case Shuffle::DOWN:
          j = l + bv;
          p = j <= mx;
          break;
        case Shuffle::BFLY:
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
        in_range |= 1u << l;
      if (!(warp.mask >> j & 1))
        report(warp, Kind::SHUFFLE, in.pc, -1, l, 0,
               "shfl.sync reads lane %d, which does not take part (value undefined)", j);
      out[l] = src[j];
    }
  for (int l = 0; l < 32; l++)
    if (warp.mask >> l & 1) d[l] = out[l];
  set_predicate(warp, in.pred_dst, in_range);
}
inline void op_vote(Warp& warp, const Instruction& in) {
  u32 p = predicate(warp, in.pred_a) & warp.mask, r;
  switch (in.operation) {
    case Vote::ALL:
      r = p == warp.mask ? ~0u : 0;
      break;
    case Vote::ANY:
      r = p ? ~0u : 0;
      break;
    case Vote::UNI:
      r = (p == warp.mask || !p) ? ~0u : 0;
      break;
    default: {
      u32* d = warp.lanes<u32>(in.dst);
      for_lanes(warp.mask, [&](int l) { d[l] = p; });
      return;
    }
  }
  set_predicate(warp, in.pred_dst, r);
}
constexpr u8 MATCH_ANY = 0, MATCH_ALL = 1;
inline void op_match(Warp& warp, const Instruction& in) {
  u64 v[32];
  for (int l = 0; l < 32; l++) v[l] = in.size == 8 ? warp.lanes<u64>(in.src0)[l] : warp.lanes<u32>(in.src0)[l];
  u32* d = warp.lanes<u32>(in.dst);
  u32 res[32];
  u32 in_range = 0;
  for (int l = 0; l < 32; l++)
    if (warp.mask >> l & 1) {
      u32 r = 0;
      for (int k = 0; k < 32; k++)
        if ((warp.mask >> k & 1) && v[k] == v[l]) r |= 1u << k;
      if (in.operation) {
        bool all = r == warp.mask;
        res[l] = all ? warp.mask : 0;
        if (all) in_range |= 1u << l;
      } else
        res[l] = r;
    }
  for (int l = 0; l < 32; l++)
    if (warp.mask >> l & 1) d[l] = res[l];
  if (in.operation) set_predicate(warp, in.pred_dst, in_range);
}
inline void op_redux(Warp& warp, const Instruction& in) {
  const u32* a = warp.lanes<u32>(in.src0);
  u32* d = warp.lanes<u32>(in.dst);
  bool first = true;
  u32 r = 0;
  for (int l = 0; l < 32; l++)
    if (warp.mask >> l & 1) {
      if (first) {
        r = a[l];
        first = false;
        continue;
      }
      if (in.type == Type::F32) {
        float x = float_of_bits(r), y = float_of_bits(a[l]);
        r = bits_of_float(in.operation == AtomicOp::MIN ? std::fmin(x, y) : std::fmax(x, y));
      } else if (in.type == Type::S32)
        r = (u32)atomic_integer<i32>(in.operation, r, a[l], 0);
      else
        r = atomic_integer<u32>(in.operation, r, a[l], 0);
    }
  for_lanes(warp.mask, [&](int l) { d[l] = r; });
}
inline void op_syncwarp(Warp& warp, const Instruction&) { warp.epoch++; }
inline void op_activemask(Warp& warp, const Instruction& in) {
  u32* d = warp.lanes<u32>(in.dst);
  u32 a = warp.current;
  for_lanes(warp.mask, [&](int l) { d[l] = a; });
}
inline void op_elect(Warp& warp, const Instruction& in) {
  int lead = __builtin_ctz(warp.mask);
  if (in.dst >= 0) {
    u32* d = warp.lanes<u32>(in.dst);
    for_lanes(warp.mask, [&](int l) { d[l] = lead; });
  }
  set_predicate(warp, in.pred_dst, 1u << lead);
}
inline void op_clock(Warp& warp, const Instruction& in) {
  u64 c = warp.worker->instructions;
  if (in.size == 8) {
    u64* d = warp.lanes<u64>(in.dst);
    for_lanes(warp.mask, [&](int l) { d[l] = c; });
  } else {
    u32* d = warp.lanes<u32>(in.dst);
    for_lanes(warp.mask, [&](int l) { d[l] = (u32)c; });
  }
}
inline void op_isspacep(Warp& warp, const Instruction& in) {
  const u64* a = warp.lanes<u64>(in.src0);
  u32 r = 0;
  for (int l = 0; l < 32; l++) {
    u64 x = a[l];
    bool v;
    switch (in.space) {
      case Space::SHARED:
        v = in_window(x, SHARED_WINDOW);
        break;
      case Space::LOCAL:
        v = in_window(x, LOCAL_WINDOW);
        break;
      case Space::PARAM:
        v = in_window(x, PARAM_WINDOW);
        break;
      case Space::GLOBAL:
        v = x < SHARED_WINDOW;
        break;
      default:
        v = false;
    }
    r |= (u32)v << l;
  }
  set_predicate(warp, in.pred_dst, r);
}

}  // namespace ptxsim
