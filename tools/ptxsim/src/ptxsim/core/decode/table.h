// The decode table. A row has an opcode pattern, a handler, and for every operand its kind and the slot that it fills.
#pragma once
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "decode/decoder.h"
#include "isa/moves.h"

namespace ptxsim {

// How an operand is read, and where it goes.
struct Slot {
  enum Kind {
    DST,  // register
    SRC,  // register or constant
    PRED_DST,
    PRED_SRC,
    DST_PRED,   // d or d|p: register, and predicate into pred_dst
    PRED_PAIR,  // p or p|q: into pred_dst and pred_dst2
    ADDRESS,
    SKIP,
  } kind;
  int Instruction::* field = nullptr;
  int width = 0;  // bytes of the register, 0: those of the last type
  bool optional = false;
};
namespace slots {
constexpr Slot dst(int width = 0) { return {Slot::DST, &Instruction::dst, width}; }
constexpr Slot src0(int width = 0) { return {Slot::SRC, &Instruction::src0, width}; }
constexpr Slot src1(int width = 0) { return {Slot::SRC, &Instruction::src1, width}; }
constexpr Slot src2(int width = 0) { return {Slot::SRC, &Instruction::src2, width}; }
constexpr Slot src3(int width = 0) { return {Slot::SRC, &Instruction::src3, width}; }
constexpr Slot dst_pred(int width = 0) { return {Slot::DST_PRED, &Instruction::dst, width}; }
constexpr Slot member_mask = {Slot::SRC, &Instruction::member_mask, 4};
constexpr Slot pred_dst = {Slot::PRED_DST, &Instruction::pred_dst};
constexpr Slot pred_pair = {Slot::PRED_PAIR};
constexpr Slot pred_a = {Slot::PRED_SRC, &Instruction::pred_a};
constexpr Slot pred_b = {Slot::PRED_SRC, &Instruction::pred_b};
constexpr Slot pred_c = {Slot::PRED_SRC, &Instruction::pred_c};
constexpr Slot address = {Slot::ADDRESS};
constexpr Slot skip = {Slot::SKIP};
constexpr Slot optional(Slot slot) {
  slot.optional = true;
  return slot;
}
}  // namespace slots

using Modifiers = std::function<void(Decoder&)>;  // reads what else the opcode says, before the operands

struct Row {
  std::vector<std::string> parts;  // without the name
  Type type;                       // of the instruction: its last type. NONE fits any
  Handler handler;
  std::vector<Slot> operands;
  Modifiers modifiers;
  Control control;
};

class Table {
 public:
  // "name.part.type": fits an opcode of this name that has all the parts, in any order. The first row that fits is
  // taken.
  void add(const std::string& pattern, Handler handler, std::vector<Slot> operands, Modifiers modifiers = nullptr,
           Control control = Control::NORMAL) {
    std::vector<std::string> parts = split(pattern);
    Row row{{}, Type::NONE, handler, std::move(operands), std::move(modifiers), control};
    for (size_t k = 1; k < parts.size(); k++)
      if (Type t = type_named(parts[k]); t != Type::NONE)
        row.type = t;
      else
        row.parts.push_back(parts[k]);
    rows_[parts[0]].push_back(std::move(row));
  }
  void reject(const std::string& pattern, const char* why) {
    add(pattern, nullptr, {}, [why](Decoder&) { Decoder::reject(why); });
  }
  // Instructions that are one function of their sources, a stateless lambda.
  template <class D, class A, class F>
  void unary(const std::string& pattern, F) {
    add(pattern, &map1<D, A, F>, {slots::dst(sizeof(D)), slots::src0(sizeof(A))});
  }
  template <class D, class A, class B, class F>
  void binary(const std::string& pattern, F) {
    add(pattern, &map2<D, A, B, F>, {slots::dst(sizeof(D)), slots::src0(sizeof(A)), slots::src1(sizeof(B))});
  }
  template <class D, class A, class B, class C, class F>
  void ternary(const std::string& pattern, F) {
    add(pattern, &map3<D, A, B, C, F>,
        {slots::dst(sizeof(D)), slots::src0(sizeof(A)), slots::src1(sizeof(B)), slots::src2(sizeof(C))});
  }

  // Fills d.in. Throws Unsupported.
  void decode(Decoder& d) const {
    auto rows = rows_.find(d.parts[0]);
    if (rows != rows_.end())
      for (const Row& row : rows->second)
        if (fits(row, d)) return fill(row, d);
    Decoder::reject(is_half(d.last_type())    ? "half-precision operation"
                    : is_float(d.last_type()) ? "floating-point operation"
                                              : "instruction");
  }
  static std::vector<std::string> split(const std::string& text, char separator = '.') {
    std::vector<std::string> parts(1);
    for (char c : text)
      if (c == separator)
        parts.emplace_back();
      else
        parts.back() += c;
    return parts;
  }

 private:
  static bool fits(const Row& row, const Decoder& d) {
    if (row.type != Type::NONE && row.type != d.last_type()) return false;
    for (const std::string& part : row.parts)
      if (!d.has(part.c_str())) return false;
    return true;
  }
  static void fill(const Row& row, Decoder& d) {
    d.in.handler = row.handler;
    d.in.control = row.control;
    d.in.type = d.last_type();
    if (row.modifiers) row.modifiers(d);
    for (size_t k = 0; k < row.operands.size(); k++) {
      const Slot& slot = row.operands[k];
      if (slot.optional && k >= d.operands.size()) continue;
      read(slot, d, k);
    }
  }
  static void read(const Slot& slot, Decoder& d, size_t k) {
    if (slot.kind == Slot::SKIP) return;
    int width = slot.width ? slot.width : size_of(d.last_type());
    if (slot.kind == Slot::ADDRESS) return d.address(k);
    const Operand& q = d.operand(k);
    bool pair = q.kind == OperandKind::PAIR;
    switch (slot.kind) {
      case Slot::DST:
        d.in.*slot.field = d.destination(q, width);
        break;
      case Slot::SRC:
        d.in.*slot.field = d.source(q, width);
        break;
      case Slot::PRED_DST:
      case Slot::PRED_SRC:
        d.in.*slot.field = d.pred(q);
        break;
      case Slot::DST_PRED:
        d.in.*slot.field = d.destination(pair ? q.parts[0] : q, width);
        d.in.pred_dst = pair ? d.pred(q.parts[1]) : NO_SLOT;
        break;
      case Slot::PRED_PAIR:
        d.in.pred_dst = d.pred(pair ? q.parts[0] : q);
        d.in.pred_dst2 = pair ? d.pred(q.parts[1]) : NO_SLOT;
        break;
      case Slot::ADDRESS:
      case Slot::SKIP:
        break;
    }
  }

  std::map<std::string, std::vector<Row>> rows_;
};

}  // namespace ptxsim
