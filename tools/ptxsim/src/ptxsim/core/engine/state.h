// The state of warps, blocks and workers while a kernel runs.
#pragma once
#include <array>
#include <atomic>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "engine/program.h"

namespace ptxsim {

constexpr int MAX_WARPS = 64;  // of a block, and the length of a vector clock
constexpr u32 ALL_LANES = ~0u;
constexpr u32 CLUSTER_BARRIER = 16;  // index in Block::barriers

struct SimError {
  Finding finding;
};

// State bits of a byte of shared memory
namespace SharedState {
enum : u8 { UNINITIALISED = 0, INITIALISED = 1, RED_ZONE = 2, IN_FLIGHT = 4 };
}

// Last accesses to one granule of shared memory. Clocks are those of the accessing warp.
struct Shadow {
  u32 write_clock, write_pc, read_clock, read_pc;  // read_clock indexes Block::reader_clocks with MANY_WARPS
  u8 write_warp, read_warp, write_atomic, write_lane, read_lane;
  u32 write_epoch, read_epoch;
  static constexpr u8 MANY_WARPS = 255, MANY_LANES = 255;
};
struct AsyncCopy {
  u32 dst;
  u8 size, lane;
  u32 group;
  u8 data[16];
  int pc;
};
struct LaneGroup {
  int pc;
  u32 mask;
  bool waiting;  // at a warp-synchronous instruction or a barrier
};

struct Block;
struct Worker;
struct Warp {
  enum State { RUNNING, AT_BARRIER, DONE };
  u8* regs;
  u32* preds;
  u32 mask = 0;                           // lanes that execute the current instruction
  u32 current = 0, live = 0, exists = 0;  // lanes of the running group, lanes that have not exited, lanes with a thread
  int pc = 0, id = 0;
  int num_groups = 0, min_other_pc = INT32_MAX;  // groups that do not run now
  LaneGroup groups[32];
  u32 carry = 0;
  State state = RUNNING;
  int barrier_id = -1, barrier_pc = -1;
  Block* block = nullptr;
  Worker* worker = nullptr;
  InstructionStats* stats = nullptr;
  u8* local = nullptr;
  u64 local_size = 0;
  u32 clock[MAX_WARPS] = {0}, epoch = 1;  // vector clock; number of this warp's __syncwarps and barriers
  std::vector<AsyncCopy> pending_copies;
  u32 copy_group[32] = {0};
  std::vector<u8> storage;  // of regs, preds and local

  template <class T>
  T* lanes(int slot) const {
    return reinterpret_cast<T*>(regs + slot);
  }
  const int* slots(const Instruction& in) const;
};

struct Barrier {
  u32 arrived = 0;  // threads, counted in whole warps
  u32 warps = 0;
  u32 expected = 0;
  bool explicit_count = false;
  int pc = -1, first_warp = -1;
  u64 waiting = 0;
  u32 clock[MAX_WARPS] = {0};
  u32 count = 0, all = 1, any = 0;  // of the predicates of bar.red
};
struct BulkCopy {
  u32 dst, size;
  std::vector<u8> data;
};
struct MemoryBarrier {
  u32 expected = 0, pending = 0;
  i64 bytes = 0;  // expected and not yet delivered
  u32 phase = 0;
  u32 clock[MAX_WARPS] = {0}, released[MAX_WARPS] = {0};
  std::vector<BulkCopy> copies;
};

struct Block {
  std::map<u32, MemoryBarrier> mbarriers;
  u32 index[3];
  u64 linear;
  int num_warps = 0;
  u32 num_threads = 0;
  std::vector<Warp> warps;
  std::vector<u8> shared, shared_state;
  std::vector<Shadow> shadow;
  std::vector<std::array<u32, MAX_WARPS>> reader_clocks;
  Barrier barriers[17];  // 16 of the block, one for a cluster of one block
  const LaunchConfig* launch = nullptr;
  bool exit_warned = false;
};

struct Worker {  // one host thread
  const Program* program;
  LaunchConfig* launch;
  std::vector<InstructionStats> stats;
  std::map<std::array<int, 3>, Finding> findings;  // by kind, pc, other_pc
  Allocation last_allocation{0, 0, nullptr, 0};
  u64 instructions = 0;
  std::string output;
  u64 rng = 0;
};

inline const int* Warp::slots(const Instruction& in) const { return &worker->program->slot_lists[in.first_slot]; }

inline std::mutex g_atomic_lock;
inline std::atomic<u64> g_instructions;
inline std::atomic<bool> g_stop;

// Calls body(lane) for every lane of the mask. Full masks get a loop that vectorises.
template <class Body>
__attribute__((always_inline)) inline void for_lanes(u32 mask, Body body) {
  if (mask == ALL_LANES) {
    _Pragma("GCC ivdep") for (int l = 0; l < 32; l++) body(l);
  } else {
    for (int l = 0; l < 32; l++)
      if (mask >> l & 1) body(l);
  }
}
inline u32 predicate(const Warp& warp, int code) {
  u32 value = warp.preds[code >> 1];
  return code & 1 ? ~value : value;
}
inline void set_predicate(Warp& warp, int code, u32 value) {
  if (code == NO_SLOT) return;
  u32& p = warp.preds[code >> 1];
  p = (p & ~warp.mask) | (value & warp.mask);
}
inline void join_clock(u32* clock, const u32* other, int num_warps) {
  for (int k = 0; k < num_warps; k++)
    if (other[k] > clock[k]) clock[k] = other[k];
}

}  // namespace ptxsim
