// Rows of the decode table: tensor cores and the loads of their fragments.
#pragma once
#include "decode/table.h"
#include "isa/wmma.h"
#include "memory/access.h"

namespace ptxsim {

inline void require_whole_warp(Decoder& d) {
  d.in.member_mask = d.constant(ALL_LANES, 4);
  d.in.whole_warp = true;
}
// mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 d, a, b, c
inline void decode_mma(Decoder& d) {
  Instruction& in = d.in;
  auto [m, n, k] = d.shape();
  if (d.types.size() < 4) Decoder::reject("mma types");
  Type td = d.type(0), ta = d.type(1), tb = d.type(2), tc = d.type(3);
  if (d.has("sp")) Decoder::reject("sparse mma");
  if (!d.has("row") || !d.has("col")) Decoder::reject("mma layout other than row.col");
  std::vector<int> list;
  int width = ta == Type::F64 ? 8 : 4;
  for (size_t operand = 0; operand < 4; operand++) d.append_registers(list, operand, width, operand == 0);
  auto count = [&](size_t operand) { return int(d.vector_of(operand).size()); };
  d.slot_list(list);
  require_whole_warp(d);
  in.mma = {u8(m), u8(k), ta, tb, tc, td, ta == Type::S8, tb == Type::S8};
  if (ta == Type::F64) {
    if (n != 8 || (m != 8 && m != 16)) Decoder::reject("mma f64 shape");
    if (count(1) != m * k / 32) Decoder::reject("mma operand count");
    in.handler = &op_dmma;
    return;
  }
  if (m != 16 || n != 8) Decoder::reject("mma shape");
  if (ta == Type::S8 || ta == Type::U8) {
    if (count(1) != k / 8 || count(2) != k / 16) Decoder::reject("mma operand count");
    in.saturate = d.has("satfinite");
    in.handler = &op_mma_i8;
    return;
  }
  int bytes;
  switch (ta) {
    case Type::TF32:
      bytes = 4;
      break;
    case Type::F16:
    case Type::BF16:
      bytes = 2;
      break;
    case Type::E4M3:
    case Type::E5M2:
      bytes = 1;
      break;
    default:
      Decoder::reject("mma input type");
  }
  int per_register = 4 / bytes;
  if (k > 32 || count(1) != 16 * k / 32 / per_register || count(2) != 8 * k / 32 / per_register ||
      count(0) != (td == Type::F32 ? 4 : 2) || count(3) != (tc == Type::F32 ? 4 : 2))
    Decoder::reject("mma shape/operand count");
  in.handler = &op_mma;
}

inline void decode_fragment_access(Decoder& d, bool store) {  // wmma.load.a..., wmma.store.d...
  auto [m, n, k] = d.shape();
  char which = d.parts.at(2)[0];
  d.in.fragment = {u8(which == 'b' ? k : m), u8(which == 'a' ? k : n), d.has("col"), store};
  d.in.space = d.space();
  d.in.size = d.last_type() == Type::TF32 ? 4 : size_of(d.last_type());
  d.address(store ? 0 : 1);
  std::vector<int> list;
  d.append_registers(list, store ? 1 : 0, 4, !store);
  d.slot_list(list);
  if (d.operands.size() > 2) d.in.src1 = d.source(2, 4);  // stride
  require_whole_warp(d);
}
inline void decode_wmma(Decoder& d) {
  auto [m, n, k] = d.shape();
  bool two_types = d.types.size() == 2;  // of d and c: a and b are f16
  std::vector<int> list;
  u8 counts[4];
  for (size_t operand = 0; operand < 4; operand++) {
    d.append_registers(list, operand, 4, operand == 0);
    counts[operand] = u8(d.vector_of(operand).size());
  }
  d.slot_list(list);
  d.in.wmma = {u8(m),
               u8(n),
               u8(k),
               two_types ? Type::F16 : d.type(1),
               two_types ? d.type(1) : d.type(3),
               d.type(0),
               counts[1],
               counts[2],
               counts[3],
               counts[0]};
  require_whole_warp(d);
}
inline void decode_matrix_access(Decoder& d, bool store) {  // ldmatrix, stmatrix
  if (!d.has("m8n8") || !d.has("b16")) Decoder::reject("ldmatrix shape");
  require_whole_warp(d);
  d.in.matrix = {d.has("trans"), store};
  d.in.vector = d.choose<u8>({{"x4", 4}, {"x2", 2}}, 1);
  d.in.space = d.space();
  std::vector<int> list;
  d.append_registers(list, store ? 1 : 0, 4, !store);
  if (list.size() != d.in.vector) Decoder::reject("ldmatrix registers");
  d.slot_list(list);
  d.address(store ? 0 : 1);
}
inline void add_matrix_operations(Table& t) {
  t.add("mma", nullptr, {}, decode_mma, Control::WARP_SYNC);
  t.add("wmma.load", &op_wmma_ls, {}, [](Decoder& d) { decode_fragment_access(d, false); }, Control::WARP_SYNC);
  t.add("wmma.store", &op_wmma_ls, {}, [](Decoder& d) { decode_fragment_access(d, true); }, Control::WARP_SYNC);
  t.add("wmma.mma", &op_wmma, {}, decode_wmma, Control::WARP_SYNC);
  t.reject("wmma", "wmma");
  t.add("ldmatrix", &op_ldmatrix, {}, [](Decoder& d) { decode_matrix_access(d, false); }, Control::WARP_SYNC);
  t.add("stmatrix", &op_ldmatrix, {}, [](Decoder& d) { decode_matrix_access(d, true); }, Control::WARP_SYNC);
}

}  // namespace ptxsim
