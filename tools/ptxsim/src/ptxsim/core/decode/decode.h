// PTX instructions as parser.py encodes them, decoded to a Program.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "decode/convert.h"
#include "decode/float.h"
#include "decode/flow.h"
#include "decode/integer.h"
#include "decode/matrix.h"
#include "decode/memory.h"
#include "decode/moves.h"

namespace ptxsim {

inline const Table& decode_table() {
  static const Table table = [] {
    Table t;
    add_control_flow(t);
    add_barriers(t);
    add_lane_communication(t);
    add_accesses(t);
    add_mbarriers(t);
    add_copies(t);
    add_matrix_operations(t);
    add_moves(t);
    add_comparisons(t);
    add_conversions(t);
    add_float_arithmetic(t);
    add_float_min_max(t);
    add_half_arithmetic(t);
    add_float_tests(t);
    add_bit_operations(t);
    add_integer_arithmetic(t);
    add_24_bit_products(t);
    add_packed_arithmetic(t);
    return t;
  }();
  return table;
}

// A kernel in the arrays of parser.py.
struct EncodedKernel {
  const char *opcodes, *special_registers;  // names, one a line
  int num_instructions;
  const i32 *opcode, *guard;  // by instruction: line of opcodes; 2 * predicate + negated, or -1
  const i32* first_operand;   // by instruction, and the end
  const i64* operands;        // (kind, value, detail)
  int num_registers;
  const u8* register_width;  // bytes
  int num_predicates;
};

inline Operand read_operand(const i64*& p) {
  Operand q{OperandKind(p[0]), p[1], p[2], {}};
  p += 3;
  int num_parts = q.kind == OperandKind::VEC ? int(q.value) : q.kind == OperandKind::PAIR ? 2 : 0;
  for (int k = 0; k < num_parts; k++) q.parts.push_back(read_operand(p));
  return q;
}
// Instructions that are not supported become Control::UNSUPPORTED, with the reason in Program::unsupported.
inline std::unique_ptr<Program> decode(const EncodedKernel& kernel) {
  auto program = std::make_unique<Program>();
  std::vector<std::string> opcodes = Table::split(kernel.opcodes, '\n');
  std::vector<std::vector<std::string>> parts;
  for (const std::string& opcode : opcodes) parts.push_back(Table::split(opcode));
  program->special_names = Table::split(kernel.special_registers, '\n');
  program->num_preds = kernel.num_predicates;
  program->reg_width.assign(kernel.register_width, kernel.register_width + kernel.num_registers);
  int bytes = 0;
  for (u8 width : program->reg_width) {
    program->reg_slot.push_back(bytes);
    bytes += 32 * width;
  }
  program->register_bytes = (bytes + 63) & ~63;
  program->unsupported.resize(kernel.num_instructions + 1);
  for (int pc = 0; pc < kernel.num_instructions; pc++) {
    Decoder d(*program);
    d.parts = parts[kernel.opcode[pc]];
    for (size_t k = 1; k < d.parts.size(); k++)
      if (Type t = type_named(d.parts[k]); t != Type::NONE) d.types.push_back(t);
    const i64 *p = kernel.operands + 3 * kernel.first_operand[pc],
              *end = kernel.operands + 3 * kernel.first_operand[pc + 1];
    while (p < end) d.operands.push_back(read_operand(p));
    try {
      decode_table().decode(d);
    } catch (const Unsupported& u) {
      d.in = {};
      d.in.control = Control::UNSUPPORTED;
      program->unsupported[pc] = opcodes[kernel.opcode[pc]] + " (" + u.why + ")";
    }
    d.in.pc = pc;
    if (kernel.guard[pc] >= 0) d.in.guard = kernel.guard[pc] + 2 * Decoder::FIRST_PREDICATE;
    program->code.push_back(d.in);
  }
  Instruction end;
  end.control = Control::EXIT;
  end.pc = kernel.num_instructions;
  program->code.push_back(end);
  return program;
}

}  // namespace ptxsim
