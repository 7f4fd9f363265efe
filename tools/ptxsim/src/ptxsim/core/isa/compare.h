// Comparisons: setp, set.
#pragma once
#include "engine/state.h"
#include "isa/floats.h"

namespace ptxsim {

template <int OP, class T>
inline bool compare(T a, T b) {
  bool nan = a != a || b != b;
  switch (OP) {
    case Compare::EQ:
      return a == b;
    case Compare::NE:
      return !nan && a != b;
    case Compare::LT:
      return a < b;
    case Compare::LE:
      return a <= b;
    case Compare::GT:
      return a > b;
    case Compare::GE:
      return a >= b;
    case Compare::EQU:
      return nan || a == b;
    case Compare::NEU:
      return nan || a != b;
    case Compare::LTU:
      return nan || a < b;
    case Compare::LEU:
      return nan || a <= b;
    case Compare::GTU:
      return nan || a > b;
    case Compare::GEU:
      return nan || a >= b;
    case Compare::NUM:
      return !nan;
    default:
      return nan;
  }
}
// How a comparison loads its operands: the type in the register (Stored), the type compared (Value).
template <class T>
struct LoadAs {
  using Stored = T;
  using Value = T;
  static T load(T x) { return x; }
};
struct LoadHalf {
  using Stored = u16;
  using Value = float;
  static float load(u16 x) { return half_to_float(x); }
};
struct LoadBFloat {
  using Stored = u16;
  using Value = float;
  static float load(u16 x) { return bfloat_to_float(x); }
};
struct LoadFlushed {
  using Stored = float;
  using Value = float;
  static float load(float x) { return flush_denormal(x); }
};
template <class L, int OP>
inline u32 compare_lanes(Warp& warp, const Instruction& in) {
  const typename L::Stored *a = warp.lanes<typename L::Stored>(in.src0), *b = warp.lanes<typename L::Stored>(in.src1);
  u8 t[32];
  for (int l = 0; l < 32; l++) t[l] = compare<OP, typename L::Value>(L::load(a[l]), L::load(b[l]));
  u32 r = 0;
  for (int l = 0; l < 32; l++) r |= (u32)t[l] << l;
  return r;
}
inline u32 combine(Warp& warp, const Instruction& in, u32 r) {
  switch (in.operation) {
    case BoolOp::AND:
      return r & predicate(warp, in.pred_c);
    case BoolOp::OR:
      return r | predicate(warp, in.pred_c);
    case BoolOp::XOR:
      return r ^ predicate(warp, in.pred_c);
  }
  return r;
}
template <class L, int OP>
inline void op_setp(Warp& warp, const Instruction& in) {
  u32 r = compare_lanes<L, OP>(warp, in);
  u32 x = combine(warp, in, r), y = combine(warp, in, ~r);
  set_predicate(warp, in.pred_dst, x);
  set_predicate(warp, in.pred_dst2, y);
}
template <class L, int OP>
inline void op_set(Warp& warp, const Instruction& in) {
  u32 r = combine(warp, in, compare_lanes<L, OP>(warp, in));
  if (in.type == Type::F32) {
    float* d = warp.lanes<float>(in.dst);
    for_lanes(warp.mask, [&](int l) { d[l] = r >> l & 1 ? 1.0f : 0.0f; });
  } else if (in.type == Type::F16 || in.type == Type::BF16) {
    u16 one = in.type == Type::F16 ? 0x3c00 : 0x3f80;
    u16* d = warp.lanes<u16>(in.dst);
    for_lanes(warp.mask, [&](int l) { d[l] = r >> l & 1 ? one : 0; });
  } else if (in.size == 2) {
    u16* d = warp.lanes<u16>(in.dst);
    for_lanes(warp.mask, [&](int l) { d[l] = r >> l & 1 ? 0xffff : 0; });
  } else {
    u32* d = warp.lanes<u32>(in.dst);
    for_lanes(warp.mask, [&](int l) { d[l] = r >> l & 1 ? ~0u : 0u; });
  }
}
// Calls f with the comparison as a template argument.
template <int OP = 0, class F>
inline auto with_comparison(int comparison, F f) {
  if constexpr (OP == Compare::NOTNUM)
    return f.template operator()<OP>();
  else
    return comparison == OP ? f.template operator()<OP>() : with_comparison<OP + 1>(comparison, f);
}
template <class L>
inline Handler setp_handler(int comparison) {
  return with_comparison(comparison, []<int OP>() -> Handler { return &op_setp<L, OP>; });
}
template <class L>
inline Handler set_handler(int comparison) {
  return with_comparison(comparison, []<int OP>() -> Handler { return &op_set<L, OP>; });
}
inline bool compare_floats(int comparison, float a, float b) {
  return with_comparison(comparison, [=]<int OP>() { return compare<OP, float>(a, b); });
}
template <class H>
inline void op_cmp2(Warp& warp, const Instruction& in) {  // two packed values
  const u32 *a = warp.lanes<u32>(in.src0), *b = warp.lanes<u32>(in.src1);
  u32 lo = 0, hi = 0;
  for (int l = 0; l < 32; l++) {
    lo |= (u32)compare_floats(in.pair.comparison, H::load(a[l]), H::load(b[l])) << l;
    hi |= (u32)compare_floats(in.pair.comparison, H::load(a[l] >> 16), H::load(b[l] >> 16)) << l;
  }
  if (in.pair.result == PairCompareSpec::PREDICATES) {
    set_predicate(warp, in.pred_dst, combine(warp, in, lo));
    set_predicate(warp, in.pred_dst2, combine(warp, in, hi));
    return;
  }
  u32* d = warp.lanes<u32>(in.dst);
  u32 one = H::store(1.0f);
  u32 T = in.pair.result == PairCompareSpec::SAME_TYPE ? one : 0xffff;
  for_lanes(warp.mask, [&](int l) { d[l] = (lo >> l & 1 ? T : 0) | (hi >> l & 1 ? T << 16 : 0); });
}

}  // namespace ptxsim
