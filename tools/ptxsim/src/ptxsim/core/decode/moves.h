// Rows of the decode table: moves, selection, comparisons, predicate logic.
#pragma once
#include "decode/table.h"
#include "isa/compare.h"
#include "isa/warp_ops.h"

namespace ptxsim {

inline Handler mov_handler(int width) {
  if (width != 2 && width != 4 && width != 8) Decoder::reject("mov width");
  return width == 2 ? &op_mov<u16> : width == 4 ? &op_mov<u32> : &op_mov<u64>;
}
// mov.b64 {lo, hi}, d and mov.b64 d, {lo, hi}
inline void decode_packing(Decoder& d, bool unpacks) {
  Instruction& in = d.in;
  const std::vector<Operand>& parts = d.operand(unpacks ? 0 : 1).parts;
  int width = size_of(d.type(0)), part_width = width / int(parts.size());
  if (part_width < 2) Decoder::reject(unpacks ? "mov to bytes" : "mov from bytes");
  std::vector<int> list;
  for (const Operand& q : parts)
    list.push_back(!unpacks                      ? d.source(q, part_width)
                   : q.kind == OperandKind::SINK ? NO_SLOT
                                                 : d.destination(q, part_width));
  if (width == 16) Decoder::reject("128-bit mov");
  if (unpacks)
    in.src0 = d.source(1, width);
  else
    in.dst = d.destination(0, width);
  in.size = width;
  in.reg_width = part_width;
  d.slot_list(list);
  if (parts.size() != 2)
    in.handler = unpacks ? &op_unpack : &op_pack;
  else if (part_width == 2)
    in.handler = unpacks ? &op_unpack2<2> : &op_pack2<2>;
  else
    in.handler = unpacks ? &op_unpack2<4> : &op_pack2<4>;
}
inline void decode_mov(Decoder& d) {
  Instruction& in = d.in;
  int width = size_of(d.type(0));
  if (d.operands.size() < 2) Decoder::reject("mov operands");
  if (d.operand(0).kind == OperandKind::VEC) return decode_packing(d, true);
  if (d.operand(1).kind == OperandKind::VEC) return decode_packing(d, false);
  if (d.operand(1).kind == OperandKind::SREG) {
    const std::string& name = d.program.special_names[d.operand(1).value];
    if (name.starts_with("%clock") || name.starts_with("%globaltimer")) {
      in.handler = &op_clock;
      in.size = width;
      in.dst = d.destination(0, width);
      return;
    }
  }
  if (d.width_of(d.operand(0), width) != width) Decoder::reject("mov width");
  in.dst = d.destination(0, width);
  in.src0 = d.source(1, width);
  in.handler = mov_handler(width);
}

inline u8 comparison_of(const Decoder& d) {
  using namespace Compare;
  static const std::map<std::string, u8> NAMES = {
      {"eq", EQ},   {"ne", NE},   {"lt", LT},   {"le", LE},   {"gt", GT},   {"ge", GE},
      {"lo", LT},   {"ls", LE},   {"hi", GT},   {"hs", GE},   {"equ", EQU}, {"neu", NEU},
      {"ltu", LTU}, {"leu", LEU}, {"gtu", GTU}, {"geu", GEU}, {"num", NUM}, {"nan", NOTNUM}};
  auto it = NAMES.find(d.parts.at(1));
  if (it == NAMES.end()) Decoder::reject("comparison");
  return it->second;
}
// The handler of setp or set for the type of the operands.
template <class L>
Handler comparison_handler(bool set, u8 comparison) {
  return set ? set_handler<L>(comparison) : setp_handler<L>(comparison);
}
inline Handler comparison_handler(const Decoder& d, bool set, u8 comparison) {
  switch (d.last_type()) {
    case Type::U16:
    case Type::B16:
      return comparison_handler<LoadAs<u16>>(set, comparison);
    case Type::S16:
      return comparison_handler<LoadAs<i16>>(set, comparison);
    case Type::U32:
    case Type::B32:
      return comparison_handler<LoadAs<u32>>(set, comparison);
    case Type::S32:
      return comparison_handler<LoadAs<i32>>(set, comparison);
    case Type::U64:
    case Type::B64:
      return comparison_handler<LoadAs<u64>>(set, comparison);
    case Type::S64:
      return comparison_handler<LoadAs<i64>>(set, comparison);
    case Type::F32:
      return d.has("ftz") ? comparison_handler<LoadFlushed>(set, comparison)
                          : comparison_handler<LoadAs<float>>(set, comparison);
    case Type::F64:
      return comparison_handler<LoadAs<double>>(set, comparison);
    case Type::F16:
      return comparison_handler<LoadHalf>(set, comparison);
    case Type::BF16:
      return comparison_handler<LoadBFloat>(set, comparison);
    default:
      Decoder::reject("comparison type");
  }
}
inline void read_combination(Decoder& d) {  // setp.lt.and p, a, b, c
  d.in.operation = d.choose<u8>({{"and", BoolOp::AND}, {"or", BoolOp::OR}, {"xor", BoolOp::XOR}}, BoolOp::NONE);
  if (d.in.operation != BoolOp::NONE) d.in.pred_c = d.pred(3);
}
inline void add_comparisons(Table& t) {
  using namespace slots;
  for (const std::string type : {".f16x2", ".bf16x2"}) {
    Handler handler = type == ".f16x2" ? &op_cmp2<Half> : &op_cmp2<BFloat>;
    t.add("setp" + type, handler, {pred_pair, src0(4), src1(4)}, [](Decoder& d) {
      read_combination(d);
      d.in.pair = {comparison_of(d), PairCompareSpec::PREDICATES};
    });
    t.add("set" + type, handler, {dst(4), src0(4), src1(4)}, [](Decoder& d) {
      read_combination(d);
      if (d.in.operation != BoolOp::NONE) Decoder::reject("set.x2 with boolean");
      bool mask = d.type(0) == Type::U32 || d.type(0) == Type::S32;
      d.in.pair = {comparison_of(d), mask ? PairCompareSpec::MASK : PairCompareSpec::SAME_TYPE};
    });
  }
  t.add("setp", nullptr, {pred_pair, src0(), src1()}, [](Decoder& d) {
    d.in.handler = comparison_handler(d, false, comparison_of(d));
    read_combination(d);
  });
  t.add("set", nullptr, {skip, src0(), src1()}, [](Decoder& d) {
    d.in.handler = comparison_handler(d, true, comparison_of(d));
    read_combination(d);
    d.in.type = d.type(0);
    d.in.size = size_of(d.type(0));
    d.in.dst = d.destination(0, d.in.size);
  });
}

inline void add_moves(Table& t) {
  using namespace slots;
  auto operation = [](u8 op) { return [op](Decoder& d) { d.in.operation = op; }; };
  t.add("and.pred", &op_plogic, {pred_dst, pred_a, pred_b}, operation(BoolOp::AND));
  t.add("or.pred", &op_plogic, {pred_dst, pred_a, pred_b}, operation(BoolOp::OR));
  t.add("xor.pred", &op_plogic, {pred_dst, pred_a, pred_b}, operation(BoolOp::XOR));
  t.add("not.pred", &op_plogic, {pred_dst, pred_a}, operation(BoolOp::NOT));
  t.add("mov.pred", &op_plogic, {pred_dst, pred_a}, operation(BoolOp::MOVE));
  t.add("mov", nullptr, {}, decode_mov);
  t.add("selp.pred", &op_selpred, {pred_dst, pred_a, pred_b, pred_c});
  t.add("selp", nullptr, {dst(), src0(), src1(), pred_c}, [](Decoder& d) {
    int width = size_of(d.last_type());
    d.in.handler = width == 2 ? &op_selp<u16> : width == 4 ? &op_selp<u32> : &op_selp<u64>;
  });
  t.add("slct", nullptr, {}, [](Decoder& d) {
    int width = size_of(d.type(0));
    d.in.handler = width == 2 ? &op_slct<u16> : width == 4 ? &op_slct<u32> : &op_slct<u64>;
    d.in.type = d.type(1);
    d.in.dst = d.destination(0, width);
    d.in.src0 = d.source(1, width);
    d.in.src1 = d.source(2, width);
    d.in.src2 = d.source(3, 4);
  });
  t.add("cvta", nullptr, {dst(), src0()}, [](Decoder& d) {
    Space space = d.space();
    u64 window = space == Space::SHARED  ? SHARED_WINDOW
                 : space == Space::LOCAL ? LOCAL_WINDOW
                 : space == Space::PARAM ? PARAM_WINDOW
                                         : 0;
    if (size_of(d.last_type()) != 8) Decoder::reject("32-bit cvta");
    d.in.src1 = d.constant(d.has("to") ? 0 - window : window, 8);
    auto plus = [](u64 a, u64 b) { return a + b; };
    d.in.handler = &map2<u64, u64, u64, decltype(plus)>;
  });
  t.add("isspacep", &op_isspacep, {pred_dst, src0(8)}, [](Decoder& d) { d.in.space = d.space(); });
  // clusters have one block: an address in the cluster is one in the block
  t.add("mapa", nullptr, {dst(), src0()}, [](Decoder& d) { d.in.handler = mov_handler(size_of(d.last_type())); });
  t.add("createpolicy", &op_mov<u64>, {dst(8)}, [](Decoder& d) { d.in.src0 = d.constant(0, 8); });
}

}  // namespace ptxsim
