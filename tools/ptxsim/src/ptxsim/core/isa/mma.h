// Products of matrix fragments: mma.
#pragma once
#include <algorithm>
#include <cmath>

#include "engine/state.h"
#include "isa/floats.h"

namespace ptxsim {

inline double tf32_value(u32 x) { return float_of_bits(x & 0xffffe000u); }
// Element e of a packed register.
inline float unpack(Type t, u32 x, int e) {
  switch (t) {
    case Type::F16:
      return half_to_float(x >> (16 * e));
    case Type::BF16:
      return bfloat_to_float(x >> (16 * e));
    case Type::TF32:
      return (float)tf32_value(x);
    case Type::E4M3:
      return e4m3_to_float(x >> (8 * e));
    case Type::E5M2:
      return e5m2_to_float(x >> (8 * e));
    case Type::F32:
      return float_of_bits(x);
    default:
      return 0;
  }
}
inline void op_mma(Warp& warp, const Instruction& in) {  // m16n8kK, f16/bf16/tf32/fp8 -> f32 or f16
  const int* slots = warp.slots(in);
  int K = in.mma.k;
  Type ta = in.mma.a, tb = in.mma.b, tc = in.mma.c, td = in.mma.d;
  int element_size = ta == Type::TF32                         ? 4
                     : (ta == Type::E4M3 || ta == Type::E5M2) ? 1
                                                              : 2,
      per_register = 4 / element_size;  // elements per register
  int na = 16 * K / 32 / per_register, nb = 8 * K / 32 / per_register, nd = td == Type::F32 ? 4 : 2;
  const int *rd = slots, *ra = slots + nd, *rb = ra + na, *rc = rb + nb;
  alignas(64) float A[16][32];
  alignas(64) double B[32][8], C[16][8];
  for (int r = 0; r < na; r++) {
    const u32* a = warp.lanes<u32>(ra[r]);
    int dr = (r & 1) * 8, dc = (r >> 1) * per_register * 4;
    for (int l = 0; l < 32; l++)
      for (int e = 0; e < per_register; e++) A[(l >> 2) + dr][(l & 3) * per_register + e + dc] = unpack(ta, a[l], e);
  }
  for (int r = 0; r < nb; r++) {
    const u32* b = warp.lanes<u32>(rb[r]);
    for (int l = 0; l < 32; l++)
      for (int e = 0; e < per_register; e++)
        B[(l & 3) * per_register + e + r * per_register * 4][l >> 2] = unpack(tb, b[l], e);
  }
  if (tc == Type::F32)
    for (int r = 0; r < 4; r++) {
      const float* c = warp.lanes<float>(rc[r]);
      for (int l = 0; l < 32; l++) C[(l >> 2) + (r >> 1) * 8][(l & 3) * 2 + (r & 1)] = c[l];
    }
  else
    for (int r = 0; r < 2; r++) {
      const u32* c = warp.lanes<u32>(rc[r]);
      for (int l = 0; l < 32; l++)
        for (int e = 0; e < 2; e++) C[(l >> 2) + r * 8][(l & 3) * 2 + e] = half_to_float(c[l] >> (16 * e));
    }
  for (int y = 0; y < 16; y++) {
    double acc[8];
    for (int x = 0; x < 8; x++) acc[x] = C[y][x];
    for (int k = 0; k < K; k++) {
      double a = A[y][k];
      for (int x = 0; x < 8; x++) acc[x] += a * B[k][x];
    }
    for (int x = 0; x < 8; x++) C[y][x] = acc[x];
  }
  if (td == Type::F32)
    for (int r = 0; r < 4; r++) {
      float* d = warp.lanes<float>(rd[r]);
      for (int l = 0; l < 32; l++) d[l] = (float)C[(l >> 2) + (r >> 1) * 8][(l & 3) * 2 + (r & 1)];
    }
  else
    for (int r = 0; r < 2; r++) {
      u32* d = warp.lanes<u32>(rd[r]);
      for (int l = 0; l < 32; l++)
        d[l] = Half::store_once_rounded(C[(l >> 2) + r * 8][(l & 3) * 2]) |
               (u32)Half::store_once_rounded(C[(l >> 2) + r * 8][(l & 3) * 2 + 1]) << 16;
    }
}
inline void op_mma_i8(Warp& warp, const Instruction& in) {  // m16n8k16 / m16n8k32 s8,u8 -> s32
  const int* slots = warp.slots(in);
  int K = in.mma.k;
  bool sa = in.mma.signed_a, sb = in.mma.signed_b;
  int na = K / 8, nb = K / 16;
  const int *rd = slots, *ra = slots + 4, *rb = ra + na, *rc = rb + nb;
  i32 A[16][32], B[32][8];
  i64 C[16][8];
  auto dec = [](u32 x, int e, bool s) -> i32 {
    u8 v = x >> (8 * e);
    return s ? (i32)(i8)v : (i32)v;
  };
  for (int r = 0; r < na; r++) {
    const u32* a = warp.lanes<u32>(ra[r]);
    for (int l = 0; l < 32; l++)
      for (int e = 0; e < 4; e++) A[(l >> 2) + (r & 1) * 8][(l & 3) * 4 + e + (r >> 1) * 16] = dec(a[l], e, sa);
  }
  for (int r = 0; r < nb; r++) {
    const u32* b = warp.lanes<u32>(rb[r]);
    for (int l = 0; l < 32; l++)
      for (int e = 0; e < 4; e++) B[(l & 3) * 4 + e + r * 16][l >> 2] = dec(b[l], e, sb);
  }
  for (int r = 0; r < 4; r++) {
    const i32* c = warp.lanes<i32>(rc[r]);
    for (int l = 0; l < 32; l++) C[(l >> 2) + (r >> 1) * 8][(l & 3) * 2 + (r & 1)] = c[l];
  }
  for (int y = 0; y < 16; y++)
    for (int k = 0; k < K; k++)
      for (int x = 0; x < 8; x++) C[y][x] += A[y][k] * B[k][x];
  for (int r = 0; r < 4; r++) {
    i32* d = warp.lanes<i32>(rd[r]);
    for (int l = 0; l < 32; l++) {
      i64 v = C[(l >> 2) + (r >> 1) * 8][(l & 3) * 2 + (r & 1)];
      if (in.saturate) v = std::min<i64>(INT32_MAX, std::max<i64>(INT32_MIN, v));
      d[l] = (i32)v;
    }
  }
}
inline void op_dmma(Warp& warp, const Instruction& in) {  // m8n8k4 f64 and m16n8k4/8/16 f64
  const int* slots = warp.slots(in);
  int K = in.mma.k, M = in.mma.m;
  int na = M * K / 32, nb = 8 * K / 32, nd = M * 8 / 32;
  const int *rd = slots, *ra = slots + nd, *rb = ra + na, *rc = rb + nb;
  double A[16][16], B[16][8], C[16][8];
  int mr = M / 8;
  for (int r = 0; r < na; r++) {
    const double* a = warp.lanes<double>(ra[r]);
    for (int l = 0; l < 32; l++) A[(l >> 2) + (r % mr) * 8][(l & 3) + (r / mr) * 4] = a[l];
  }
  for (int r = 0; r < nb; r++) {
    const double* b = warp.lanes<double>(rb[r]);
    for (int l = 0; l < 32; l++) B[(l & 3) + r * 4][l >> 2] = b[l];
  }
  for (int r = 0; r < nd; r++) {
    const double* c = warp.lanes<double>(rc[r]);
    for (int l = 0; l < 32; l++) C[(l >> 2) + (r >> 1) * 8][(l & 3) * 2 + (r & 1)] = c[l];
  }
  for (int y = 0; y < M; y++)
    for (int k = 0; k < K; k++)
      for (int x = 0; x < 8; x++) C[y][x] = std::fma(A[y][k], B[k][x], C[y][x]);
  for (int r = 0; r < nd; r++) {
    double* d = warp.lanes<double>(rd[r]);
    for (int l = 0; l < 32; l++) d[l] = C[(l >> 2) + (r >> 1) * 8][(l & 3) * 2 + (r & 1)];
  }
}

}  // namespace ptxsim
