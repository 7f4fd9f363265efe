// One PTX instruction while it is decoded: the parts of its opcode, its operands, and the Instruction to fill.
#pragma once
#include <algorithm>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "engine/special_registers.h"
#include "isa/floats.h"

namespace ptxsim {

struct Operand {
  OperandKind kind;
  i64 value, detail;
  std::vector<Operand> parts;  // of VEC and PAIR
};
struct Unsupported {
  std::string why;
};

class Decoder {
 public:
  Instruction in;
  Program& program;
  std::vector<std::string> parts;  // of the opcode, the first is its name
  std::vector<Type> types;         // those among the parts
  std::vector<Operand> operands;

  explicit Decoder(Program& p) : program(p) {}
  [[noreturn]] static void reject(const char* why) { throw Unsupported{why}; }

  // ---- the opcode
  bool has(const char* part) const { return std::find(parts.begin() + 1, parts.end(), part) != parts.end(); }
  Type type(size_t k) const { return k < types.size() ? types[k] : Type::NONE; }
  Type last_type() const { return types.empty() ? Type::NONE : types.back(); }
  // The value of the first of these parts that the opcode has.
  template <class T>
  T choose(std::initializer_list<std::pair<const char*, T>> choices, T otherwise) const {
    for (const auto& [part, value] : choices)
      if (has(part)) return value;
    return otherwise;
  }
  Rounding rounding() const {
    return choose<Rounding>(
        {{"rz", Rounding::ZERO}, {"rm", Rounding::DOWN}, {"rp", Rounding::UP}, {"rna", Rounding::AWAY}},
        Rounding::NEAREST);
  }
  u8 vector_length() const { return choose<u8>({{"v2", 2}, {"v4", 4}, {"v8", 8}}, 1); }
  Space space() const {
    if (has("global")) return Space::GLOBAL;
    for (size_t k = 1; k < parts.size(); k++) {
      if (parts[k].starts_with("shared")) return Space::SHARED;
      if (parts[k] == "local") return Space::LOCAL;
      if (parts[k].starts_with("param")) return Space::PARAM;
      if (parts[k] == "const") return Space::CONST;
    }
    return Space::GENERIC;
  }
  u8 atomic_operation() const {
    using namespace AtomicOp;
    u8 op = choose<u8>({{"add", ADD},
                        {"min", MIN},
                        {"max", MAX},
                        {"and", AND},
                        {"or", OR},
                        {"xor", XOR},
                        {"exch", EXCH},
                        {"cas", CAS},
                        {"inc", INC},
                        {"dec", DEC}},
                       255);
    if (op == 255) reject("atomic operation");
    return op;
  }
  struct Shape {
    int m = 0, n = 0, k = 0;
  };
  Shape shape() const {  // of mma and wmma: m16n8k16
    Shape s;
    for (const std::string& part : parts)
      if (sscanf(part.c_str(), "m%dn%dk%d", &s.m, &s.n, &s.k) == 3) break;
    return s;
  }

  // ---- operands
  const Operand& operand(size_t k) const {
    if (k >= operands.size()) reject("missing operand");
    return operands[k];
  }
  std::vector<Operand> vector_of(size_t k) const {
    const Operand& q = operand(k);
    return q.kind == OperandKind::VEC ? q.parts : std::vector<Operand>{q};
  }
  // The width of a register operand in bytes, or `otherwise`.
  int width_of(const Operand& q, int otherwise) const {
    return q.kind == OperandKind::REG ? int(program.reg_width[q.value]) : otherwise;
  }
  // The slot of a source of `width` bytes: a register, or a constant that every lane has.
  int source(const Operand& q, int width) {
    switch (q.kind) {
      case OperandKind::REG:
        if (program.reg_width[q.value] != width) reject("register width does not fit the operand");
        return program.reg_slot[q.value];
      case OperandKind::INT:
        return constant(u64(q.value), width);
      case OperandKind::F32:
        if (width == 4) return constant(u64(q.value), 4);
        if (width == 8) return constant(bits_of_double(float_of_bits(u32(q.value))), 8);
        reject("f32 literal");
      case OperandKind::F64:
        if (width == 8) return constant(u64(q.value), 8);
        if (width == 4) return constant(bits_of_float(float(double_of_bits(u64(q.value)))), 4);
        reject("f64 literal");
      case OperandKind::SREG:
        return special_register_slot(int(q.value), width);
      case OperandKind::SINK:
        return sink();
      default:
        reject("operand kind");
    }
  }
  int source(size_t k, int width) { return source(operand(k), width); }
  int destination(const Operand& q, int width) {
    if (q.kind == OperandKind::SINK) return sink();
    if (q.kind != OperandKind::REG) reject("destination");
    if (program.reg_width[q.value] != width) reject("destination register width");
    return program.reg_slot[q.value];
  }
  int destination(size_t k, int width) { return destination(operand(k), width); }
  int pred(const Operand& q) const {
    switch (q.kind) {
      case OperandKind::PRED:
        return int(q.value + FIRST_PREDICATE) * 2 + int(q.detail);
      case OperandKind::INT:
        return q.value ? 2 * ALWAYS_TRUE : 2 * ALWAYS_FALSE;
      case OperandKind::SINK:
        return NO_SLOT;
      default:
        reject("predicate operand");
    }
  }
  int pred(size_t k) const { return pred(operand(k)); }
  // [register + offset] or [constant]: into src0, address_width and immediate.
  void address(size_t k) {
    if (k >= operands.size() || operands[k].kind != OperandKind::MEM) reject("memory operand");
    const Operand& q = operands[k];
    in.immediate = q.detail;
    in.src0 = q.value < 0 ? NO_SLOT : program.reg_slot[q.value];
    in.address_width = q.value < 0 ? 8 : program.reg_width[q.value];
  }
  void slot_list(const std::vector<int>& slots) {
    in.first_slot = int(program.slot_lists.size());
    in.num_slots = int(slots.size());
    program.slot_lists.insert(program.slot_lists.end(), slots.begin(), slots.end());
  }
  void append_registers(std::vector<int>& slots, size_t k, int width, bool destinations) {
    for (const Operand& q : vector_of(k)) slots.push_back(destinations ? destination(q, width) : source(q, width));
  }

  // ---- slots that are not registers
  int constant(u64 value, int width) {
    if (width < 8) value &= (1ull << (8 * width)) - 1;
    auto [it, fresh] = program.constant_slots.try_emplace({value, width}, 0);
    if (fresh) {
      it->second = new_slot(32 * width);
      for (int l = 0; l < 32; l++)
        memcpy(&program.constants[it->second - program.register_bytes + l * width], &value, width);
    }
    return it->second;
  }
  int sink() {
    if (program.sink_slot == NO_SLOT) program.sink_slot = new_slot(32 * 16);
    return program.sink_slot;
  }

  static constexpr int ALWAYS_FALSE = 0, ALWAYS_TRUE = 1, FIRST_PREDICATE = 2;  // predicate numbers

 private:
  int new_slot(int bytes) {
    int slot = program.register_bytes + int(program.constants.size());
    program.constants.resize(program.constants.size() + bytes, 0);
    return slot;
  }
  int special_register_slot(int name, int width) {
    auto [it, fresh] = program.special_slots.try_emplace({name, width}, 0);
    if (fresh) {
      it->second = new_slot(32 * width);
      program.special.push_back({special_value(program.special_names[name]), it->second, width});
    }
    return it->second;
  }
};

}  // namespace ptxsim
