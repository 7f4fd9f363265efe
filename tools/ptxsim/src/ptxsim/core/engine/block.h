// Blocks: initial state, and turns of their warps.
#pragma once
#include <string>

#include "engine/warp_run.h"

namespace ptxsim {

namespace Schedule {
enum : i32 { FORWARD, REVERSE, RANDOM };
}
constexpr u8 GARBAGE = 0xCB;  // uninitialised shared and local memory

inline void start_block(Block& block, u64 linear, const Program& program, LaunchConfig* launch, Worker* worker) {
  block.launch = launch;
  block.linear = linear;
  block.index[0] = linear % launch->grid[0];
  block.index[1] = linear / launch->grid[0] % launch->grid[1];
  block.index[2] = linear / launch->grid[0] / launch->grid[1];
  block.num_threads = launch->block[0] * launch->block[1] * launch->block[2];
  block.num_warps = (block.num_threads + 31) / 32;
  block.exit_warned = false;
  block.shared.resize(launch->shared_size + 16);
  block.shared_state.resize(launch->shared_size + 16);
  memset(block.shared.data(), GARBAGE, block.shared.size());
  if (launch->shared_size) memcpy(block.shared_state.data(), launch->shared_state, launch->shared_size);
  if (launch->race) {
    block.shadow.resize((launch->shared_size >> launch->granule_log2) + 2);
    memset(block.shadow.data(), 0, block.shadow.size() * sizeof(Shadow));
    block.reader_clocks.clear();
  }
  for (auto& barrier : block.barriers) barrier = Barrier();
  block.mbarriers.clear();
  if ((int)block.warps.size() != block.num_warps) block.warps = std::vector<Warp>(block.num_warps);
  size_t total = program.register_bytes + program.constants.size(), pb = (size_t)(program.num_preds + 2) * 4;
  for (int k = 0; k < block.num_warps; k++) {
    Warp& warp = block.warps[k];
    size_t need = 64 + ((total + 63) & ~63ull) + ((pb + 63) & ~63ull) + 32 * launch->local_size + 64;
    if (warp.storage.size() != need) warp.storage.resize(need);
    u8* p = (u8*)(((uintptr_t)warp.storage.data() + 63) & ~(uintptr_t)63);
    warp.regs = p;
    warp.preds = (u32*)(p + ((total + 63) & ~63ull));
    warp.local = (u8*)warp.preds + ((pb + 63) & ~63ull);
    warp.local_size = launch->local_size;
    memset(warp.regs, 0, program.register_bytes);
    if (program.constants.size())
      memcpy(warp.regs + program.register_bytes, program.constants.data(), program.constants.size());
    memset(warp.preds, 0, pb);
    warp.preds[1] = ~0u;
    if (warp.local_size) memset(warp.local, GARBAGE, 32 * warp.local_size);
    u32 left = block.num_threads - k * 32;
    warp.exists = left >= 32 ? ~0u : (1u << left) - 1;
    warp.live = warp.current = warp.exists;
    warp.pc = 0;
    warp.id = k;
    warp.num_groups = 0;
    warp.min_other_pc = INT32_MAX;
    warp.carry = 0;
    warp.state = Warp::RUNNING;
    warp.barrier_id = -1;
    warp.block = &block;
    warp.worker = worker;
    warp.stats = worker->stats.data();
    memset(warp.clock, 0, sizeof warp.clock);
    warp.clock[k] = 1;
    warp.pending_copies.clear();
    memset(warp.copy_group, 0, sizeof warp.copy_group);
    for (auto& s : program.special)
      for (int l = 0; l < 32; l++) {
        u64 v = s.value(block, warp, l);
        memcpy(warp.regs + s.slot + l * s.width, &v, s.width);
      }
  }
}
inline u64 next_random(u64& s) {  // xorshift
  s ^= s << 13;
  s ^= s >> 7;
  s ^= s << 17;
  return s;
}
[[noreturn]] inline void fail_deadlock(Block& block, int num_done) {
  std::string waiting;
  Warp* first = nullptr;
  for (Warp& warp : block.warps)
    if (warp.state == Warp::AT_BARRIER) {
      char text[80];
      snprintf(text, sizeof text, "%swarp %d at barrier %d (instr #%d)", waiting.empty() ? "" : ", ", warp.id,
               warp.barrier_id, warp.barrier_pc);
      if (waiting.size() < 130) waiting += text;
      if (!first) first = &warp;
    }
  fail(*first, Kind::BARRIER, first->barrier_pc, __builtin_ctz(first->current), 0,
       "barrier deadlock (%d of %d warps have exited): %s", num_done, block.num_warps, waiting.c_str());
}
// One turn for every warp of the block. Returns true when the block is finished.
inline bool turn(Block& block, Worker& worker) {
  const LaunchConfig& launch = *block.launch;
  int order[MAX_WARPS];
  for (int k = 0; k < block.num_warps; k++)
    order[k] = launch.schedule == Schedule::REVERSE ? block.num_warps - 1 - k : k;
  if (launch.schedule == Schedule::RANDOM)
    for (int k = block.num_warps - 1; k > 0; k--) std::swap(order[k], order[next_random(worker.rng) % (k + 1)]);
  bool progress = false;
  for (int k = 0; k < block.num_warps; k++) {
    Warp& warp = block.warps[order[k]];
    if (warp.state != Warp::RUNNING) continue;
    progress = true;
    u64 before = worker.instructions;
    run_warp(warp, launch.schedule == Schedule::RANDOM ? 1 + next_random(worker.rng) % 64 : launch.quantum);
    u64 executed = worker.instructions - before;
    if (g_instructions.fetch_add(executed) + executed > launch.max_instructions)
      fail(warp, Kind::INSTRUCTION_LIMIT, warp.pc, 0, 0,
           "instruction limit of %llu warp instructions exceeded (endless loop?)", ull(launch.max_instructions));
  }
  int num_done = 0;
  for (const Warp& warp : block.warps) num_done += warp.state == Warp::DONE;
  if (num_done == block.num_warps) return true;
  if (!progress) fail_deadlock(block, num_done);
  return false;
}

}  // namespace ptxsim
