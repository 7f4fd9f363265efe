// Predicate logic, selection, moves, and packing of registers.
#pragma once
#include <cstring>
#include <type_traits>

#include "engine/state.h"

namespace ptxsim {

// Applies a function of one, two or three registers to every lane. F is a stateless lambda.
template <class D, class A, class F>
void map1(Warp& warp, const Instruction& in) {
  D* d = warp.lanes<D>(in.dst);
  const A* a = warp.lanes<A>(in.src0);
  for_lanes(warp.mask, [&](int l) { d[l] = D(F{}(a[l])); });
}
template <class D, class A, class B, class F>
void map2(Warp& warp, const Instruction& in) {
  D* d = warp.lanes<D>(in.dst);
  const A* a = warp.lanes<A>(in.src0);
  const B* b = warp.lanes<B>(in.src1);
  for_lanes(warp.mask, [&](int l) { d[l] = D(F{}(a[l], b[l])); });
}
template <class D, class A, class B, class C, class F>
void map3(Warp& warp, const Instruction& in) {
  D* d = warp.lanes<D>(in.dst);
  const A* a = warp.lanes<A>(in.src0);
  const B* b = warp.lanes<B>(in.src1);
  const C* c = warp.lanes<C>(in.src2);
  for_lanes(warp.mask, [&](int l) { d[l] = D(F{}(a[l], b[l], c[l])); });
}
inline void op_nop(Warp&, const Instruction&) {}
inline void op_plogic(Warp& warp, const Instruction& in) {
  u32 a = predicate(warp, in.pred_a), b = in.pred_b != NO_SLOT ? predicate(warp, in.pred_b) : 0, r;
  switch (in.operation) {
    case BoolOp::AND:
      r = a & b;
      break;
    case BoolOp::OR:
      r = a | b;
      break;
    case BoolOp::XOR:
      r = a ^ b;
      break;
    case BoolOp::NOT:
      r = ~a;
      break;
    default:
      r = a;
  }
  set_predicate(warp, in.pred_dst, r);
}
template <class T>
inline void op_selp(Warp& warp, const Instruction& in) {
  T* d = warp.lanes<T>(in.dst);
  const T *a = warp.lanes<T>(in.src0), *b = warp.lanes<T>(in.src1);
  u32 p = predicate(warp, in.pred_c);
  for_lanes(warp.mask, [&](int l) { d[l] = p >> l & 1 ? a[l] : b[l]; });
}
inline void op_selpred(Warp& warp, const Instruction& in) {
  u32 p = predicate(warp, in.pred_c);
  set_predicate(warp, in.pred_dst, (predicate(warp, in.pred_a) & p) | (predicate(warp, in.pred_b) & ~p));
}
template <class T>
inline void op_slct(Warp& warp, const Instruction& in) {
  T* d = warp.lanes<T>(in.dst);
  const T *a = warp.lanes<T>(in.src0), *b = warp.lanes<T>(in.src1);
  if (in.type == Type::F32) {
    const float* c = warp.lanes<float>(in.src2);
    for_lanes(warp.mask, [&](int l) { d[l] = c[l] >= 0 ? a[l] : b[l]; });
  } else {
    const i32* c = warp.lanes<i32>(in.src2);
    for_lanes(warp.mask, [&](int l) { d[l] = c[l] >= 0 ? a[l] : b[l]; });
  }
}
template <class T>
inline void op_mov(Warp& warp, const Instruction& in) {
  T* d = warp.lanes<T>(in.dst);
  const T* a = warp.lanes<T>(in.src0);
  for_lanes(warp.mask, [&](int l) { d[l] = a[l]; });
}
inline void op_pack(Warp& warp, const Instruction& in) {  // size: that of the whole, reg_width: that of a part
  const int* slots = warp.slots(in);
  for (int l = 0; l < 32; l++)
    if (warp.mask >> l & 1) {
      u64 v[2] = {0, 0};
      for (int k = 0; k < in.num_slots; k++)
        memcpy((u8*)v + k * in.reg_width, warp.regs + slots[k] + l * in.reg_width, in.reg_width);
      memcpy(warp.regs + in.dst + l * in.size, v, in.size);
    }
}
inline void op_unpack(Warp& warp, const Instruction& in) {
  const int* slots = warp.slots(in);
  for (int l = 0; l < 32; l++)
    if (warp.mask >> l & 1) {
      u64 v[2] = {0, 0};
      memcpy(v, warp.regs + in.src0 + l * in.size, in.size);
      for (int k = 0; k < in.num_slots; k++)
        if (slots[k] >= 0) memcpy(warp.regs + slots[k] + l * in.reg_width, (u8*)v + k * in.reg_width, in.reg_width);
    }
}
template <int S>
inline void op_unpack2(Warp& warp, const Instruction& in) {
  const int* slots = warp.slots(in);
  using T = std::conditional_t<S == 2, u16, u32>;
  T v[64];
  memcpy(v, warp.regs + in.src0, sizeof v);
  for (int k = 0; k < 2; k++)
    if (slots[k] >= 0) {
      T* d = warp.lanes<T>(slots[k]);
      for_lanes(warp.mask, [&](int l) { d[l] = v[2 * l + k]; });
    }
}
template <int S>
inline void op_pack2(Warp& warp, const Instruction& in) {
  const int* slots = warp.slots(in);
  using T = std::conditional_t<S == 2, u16, u32>;
  T v[64];
  const T *a = warp.lanes<T>(slots[0]), *b = warp.lanes<T>(slots[1]);
  for (int l = 0; l < 32; l++) v[2 * l] = a[l], v[2 * l + 1] = b[l];
  using W = std::conditional_t<S == 2, u32, u64>;
  W x[32];
  memcpy(x, v, sizeof v);
  W* d = warp.lanes<W>(in.dst);
  for_lanes(warp.mask, [&](int l) { d[l] = x[l]; });
}

}  // namespace ptxsim
