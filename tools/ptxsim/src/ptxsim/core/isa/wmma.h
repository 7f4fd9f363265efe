// wmma. The layout of a fragment is ours (opaque by specification): element
// (lane * elements per lane + position) modulo the elements of the fragment, row-major.
#pragma once
#include <vector>

#include "isa/mma.h"
#include "memory/spaces.h"

namespace ptxsim {

struct Fragment {
  int rows, cols, element_size, num_registers;
};
inline int element_index(const Fragment& f, int lane, int r, int e) {
  int per_register = 4 / f.element_size, per_lane = f.num_registers * per_register;
  return (lane * per_lane + r * per_register + e) % (f.rows * f.cols);
}
inline void op_wmma_ls(Warp& warp, const Instruction& in) {  // load or store of a fragment
  u64 addresses[32];
  addresses_of(warp, in, addresses);
  const int* slots = warp.slots(in);
  Fragment f{in.fragment.rows, in.fragment.cols, in.size, in.num_slots};
  bool store = in.fragment.store;
  int per_register = 4 / f.element_size;
  u32 stride = in.src1 >= 0 ? warp.lanes<u32>(in.src1)[0] : (u32)(in.fragment.column_major ? f.rows : f.cols);
  bool col = in.fragment.column_major;
  for (int l = 1; l < 32; l++)
    if (addresses[l] != addresses[0])
      fail(warp, Kind::OTHER, in.pc, l, addresses[l], "wmma address differs between lanes");
  for (int r = 0; r < f.num_registers; r++)
    for (int e = 0; e < per_register; e++) {
      u64 element[32];
      u8* host[32];
      for (int l = 0; l < 32; l++) {
        int x = element_index(f, l, r, e), y = x / f.cols, c = x % f.cols;
        element[l] = addresses[0] + (u64)f.element_size * (col ? (u64)c * stride + y : (u64)y * stride + c);
      }
      resolve(warp, in, element, host, f.element_size, store ? Access::WRITE : Access::READ, f.element_size);
      for (int l = 0; l < 32; l++) {
        u8* reg = warp.regs + slots[r] + l * 4 + e * f.element_size;
        if (store)
          memcpy(host[l], reg, f.element_size);
        else
          memcpy(reg, host[l], f.element_size);
      }
    }
}
inline void op_wmma(Warp& warp, const Instruction& in) {
  const int* slots = warp.slots(in);
  const WmmaSpec& s = in.wmma;
  int M = s.m, N = s.n, K = s.k, na = s.regs_a, nb = s.regs_b, nc = s.regs_c, nd = s.regs_d;
  Type ta = s.ab, tc = s.c, td = s.d;
  int es = ta == Type::TF32 ? 4 : (ta == Type::S8 || ta == Type::U8) ? 1 : 2;
  auto size_of_sum = [](Type t) { return t == Type::F16 ? 2 : 4; };
  Fragment fa{M, K, es, na}, fb{K, N, es, nb}, fc{M, N, size_of_sum(tc), nc}, fd{M, N, size_of_sum(td), nd};
  const int *rd = slots, *ra = slots + nd, *rb = ra + na, *rc = rb + nb;
  std::vector<double> A(M * K), B(K * N), C(M * N);
  auto val = [&](Type t, u32 x, int e) -> double {
    if (t == Type::S8) return (i8)(x >> (8 * e));
    if (t == Type::U8) return (u8)(x >> (8 * e));
    if (t == Type::S32) return (i32)x;
    return unpack(t, x, e);
  };
  auto fill = [&](std::vector<double>& V, const Fragment& f, const int* rr, Type t) {
    for (int r = 0; r < f.num_registers; r++)
      for (int l = 0; l < 32; l++)
        for (int e = 0; e < 4 / f.element_size; e++)
          V[element_index(f, l, r, e)] = val(t, warp.lanes<u32>(rr[r])[l], e);
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
    u32* d = warp.lanes<u32>(rd[r]);
    for (int l = 0; l < 32; l++) {
      if (td == Type::F32)
        d[l] = bits_of_float((float)C[element_index(fd, l, r, 0)]);
      else if (td == Type::S32)
        d[l] = (u32)(i32)(i64)C[element_index(fd, l, r, 0)];
      else
        d[l] = Half::store_once_rounded(C[element_index(fd, l, r, 0)]) |
               (u32)Half::store_once_rounded(C[element_index(fd, l, r, 1)]) << 16;
    }
  }
}

}  // namespace ptxsim
