// ld, st, ldmatrix, stmatrix.
#pragma once
#include "memory/spaces.h"

namespace ptxsim {

template <class M, class D>
inline void copy_loaded(Warp& warp, u8** host, int off, D* d) {
  u32 m = warp.mask;
  for (int l = 0; l < 32; l++)
    if (m >> l & 1) {
      M x;
      memcpy(&x, host[l] + off, sizeof x);
      d[l] = (D)x;
    }
}
template <class M>
inline bool copy_loaded_to(Warp& warp, u8** host, int off, int reg_width, u8* d) {
  if (reg_width < int(sizeof(M))) return false;
  switch (reg_width) {
    case 2:
      return copy_loaded<M>(warp, host, off, (std::conditional_t<std::is_signed_v<M>, i16, u16>*)d), true;
    case 4:
      return copy_loaded<M>(warp, host, off, (std::conditional_t<std::is_signed_v<M>, i32, u32>*)d), true;
    case 8:
      return copy_loaded<M>(warp, host, off, (std::conditional_t<std::is_signed_v<M>, i64, u64>*)d), true;
  }
  return false;
}
// Extends a value of `size` bytes to the whole register. False: the register is narrower.
template <bool Signed>
inline bool load_into_register(Warp& warp, u8** host, int off, int size, int reg_width, u8* d) {
  switch (size) {
    case 1:
      return copy_loaded_to<std::conditional_t<Signed, i8, u8>>(warp, host, off, reg_width, d);
    case 2:
      return copy_loaded_to<std::conditional_t<Signed, i16, u16>>(warp, host, off, reg_width, d);
    case 4:
      return copy_loaded_to<std::conditional_t<Signed, i32, u32>>(warp, host, off, reg_width, d);
    case 8:
      return copy_loaded_to<std::conditional_t<Signed, i64, u64>>(warp, host, off, reg_width, d);
  }
  return false;
}
inline void op_ld(Warp& warp, const Instruction& in) {
  u64 addresses[32];
  u8* host[32];
  addresses_of(warp, in, addresses);
  int by = in.size * in.vector;
  resolve(warp, in, addresses, host, by, Access::READ, by);
  const int* slots = warp.slots(in);
  for (int v = 0; v < in.vector; v++) {
    int o = v * in.size;
    u8* d = warp.regs + slots[v];
    int rw = in.reg_width;
    bool done = in.is_signed ? load_into_register<true>(warp, host, o, in.size, rw, d)
                             : load_into_register<false>(warp, host, o, in.size, rw, d);
    if (!done) fail(warp, Kind::UNSUPPORTED, in.pc, -1, 0, "ld: size %d into %d-byte register", in.size, rw);
  }
}
inline void op_st(Warp& warp, const Instruction& in) {
  u64 addresses[32];
  u8* host[32];
  addresses_of(warp, in, addresses);
  int by = in.size * in.vector;
  resolve(warp, in, addresses, host, by, Access::WRITE, by);
  const int* slots = warp.slots(in);
  u32 m = warp.mask;
  for (int v = 0; v < in.vector; v++) {
    int o = v * in.size;
    const u8* s = warp.regs + slots[v];
    int rw = in.reg_width;
    switch (in.size) {
      case 4:
        if (rw == 4) {
          for (int l = 0; l < 32; l++)
            if (m >> l & 1) memcpy(host[l] + o, s + l * 4, 4);
          break;
        }
        [[fallthrough]];
      default:
        for (int l = 0; l < 32; l++)
          if (m >> l & 1) memcpy(host[l] + o, s + l * rw, in.size);
    }
  }
}
// Matrices of 8x8 16-bit values.
inline void op_ldmatrix(Warp& warp, const Instruction& in) {
  u64 addresses[32];
  addresses_of(warp, in, addresses);
  if (in.space == Space::GENERIC)
    for (int l = 0; l < 32; l++) addresses[l] -= SHARED_WINDOW;
  int x = in.vector;
  const int* slots = warp.slots(in);
  u8* host[32];
  u32 lm = x == 4 ? ~0u : (1u << (8 * x)) - 1;
  bool st = in.matrix.store;
  u16 mat[4][8][8];
  resolve_shared(warp, in, lm, addresses, host, 16, st ? Access::WRITE : Access::READ, 16, true);
  if (!st) {
    for (int q = 0; q < x; q++)
      for (int r = 0; r < 8; r++) memcpy(mat[q][r], host[q * 8 + r], 16);
    for (int q = 0; q < x; q++) {
      u32* d = warp.lanes<u32>(slots[q]);
      for (int l = 0; l < 32; l++) {
        int r = l >> 2, c = (l & 3) * 2;
        d[l] = in.matrix.transposed ? (u32)mat[q][c][r] | (u32)mat[q][c + 1][r] << 16
                                    : (u32)mat[q][r][c] | (u32)mat[q][r][c + 1] << 16;
      }
    }
  } else {
    for (int q = 0; q < x; q++) {
      const u32* d = warp.lanes<u32>(slots[q]);
      for (int l = 0; l < 32; l++) {
        int r = l >> 2, c = (l & 3) * 2;
        u16 lo = d[l], hi = d[l] >> 16;
        if (in.matrix.transposed)
          mat[q][c][r] = lo, mat[q][c + 1][r] = hi;
        else
          mat[q][r][c] = lo, mat[q][r][c + 1] = hi;
      }
    }
    for (int q = 0; q < x; q++)
      for (int r = 0; r < 8; r++) memcpy(host[q * 8 + r], mat[q][r], 16);
  }
}

}  // namespace ptxsim
