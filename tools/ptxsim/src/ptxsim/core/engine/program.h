// A decoded kernel: one Instruction for every PTX instruction.
#pragma once
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "isa/types.h"

namespace ptxsim {

struct Block;
struct Warp;
struct Instruction;
using Handler = void (*)(Warp&, const Instruction&);

// What the scheduler does with an instruction.
enum class Control : u8 {
  NORMAL,  // call the handler with the lanes whose guard holds
  BRANCH,
  BRANCH_TABLE,  // brx.idx
  EXIT,
  BLOCK_BARRIER,
  WARP_SYNC,  // wait until all live lanes of the member mask are here, then call the handler
  TRAP,
  UNSUPPORTED,
  YIELD,  // call the handler, then let other warps run: spin-wait instructions
};
enum class Space : u8 { GENERIC, GLOBAL, SHARED, LOCAL, PARAM, CONST };
enum class Rounding : u8 { NEAREST, ZERO, DOWN, UP, AWAY };

// `operation` of a family of instructions
namespace AtomicOp {
enum : u8 { ADD, MIN, MAX, AND, OR, XOR, EXCH, CAS, INC, DEC };
}
namespace FloatOp {
enum : u8 { ADD, SUB, MUL, FMA, DIV, RCP, SQRT };
}
namespace HalfOp {
enum : u8 { NEG, ABS, EX2, TANH };
}
namespace Compare {
enum : u8 { EQ, NE, LT, LE, GT, GE, EQU, NEU, LTU, LEU, GTU, GEU, NUM, NOTNUM };
}
namespace BoolOp {
enum : u8 { NONE, AND, OR, XOR, NOT, MOVE };
}
namespace Shuffle {
enum : u8 { UP, DOWN, BFLY, IDX };
}
namespace Vote {
enum : u8 { ALL, ANY, UNI, BALLOT };
}
namespace TestOp {
enum : u8 { FINITE, INFINITE, NUMBER, NOTANUMBER, NORMAL, SUBNORMAL };
}
namespace MbarrierOp {
enum : u8 { INIT, INVAL, EXPECT, ARRIVE, ARRIVE_TX, DROP, TEST, PARITY, COMPLETE, COPY_ARRIVE };
}
namespace BarrierOp {
enum : u8 { SYNC, ARRIVE, REDUCE };
}

// What only one family of instructions needs.
struct ConvertSpec {
  enum : u8 { KEEP, ROUND, TRUNCATE, FLOOR, CEIL };
  Type dst, src;
  u8 to_integer;  // rounds the value to an integer first
  bool relu, finite;
};
struct MmaSpec {
  u8 m, k;
  Type a, b, c, d;
  bool signed_a, signed_b;
};
struct WmmaSpec {
  u8 m, n, k;
  Type ab, c, d;
  u8 regs_a, regs_b, regs_c, regs_d;  // registers per lane
};
struct FragmentSpec {
  u8 rows, cols;
  bool column_major, store;
};
struct MatrixSpec {
  bool transposed, store;
};
struct CopySpec {  // cp.async
  int source;      // slot of the source address, or NO_SLOT
  int offset;
  u8 source_width;
};
struct BulkSpec {  // cp.async.bulk
  bool to_global;
};
struct BarrierSpec {
  enum : u8 { NONE, COUNT, ALL, ANY };
  u8 reduction;
  bool cluster;
};
struct MbarrierSpec {
  bool no_increment;
};
struct CarrySpec {
  enum : u8 { NONE, LOW, HIGH };
  u8 product;  // which half of src0 * src1 is added to src2
  bool subtract, use, set;
};
struct MinMaxSpec {
  bool maximum, nan, xorsign;
};
struct PairCompareSpec {  // comparison of two packed values
  enum : u8 { PREDICATES, SAME_TYPE, MASK };
  u8 comparison, result;
};
struct SignSpec {
  bool a, b;
};

constexpr int NO_SLOT = -1;

struct Instruction {
  Handler handler = nullptr;
  // Slots: byte offsets of a register's 32 lanes in the warp's register file.
  int dst = NO_SLOT, src0 = NO_SLOT, src1 = NO_SLOT, src2 = NO_SLOT, src3 = NO_SLOT;
  int member_mask = NO_SLOT;  // of WARP_SYNC
  // Predicates: 2 * number, plus 1 if negated.
  int guard = NO_SLOT;
  int pred_dst = NO_SLOT, pred_dst2 = NO_SLOT, pred_a = NO_SLOT, pred_b = NO_SLOT, pred_c = NO_SLOT;
  int target = -1;  // of a branch
  int pc = 0;
  int first_slot = 0, num_slots = 0;  // slice of Program::slot_lists: registers of a vector or a fragment
  i64 immediate = 0;                  // offset of an address, or a constant
  union {
    ConvertSpec convert;
    MmaSpec mma;
    WmmaSpec wmma;
    FragmentSpec fragment;
    MatrixSpec matrix;
    CopySpec copy = {};
    BulkSpec bulk;
    BarrierSpec barrier;
    MbarrierSpec mbarrier;
    CarrySpec carry;
    MinMaxSpec minmax;
    PairCompareSpec pair;
    SignSpec signs;
  };
  Control control = Control::NORMAL;
  Space space = Space::GENERIC;
  Type type = Type::NONE;
  Rounding rounding = Rounding::NEAREST;
  u8 operation = 0;
  u8 size = 0, vector = 1;  // bytes of one element in memory, number of elements
  u8 reg_width = 0;         // bytes of the register of an element
  u8 address_width = 8;
  u8 saturate = 0;  // 1 to [0, 1] or the type's range, 2 relu
  bool is_signed = false, flush = false;
  bool whole_warp = false;  // WARP_SYNC that all 32 lanes have to execute
};

using SpecialValue = u64 (*)(const Block&, const Warp&, int lane);
struct SpecialRegister {
  SpecialValue value;
  int slot, width;
};

struct Program {
  std::vector<Instruction> code;
  std::vector<int> slot_lists;
  std::vector<int> reg_slot;  // by register number
  std::vector<u8> reg_width;
  int num_preds = 0, register_bytes = 0;
  std::vector<u8> constants;  // contents of the register file from register_bytes on
  std::vector<SpecialRegister> special;
  std::vector<std::string> special_names;
  std::vector<std::string> unsupported;  // by instruction, empty if supported

  std::map<std::pair<u64, int>, int> constant_slots;  // (value, width) -> slot
  std::map<std::pair<int, int>, int> special_slots;   // (name, width) -> slot
  int sink_slot = NO_SLOT;
};

}  // namespace ptxsim
