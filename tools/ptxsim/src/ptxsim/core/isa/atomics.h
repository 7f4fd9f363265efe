// atom, red.
#pragma once
#include "isa/floats.h"
#include "memory/spaces.h"

namespace ptxsim {

template <class T>
inline T atomic_integer(int op, T o, T b, T c) {
  switch (op) {
    case AtomicOp::ADD:
      return o + b;
    case AtomicOp::MIN:
      return o < b ? o : b;
    case AtomicOp::MAX:
      return o > b ? o : b;
    case AtomicOp::AND:
      return o & b;
    case AtomicOp::OR:
      return o | b;
    case AtomicOp::XOR:
      return o ^ b;
    case AtomicOp::EXCH:
      return b;
    case AtomicOp::CAS:
      return o == b ? c : o;
    case AtomicOp::INC:
      return o >= b ? 0 : o + 1;
    case AtomicOp::DEC:
      return (o == 0 || o > b) ? b : o - 1;
  }
  return o;
}
template <class T>
inline T atomic_float(int op, T o, T b) {
  switch (op) {
    case AtomicOp::ADD:
      return o + b;
    case AtomicOp::MIN:
      return b < o || o != o ? b : o;
    case AtomicOp::MAX:
      return b > o || o != o ? b : o;
    case AtomicOp::EXCH:
      return b;
  }
  return o;
}
template <class H>
inline u16 atomic_half(int op, u16 o, u16 b) {
  float x = H::load(o), y = H::load(b);
  switch (op) {
    case AtomicOp::ADD:
      return H::store(x + y);
    case AtomicOp::MIN:
      return y < x ? b : o;
    case AtomicOp::MAX:
      return y > x ? b : o;
  }
  return b;
}
inline u64 apply_atomic(Type t, int op, u64 o, u64 b, u64 c) {
  switch (t) {
    case Type::U16:
    case Type::B16:
      return (u16)atomic_integer<u16>(op, o, b, c);
    case Type::U32:
    case Type::B32:
      return atomic_integer<u32>(op, o, b, c);
    case Type::S32:
      return (u32)atomic_integer<i32>(op, o, b, c);
    case Type::U64:
    case Type::B64:
      return atomic_integer<u64>(op, o, b, c);
    case Type::S64:
      return (u64)atomic_integer<i64>(op, o, b, c);
    case Type::F32:
      return bits_of_float(atomic_float<float>(op, float_of_bits(o), float_of_bits(b)));
    case Type::F64:
      return bits_of_double(atomic_float<double>(op, double_of_bits(o), double_of_bits(b)));
    case Type::F16:
      return atomic_half<Half>(op, o, b);
    case Type::BF16:
      return atomic_half<BFloat>(op, o, b);
    case Type::F16X2:
      return (u64)atomic_half<Half>(op, o, b) | (u64)atomic_half<Half>(op, o >> 16, b >> 16) << 16;
    case Type::BF16X2:
      return (u64)atomic_half<BFloat>(op, o, b) | (u64)atomic_half<BFloat>(op, o >> 16, b >> 16) << 16;
    default:
      return o;
  }
}
inline void op_atom(Warp& warp, const Instruction& in) {
  u64 addresses[32];
  u8* host[32];
  addresses_of(warp, in, addresses);
  int by = in.size * in.vector;
  resolve(warp, in, addresses, host, by, Access::ATOMIC, by);
  bool lock = warp.block->launch->workers > 1;
  if (lock) g_atomic_lock.lock();
  const int* slots = warp.slots(in);
  u32 m = warp.mask;
  int sz = in.size, rw = in.reg_width;
  for (int v = 0; v < in.vector; v++)
    for (int l = 0; l < 32; l++)
      if (m >> l & 1) {
        u64 o = 0, b = 0, c = 0;
        u8* p = host[l] + v * sz;
        memcpy(&o, p, sz);
        memcpy(&b, warp.regs + slots[2 * v + 1] + l * rw, sz);
        if (in.src2 >= 0) memcpy(&c, warp.regs + in.src2 + l * rw, sz);
        u64 n = apply_atomic(in.type, in.operation, o, b, c);
        memcpy(p, &n, sz);
        if (slots[2 * v] >= 0) memcpy(warp.regs + slots[2 * v] + l * rw, &o, sz);
      }
  if (lock) g_atomic_lock.unlock();
}

}  // namespace ptxsim
