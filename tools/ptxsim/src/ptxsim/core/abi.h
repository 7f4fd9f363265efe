// Structs that Python and the core share. abi.py mirrors them, and compares every size and offset with
// ptxsim_layout() when it loads the core.
#pragma once
#include <cstddef>
#include <cstdint>

#include "../layout.h"

namespace ptxsim {

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using i8 = int8_t;
using i16 = int16_t;
using i32 = int32_t;
using i64 = int64_t;

// The order is that of KINDS in abi.py.
enum class Kind : i32 {
  NONE,
  OUT_OF_BOUNDS,
  MISALIGNED,
  UNINITIALISED_SHARED,
  RACE,
  BARRIER,
  BARRIER_AFTER_EXIT,
  BARRIER_MISMATCH,
  SHUFFLE,
  WARP_SYNC,
  UNSUPPORTED,
  TRAP,
  INSTRUCTION_LIMIT,
  READ_ONLY,
  ASYNC_IN_FLIGHT,
  OTHER,
  WARP_RACE,
  COUNT,
};
enum class Level : u8 { OFF, WARN, RAISE };  // what a finding of a kind leads to

// Operands as parser.py encodes them: (kind, value, detail).
enum class OperandKind : i32 {
  REG,    // register number
  PRED,   // predicate number, 1 if negated
  INT,    // value
  F32,    // bits
  F64,    // bits
  SREG,   // number of the special register's name
  MEM,    // base register or -1, offset
  VEC,    // number of operands that follow
  LABEL,  // instruction number
  SINK,   // "_"
  PAIR,   // d|p: two operands follow
  COUNT,
};

struct Allocation {
  u64 base, size;  // device address, bytes
  u8* host;
  u64 flags;
  static constexpr u64 READ_ONLY = 1;
};

struct InstructionStats {
  u64 warp_exec, thread_exec, divergent;
  u64 accesses, bytes, sectors, min_sectors, wavefronts, min_wavefronts, max_degree;
};

struct Finding {
  Kind kind;
  i32 pc, other_pc;  // other_pc: the other side of a race, or -1
  i32 unused;
  i32 block[3], thread[3];
  u64 address, count;
  char message[232];
};

struct LaunchConfig {
  u32 grid[3], block[3];
  u8* params;
  u64 params_size;
  u64 shared_size;
  const u8* shared_state;  // initial SharedState of every byte
  u64 dynamic_shared, user_shared;
  u64 local_size;
  const Allocation* allocations;  // by address
  u64 num_allocations;
  Level check_levels[32];  // by Kind
  u64 max_instructions;    // warp instructions of all blocks together
  u64 quantum;             // warp instructions before another warp has its turn
  u64 seed;
  u64 grid_barrier;  // device address of a cooperative launch's barrier words, or 0
  i32 workers, resident, schedule, race, metrics, granule_log2, max_findings, print;
  InstructionStats* stats;  // one per instruction
  Finding* findings;
  i32 num_findings;
  i32 failed;
  Finding error;
  u64 warp_instructions;
  char* output;  // of printf
  u64 output_capacity, output_size;
};

inline constexpr Layout LAYOUT[] = {
    {"Kind", 0, u64(Kind::COUNT)},
    {"OperandKind", 0, u64(OperandKind::COUNT)},
    PTXSIM_STRUCT(Allocation),
    PTXSIM_FIELD(Allocation, base),
    PTXSIM_FIELD(Allocation, size),
    PTXSIM_FIELD(Allocation, host),
    PTXSIM_FIELD(Allocation, flags),
    PTXSIM_STRUCT(InstructionStats),
    PTXSIM_FIELD(InstructionStats, warp_exec),
    PTXSIM_FIELD(InstructionStats, thread_exec),
    PTXSIM_FIELD(InstructionStats, divergent),
    PTXSIM_FIELD(InstructionStats, accesses),
    PTXSIM_FIELD(InstructionStats, bytes),
    PTXSIM_FIELD(InstructionStats, sectors),
    PTXSIM_FIELD(InstructionStats, min_sectors),
    PTXSIM_FIELD(InstructionStats, wavefronts),
    PTXSIM_FIELD(InstructionStats, min_wavefronts),
    PTXSIM_FIELD(InstructionStats, max_degree),
    PTXSIM_STRUCT(Finding),
    PTXSIM_FIELD(Finding, kind),
    PTXSIM_FIELD(Finding, pc),
    PTXSIM_FIELD(Finding, other_pc),
    PTXSIM_FIELD(Finding, unused),
    PTXSIM_FIELD(Finding, block),
    PTXSIM_FIELD(Finding, thread),
    PTXSIM_FIELD(Finding, address),
    PTXSIM_FIELD(Finding, count),
    PTXSIM_FIELD(Finding, message),
    PTXSIM_STRUCT(LaunchConfig),
    PTXSIM_FIELD(LaunchConfig, grid),
    PTXSIM_FIELD(LaunchConfig, block),
    PTXSIM_FIELD(LaunchConfig, params),
    PTXSIM_FIELD(LaunchConfig, params_size),
    PTXSIM_FIELD(LaunchConfig, shared_size),
    PTXSIM_FIELD(LaunchConfig, shared_state),
    PTXSIM_FIELD(LaunchConfig, dynamic_shared),
    PTXSIM_FIELD(LaunchConfig, user_shared),
    PTXSIM_FIELD(LaunchConfig, local_size),
    PTXSIM_FIELD(LaunchConfig, allocations),
    PTXSIM_FIELD(LaunchConfig, num_allocations),
    PTXSIM_FIELD(LaunchConfig, check_levels),
    PTXSIM_FIELD(LaunchConfig, max_instructions),
    PTXSIM_FIELD(LaunchConfig, quantum),
    PTXSIM_FIELD(LaunchConfig, seed),
    PTXSIM_FIELD(LaunchConfig, grid_barrier),
    PTXSIM_FIELD(LaunchConfig, workers),
    PTXSIM_FIELD(LaunchConfig, resident),
    PTXSIM_FIELD(LaunchConfig, schedule),
    PTXSIM_FIELD(LaunchConfig, race),
    PTXSIM_FIELD(LaunchConfig, metrics),
    PTXSIM_FIELD(LaunchConfig, granule_log2),
    PTXSIM_FIELD(LaunchConfig, max_findings),
    PTXSIM_FIELD(LaunchConfig, print),
    PTXSIM_FIELD(LaunchConfig, stats),
    PTXSIM_FIELD(LaunchConfig, findings),
    PTXSIM_FIELD(LaunchConfig, num_findings),
    PTXSIM_FIELD(LaunchConfig, failed),
    PTXSIM_FIELD(LaunchConfig, error),
    PTXSIM_FIELD(LaunchConfig, warp_instructions),
    PTXSIM_FIELD(LaunchConfig, output),
    PTXSIM_FIELD(LaunchConfig, output_capacity),
    PTXSIM_FIELD(LaunchConfig, output_size),
};

}  // namespace ptxsim
